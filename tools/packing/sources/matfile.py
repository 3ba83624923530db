"""A struct array of a MAT-file of version 5: as much of the format as a development kit's table needs.

in      bytes of the file, compressed or not, of either byte order
out     its rows, as dicts from field to text, number or, where it is neither, None
source  MathWorks, "MAT-File Format", chapter 1

SciPy's reader believes what a file claims: 184 bytes made it take 8 GB, 96 kB ended the process. Here every step
uses up bytes of the file, nothing is recursive, and what inflates is bounded.
"""

from __future__ import annotations

import struct
import zlib
from collections.abc import Iterator
from dataclasses import dataclass

VARIABLE_LIMIT = 16_000_000  # bytes of the table, inflated; the real ones have less than two million
ROW_LIMIT = 100_000  # the real ones have 1,860
_HEADER = 128
_MATRIX, _COMPRESSED = 14, 15
_STRUCT, _TEXT = 2, 4  # classes of matrices; 6 to 15 are numeric
_NUMBERS = {1: "b", 2: "B", 3: "h", 4: "H", 5: "i", 6: "I", 7: "f", 9: "d", 12: "q", 13: "Q"}
_NAME_BYTES = 512  # of an inflated variable: flags, dimensions and name lie in there

Value = str | float | None


def struct_array(data: bytes, name: str) -> list[dict[str, Value]]:
    """The rows of the struct array `name`.

    Raises:
        ValueError: there is none, or the file is damaged.
    """
    order = {b"IM": "<", b"MI": ">"}.get(data[126:128])
    if order is None:
        raise ValueError("it is no MAT-file of version 5")
    reader = _Elements(data, order, _HEADER)
    for kind, body in reader:
        if kind == _COMPRESSED:
            if _variable(_inflated(body, _NAME_BYTES, whole=False), order) == name:
                ((kind, body),) = _Elements(_inflated(body, VARIABLE_LIMIT, whole=True), order)
                return _rows(body, order)
        elif kind == _MATRIX and _variable_of(body, order) == name:
            return _rows(body, order)
    raise ValueError(f"it has no variable {name!r}")


@dataclass(slots=True)
class _Elements:
    """The elements of a part of the file, one after the other."""

    data: bytes
    order: str
    at: int = 0

    def __iter__(self) -> Iterator[tuple[int, bytes]]:
        while self.at < len(self.data):
            yield self.take()

    def take(self) -> tuple[int, bytes]:
        """Type and bytes of the next element."""
        kind, size = self._words(self.at)
        start, step = self.at + 8, 8 + size + (0 if kind == _COMPRESSED else -size % 8)
        if kind >> 16:  # a small element: type, size and up to four bytes in one word of eight
            kind, size, start, step = kind & 0xFFFF, kind >> 16, self.at + 4, 8
            if size > 4:
                raise ValueError(f"a small element of {size} bytes at byte {self.at:,}")
        if start + size > len(self.data):
            raise ValueError(f"cut: {size:,} bytes are claimed at byte {self.at:,}")
        self.at += step
        return kind, self.data[start : start + size]

    def _words(self, at: int) -> tuple[int, int]:
        if at + 8 > len(self.data):
            raise ValueError(f"cut at byte {at:,}")
        first, second = struct.unpack_from(f"{self.order}II", self.data, at)
        return first, second


def _inflated(data: bytes, limit: int, *, whole: bool) -> bytes:
    try:
        inflater = zlib.decompressobj()
        inflated = inflater.decompress(data, limit)
    except zlib.error as error:
        raise ValueError(str(error)) from None
    if whole and not inflater.eof:
        raise ValueError(f"a variable that is cut or inflates to more than {limit:,} bytes")
    return inflated


def _variable(start: bytes, order: str) -> str:
    """The name of a variable by the first bytes of its element."""
    return _variable_of(start[8:], order)


def _variable_of(body: bytes, order: str) -> str:
    elements = _Elements(body[:_NAME_BYTES], order)
    try:
        _, _, (_, name) = elements.take(), elements.take(), elements.take()
    except ValueError:  # no name here, such as a variable of another kind
        return ""
    return name.decode("ascii", "replace")


def _head(elements: _Elements) -> tuple[int, int]:
    """Class and number of entries of a matrix, whose elements then go on with its contents."""
    (_, flags), (_, sizes), _ = elements.take(), elements.take(), elements.take()
    count = 1
    for size in struct.unpack(f"{elements.order}{len(sizes) // 4}i", sizes):
        count *= max(size, 0)
    return struct.unpack(f"{elements.order}II", flags)[0] & 0xFF, count


def _rows(body: bytes, order: str) -> list[dict[str, Value]]:
    elements = _Elements(body, order)
    matrix_class, count = _head(elements)
    if matrix_class != _STRUCT:
        raise ValueError("it is no struct array")
    width = struct.unpack(f"{order}i", elements.take()[1])[0]
    names = elements.take()[1]
    if width < 1 or not names:
        raise ValueError("a struct array without fields")
    fields = [names[at : at + width].split(b"\0")[0].decode("ascii") for at in range(0, len(names), width)]
    if count > ROW_LIMIT or count * len(fields) * 8 > len(body):
        raise ValueError(f"{count:,} rows of {len(fields)} fields are claimed in {len(body):,} bytes")
    return [{field: _value(elements.take()[1], order) for field in fields} for _ in range(count)]


def _value(body: bytes, order: str) -> Value:
    """The text or the one number of a matrix; None where it is anything else."""
    if not body:
        return None
    elements = _Elements(body, order)
    matrix_class, count = _head(elements)
    if matrix_class == _TEXT:
        kind, text = elements.take() if count else (1, b"")
        wide = "utf-16-le" if order == "<" else "utf-16-be"
        return text.decode(wide if kind in (4, 17) else "utf-8" if kind == 16 else "latin-1", "replace")
    if 6 <= matrix_class <= 15 and count == 1:
        kind, number = elements.take()
        return float(struct.unpack(order + _NUMBERS[kind], number)[0])
    return None
