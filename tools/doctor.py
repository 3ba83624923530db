"""`alexshard doctor`: what is installed, whether it serves, and what to do where it does not."""

from __future__ import annotations

import importlib
import os
import platform
import re
import shutil
import sys
from collections.abc import Callable
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

OK, NOTE, PROBLEM = "ok", "note", "problem"  # serves; serves, but could do better; does not serve

# 1,261,406 training images of ILSVRC2010 as 256×256 JPEGs of quality 90, which come to about 24 kB each.
FULL_SET_BYTES = 35e9

_DALI_COMMAND = "pip install nvidia-dali-cuda130"
_COMPILE = "have a C compiler, then pip install --no-deps --force-reinstall --editable . in the clone of alexshard"

# VPMADDWD on 256-bit registers: the instruction at the heart of pillow-simd's resampling when it is built for AVX2
# (two-byte VEX prefix with L = 1 and pp = 01, opcode F5). Pillow's own wheels hold none, a build for SSE4 none.
_VPMADDWD_YMM = re.compile(b"\xc5[" + b"".join(b"\\x%02x" % b for b in range(256) if b & 7 == 5) + b"]\xf5")
_AVX2_AT_LEAST = 20  # the build for AVX2 has 62; single matches occur by chance


@dataclass(frozen=True, slots=True)
class Finding:
    """One line of the report."""

    about: str
    status: str  # "ok", "note" or "problem"
    found: str
    remedy: str = ""


def examine() -> list[Finding]:
    """Look at everything that alexshard stands on; imports what it examines, torch and DALI included."""
    looks: list[tuple[str, Callable[[], Finding]]] = [
        ("python", _python),
        ("machine", _machine),
        ("numpy", lambda: _package("numpy", "numpy")),
        ("packing", _packing),
        ("loading", _loading),
        ("pillow", _pillow),
        ("simplejpeg", lambda: _package("simplejpeg", "simplejpeg")),
        ("scipy", lambda: _package("scipy", "scipy.io")),
        ("webdataset", lambda: _package("webdataset", "webdataset")),
        ("dali", _dali),
        ("torch", _torch),
        ("gpu", _gpu),
        ("training", _training),
        ("tensorboard", _tensorboard),
        ("dask", lambda: _extra("dask", "distributed", "cluster", "build packs on this machine alone")),
        ("s3fs", lambda: _extra("s3fs", "s3fs", "s3", "nothing is read from s3:// or written there")),
        ("gcsfs", lambda: _extra("gcsfs", "gcsfs", "gcs", "nothing is read from gs:// or written there")),
        ("disk", _disk),
    ]
    return [_safely(about, look) for about, look in looks]


def _safely(about: str, look: Callable[[], Finding]) -> Finding:
    """A library that cannot even be asked is a finding, not a traceback."""
    try:
        return look()
    except Exception as error:  # whatever a broken installation raises
        return Finding(about, PROBLEM, f"broken: {type(error).__name__}: {error}", _reinstall(about))


def _reinstall(name: str) -> str:
    return f"pip install --force-reinstall {name}"


def _python() -> Finding:
    found = f"{platform.python_implementation()} {platform.python_version()} at {sys.executable}"
    return Finding("python", OK, found)


def _machine() -> Finding:
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    cores = len(os.sched_getaffinity(0))
    system = f"{platform.system()} {platform.release()} {platform.machine()}"
    return Finding("machine", OK, f"{system}, {cores} cores, {memory / 2**30:.0f} GiB memory")


def _package(name: str, module: str) -> Finding:
    try:
        installed = version(name)
    except PackageNotFoundError:
        return Finding(name, PROBLEM, "not installed", f"pip install {name}")
    importlib.import_module(module)
    return Finding(name, OK, installed)


def _packing() -> Finding:
    try:
        importlib.import_module("alexshard.tools.packing._square")
    except ImportError:
        found = "its loops in C were not compiled: Pillow and NumPy do the same, packing takes half as long again"
        return Finding("packing", NOTE, found, _COMPILE)
    return Finding("packing", OK, f"loops in C{', AVX2' if _cpu_has_avx2() else ''}")


def _loading() -> Finding:
    try:
        compiled = importlib.import_module("alexshard.pipeline.kernels").AVAILABLE
    except ModuleNotFoundError as error:
        return Finding("loading", PROBLEM, f"{error.name} is not installed", f"pip install {error.name}")
    dali = bool(_dali_builds())
    if compiled and dali:
        found = f"loops in C{', AVX2' if _cpu_has_avx2() else ''}: backend threads on a CPU, dali on a GPU"
        return Finding("loading", OK, found)
    if compiled:
        return Finding("loading", NOTE, "backend threads on a CPU; without DALI none on a GPU", _DALI_COMMAND)
    if dali:
        found = "its loops in C were not compiled: backend dali, which takes longer on a CPU"
        return Finding("loading", NOTE, found, _COMPILE)
    found = "neither loops in C nor DALI: backend reference alone, which is slow"
    return Finding("loading", PROBLEM, found, f"{_DALI_COMMAND}; or {_COMPILE}")


def _pillow() -> Finding:
    import PIL
    from PIL import features

    # pillow-simd is laid over Pillow, so the installed metadata may name either; the module knows.
    simd = ".post" in PIL.__version__
    turbo = features.version_feature("libjpeg_turbo") if features.check_feature("libjpeg_turbo") else None
    decoder = f"libjpeg-turbo {turbo}" if turbo else f"libjpeg {features.version_codec('jpg')} without turbo"
    avx2 = simd and has_avx2_code(Path(str(importlib.import_module("PIL._imaging").__file__)))
    name = f"pillow-simd {PIL.__version__} ({'AVX2' if avx2 else 'SSE4'})" if simd else f"Pillow {PIL.__version__}"
    found = f"{name}, {decoder}"
    if not simd:
        return Finding("pillow", NOTE, f"{found}: works, resizing is slower than pillow-simd's", _simd_command())
    if not avx2 and _cpu_has_avx2():
        return Finding("pillow", NOTE, f"{found}: this processor has AVX2", _simd_command())
    return Finding("pillow", OK, found)


def _simd_command() -> str:
    flag = "CC='cc -mavx2' " if _cpu_has_avx2() else ""
    return f"{flag}pip install --no-deps --force-reinstall --no-binary pillow-simd pillow-simd==12.1.1.post0"


def _cpu_has_avx2() -> bool:
    try:
        return (
            re.search(r"^flags\b.*\bavx2\b", Path("/proc/cpuinfo").read_text("ascii", "replace"), re.M) is not None
        )
    except OSError:
        return False


def has_avx2_code(library: Path) -> bool:
    """Whether a build of Pillow's core holds the resampling loops for AVX2."""
    return len(_VPMADDWD_YMM.findall(library.read_bytes())) >= _AVX2_AT_LEAST


def _dali_builds() -> dict[str, str]:
    """The versions of DALI that are installed, by the extra of ours that brings them."""
    installed = {}
    for extra, package in {"cuda13": "nvidia-dali-cuda130", "cuda12": "nvidia-dali-cuda120"}.items():
        try:
            installed[extra] = version(package)
        except PackageNotFoundError:
            continue
    return installed


def _dali() -> Finding:
    installed = _dali_builds()
    if not installed:
        return Finding("dali", NOTE, "not installed: no batches on a GPU", _DALI_COMMAND)
    found = ", ".join(f"{number} (extra {extra})" for extra, number in installed.items())
    if len(installed) > 1:
        remedy = f"pip uninstall nvidia-dali-cuda120 nvidia-dali-cuda130; {_DALI_COMMAND}"
        return Finding("dali", PROBLEM, f"{found}: both hold the same files, each spoils the other", remedy)
    importlib.import_module("nvidia.dali")
    return Finding("dali", OK, found)


def _torch() -> Finding:
    try:
        installed = version("torch")
    except PackageNotFoundError:
        return Finding("torch", PROBLEM, "not installed; packing works, training does not", "pip install torch")
    torch = importlib.import_module("torch")
    build = f"CUDA {torch.version.cuda}" if torch.version.cuda else "CPU only"
    return Finding("torch", OK, f"{installed}, built for {build}, {torch.get_num_threads()} threads")


def _gpu() -> Finding:
    torch = importlib.import_module("torch")
    if torch.cuda.is_available():
        cards = [torch.cuda.get_device_properties(number) for number in range(torch.cuda.device_count())]
        found = ", ".join(
            f"cuda:{i} {card.name} {card.total_memory / 2**30:.0f} GiB" for i, card in enumerate(cards)
        )
        return Finding("gpu", OK, found)
    if not Path("/proc/driver/nvidia").exists():
        return Finding("gpu", NOTE, "none: everything runs on the processor")
    if torch.version.cuda is None:
        remedy = "install torch's build for CUDA: https://pytorch.org/get-started/locally"
        return Finding("gpu", NOTE, "there is an NVIDIA driver, but torch is built for the CPU only", remedy)
    remedy = "nvidia-smi; torch's CUDA must not be newer than what the driver supports"
    return Finding(
        "gpu", PROBLEM, f"there is an NVIDIA driver, but torch (CUDA {torch.version.cuda}) finds no card", remedy
    )


def _training() -> Finding:
    try:
        trainer = importlib.import_module("alexshard.trainer")
    except ModuleNotFoundError as error:
        return Finding("training", PROBLEM, f"{error.name} is not installed", f"pip install {error.name}")
    torch = importlib.import_module("torch")
    bf16 = "bf16 in the processor's own instructions" if trainer.cores_have_bf16() else "bf16 on fp32 instructions"
    if torch.cuda.is_available() and not trainer.has_kernels(torch.empty(1, device="cuda")):
        found = "no Triton: normalisers on a card take a pass of memory for each of their steps"
        return Finding("training", NOTE, found, "pip install triton")
    if not trainer.has_kernels(torch.empty(1)):
        found = f"its loops in C were not compiled: normalisers take several times as long on the cores; {bf16}"
        return Finding("training", NOTE, found, _COMPILE)
    return Finding("training", OK, f"normalisers in C; {bf16}")


def _tensorboard() -> Finding:
    try:
        return Finding("tensorboard", OK, version("tensorboard"))
    except PackageNotFoundError:
        found = "not installed: runs keep their figures in metrics.jsonl alone"
        return Finding("tensorboard", NOTE, found, "pip install tensorboard")


def _extra(name: str, module: str, extra: str, without: str) -> Finding:
    """A library that only some work asks for."""
    finding = _package(name, module)
    if finding.status == PROBLEM:
        remedy = f"pip install '.[{extra}]' in the clone of alexshard"
        return Finding(name, NOTE, f"not installed: {without}", remedy)
    return finding


def _disk() -> Finding:
    free = shutil.disk_usage(Path.cwd()).free
    found = f"{free / 1e9:.0f} GB free in {Path.cwd()}"
    if free < FULL_SET_BYTES:
        remedy = "give --out a folder on a larger disk"
        return Finding(
            "disk", NOTE, f"{found}; all of ILSVRC2010 packs to about {FULL_SET_BYTES / 1e9:.0f} GB", remedy
        )
    return Finding("disk", OK, found)


def to_text(findings: list[Finding]) -> str:
    """One line a finding; what to do stands on the line below."""
    lines = []
    for finding in findings:
        lines.append(f"{finding.status:8} {finding.about:12} {finding.found}")
        if finding.remedy:
            lines.append(f"{'':21} what to do: {finding.remedy}")
    return "\n".join(lines)
