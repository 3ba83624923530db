"""A million lines read at once: indexes and samples.tsv as columns, by NumPy, in blocks of a few megabytes.

Only texts that are exactly as this project writes them are understood; anything else is `NotPlain`, and whoever
asked reads line by line (`index.read_index`, `rows.read_rows`), which is slow and says what is wrong.

legend  N samples; a field is text[start:end]; bytes are uint8
"""

from __future__ import annotations

import hashlib
import zlib
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import BinaryIO, overload

import numpy as np
from numpy.typing import NDArray

from .index import VERSION, WORDS_PER_MEMBER
from .manifest import FileEntry, ShardEntry
from .naming import ShardName
from .regular import open_regular, read_regular
from .rows import COLUMNS
from .sample import LABEL_EXTENSION, NO_LABEL

_BLOCK = 1 << 20  # of text; what is made of it is some times as large, and stays in the processor's cache
_TAB, _NEWLINE, _SPACE = (np.uint8(ord(character)) for character in "\t\n ")
_KEY, _LABEL, _SPLIT, _CRC32 = (COLUMNS.index(name) for name in ("key", "label", "split", "crc32"))
_HEADER = "\t".join(COLUMNS).encode("ascii") + b"\n"
_HEX = np.full(256, 255, np.uint8)
_HEX[np.frombuffer(b"0123456789abcdef", np.uint8)] = np.arange(16)

Bytes = NDArray[np.uint8]
Places = NDArray[np.int64]


class NotPlain(Exception):
    """The text is not exactly as this project writes it, or not the one that was packed."""


class Keys(Sequence[str]):
    """Keys as they stand one after another in a text, decoded when they are asked for."""

    def __init__(self, text: Bytes, ends: Places) -> None:
        """`ends` (N + 1,): where each key ends, after a 0."""
        self._text, self._ends = text, ends

    def __len__(self) -> int:
        return len(self._ends) - 1

    @overload
    def __getitem__(self, place: int) -> str: ...
    @overload
    def __getitem__(self, place: slice) -> Sequence[str]: ...
    def __getitem__(self, place: int | slice) -> str | Sequence[str]:
        if isinstance(place, slice):
            return [self[i] for i in range(*place.indices(len(self)))]
        at = range(len(self))[place]
        return self._text[self._ends[at] : self._ends[at + 1]].tobytes().decode("ascii")

    def __iter__(self) -> Iterator[str]:
        text = self._text.tobytes().decode("ascii")
        for start, end in pairwise(self._ends.tolist()):
            yield text[start:end]

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Sequence) or isinstance(other, str):
            return NotImplemented
        return len(self) == len(other) and all(mine == theirs for mine, theirs in zip(self, other, strict=True))

    __hash__ = None  # type: ignore[assignment]  # as of a list

    def __repr__(self) -> str:
        return f"<{len(self):,} keys>"

    @classmethod
    def of(cls, keys: Iterable[str]) -> Keys:
        """The same keys, which are ASCII."""
        encoded = [key.encode("ascii") for key in keys]
        ends = np.cumsum([0, *map(len, encoded)], dtype=np.int64)
        return cls(np.frombuffer(b"".join(encoded), np.uint8), ends)

    def stand_at(self, first: int, text: Bytes, start: Places, end: Places) -> bool:
        """Whether the fields of a text are the keys from number `first` on."""
        ends = self._ends[first : first + len(start) + 1]
        if not np.array_equal(ends[1:] - ends[:-1], end - start):
            return False
        return np.array_equal(self._text[ends[0] : ends[-1]], _joined(text, start, end))


@dataclass(frozen=True, slots=True)
class Indexes:
    """The image members of all shards of a split, in the order on disk."""

    keys: Keys
    offset: NDArray[np.int64]  # (N,), bytes
    size: NDArray[np.int64]  # (N,), bytes


def read_indexes(folder: Path, shards: Sequence[ShardEntry], *, extension: str, labelled: bool) -> Indexes:
    """The indexes of a split's shards, each held against its SHA-256 and its number of samples.

    Raises:
        NotPlain: one is none, or not the one that was packed.
    """
    num_samples = sum(shard.samples for shard in shards)
    offset, size, length = (np.empty(num_samples, np.int64) for _ in range(3))
    texts: list[Bytes] = []
    first = 0
    for group in _groups(shards):
        bodies = [_index_body(folder, shard) for shard in group]
        text = np.concatenate([np.frombuffer(body, np.uint8) for body in bodies])
        counts = [shard.samples for shard in group]
        some = slice(first, first + sum(counts))
        words = _fields(text, text <= _SPACE, (2 if labelled else 1) * WORDS_PER_MEMBER, _SPACE, some)
        # Each body must end where its last line does, or a line would be taken for one of the next shard.
        if not np.array_equal(words.end[np.cumsum(counts) - 1, -1], np.cumsum([len(body) for body in bodies]) - 1):
            raise NotPlain
        _expect(text, *words[0], extension.encode("ascii"))
        if labelled:
            _expect(text, *words[WORDS_PER_MEMBER], LABEL_EXTENSION.encode("ascii"))
        offset[some], size[some] = _decimals(text, *words[1]), _decimals(text, *words[2])
        start, end = words[3]
        suffix = f".{extension}".encode("ascii")
        if (end - start <= len(suffix)).any():
            raise NotPlain
        _expect(text, end - len(suffix), end, suffix)
        texts.append(_joined(text, start, end - len(suffix)))
        length[some] = end - len(suffix) - start
        first = some.stop
    ends = np.zeros(num_samples + 1, np.int64)
    np.cumsum(length, out=ends[1:])
    keys = np.concatenate(texts) if texts else np.zeros(0, np.uint8)
    if (keys > 127).any():
        raise NotPlain
    return Indexes(Keys(keys, ends), offset, size)


def _groups(shards: Sequence[ShardEntry]) -> Iterator[list[ShardEntry]]:
    """Shards whose indexes together are about a block: of one alone, the calls would cost more than the work."""
    group: list[ShardEntry] = []
    for shard in shards:
        group.append(shard)
        if sum(shard.samples for shard in group) * 64 >= _BLOCK:
            yield group
            group = []
    if group:
        yield group


def _index_body(folder: Path, shard: ShardEntry) -> memoryview:
    """The text of an index after its first line."""
    try:
        text = read_regular(folder / ShardName.parse(shard.name).index_name)
    except OSError as error:
        raise NotPlain from error
    header = f"{VERSION} {shard.samples}\n".encode("ascii")
    if not text.startswith(header) or hashlib.sha256(text).hexdigest() != shard.index_sha256:
        raise NotPlain
    return memoryview(text)[len(header) :]


def read_row_columns(
    path: Path, promised: FileEntry, *, split: str, first: int, keys: Keys
) -> tuple[NDArray[np.int64], NDArray[np.uint32]]:
    """Labels and CRC-32 of a split's rows of samples.tsv, whose text is held against its CRC-32.

    Args:
        first: number of rows before those of the split.
        keys: of the split, in order.

    Returns:
        int64 (N,), -1 where there is none, and uint32 (N,).

    Raises:
        NotPlain: the rows are other ones, or the text is not the one that was packed.
    """
    label, crc32 = np.empty(len(keys), np.int64), np.empty(len(keys), np.uint32)
    row, crc, size = -1, 0, 0
    try:
        with open_regular(path) as file:
            for block in _whole_lines(file):
                crc, size = zlib.crc32(block, crc), size + len(block)
                text = np.frombuffer(block, np.uint8)
                if row < 0:
                    if not block.startswith(_HEADER):
                        raise NotPlain
                    text, row = text[len(_HEADER) :], 0
                begin, row = row, row + int(np.count_nonzero(text == _NEWLINE))
                wanted = slice(max(begin, first), min(row, first + len(keys)))
                if wanted.start >= wanted.stop:
                    continue
                fields = _fields(text, text - _TAB < 2, len(COLUMNS), _TAB, slice(begin, row))
                fields = fields.rows(slice(wanted.start - begin, wanted.stop - begin))
                some = slice(wanted.start - first, wanted.stop - first)
                _expect(text, *fields[_SPLIT], split.encode("ascii"))
                if not keys.stand_at(some.start, text, *fields[_KEY]):
                    raise NotPlain
                label[some] = _decimals(text, *fields[_LABEL], empty=NO_LABEL)
                crc32[some] = _hexadecimals(text, *fields[_CRC32])
    except OSError as error:
        raise NotPlain from error
    if size != promised.bytes or f"{crc:08x}" != promised.crc32 or row < first + len(keys):
        raise NotPlain
    return label, crc32


def _whole_lines(file: BinaryIO) -> Iterator[bytes]:
    """The text in blocks that end with a newline, but the last, perhaps."""
    rest = b""
    while block := file.read(_BLOCK):
        end = block.rfind(b"\n") + 1
        if end == 0:
            raise NotPlain  # no line is as long
        yield rest + block[:end]
        rest = block[end:]
    if rest:
        raise NotPlain


@dataclass(frozen=True, slots=True)
class _Fields:
    """Where the fields of some lines stand; of column c, `fields[c]` are starts and ends, each (N,)."""

    start: Places  # (N, columns)
    end: Places

    def __getitem__(self, column: int) -> tuple[Places, Places]:
        return self.start[:, column], self.end[:, column]

    def rows(self, some: slice) -> _Fields:
        return _Fields(self.start[some], self.end[some])


def _fields(text: Bytes, separates: NDArray[np.bool_], columns: int, between: np.uint8, lines: slice) -> _Fields:
    """The fields of a text of whole lines, each of as many columns; `separates` tells what may stand between."""
    places = np.flatnonzero(separates)
    if len(places) != (lines.stop - lines.start) * columns:
        raise NotPlain
    end = places.reshape(-1, columns)
    found = text[end]
    if (found[:, :-1] != between).any() or (found[:, -1] != _NEWLINE).any():
        raise NotPlain
    start = np.zeros_like(places)
    start[1:] = places[:-1] + 1
    return _Fields(start.reshape(end.shape), end)


def _expect(text: Bytes, start: Places, end: Places, word: bytes) -> None:
    """All fields are `word`."""
    if (end - start != len(word)).any():
        raise NotPlain
    for place, byte in enumerate(word):
        if (text[start + place] != byte).any():
            raise NotPlain


def _decimals(text: Bytes, start: Places, end: Places, *, empty: int | None = None) -> Places:
    """Fields of 1 to 18 digits as numbers, empty ones as `empty`."""
    length = end - start
    if length.max(initial=0) > 18 or (empty is None and length.min(initial=1) < 1):
        raise NotPlain
    value = np.zeros(len(start), np.int64)
    for place in range(int(length.max(initial=0))):
        inside = place < length
        digit = text.take(start + place, mode="clip") - np.uint8(ord("0"))
        if (inside & (digit > 9)).any():
            raise NotPlain
        value = np.where(inside, value * 10 + digit, value)
    return value if empty is None else np.where(length == 0, empty, value)


def _hexadecimals(text: Bytes, start: Places, end: Places) -> NDArray[np.uint32]:
    """Fields of 8 hexadecimal digits in lower case as numbers."""
    if (end - start != 8).any():
        raise NotPlain
    value = np.zeros(len(start), np.uint32)
    for place in range(8):
        digit = _HEX[text[start + place]]
        if (digit > 15).any():
            raise NotPlain
        value = value << np.uint32(4) | digit
    return value


def _joined(text: Bytes, start: Places, end: Places) -> Bytes:
    """The bytes of all fields, one after another."""
    length = end - start
    ends = np.cumsum(length)
    total = int(ends[-1]) if len(ends) else 0
    return text[np.repeat(start - ends + length, length) + np.arange(total)]
