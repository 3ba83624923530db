"""Verify: whether every byte of a shard set is what the manifest promised, and if not, where not.

Every file is read once and held against its SHA-256, shards by several threads, so that a sound set is verified as
fast as it can be read. What is damaged is read again, to say where.
"""

from __future__ import annotations

import hashlib
import io
import threading
from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import closing
from itertools import islice
from pathlib import Path
from typing import BinaryIO

import numpy as np
from numpy.typing import NDArray

from .check import HEADER, ShardFindings, ShardTask, check_shard, first_wrong_line
from .cores import usable_cores
from .damage import Damage, Problem, difference, file_damage, manifest_damage
from .errors import BadManifest, CorruptShardSet
from .json_text import parse_json
from .manifest import (
    MANIFEST_NAME,
    MEAN_IMAGE_NAME,
    QUARANTINE_NAME,
    SAMPLES_NAME,
    SUMS_NAME,
    Manifest,
    SplitEntry,
    sums_text,
)
from .naming import ShardName
from .reader import ShardSet, find_shard_set
from .regular import open_regular, read_regular
from .restore import derived
from .shelf import LocalShelf

_BLOCK = 1 << 20
_MOST_THREADS = 8  # so many outrun most disks, and each has a few megabytes of buffers


class _Stopped(Exception):
    """Nobody waits for what a thread is doing."""


def verify_shard_set(path: str | Path, *, on_file: Callable[[str, int], None] | None = None) -> list[Problem]:
    """Check structure, indexes against tars, SHA-256, labels, statistics; returns what is wrong.

    Args:
        path: a shard set, or a folder that holds exactly one.
        on_file: called with name and size of each file once it is checked; a shard is checked with its index.

    Raises:
        NoShardSet, BadManifest: there is no manifest to hold the files against, or more than a bit of it is wrong.
    """
    folder = find_shard_set(Path(path))
    manifest, damage = load_mended(folder)
    problems = _problems(folder, manifest, on_file or (lambda _name, _size: None))
    return [*([] if damage is None else [Problem(MANIFEST_NAME, damage.what, damage.offset)]), *problems]


def load_mended(folder: Path) -> tuple[Manifest, Damage | None]:
    """The manifest of a shard set as it was written, and what is wrong with it if that is a single flipped bit.

    Raises:
        NoShardSet: the folder has none.
        BadManifest: it is not ours, of a later version, or damaged beyond what its own sums can tell.
    """
    try:
        return Manifest.load(folder), None
    except BadManifest:
        path = folder / MANIFEST_NAME
        damage = manifest_damage(read_regular(path)) if path.is_file() else None
        if damage is None or damage.mended is None:
            raise
        return Manifest.parse(damage.mended.decode("utf-8"), path), damage


def _problems(folder: Path, manifest: Manifest, on_file: Callable[[str, int], None]) -> Iterator[Problem]:
    digests, problems = _promised(folder, manifest)
    yield from problems
    damages: dict[str, Damage] = {}
    for name, sha256 in digests.items():
        damage = _file_damage(folder / name, sha256, manifest)
        if damage is not None:
            damages[name] = damage
            yield Problem(name, damage.what, damage.offset)
        else:
            on_file(name, (folder / name).stat().st_size)
    yield from _check_shards(folder, manifest, damages.get(SAMPLES_NAME), on_file)
    named = {shard.name for split in manifest.splits.values() for shard in split.shards}
    named |= {ShardName.parse(name).index_name for name in named}
    for file in sorted(folder.iterdir()):
        if file.suffix in {".tar", ".idx"} and file.name not in named:
            yield Problem(file.name, "is not in the manifest, so no reader will find it")
    for name, split in manifest.splits.items():
        yield from _check_counts(name, split)
    if QUARANTINE_NAME not in damages:
        yield from _check_quarantine(folder, manifest)
    yield from _check_statistics(
        ShardSet(folder, manifest, LocalShelf(folder)), mean_is_sound=MEAN_IMAGE_NAME not in damages
    )


def _promised(folder: Path, manifest: Manifest) -> tuple[dict[str, str], list[Problem]]:
    """SHA-256 of every file that is neither shard nor index, and what is wrong with SHA256SUMS.

    The manifest gives them, and so the very text of SHA256SUMS; of sets of early builds SHA256SUMS itself does.
    """
    try:
        found = read_regular(folder / SUMS_NAME)
    except OSError as error:
        found, problems = b"", [Problem(SUMS_NAME, f"cannot be read: {error.strerror}")]
    else:
        problems = []
    wanted = sums_text(manifest.splits, manifest.files).encode("utf-8")
    if manifest.files:
        if hashlib.sha256(wanted).hexdigest() != manifest.sums_sha256:
            problems.append(
                Problem(MANIFEST_NAME, f"names other digests than the {SUMS_NAME} it was written with")
            )
        elif not problems and (place := difference(found, wanted)):
            problems.append(Problem(SUMS_NAME, place[1], place[0]))
        return {name: entry.sha256 for name, entry in manifest.files.items()}, problems
    digest = hashlib.sha256(found).hexdigest()
    if digest != manifest.sums_sha256:
        told = Problem(SUMS_NAME, f"has SHA-256 {digest}, the manifest says {manifest.sums_sha256}")
        return {}, problems or [told]
    shards = set(wanted.decode("utf-8").splitlines())
    others = [line for line in found.decode("utf-8").splitlines() if line not in shards]
    return {name: sha256 for sha256, _, name in (line.partition("  ") for line in others)}, problems


def _file_damage(path: Path, sha256: str, manifest: Manifest) -> Damage | None:
    entry = manifest.files.get(path.name)
    digest = hashlib.sha256()
    try:
        with open_regular(path) as file:
            while block := file.read(_BLOCK):
                digest.update(block)
                if entry is not None and file.tell() > entry.bytes:  # it is wrong, however long it may be
                    break
            else:
                if digest.hexdigest() == sha256:
                    return None
        data, size = read_regular(path, -1 if entry is None else entry.bytes), path.stat().st_size
    except OSError as error:
        return Damage(f"cannot be read: {error.strerror}")
    damage = file_damage(data, sha256, entry, size)
    if damage is None or damage.mended is not None:
        return damage
    # More than one bit is wrong: the first place that can be known.
    wanted = derived(manifest, path.name)
    if wanted is not None and hashlib.sha256(wanted).hexdigest() == sha256:
        place = difference(data, wanted)
    elif path.name == SAMPLES_NAME:
        place = first_wrong_line(path.parent, manifest, data)
    else:
        place = None
    return damage if place is None else Damage(place[1], place[0])


def _check_shards(
    folder: Path, manifest: Manifest, damage: Damage | None, on_file: Callable[[str, int], None]
) -> Iterator[Problem]:
    """Every shard with its index and its rows of samples.tsv, whose damage is `damage`."""
    rows = _open_rows(folder, damage)
    keys: dict[str, list[NDArray[np.int64]]] = {name: [] for name in manifest.splits}
    patched = dict.fromkeys(manifest.splits, 0)
    with closing(rows or io.BytesIO()):
        if rows is not None and next(rows, b"") != HEADER:
            yield Problem(SAMPLES_NAME, "does not begin with the names of its columns")
        for task, findings in _in_order(_tasks(folder, manifest, rows)):
            yield from findings.problems
            keys[task.split].append(findings.keys)
            patched[task.split] += findings.patched
            on_file(task.shard.name, task.shard.bytes)
        if rows is None:
            return
        if next(rows, None) is not None:
            yield Problem(SAMPLES_NAME, "has more lines than the manifest has samples")
    for name, split in manifest.splits.items():
        if patched[name] != split.patched:
            what = f"has {patched[name]} patched {name} samples, the manifest says {split.patched}"
            yield Problem(SAMPLES_NAME, what)
        hashes = np.concatenate(keys[name]) if keys[name] else np.zeros(0, np.int64)
        if len(np.unique(hashes)) != len(hashes):
            yield Problem(SAMPLES_NAME, f"has a key of {name} twice")


def _open_rows(folder: Path, damage: Damage | None) -> BinaryIO | None:
    """samples.tsv as it was written, where that can be had."""
    if damage is None:
        try:
            return open_regular(folder / SAMPLES_NAME)
        except OSError:  # of an early set whose SHA256SUMS is damaged, so that nothing is known of it
            return None
    return None if damage.mended is None else io.BytesIO(damage.mended)


def _tasks(folder: Path, manifest: Manifest, rows: BinaryIO | None) -> Iterator[ShardTask]:
    line = 2  # the first of samples.tsv is its header
    for name, split in manifest.splits.items():
        for shard in split.shards:
            lines = None if rows is None else list(islice(rows, shard.samples))
            yield ShardTask(folder, manifest.image, manifest.num_classes, name, split.labelled, shard, line, lines)
            line += shard.samples


def _in_order(tasks: Iterator[ShardTask]) -> Iterator[tuple[ShardTask, ShardFindings]]:
    """Each task with what came of it, in order; a few are worked on at a time, so memory has a bound."""
    threads = min(usable_cores(), _MOST_THREADS)
    stop = threading.Event()

    def go_on() -> None:
        if stop.is_set():
            raise _Stopped

    ahead: deque[tuple[ShardTask, Future[ShardFindings]]] = deque()
    with ThreadPoolExecutor(threads) as pool:
        try:
            while True:
                for task in islice(tasks, 2 * threads - len(ahead)):
                    ahead.append((task, pool.submit(check_shard, task, go_on)))
                if not ahead:
                    return
                task, future = ahead.popleft()
                yield task, future.result()
        finally:
            stop.set()
            pool.shutdown(cancel_futures=True)


def _check_counts(name: str, split: SplitEntry) -> Iterator[Problem]:
    if split.samples != sum(shard.samples for shard in split.shards):
        yield Problem(MANIFEST_NAME, f"says {split.samples} {name} samples, its shards have other counts")
    if split.found != split.samples + split.quarantined:
        yield Problem(MANIFEST_NAME, f"{name}: {split.found} found is not packed plus quarantined")
    for number, shard in enumerate(split.shards):
        if shard.name != f"{name}-{number:06d}.tar":
            yield Problem(MANIFEST_NAME, f"lists {shard.name} as number {number} of {name}")


def _check_quarantine(folder: Path, manifest: Manifest) -> Iterator[Problem]:
    try:
        lines = read_regular(folder / QUARANTINE_NAME).decode("ascii").splitlines()
        found = [parse_json(line)["split"] for line in lines]
    except (OSError, ValueError, KeyError, TypeError) as error:
        yield Problem(QUARANTINE_NAME, f"cannot be read: {error}")
        return
    for name, split in manifest.splits.items():
        if found.count(name) != split.quarantined:
            yield Problem(
                QUARANTINE_NAME, f"has {found.count(name)} of {name}, the manifest says {split.quarantined}"
            )


def _check_statistics(shard_set: ShardSet, *, mean_is_sound: bool) -> Iterator[Problem]:
    """Mean image, channel means, covariance and eigenvectors against one another."""
    statistics = shard_set.manifest.statistics
    if mean_is_sound:
        try:
            mean = shard_set.mean_image()
        except CorruptShardSet as error:
            yield Problem(MEAN_IMAGE_NAME, error.what)
        else:
            if not np.allclose(mean.mean((0, 1), dtype=np.float64), statistics.channel_mean, rtol=1e-5):
                yield Problem(MEAN_IMAGE_NAME, "does not average to the manifest's channel means")
    values, vectors = np.array(statistics.eigenvalues), np.array(statistics.eigenvectors)
    covariance = np.array(statistics.covariance)
    scale = max(float(np.abs(covariance).max()), 1.0)
    if not np.allclose(vectors * values @ vectors.T, covariance, rtol=0, atol=1e-9 * scale):
        yield Problem(MANIFEST_NAME, "its eigenvectors and eigenvalues do not give its covariance")
