"""Mutates images, archives and development kits, and looks at what packing makes of each.

    python -m tests.tools.fuzz --seconds 600 --seed 7      until the time is over or something is found
    python -m tests.tools.fuzz --mutants 5000 --seed 7     until so many were looked at
    python -m tests.tools.fuzz --seed 7 --only 1234        one mutant again, with its traceback

The mutants run in a process of their own, so that a decoder that crashes or hangs takes nothing else with it. Each
depends on the seed and its number alone; what is found is named by the two, and its bytes are kept.
"""

from __future__ import annotations

import argparse
import gzip
import itertools
import math
import os
import resource
import select
import shutil
import subprocess
import sys
import tempfile
import time
import warnings
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path

import numpy as np
from alexshard.shards import AlexshardError, Split
from alexshard.shards.naming import is_key
from alexshard.tools.packing.decode import PIXEL_LIMIT, BadImage, decode
from alexshard.tools.packing.image import central_square, encoded
from alexshard.tools.packing.plan import plan_splits
from alexshard.tools.packing.shard import ShardRecord, pack_shard
from alexshard.tools.packing.sources import Listing, list_source

from tests.tools import hostile, hostile_images
from tests.tools.drawn import SMALL, files_of, ilsvrc, meta_mat, named_images, pack, tar_bytes
from tests.tools.mutating import Draw, mutated, with_sums

HANGS_AFTER_S = 60  # for one mutant; they take milliseconds
LONGEST_LINE = 2000  # of a message, which may quote a damaged header
MOST_MB = 2500  # of all mutants; an image may have 100 million pixels
BUILD_EVERY = 150  # mutants: a whole build, in processes of its own


# --- what a mutant is, and what is asked of it


@dataclass(frozen=True)
class Mutant:
    """Bytes to look at, and the function that does."""

    kind: str
    data: bytes
    check: Callable[[bytes, Path], str]  # returns what became of it: "packed", "refused"


def mutant(seed: int, number: int) -> Mutant:
    """The mutant of that number."""
    draw = np.random.default_rng([seed, number])
    if number % BUILD_EVERY == BUILD_EVERY - 1:
        return Mutant("build", _image(draw), _check_build)
    kind = draw.random()
    if kind < 0.65:
        return Mutant("image", _image(draw), _check_image)
    if kind < 0.82:
        data = mutated(draw, *_two(draw, hostile.archives()))
        return Mutant("inner tar", with_sums(data) if draw.random() < 0.7 else data, _check_inner)
    if kind < 0.9:
        outer = (hostile.edition_bytes(data) for data in _two(draw, hostile.archives()))
        data = mutated(draw, *outer)
        return Mutant("outer tar", with_sums(data) if draw.random() < 0.7 else data, _check_outer)
    tables = _tables()
    if kind < 0.95:
        return Mutant("table of synsets", mutated(draw, *_two(draw, tables)), _check_table)
    truth = ("kit/data/ILSVRC2012_validation_ground_truth.txt", b"2\n3\n1\n2\n3\n1\n")
    kit = tar_bytes([("kit/data/meta.mat", next(iter(tables.values()))), truth])
    data = with_sums(mutated(draw, kit, kit))
    data = (
        gzip.compress(data, mtime=0) if draw.random() < 0.5 else mutated(draw, gzip.compress(data, mtime=0), data)
    )
    return Mutant("development kit", data, _check_kit)


def _two(draw: Draw, sound: dict[str, bytes]) -> tuple[bytes, bytes]:
    first, second = (list(sound.values())[int(draw.integers(len(sound)))] for _ in range(2))
    return first, second


def _image(draw: Draw) -> bytes:
    sound, other = _two(draw, _photographs())
    packed = sound.startswith(b"\x1f\x8b")
    data = mutated(draw, gzip.decompress(sound) if packed and draw.random() < 0.8 else sound, other)
    data = with_sums(data) if data.startswith(b"\x89PNG") and draw.random() < 0.7 else data
    return gzip.compress(data, mtime=0) if packed and draw.random() < 0.5 else data


@cache
def _photographs() -> dict[str, bytes]:
    return hostile_images.photographs()


@cache
def _tables() -> dict[str, bytes]:
    from alexshard.tools.sample_devkit import DevkitClass
    from alexshard.tools.sample_devkit import meta_mat as sample_table

    classes = [DevkitClass(f"n0000000{i}", "a word", "a gloss", i, True) for i in (1, 2, 3)]
    return {
        "plain": meta_mat({"n00000001": 2, "n00000002": 3, "n00000003": 1}),
        "compressed": sample_table(classes, {0: 4, 1: 4, 2: 4}),
    }


def _one_line(error: AlexshardError) -> str:
    what = error.what
    assert what
    assert len(what) < LONGEST_LINE, f"a message of {len(what)} characters"
    return "refused"


def _check_image(data: bytes, folder: Path) -> str:
    for side in (None, 32):
        try:
            found = decode(data, side=side)
        except BadImage as bad:
            return _one_line(bad)
        pixels = found.pixels_HWC
        assert (pixels.dtype, pixels.ndim, pixels.shape[2], found.notes) == (np.uint8, 3, 3, tuple(found.notes))
        assert 0 < found.width * found.height <= PIXEL_LIMIT
        size = found.width, found.height
        square = central_square(pixels, 32, size=size, reduction=found.reduction)
        assert square.shape == (32, 32, 4)
        assert encoded(square, SMALL).startswith(b"\xff\xd8")
    return "packed"


def _check_inner(data: bytes, folder: Path) -> str:
    return _check_outer(hostile.edition_bytes(data), folder)


def _check_outer(data: bytes, folder: Path) -> str:
    source = folder / "source"
    source.mkdir()
    (source / "ILSVRC2012_img_train.tar").write_bytes(data)
    return _check_source(source, len(data))


def _check_source(source: Path, size: int) -> str:
    """List, plan and pack a source; every image that is listed is packed or refused, whatever it is."""
    try:
        listing = list_source(source)
    except AlexshardError as error:
        return _one_line(error)
    _check_listing(listing, size)
    for split, plan in plan_splits(listing, SMALL, seed=0, samples_per_shard=None).items():
        planned = [sample for number in range(plan.num_shards) for sample in plan.shard(number).samples]
        assert len(planned) == len(listing.splits[split])
        assert len({sample.key.lower() for sample in planned}) == len(planned)
        assert all(is_key(sample.key) for sample in planned)
        for number in range(plan.num_shards):
            seen: list[object] = []
            pack_shard(plan.shard(number), listing.containers, SMALL, source.parent, on_image=seen.append)
            record = ShardRecord.load(source.parent, plan.shard(number).name)
            assert len(record.rows) + len(record.refusals) == len(plan.shard(number).samples) == len(seen)
            assert sorted(row.original for row in record.rows) == sorted(
                sample.name
                for sample in plan.shard(number).samples
                if sample.key in {row.key for row in record.rows}
            )
    return "packed"


def _check_listing(listing: Listing, size: int) -> None:
    for split, images in listing.splits.items():
        assert listing.found(split) == len(images) + sum(refusal.split == split for refusal in listing.refusals)
        train = split is Split.TRAIN
        for start, length, label in zip(images.offset, images.size, images.label, strict=True):
            assert 0 <= start <= start + length <= size or not train
            assert 0 <= label < len(listing.classes)


def _check_table(data: bytes, folder: Path) -> str:
    source = ilsvrc(folder / "source")
    (source / "ILSVRC2012_devkit_t12.tar").unlink()
    (source / "data").mkdir()
    (source / "data" / "meta.mat").write_bytes(data)
    (source / "data" / "ILSVRC2012_validation_ground_truth.txt").write_bytes(b"2\n3\n1\n2\n")
    return _check_source(source, 1 << 30)


def _check_kit(data: bytes, folder: Path) -> str:
    source = ilsvrc(folder / "source")
    (source / "ILSVRC2012_devkit_t12.tar").unlink()
    (source / "ILSVRC2012_devkit_t12.tar.gz").write_bytes(data)
    return _check_source(source, 1 << 30)


def _check_build(data: bytes, folder: Path) -> str:
    train = named_images()
    train["n00000002"][1] = ("n00000002_1.JPEG", data)
    source = ilsvrc(folder / "source", train)
    before = files_of(source)
    report = pack(source, folder / "set", max_bad="100%", workers=2)
    entry = report.manifest.splits["train"]
    assert (entry.found, entry.samples + entry.quarantined) == (12, 12)
    assert entry.samples >= 11
    assert files_of(source) == before
    assert {path.name for path in folder.iterdir()} == {"source", "set"}
    return "packed" if entry.samples == 12 else "refused"


# --- running


@dataclass
class Result:
    """What a fuzzing run has shown."""

    seed: int
    mutants: int = 0
    became: Counter[str] = field(default_factory=Counter)
    peak_mb: int = 0
    found: list[str] = field(default_factory=list)  # what went wrong, with how to see it again

    def __str__(self) -> str:
        counts = ", ".join(f"{kind} {count:,}" for kind, count in sorted(self.became.items()))
        return f"fuzz: seed {self.seed}, {self.mutants:,} mutants ({counts}), peak {self.peak_mb} MB"


def fuzz(
    seed: int,
    kept: Path,
    *,
    seconds: float = math.inf,
    mutants: float = math.inf,
    start: int = 0,
    most_found: int = 1,
) -> Result:
    """Run mutants in a process of their own until the time is over or so many were looked at.

    What goes wrong is kept in a folder.
    """
    result, number, ends = Result(seed), start, time.monotonic() + seconds
    while time.monotonic() < ends and result.mutants < mutants and len(result.found) < most_found:
        number = _run_some(result, number, ends, mutants, kept) + 1
    return result


def _run_some(result: Result, number: int, ends: float, mutants: float, kept: Path) -> int:
    """Start a process at a mutant and listen until it, the time or the count ends; returns the last it began."""
    kept.mkdir(parents=True, exist_ok=True)
    options = ("--seed", str(result.seed), "--child", str(number), "--keep", str(kept.resolve()))
    command = [sys.executable, "-m", "tests.tools.fuzz", *options]
    began = result.mutants
    with (
        (kept / "stderr").open("w+b") as errors,
        subprocess.Popen(command, stdout=subprocess.PIPE, stderr=errors, cwd=_ROOT) as process,
    ):
        assert process.stdout is not None
        buffer, wrong = b"", ""
        while not wrong and time.monotonic() < ends and result.mutants < mutants:
            if not select.select([process.stdout], [], [], HANGS_AFTER_S)[0]:
                wrong = f"hangs for {HANGS_AFTER_S} s"
            elif not (part := os.read(process.stdout.fileno(), 1 << 16)):
                wrong = f"ended with exit code {process.wait()}"
            else:
                *lines, buffer = (buffer + part).split(b"\n")
                for number_, became, peak in (line.split(b"\t") for line in lines):
                    number, result.peak_mb = int(number_), max(result.peak_mb, int(peak))
                    result.mutants += bool(became)
                    result.became.update([became.decode()] if became else [])
                    if result.mutants >= mutants:  # it may have begun more
                        break
        process.kill()
        process.wait()
        errors.seek(0)
        told = errors.read().decode("utf-8", "backslashreplace")
    if result.peak_mb > MOST_MB and not wrong:
        wrong = f"took {result.peak_mb} MB"
    if wrong:
        (kept / f"mutant-{result.seed}-{number}").write_bytes(mutant(result.seed, number).data)
        result.found.append(
            f"mutant {number} of seed {result.seed} ({mutant(result.seed, number).kind}) {wrong}; kept in {kept}\n"
            f"  python -m tests.tools.fuzz --seed {result.seed} --only {number}\n{told[-3000:]}"
        )
    elif result.mutants == began:
        result.found.append(f"no mutant was looked at\n{told[-3000:]}")
    return number


_ROOT = Path(__file__).resolve().parents[2]


def _child(seed: int, start: int, kept: Path) -> None:
    """Look at one mutant after the other and tell of each before and after."""
    warnings.simplefilter("error")
    with tempfile.TemporaryDirectory(dir=kept) as name:
        for number in itertools.count(start):
            _tell(number, "")
            folder = Path(name) / "mutant"
            folder.mkdir()
            one = mutant(seed, number)
            _tell(number, f"{one.kind} {one.check(one.data, folder)}")
            shutil.rmtree(folder)


def _tell(number: int, became: str) -> None:
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024
    print(number, became, peak, sep="\t", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--seconds", type=float, help="60, unless --mutants is given")
    parser.add_argument("--mutants", type=int)
    parser.add_argument("--start", type=int, default=0, help="number of the first mutant")
    parser.add_argument("--only", type=int, help="look at this one, here")
    parser.add_argument("--child", type=int, help=argparse.SUPPRESS)
    parser.add_argument("--keep", type=Path, default=Path(tempfile.gettempdir()) / "alexshard-fuzz")
    given = parser.parse_args()
    if given.child is not None:
        _child(given.seed, given.child, given.keep)
    elif given.only is not None:
        one = mutant(given.seed, given.only)
        with tempfile.TemporaryDirectory() as name:
            print(one.kind, len(one.data), one.check(one.data, Path(name)))
    else:
        seconds = given.seconds or (60 if given.mutants is None else math.inf)
        mutants = math.inf if given.mutants is None else given.mutants
        result = fuzz(given.seed, given.keep, seconds=seconds, mutants=mutants, start=given.start, most_found=10)
        print(result, *result.found, sep="\n")
        sys.exit(1 if result.found else 0)


if __name__ == "__main__":
    main()
