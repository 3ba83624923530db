r"""samples.tsv: every packed sample, with where it came from and what was done to it.

One line a sample, in the order of splits (train, val, test), shards and places; columns as `COLUMNS`. In
`original` a backslash, tab, newline or carriage return is written \\, \t, \n, \r; bytes that are not UTF-8 stay
as they are.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

from .errors import CorruptShardSet, mending
from .regular import open_regular, read_regular
from .sample import NO_LABEL

COLUMNS = ("key", "label", "split", "shard", "original", "note", "crc32")
_LABEL = re.compile(r"[0-9]{0,9}")
_CRC32 = re.compile(r"[0-9a-f]{8}")
_ESCAPES = {"\\": "\\\\", "\t": "\\t", "\n": "\\n", "\r": "\\r"}
_ESCAPED = str.maketrans(_ESCAPES)
_ESCAPE = re.compile(r"\\.?")
_PLAIN = {escaped: plain for plain, escaped in _ESCAPES.items()}


@dataclass(frozen=True, slots=True)
class SampleRow:
    """One line of samples.tsv."""

    key: str
    label: int  # NO_LABEL (-1): none
    split: str
    shard: str  # name of the tar
    original: str  # name in the source
    note: str = ""  # what was done beyond resizing: "patched", "gunzipped", "cmyk", …; comma-separated
    crc32: int = 0  # of the image member's payload, so that a damaged sample can be named

    def __str__(self) -> str:
        label = "" if self.label == NO_LABEL else str(self.label)
        original = escaped(self.original)
        return "\t".join((self.key, label, self.split, self.shard, original, self.note, f"{self.crc32:08x}"))

    @classmethod
    def parse(cls, line: str) -> SampleRow:
        key, label, split, shard, original, note, crc32 = line.split("\t")
        if _LABEL.fullmatch(label) is None or _CRC32.fullmatch(crc32) is None:
            raise ValueError(f"label {label[:20]!r}, CRC-32 {crc32[:20]!r}")
        return cls(key, int(label or NO_LABEL), split, shard, _unescaped(original), note, int(crc32, 16))


def escaped(name: str) -> str:
    """A name as it stands in a line of text."""
    return name.translate(_ESCAPED)


def rows_text(rows: Iterable[SampleRow]) -> str:
    """The text of samples.tsv, header included."""
    return "\n".join(["\t".join(COLUMNS), *map(str, rows)]) + "\n"


def read_rows(path: Path, *, split: str | None = None) -> Iterator[SampleRow]:
    """The rows of samples.tsv, of one split or of all.

    Raises:
        CorruptShardSet: a line is none, with its number.
    """
    try:
        text = read_regular(path).decode("utf-8", "surrogateescape")
    except OSError as error:
        raise _corrupt(path, f"cannot be read: {error.strerror}") from error
    lines = text.split("\n")
    if lines[0] != "\t".join(COLUMNS) or lines[-1] != "":
        raise _corrupt(path, "does not begin with its header or does not end with a newline")
    marker = None if split is None else f"\t{split}\t"
    for number, line in enumerate(lines[1:-1], start=2):
        if marker is not None and marker not in line:
            continue
        try:
            row = SampleRow.parse(line)
        except ValueError as error:
            raise _corrupt(path, f"line {number} is no sample: {error}") from error
        if split is None or row.split == split:
            yield row


def count_labels(path: Path, num_classes: int) -> dict[str, list[int]]:
    """Samples of each label, by split; those without one are not counted.

    It reads no more of a line than it needs: a million samples take about a second.

    Raises:
        CorruptShardSet: a line has no label of 0..num_classes - 1.
    """
    try:
        with open_regular(path) as lines:
            next(lines, None)  # the header
            found = Counter(tuple(line.split(b"\t", 3)[1:3]) for line in lines)
    except OSError as error:
        raise _corrupt(path, f"cannot be read: {error.strerror}") from error
    counts: dict[str, list[int]] = {}
    for about, number in found.items():
        try:
            label, split = (word.decode("ascii") for word in about)
            counted = counts.setdefault(split, [0] * num_classes)
            if label:
                if _LABEL.fullmatch(label) is None:
                    raise ValueError
                counted[int(label)] += number
        except (ValueError, IndexError):
            raise _corrupt(path, f"has a line with label and split {about!r}") from None
    return counts


def _unescaped(text: str) -> str:
    return _ESCAPE.sub(lambda found: _PLAIN.get(found[0], "?"), text)


def _corrupt(path: Path, what: str) -> CorruptShardSet:
    return CorruptShardSet(
        f"{path.name} {what}",
        where=str(path),
        why="labels and keys are read from it",
        remedy=mending(str(path.parent)),
    )
