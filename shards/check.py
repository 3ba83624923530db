"""One shard with its index and its rows of samples.tsv against the manifest, by any thread."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import BinaryIO, NamedTuple

import numpy as np
from numpy.typing import NDArray

from .contents import Stored, read_members, wrong_bytes
from .damage import Problem, difference
from .index import VERSION, index_text
from .manifest import SAMPLES_NAME, ImageFormat, Manifest, ShardEntry
from .naming import ShardName
from .regular import open_regular, read_regular
from .rows import COLUMNS
from .sample import LABEL_EXTENSION
from .tar import BLOCK, BadMember, stored_size

_MOST_PLACES = 10  # that are told of one shard
HEADER = "\t".join(COLUMNS).encode("ascii") + b"\n"
# A line of samples.tsv whose key is one, with key, label, split, shard, note and CRC-32.
_LINE = re.compile(
    rb"([A-Za-z0-9_][A-Za-z0-9_-]*)\t([0-9]{0,9})\t([a-z]+)\t([^\t]+)\t[^\t]*\t([^\t]*)\t([0-9a-f]{8})\n"
)


@dataclass(frozen=True, slots=True)
class ShardTask:
    """One shard and what is promised of it."""

    folder: Path
    image: ImageFormat
    num_classes: int
    split: str
    labelled: bool
    shard: ShardEntry
    first_line: int  # of its rows, in samples.tsv
    lines: list[bytes] | None  # its rows; None: samples.tsv cannot be trusted


@dataclass(slots=True)
class ShardFindings:
    """What came out."""

    problems: list[Problem] = field(default_factory=list)
    keys: NDArray[np.int64] = field(default_factory=lambda: np.zeros(0, np.int64))  # a hash of each
    patched: int = 0


class _Row(NamedTuple):
    """What a row of samples.tsv says of the bytes of its sample."""

    key: str
    label: bytes
    crc32: int


def check_shard(task: ShardTask, on_bytes: Callable[[], object]) -> ShardFindings:
    """Read one shard and its index.

    Args:
        on_bytes: called every few megabytes; what it raises ends the work.
    """
    findings = ShardFindings()
    rows = None if task.lines is None else list(_rows(task, findings))
    if rows is not None:
        findings.keys = np.array([hash(row.key) for row in rows], np.int64)
    findings.problems += _shard_problems(task, rows, on_bytes)
    return findings


def first_wrong_line(folder: Path, manifest: Manifest, text: bytes) -> tuple[int, str] | None:
    """The first byte of the first line of samples.tsv that cannot be right, and why not.

    A line must be of the shard whose turn it is, and of the sample that lies there by the shard's index.
    """
    if not text.startswith(HEADER):
        return difference(text[: len(HEADER)], HEADER)
    lines = iter(text[len(HEADER) :].splitlines(keepends=True))
    at, number = len(HEADER), 2
    for name, split in manifest.splits.items():
        for shard in split.shards:
            keys = _keys_in_index(folder / ShardName.parse(shard.name).index_name, shard)
            for place, line in enumerate(islice(lines, shard.samples)):
                fields = _LINE.fullmatch(line)
                if not line.endswith(b"\n"):
                    return None  # the file ends here, which is told as such
                if fields is None:
                    return at, f"line {number} is no sample: {line[:80]!r}"
                if fields[3].decode() != name or fields[4].decode("utf-8", "replace") != shard.name:
                    return at, f"line {number} is not of {shard.name}, whose turn it is"
                if keys is not None and keys[place] != fields[1].decode():
                    return at, f"line {number} is of {fields[1].decode()}, the index has {keys[place]} there"
                at, number = at + len(line), number + 1
    return None


def _keys_in_index(path: Path, shard: ShardEntry) -> list[str] | None:
    """The keys of a shard, by its index; None if that is not as it was written."""
    try:
        index = read_regular(path)
    except OSError:
        return None
    if hashlib.sha256(index).hexdigest() != shard.index_sha256:
        return None
    return [line.split(" ")[3].partition(".")[0] for line in index.decode("ascii").splitlines()[1:]]


def _rows(task: ShardTask, findings: ShardFindings) -> Iterator[_Row]:
    """The rows of a shard; ends where one is none."""
    split, shard = task.split.encode(), task.shard.name.encode()
    for number, line in enumerate(task.lines or [], start=task.first_line):
        fields = _LINE.fullmatch(line)
        if fields is None:
            findings.problems.append(Problem(SAMPLES_NAME, f"line {number} is no sample: {line[:80]!r}"))
            return
        key, label, in_split, in_shard, note, crc32 = fields.groups()
        if in_split != split or in_shard != shard:
            what = f"line {number} is not of {task.shard.name}, whose turn it is"
        elif (label != b"") != task.labelled or (label and int(label) >= task.num_classes):
            what = f"line {number} has label {label.decode('ascii')!r}"
        else:
            findings.patched += b"patched" in note
            yield _Row(key.decode("ascii"), label, int(crc32, 16))
            continue
        findings.problems.append(Problem(SAMPLES_NAME, what, key=key.decode("ascii")))
        return


def _shard_problems(task: ShardTask, rows: list[_Row] | None, on_bytes: Callable[[], object]) -> Iterator[Problem]:
    shard = task.shard
    index_name = ShardName.parse(shard.name).index_name
    index = wanted = None
    try:
        index = read_regular(task.folder / index_name)
    except OSError as error:
        yield Problem(index_name, f"cannot be read: {error.strerror}")
    if index is not None and hashlib.sha256(index).hexdigest() == shard.index_sha256:
        wanted = index.decode("ascii", "replace")
    bad = samples = None
    told_by = index_name
    try:
        with open_regular(task.folder / shard.name) as file:
            if wanted is None:
                members, bad = read_members(file)
                wanted, told_by = index_text(members), shard.name
                if index is not None:
                    yield _index_problem(index_name, index, wanted.encode("ascii"), shard.index_sha256)
            try:
                samples = list(_stored(wanted, task, rows))
            except ValueError as error:
                if bad is None:
                    yield Problem(told_by, f"by its headers, {error}" if told_by == shard.name else str(error))
            yield from _wrong_in(file, task, samples, bad, on_bytes)
    except OSError as error:
        yield Problem(shard.name, f"cannot be read: {error.strerror}")


def _index_problem(name: str, index: bytes, wanted: bytes, sha256: str) -> Problem:
    found, told = (hashlib.sha256(text).hexdigest() for text in (index, wanted))
    place = difference(index, wanted)
    if told != sha256 or place is None:
        return Problem(name, f"has SHA-256 {found}, the manifest says {sha256}; its shard is damaged too")
    return Problem(name, place[1], place[0])


def _stored(index: str, task: ShardTask, rows: list[_Row] | None) -> Iterator[Stored]:
    """What each sample must be, by the text of an index and the rows.

    Raises:
        ValueError: the text is no index of such a shard, or rows and index differ.
    """
    lines = index.split("\n")
    if lines[0] != f"{VERSION} {len(lines) - 2}" or lines[-1] != "":
        raise ValueError(f"it does not begin with {VERSION} and the number of its samples")
    if len(lines) - 2 != task.shard.samples:
        raise ValueError(f"it has {len(lines) - 2:,} samples, the manifest says {task.shard.samples:,}")
    extension, at = task.image.extension, 0
    for number, line in enumerate(lines[1:-1]):
        words = line.split(" ")
        try:
            key, size = words[3].removesuffix(f".{extension}"), int(words[2])
            right = f"{extension} {at + BLOCK} {size} {key}.{extension}"
            at += stored_size(size)
            label_size = None
            if task.labelled:
                label_size = int(words[6])
                right += f" {LABEL_EXTENSION} {at + BLOCK} {label_size} {key}.{LABEL_EXTENSION}"
                at += stored_size(label_size)
            # What no tar of ours could hold; labels have at most nine digits.
            fits = key.isascii() and len(words[3]) <= 100 and 0 <= size < 8**11 and 0 <= (label_size or 0) <= 9
        except (IndexError, ValueError):
            right, fits = "", False
        if line != right or not fits:
            raise ValueError(f"line {number + 2} is not that of a sample: {line[:120]!r}")
        if rows is None or number >= len(rows):
            yield Stored(key, size, label_size, None, None)
            continue
        row = rows[number]
        if row.key != key or (label_size is not None and label_size != len(row.label)):
            raise ValueError(
                f"line {number + 2} is of {key}, {SAMPLES_NAME} has {row.key} there, or another label"
            )
        yield Stored(key, size, label_size, row.label if task.labelled else None, row.crc32)


def _wrong_in(
    file: BinaryIO,
    task: ShardTask,
    samples: list[Stored] | None,
    bad: BadMember | None,
    on_bytes: Callable[[], object],
) -> Iterator[Problem]:
    """Hold a shard against its digest; where it differs, read it again to find the places."""
    shard = task.shard
    digest = hashlib.sha256()

    def update(data: memoryview) -> None:
        digest.update(data)
        on_bytes()

    file.seek(0)
    wrong = list(wrong_bytes(file, shard.bytes, samples, task.image, bad=bad, images=False, on_bytes=update))
    sound = digest.hexdigest() == shard.sha256
    if not sound:
        file.seek(0)
        again = wrong_bytes(
            file, shard.bytes, samples, task.image, bad=bad, images=True, on_bytes=lambda _data: on_bytes()
        )
        wrong = list(again)
        if not wrong:
            yield Problem(shard.name, f"has SHA-256 {digest.hexdigest()}, the manifest says {shard.sha256}")
    for place in wrong[:_MOST_PLACES]:
        what = f"as written it does not fit index and {SAMPLES_NAME}: {place.what}" if sound else place.what
        yield Problem(shard.name, what, place.offset, place.key)
    if len(wrong) > _MOST_PLACES:
        yield Problem(shard.name, f"is wrong in {len(wrong) - _MOST_PLACES:,} more places")
