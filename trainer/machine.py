"""On what a run computes: devices, ranks, threads, versions. Decides a run's speed, and its result's last bits."""

from __future__ import annotations

import ctypes
import gc
import os
import platform
import resource
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any, Literal

import torch

from .. import __version__
from ..pipeline import default_threads
from ..shards import WrongCall
from . import precision
from .ranks import Ranks, under_torchrun

Parallel = Literal["auto", "single", "towers", "ddp"]
_TORCHRUN = "torchrun --nproc-per-node N --no-python alextrain run …"


@dataclass(frozen=True, slots=True)
class Machine:
    """What this rank computes on: one device for the whole network, or two for its towers.

    `threads` are torch's and the loader's; None leaves them, as it leaves the rest, to torch and to `Loader`.
    """

    devices: tuple[torch.device, ...]
    parallel: Literal["single", "towers", "ddp"] = "single"
    ranks: Ranks = field(default_factory=Ranks)
    compiled: bool = False  # the network, by torch.compile
    graphs: bool = True  # the step as a CUDA graph, where it is on one card
    deterministic: bool = False  # the same bits every time, where torch can
    threads: int | None = None
    prefetch: int | None = None
    backend: str | None = None
    decoder: str | None = None

    @classmethod
    def choose(
        cls,
        device: str | None = None,
        *,
        devices: Sequence[str] | None = None,
        parallel: Parallel = "auto",
        ranks: Ranks | None = None,
        compiled: bool = False,
        graphs: bool | None = None,
        deterministic: bool = False,
        threads: int | None = None,
        prefetch: int | None = None,
        backend: str | None = None,
        decoder: str | None = None,
    ) -> Machine:
        """What to compute on, and how.

        Args:
            device: `auto` (the default: a GPU where there is one), `cpu`, `cuda`, `cuda:N`.
            devices: two of them, for the towers.
            parallel: `single`, `towers` on two devices, or `ddp`, data-parallel over `ranks`. `auto`: `ddp` under
                torchrun; `towers` where two devices are named, or none and two GPUs are visible; else `single`.
            ranks: those of torchrun, joined by whoever calls.
            compiled: by torch.compile; not for towers.
            graphs: record steps as CUDA graphs; None: on a single card.
            deterministic: have torch choose ways that give the same bits every time, with a warning where it has
                none, and decode on the cores unless `decoder` names the card. On the cores that is always so.

        The rest is what `Loader` describes under these names.

        Raises:
            WrongCall: a device is not there, or the wishes contradict each other or what there is.
        """
        ranks = ranks or Ranks()
        kind = _kind(device, devices, parallel, ranks)
        if threads is not None and threads < 1:
            raise WrongCall(f"{threads} threads", remedy="give at least 1, or leave --threads out")
        if kind == "towers":
            chosen = tuple(map(_device, devices or _two_devices(device)))
        elif kind == "ddp":
            chosen = (_device_of_rank(device, ranks),)
        else:
            chosen = (_device(device or "auto"),)
        if decoder in ("card", "split") and chosen[0].type == "cpu":
            raise WrongCall(
                f"--decoder {decoder} decodes on a card, and batches go to the cpu",
                remedy="--decoder cores, or leave it out",
            )
        if compiled and kind == "towers":
            raise WrongCall(
                f"--compile with the network as two towers on {' and '.join(map(str, chosen))}",
                why="torch.compile cannot follow what two threads or streams do at once",
                remedy="--parallel single or --device cuda:0 for one device, or leave --compile out",
            )
        if deterministic and chosen[0].type == "cuda":
            if decoder == "split":
                raise WrongCall(
                    "--deterministic with --decoder split",
                    why="which images the card decodes is measured, and it rounds otherwise than the cores",
                    remedy="--decoder cores or card",
                )
            decoder = decoder or "cores"
        one_card = kind == "single" and chosen[0].type == "cuda"
        if graphs and not one_card:
            raise WrongCall(
                "--graphs without a single card",
                why="a CUDA graph is recorded on one card, without towers or other ranks",
                remedy="leave it out",
            )
        return cls(
            chosen,
            kind,
            ranks,
            compiled,
            one_card if graphs is None else graphs,
            deterministic,
            threads,
            prefetch,
            backend,
            decoder,
        )

    @property
    def device(self) -> torch.device:
        """Where batches go and logits come out."""
        return self.devices[0]

    @property
    def loading(self) -> dict[str, Any]:
        """What was asked for of the loader, as its arguments; the loader chooses the rest."""
        asked = {
            "threads": self.threads,
            "prefetch": self.prefetch,
            "backend": self.backend,
            "decoder": self.decoder,
        }
        return {name: value for name, value in asked.items() if value is not None}

    def prepare(self, numbers: precision.Precision = "fp32") -> None:
        """Set this process up: threads, memory, and what is fp32 on a card."""
        if self.deterministic:
            os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # read by cuBLAS when it is first used
        if self.threads is not None:
            torch.set_num_threads(self.threads)
        elif self.parallel == "ddp":
            torch.set_num_threads(default_threads())  # torchrun leaves each rank one, whatever there is
        if self.device.type == "cuda":
            torch.cuda.set_device(self.device)
            # Shapes stay, so the fastest ways are looked for once; which are, differs from time to time.
            torch.backends.cudnn.benchmark = not self.deterministic
        else:
            _keep_memory()
        torch.use_deterministic_algorithms(self.deterministic, warn_only=True)
        # Else torch writes to all memory that it takes, in case that somebody reads it before it is written.
        torch.utils.deterministic.fill_uninitialized_memory = False  # type: ignore[attr-defined]
        precision.use(numbers)

    def synchronize(self) -> None:
        """Wait until all work given to the devices is done."""
        for device in self.devices:
            if device.type == "cuda":
                torch.cuda.synchronize(device)

    def memory_bytes(self) -> int:
        """The most that was in use so far: of the fullest card, or of this process on the cores."""
        cards = [device for device in self.devices if device.type == "cuda"]
        if cards:
            return max(torch.cuda.max_memory_allocated(device) for device in cards)
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024

    def describe(self) -> dict[str, Any]:
        """What a reader of a figure wants to know."""
        return {
            "parallel": self.parallel,
            "ranks": self.ranks.count,
            "devices": [str(device) for device in self.devices],
            "names": [_name(device) for device in self.devices],
            "cores": os.cpu_count(),
            "threads": self.threads or torch.get_num_threads(),
            "compiled": self.compiled,
            "graphs": self.graphs,
            "deterministic": self.deterministic,
            "system": f"{platform.system()} {platform.machine()}",
        }


def versions() -> dict[str, str]:
    """Versions of what computes."""
    return {"alexshard": __version__, "torch": str(torch.__version__), "python": platform.python_version()}


def _kind(
    device: str | None, devices: Sequence[str] | None, parallel: Parallel, ranks: Ranks
) -> Literal["single", "towers", "ddp"]:
    """What the wishes come to."""
    if device is not None and devices is not None:
        raise WrongCall(
            f"--device {device} and --devices {','.join(devices)} at once",
            why="the network is on one device or on two",
            remedy="leave one of them out",
        )
    if devices is not None and len(devices) != 2:
        raise WrongCall(
            f"--devices names {len(devices)} devices",
            why="the network has two towers, one for each device",
            remedy="name two, such as cuda:0,cuda:1 or cpu,cpu; for a single device use --device",
        )
    many = ranks.count > 1
    spread = many or under_torchrun()
    if parallel == "auto":
        if devices is None and (many or (spread and device in (None, "auto", "cpu", "cuda"))):
            return "ddp"
        nothing_named = device in (None, "auto")
        parallel = "towers" if devices or (nothing_named and torch.cuda.device_count() >= 2) else "single"
    if parallel == "ddp" and not spread:
        raise WrongCall(
            "--parallel ddp without torchrun",
            why="each of its ranks is a process, and this one was started alone",
            remedy=_TORCHRUN,
        )
    if parallel != "ddp" and many:
        raise WrongCall(
            f"{'--devices' if devices else f'--parallel {parallel}'} under torchrun",
            why="every one of its ranks would train a network of its own",
            remedy="--parallel ddp, or start alextrain without torchrun",
        )
    if parallel != "towers" and devices is not None:
        raise WrongCall(
            f"--parallel {parallel} with --devices",
            why="two devices are for the two towers",
            remedy="--device for a single one, or leave --parallel out",
        )
    return parallel


def _two_devices(device: str | None) -> tuple[str, str]:
    """For towers without --devices."""
    if device not in (None, "auto", "cuda"):
        return device, device
    cards = torch.cuda.device_count()
    if cards == 1 or (cards == 0 and device == "cuda"):
        raise WrongCall(
            f"--parallel towers, and torch sees {cards} GPU{'s' if cards != 1 else ''}",
            why="each tower wants a device",
            remedy="--devices cuda:0,cuda:0 has both on one card, --devices cpu,cpu on the cores",
        )
    return ("cuda:0", "cuda:1") if cards else ("cpu", "cpu")


def _device_of_rank(device: str | None, ranks: Ranks) -> torch.device:
    """Each rank of a machine has its own card."""
    if device not in (None, "auto", "cpu", "cuda"):
        raise WrongCall(
            f"--device {device} for {ranks.count} ranks",
            why="each rank has its own device",
            remedy="--device cuda or cpu, or leave it out; CUDA_VISIBLE_DEVICES chooses among cards",
        )
    cards = device == "cuda" or (device != "cpu" and torch.cuda.is_available())
    return _device(f"cuda:{ranks.local}" if cards else "cpu")


@cache
def _keep_memory() -> None:
    """Have the C library keep what is freed: else every large tensor is fresh pages, zeroed one by one.

    A tenth of a step on two cores (docs/performance.md). Of glibc alone; others have no such switches.
    """
    most_maps, trim_beyond = -4, -1  # M_MMAP_MAX, M_TRIM_THRESHOLD of malloc.h
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is not None and platform.libc_ver()[0] == "glibc":
        mallopt(most_maps, 0)
        mallopt(trim_beyond, 2**31 - 1)


def give_memory_back() -> None:
    """Have what is free, of this process and of its cards, be free for whoever asks next."""
    gc.collect()
    torch.cuda.empty_cache()
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
    if trim is not None:
        trim(0)


def _device(name: str) -> torch.device:
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    try:
        device = torch.device(name)
    except RuntimeError:
        raise WrongCall(f"{name!r} is no device", remedy="use auto, cpu, cuda or cuda:N") from None
    if device.type not in ("cpu", "cuda"):
        raise WrongCall(f"no support for the device {name!r}", remedy="use auto, cpu, cuda or cuda:N")
    if device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count():
        raise WrongCall(
            f"the device {name} is not there",
            where=f"torch {torch.__version__} sees {torch.cuda.device_count()} CUDA devices",
            remedy="--device cpu, or install a torch built for your driver (alexshard doctor says more)",
        )
    # A bare "cuda" would compare unequal to the "cuda:0" of tensors that live there.
    return torch.device("cuda", device.index or 0) if device.type == "cuda" else device


def _name(device: torch.device) -> str:
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    try:
        with Path("/proc/cpuinfo").open(encoding="utf-8") as file:
            return next(line.split(":", 1)[1].strip() for line in file if line.startswith("model name"))
    except (OSError, StopIteration):
        return platform.processor() or platform.machine()
