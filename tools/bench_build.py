"""`tools/bench_build`: what packing costs beside decoding alone, how it scales, and what others take for the same.

Everything runs on one archive, made of the images given: nested like ILSVRC2012_img_train.tar, ten classes.
Whoever takes part is a process of its own, in turns, so that a machine that grows slower does so for all. Two
figures each: images/s by the clock, from start to exit, and ms of CPU time an image, which other work on the
machine moves less. What an image adds is the difference between all images and a quarter of them, with one worker,
so without the start. Decoding alone has its images in memory, and counts nothing else.
"""

from __future__ import annotations

import json
import multiprocessing
import os
import platform
import shutil
import signal
import statistics
import subprocess
import sys
import tarfile
import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from importlib.metadata import PackageNotFoundError, version
from io import BytesIO
from itertools import cycle, islice
from pathlib import Path
from typing import Any

import click

from .. import __version__
from ..shards import AlexshardError, byte_size
from .bench_parts import parts_ms, psnr_of_reduced
from .bench_peers import PEERS, images_of_archive
from .report import json_on_failure, print_json
from .terminal import CliCommand, Progress, facts, signals_raise, table

CLASSES = 10
DECODE, BUILD, COLD = "decoding alone", "alexshard build", "alexshard build, cold source"


@dataclass(frozen=True, slots=True)
class Run:
    """One process with its children, from start to exit."""

    seconds: float
    cpu_seconds: float
    peak_bytes: int  # resident, of the largest process


@dataclass(frozen=True, slots=True)
class Contestant:
    """Who packs, or decodes, the first `images` of the archive with `workers` processes."""

    name: str
    workers: int
    images: int


@click.command(cls=CliCommand)
@click.argument("source", type=click.Path(path_type=Path))
@click.option(
    "--images",
    type=click.IntRange(min=40),
    default=4000,
    show_default=True,
    help="In the archive; those of SOURCE come again and again.",
)
@click.option("-j", "--workers", type=click.IntRange(min=1), help="Besides one.  [default: one a core]")
@click.option("--repeats", type=click.IntRange(min=1), default=3, show_default=True, help="Runs of each.")
@click.option("--peers/--no-peers", default=True, help="Whether to run those that are installed.")
@click.option("--temp", type=click.Path(path_type=Path, exists=True, file_okay=False), help="Folder to work in.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
@click.version_option(__version__, prog_name="bench_build")
def main(as_json: bool, **options: Any) -> None:
    """Measure packing on the images of SOURCE, anything that `alexshard build` takes.

    Figures are the median and, in brackets, the least and the most of the runs.
    """
    with json_on_failure(as_json), signals_raise(signal.SIGTERM):
        report = measure(**options)
        print_json(report) if as_json else click.echo(to_text(report))


def measure(
    *, source: Path, images: int, workers: int | None, repeats: int, peers: bool, temp: Path | None
) -> dict[str, Any]:
    """All figures, ready for JSON."""
    counts = sorted({1, workers or len(os.sched_getaffinity(0))})
    rivals = [peer.name for peer in PEERS if peers and not peer.lacks()]
    with tempfile.TemporaryDirectory(dir=temp, prefix="bench_build-") as name:
        folder = Path(name)
        originals = list(islice(images_of(source), images))
        sizes = [images // 4, images // 2, images]
        archives = {size: write_archive(folder / str(size), originals, size) for size in sizes}
        contestants = [
            *(Contestant(DECODE, n, images) for n in counts),
            *(Contestant(BUILD, n, images) for n in counts),
            *(Contestant(BUILD, 1, size) for size in sizes[:-1]),
            Contestant(COLD, counts[-1], images),
            *(Contestant(who, n, images) for who in rivals for n in counts),
            *(Contestant(who, 1, sizes[0]) for who in rivals),
        ]
        runs: dict[Contestant, list[Run]] = {contestant: [] for contestant in contestants}
        with Progress("bench", total=repeats * len(contestants), unit="runs") as progress:
            for _ in range(repeats):
                for who in contestants:
                    runs[who].append(run(who, archives[who.images], folder / "out"))
                    progress.advance(note=who.name)
        parts, quality = parts_ms(originals, repeats), psnr_of_reduced(originals)
    rates = {who: [who.images / each.seconds for each in found] for who, found in runs.items()}
    alone = [each.cpu_seconds / images * 1e3 for each in runs[Contestant(DECODE, 1, images)]]
    added = {
        who: [
            (whole.cpu_seconds - quarter.cpu_seconds) / (images - sizes[0]) * 1e3
            for whole, quarter in zip(*(runs[Contestant(who, 1, n)] for n in (images, sizes[0])), strict=True)
        ]
        for who in (BUILD, *rivals)
    }
    return {
        "source": str(source),
        "originals": len(originals),
        "mean_bytes": round(statistics.mean(map(len, originals))),
        "images": images,
        "repeats": repeats,
        "results": [
            {
                **asdict(who),
                "images_per_s": spread(rates[who]),
                "cpu_ms_per_image": spread([each.cpu_seconds / who.images * 1e3 for each in found]),
                "peak_bytes": max(each.peak_bytes for each in found),
            }
            for who, found in runs.items()
        ],
        "an_image_adds": {
            who: {
                "cpu_ms": spread(found),
                "of_decoding": spread([one / other for one, other in zip(alone, found, strict=True)]),
            }
            for who, found in added.items()
        },
        "parallel_efficiency": {
            who: spread(
                [
                    many / one / counts[-1]
                    for one, many in zip(
                        *(rates[Contestant(who, n, images)] for n in (1, counts[-1])), strict=True
                    )
                ]
            )
            for who in (DECODE, BUILD)
        },
        "parts_ms": parts,
        "reduced_decoding": quality,
        "peers_not_run": {peer.name: peer.lacks() or "--no-peers" for peer in PEERS if peer.name not in rivals},
        "machine": machine(),
        "versions": versions(),
    }


def images_of(source: Path) -> Iterator[bytes]:
    """The bytes of the images that a build of `source` would pack, in their order, those that decode."""
    from .packing.decode import BadImage, decode
    from .packing.plan import PlannedSample
    from .packing.reading import SourceReader
    from .packing.sources import list_source

    listing = list_source(source)
    with SourceReader(listing.containers) as reader:
        for images in listing.splits.values():
            for i, name in enumerate(images.names):
                place = images.container[i], images.offset[i], images.size[i]
                sample = PlannedSample(str(i), 0, name, *place, patched=False, changed=images.changed[i])
                try:
                    data = reader.read(sample)
                    decode(data)
                except BadImage:
                    continue
                yield data


def write_archive(folder: Path, originals: Sequence[bytes], number: int) -> Path:
    """An archive of that many images in ten classes, nested like ILSVRC2012_img_train.tar."""
    if not originals:
        raise AlexshardError("the source has no image that decodes", remedy="give another SOURCE")
    folder.mkdir()
    images = list(islice(cycle(originals), number))
    path = folder / "ILSVRC2012_img_train.tar"
    with tarfile.open(path, "w") as outer:
        for label in range(CLASSES):
            wnid, inner = f"n{label:08d}", BytesIO()
            with tarfile.open(fileobj=inner, mode="w") as nested:
                for i, data in enumerate(images[label::CLASSES]):
                    _add(nested, f"{wnid}_{i}.JPEG", data)
            _add(outer, f"{wnid}.tar", inner.getvalue())
    return path


def _add(archive: tarfile.TarFile, name: str, data: bytes) -> None:
    member = tarfile.TarInfo(name)
    member.size = len(data)
    archive.addfile(member, BytesIO(data))


def run(who: Contestant, archive: Path, out: Path) -> Run:
    """Run one contestant to its end; what it wrote is removed.

    Raises:
        AlexshardError: it failed.
    """
    if who.name == DECODE:
        argv = ["-m", __name__, str(archive), str(who.workers)]
    elif who.name in (BUILD, COLD):
        more = ["--out", str(out), "-j", str(who.workers), "--max-bad", "100%"]
        argv = ["-m", f"{__package__}.cli_alexshard", "build", str(archive.parent), *more]
    else:
        out.mkdir()
        argv = ["-m", f"{__package__}.bench_peers", who.name, str(archive), str(out), str(who.workers)]
    with archive.open("rb") as file:
        os.fsync(file.fileno())
        if who.name == COLD:
            os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
        else:
            while file.read(1 << 24):  # now it is in memory
                pass
    with tempfile.TemporaryFile() as said:
        started = time.monotonic()
        process = subprocess.Popen([sys.executable, *argv], stdout=said, stderr=subprocess.STDOUT)
        peak, ended = 0, 0
        while not ended:
            peak = max(peak, largest_process(process.pid))
            time.sleep(0.02)
            ended, status, used = os.wait4(process.pid, os.WNOHANG)
        seconds = time.monotonic() - started
        process.returncode = os.waitstatus_to_exitcode(status)
        if process.returncode:
            said.seek(0)
            text = said.read()[-2000:].decode("utf-8", "replace")
            raise AlexshardError(f"{who.name} ended with exit code {process.returncode}:\n{text}")
        if who.name == DECODE:
            said.seek(0)
            seconds, cpu_seconds = json.loads(said.read())
            return Run(seconds, cpu_seconds, peak)
    if out.exists():
        shutil.rmtree(out)
    return Run(seconds, used.ru_utime + used.ru_stime, peak)


def largest_process(pid: int) -> int:
    """The most memory that a process or one of its descendants has had resident, in bytes; 0 where it is gone.

    (What wait4 tells begins with the memory of the process that started it.)
    """
    folder = Path(f"/proc/{pid}")
    try:
        children = (folder / f"task/{pid}/children").read_text("ascii").split()
        status = (folder / "status").read_text("utf-8", "replace")
    except (FileNotFoundError, ProcessLookupError):
        return 0
    peak = next((int(line.split()[1]) * 1024 for line in status.splitlines() if line.startswith("VmHWM")), 0)
    return max(peak, *map(largest_process, map(int, children)), 0)


def decode_alone(archive: Path, workers: int) -> None:
    """Decode every image of an archive to RGB, by `workers` processes; print seconds and CPU seconds."""
    images = list(images_of_archive(archive))
    with multiprocessing.get_context("fork").Pool(workers, _share_images, (images, workers)) as pool:
        pool.map(_decode_share, range(workers))  # once to warm up
        took = pool.map(_decode_share, range(workers), chunksize=1)
    print(json.dumps([max(seconds for seconds, _ in took), sum(cpu for _, cpu in took)]))


_shared: tuple[list[bytes], int]


def _share_images(images: list[bytes], shares: int) -> None:
    global _shared
    _shared = images, shares


def _decode_share(share: int) -> tuple[float, float]:
    import simplejpeg

    images, shares = _shared
    started, cpu = time.perf_counter(), time.process_time()
    for data in images[share::shares]:
        simplejpeg.decode_jpeg(data, "RGB", strict=False)
    return time.perf_counter() - started, time.process_time() - cpu


def spread(runs: Sequence[float]) -> dict[str, float]:
    """Median, least and most."""
    return {"median": statistics.median(runs), "min": min(runs), "max": max(runs)}


def machine() -> dict[str, Any]:
    """What ran it."""
    lines = Path("/proc/cpuinfo").read_text("utf-8", "replace").splitlines()
    models = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return {
        "processor": models[0] if models else platform.machine(),
        "cores": len(os.sched_getaffinity(0)),
        "memory_bytes": os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"),
        "system": platform.platform(terse=True),
    }


def versions() -> dict[str, str]:
    """What the figures depend on."""
    from .packing.decode import decoder_versions

    found = {"alexshard": __version__, "python": platform.python_version(), **decoder_versions()}
    for name in ("numpy", *(module for peer in PEERS for module in peer.modules)):
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            continue
    return found


def to_text(report: dict[str, Any]) -> str:
    """The report for people."""
    ran = report["machine"]
    about = {
        "machine": f"{ran['processor']}, {ran['cores']} cores, {ran['memory_bytes'] / 2**30:.0f} GiB, "
        f"{ran['system']}",
        "versions": "; ".join(f"{name}: {number}" for name, number in report["versions"].items()),
        "images": f"{report['images']:,}: {report['originals']:,} of {report['source']} again and again, "
        f"{byte_size(report['mean_bytes'])} each on average",
        "runs": f"{report['repeats']} of each, in turns",
    }
    rows = [
        (
            row["name"],
            row["workers"],
            row["images"],
            _spread(row["images_per_s"], 0),
            _spread(row["cpu_ms_per_image"], 2),
            byte_size(row["peak_bytes"]),
        )
        for row in report["results"]
    ]
    header = ("", "workers", "images", "images/s", "CPU ms/image", "largest process")
    parts = [(name, f"{ms:.3f}") for name, ms in report["parts_ms"].items()]
    reduced = report["reduced_decoding"]
    adding = [
        (who, _spread(found["cpu_ms"], 3), _spread(found["of_decoding"], 2))
        for who, found in report["an_image_adds"].items()
    ]
    closing = {
        f"parallel efficiency, {name}": _spread(found, 2) for name, found in report["parallel_efficiency"].items()
    }
    if reduced["images"]:
        closing["decoded at 1/2, 1/4 or 1/8"] = (
            f"{reduced['images']:,} of {reduced['of']:,} images; PSNR against --exact: median "
            f"{reduced['median_db']:.1f} dB, worst {reduced['worst_db']:.1f} dB"
        )
    else:
        closing["decoded at 1/2, 1/4 or 1/8"] = "none: no image is that large"
    closing |= {f"not run: {name}": why for name, why in report["peers_not_run"].items()}
    return "\n\n".join(
        (
            facts(about),
            table(rows, header=header),
            table(adding, header=("an image adds, one worker", "CPU ms", "decoding alone / that")),
            table(parts, header=("part of a build", "ms")),
            facts(closing),
        )
    )


def _spread(found: dict[str, float], digits: int) -> str:
    return f"{found['median']:,.{digits}f} [{found['min']:,.{digits}f}..{found['max']:,.{digits}f}]"


if __name__ == "__main__":
    if len(sys.argv) == 3 and sys.argv[2].isdigit():
        decode_alone(Path(sys.argv[1]), int(sys.argv[2]))
    else:
        main()
