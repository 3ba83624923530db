"""Verify: whether every byte of a shard set is what the manifest promised, and if not, where not."""

from __future__ import annotations

import hashlib
import json
import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from .errors import CorruptShardSet
from .index import IndexEntry, index_text
from .manifest import (
    MANIFEST_NAME,
    MEAN_IMAGE_NAME,
    QUARANTINE_NAME,
    SAMPLES_NAME,
    SUMS_NAME,
    Manifest,
    ShardEntry,
    SplitEntry,
)
from .naming import ShardName, is_key
from .reader import ShardSet, find_shard_set
from .rows import SampleRow, read_rows
from .sample import LABEL_EXTENSION, NO_LABEL, ppm_pixels
from .tar import BadMember, Member, walk
from .words import printable

_JPEG_START = b"\xff\xd8\xff"


@dataclass(frozen=True, slots=True)
class Problem:
    """One thing that is wrong with a shard set."""

    file: str
    what: str
    offset: int | None = None  # byte in the file
    key: str | None = None

    def __str__(self) -> str:
        at = "" if self.offset is None else f" at byte {self.offset}"
        of = "" if self.key is None else f", sample {self.key}"
        return printable(f"{self.file}{at}{of}: {self.what}")


def verify_shard_set(path: str | Path, *, on_file: Callable[[str, int], None] | None = None) -> list[Problem]:
    """Check structure, indexes against tars, SHA-256, labels, statistics; returns what is wrong.

    Args:
        path: a shard set, or a folder that holds exactly one.
        on_file: called with the name and size of each file once it is checked.

    Raises:
        NoShardSet, BadManifest: there is no manifest to hold the files against.
    """
    folder = find_shard_set(Path(path))
    shard_set = ShardSet(folder, Manifest.load(folder))
    return list(_problems(shard_set, on_file or (lambda _name, _size: None)))


def _problems(shard_set: ShardSet, on_file: Callable[[str, int], None]) -> Iterator[Problem]:
    folder, manifest = shard_set.path, shard_set.manifest
    yield from _check_sums(folder, manifest, on_file)
    try:
        rows = list(read_rows(folder / SAMPLES_NAME))
    except CorruptShardSet as error:
        yield Problem(SAMPLES_NAME, error.what)
        rows = None
    if rows is not None:
        yield from _check_rows(manifest, rows)
    rows_of_shard: dict[str, list[SampleRow]] = {}
    for row in rows or []:
        rows_of_shard.setdefault(row.shard, []).append(row)
    named = set()
    for name, split in manifest.splits.items():
        keys: set[str] = set()
        for shard in split.shards:
            named |= {shard.name, ShardName.parse(shard.name).index_name}
            expected = None if rows is None else rows_of_shard.get(shard.name, [])
            yield from _check_shard(folder, manifest, split, shard, expected, keys)
            on_file(shard.name, shard.bytes)
        yield from _check_counts(name, split)
    for file in sorted(folder.iterdir()):
        if file.suffix in {".tar", ".idx"} and file.name not in named:
            yield Problem(file.name, "is not in the manifest, so no reader will find it")
    yield from _check_quarantine(folder, manifest)
    yield from _check_statistics(shard_set)


def _check_sums(folder: Path, manifest: Manifest, on_file: Callable[[str, int], None]) -> Iterator[Problem]:
    """SHA256SUMS against the manifest, and every file but the tars (checked as they are walked) against it."""
    try:
        text = (folder / SUMS_NAME).read_bytes()
    except OSError as error:
        yield Problem(SUMS_NAME, f"cannot be read: {error.strerror}")
        return
    found = hashlib.sha256(text).hexdigest()
    if found != manifest.sums_sha256:
        yield Problem(SUMS_NAME, f"has SHA-256 {found}, the manifest says {manifest.sums_sha256}")
        return
    promised = {}
    for line in text.decode("ascii").splitlines():
        digest, name = line.split("  ", 1)
        promised[name] = digest
    for split in manifest.splits.values():
        for shard in split.shards:
            if promised.pop(shard.name, None) != shard.sha256:
                yield Problem(SUMS_NAME, f"names another digest of {shard.name} than the manifest")
            index = ShardName.parse(shard.name).index_name
            if promised.get(index) != shard.index_sha256:
                yield Problem(SUMS_NAME, f"names another digest of {index} than the manifest")
    for name, digest in promised.items():
        try:
            data = (folder / name).read_bytes()
        except OSError as error:
            yield Problem(name, f"cannot be read: {error.strerror}")
            continue
        found = hashlib.sha256(data).hexdigest()
        if found != digest:
            yield Problem(name, f"has SHA-256 {found}, {SUMS_NAME} says {digest}")
        on_file(name, len(data))


def _check_rows(manifest: Manifest, rows: list[SampleRow]) -> Iterator[Problem]:
    order = {
        (name, shard.name): shard.samples for name, split in manifest.splits.items() for shard in split.shards
    }
    counted: dict[tuple[str, str], int] = {}
    for number, row in enumerate(rows, start=2):
        counted[row.split, row.shard] = counted.get((row.split, row.shard), 0) + 1
        labelled = row.split in manifest.splits and manifest.splits[row.split].labelled
        if labelled != (row.label != NO_LABEL) or not NO_LABEL <= row.label < manifest.num_classes:
            yield Problem(SAMPLES_NAME, f"line {number} has label {row.label}", key=row.key)
    if counted != order or list(counted) != [place for place in order if place in counted]:
        yield Problem(SAMPLES_NAME, "lists other shards, counts or another order than the manifest")
    for name, split in manifest.splits.items():
        patched = sum(row.split == name and "patched" in row.note.split(",") for row in rows)
        if patched != split.patched:
            yield Problem(SAMPLES_NAME, f"has {patched} patched {name} samples, the manifest says {split.patched}")


def _check_shard(
    folder: Path,
    manifest: Manifest,
    split: SplitEntry,
    shard: ShardEntry,
    rows: list[SampleRow] | None,
    keys: set[str],
) -> Iterator[Problem]:
    """Walk one tar, and hold its index, its digest and its rows of samples.tsv against what is there.

    `keys` are those of the split's shards before; this one's are added.
    """
    extensions = [manifest.image.extension] + ([LABEL_EXTENSION] if split.labelled else [])
    digest = hashlib.sha256()
    samples: list[list[IndexEntry]] = []
    members = 0
    try:
        with (folder / shard.name).open("rb") as file:
            for member in walk(file, digest.update):
                key, _, extension = member.name.partition(".")
                entry = IndexEntry(key, extension, member.offset, len(member.payload))
                which = members % len(extensions)
                members += 1
                if which == 0:
                    samples.append([])
                    if not is_key(key) or key in keys:
                        yield Problem(shard.name, "is no key, or an earlier sample's", member.offset, key)
                    keys.add(key)
                elif key != samples[-1][0].key:
                    yield Problem(shard.name, f"follows sample {samples[-1][0].key}", member.offset, key)
                samples[-1].append(entry)
                if extension != extensions[which]:
                    yield Problem(shard.name, f"is .{extension}, not .{extensions[which]}", member.offset, key)
                place = len(samples) - 1
                row = rows[place] if rows is not None and place < len(rows) else None
                for what in _wrong_in(member, row, manifest, is_image=which == 0):
                    yield Problem(shard.name, what, member.offset, key)
            size = file.tell()
    except BadMember as bad:
        # The header is unreadable, so whose it was is known from the list of samples alone.
        place = members // len(extensions)
        whose = rows[place].key if rows is not None and place < len(rows) else None
        yield Problem(shard.name, bad.what, bad.offset, whose)
        return
    except OSError as error:
        yield Problem(shard.name, f"cannot be read: {error.strerror}")
        return
    if size != shard.bytes:
        yield Problem(shard.name, f"has {size:,} bytes, the manifest says {shard.bytes:,}")
    if digest.hexdigest() != shard.sha256:
        yield Problem(shard.name, f"has SHA-256 {digest.hexdigest()}, the manifest says {shard.sha256}")
    if len(samples) != shard.samples:
        yield Problem(shard.name, f"has {len(samples)} samples, the manifest says {shard.samples}")
    yield from _check_index(folder / ShardName.parse(shard.name).index_name, index_text(samples))


def _wrong_in(member: Member, row: SampleRow | None, manifest: Manifest, *, is_image: bool) -> Iterator[str]:
    """What is wrong with one member's payload."""
    payload = member.payload
    key = member.name.partition(".")[0]
    if row is not None and row.key != key:
        yield f"is {row.key} in {SAMPLES_NAME}"
        return
    if not is_image:
        if row is not None and payload != str(row.label).encode():
            yield f"is labelled {payload[:20]!r}, {SAMPLES_NAME} says {row.label}"
        return
    crc32 = zlib.crc32(payload)
    if row is not None and crc32 != row.crc32:
        yield f"its {len(payload):,} image bytes have CRC-32 {crc32:08x}, {SAMPLES_NAME} says {row.crc32:08x}"
    if manifest.image.encoding == "raw":
        try:
            shape = ppm_pixels(payload).shape
        except ValueError as error:
            yield str(error)
        else:
            if shape != (manifest.image.side, manifest.image.side, 3):
                yield f"is {shape[1]}x{shape[0]}, not {manifest.image.side}x{manifest.image.side}"
    elif not payload.startswith(_JPEG_START):
        yield f"is no JPEG: it begins with {payload[:4]!r}"


def _check_index(path: Path, wanted: str) -> Iterator[Problem]:
    """The index against the members found in the tar; names the first line that differs."""
    try:
        text = path.read_bytes().decode("ascii", "replace")
    except OSError as error:
        yield Problem(path.name, f"cannot be read: {error.strerror}")
        return
    if text == wanted:
        return
    for number, (line, right) in enumerate(zip(text.split("\n"), wanted.split("\n"), strict=False), start=1):
        if line != right:
            yield Problem(path.name, f"line {number} is {line!r}, the tar says {right!r}")
            return
    yield Problem(path.name, f"has {len(text)} bytes, the tar gives {len(wanted)}")


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
        lines = (folder / QUARANTINE_NAME).read_text(encoding="ascii").splitlines()
        found = [json.loads(line)["split"] for line in lines]
    except (OSError, ValueError, KeyError, TypeError) as error:
        yield Problem(QUARANTINE_NAME, f"cannot be read: {error}")
        return
    for name, split in manifest.splits.items():
        if found.count(name) != split.quarantined:
            yield Problem(
                QUARANTINE_NAME, f"has {found.count(name)} of {name}, the manifest says {split.quarantined}"
            )


def _check_statistics(shard_set: ShardSet) -> Iterator[Problem]:
    """Mean image, channel means, covariance and eigenvectors against one another."""
    statistics = shard_set.manifest.statistics
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
