"""The images of a split in columns, some 60 bytes an image: 1.3 million take less than 80 MB."""

from __future__ import annotations

from array import array
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Protocol, overload

import numpy as np
from numpy.typing import NDArray

from ....shards import NO_LABEL

COLUMNS = ("container", "offset", "size", "label", "changed")
_TIMES = 1 << 63  # what a column holds; files may be of any year


class Names(Sequence[str]):
    """A list of strings that only grows, as one run of bytes: a `str` of 20 letters takes 77 bytes.

    >>> Names(["a.JPEG", "é.JPEG"])[1], len(Names())
    ('é.JPEG', 0)
    """

    def __init__(self, names: Iterable[str] = ()) -> None:
        self._bytes = bytearray()
        self._ends = array("q")
        for name in names:
            self.append(name)

    def append(self, name: str) -> None:
        self._bytes += name.encode("utf-8", "surrogateescape")
        self._ends.append(len(self._bytes))

    def __len__(self) -> int:
        return len(self._ends)

    @overload
    def __getitem__(self, place: int) -> str: ...
    @overload
    def __getitem__(self, place: slice) -> list[str]: ...
    def __getitem__(self, place: int | slice) -> str | list[str]:
        if isinstance(place, slice):
            return [self[i] for i in range(*place.indices(len(self)))]
        end = self._ends[place]
        place %= len(self._ends)
        start = self._ends[place - 1] if place else 0
        return self._bytes[start:end].decode("utf-8", "surrogateescape")

    def __iter__(self) -> Iterator[str]:
        start = 0
        for end in self._ends:
            yield self._bytes[start:end].decode("utf-8", "surrogateescape")
            start = end

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Sequence) and len(self) == len(other) and all(map(str.__eq__, self, other))

    __hash__ = None  # type: ignore[assignment]

    def to_arrays(self) -> tuple[NDArray[np.uint8], NDArray[np.int64]]:
        """The bytes of all names one behind the other, and where each ends."""
        return np.frombuffer(bytes(self._bytes), np.uint8), np.array(self._ends, np.int64)

    @classmethod
    def from_arrays(cls, letters: NDArray[np.uint8], ends: NDArray[np.int64]) -> Names:
        names = cls()
        names._bytes = bytearray(letters.tobytes())
        names._ends = array("q", ends.astype(np.int64).tobytes())
        return names


class _HasTime(Protocol):
    @property
    def st_mtime_ns(self) -> int: ...


def change_of(status: _HasTime) -> int:
    """Number that tells a file that was changed: its time of change (ns), or what a store gives in its place."""
    return status.st_mtime_ns % _TIMES


@dataclass(slots=True)
class Images:
    """The images of one split in source order, in columns."""

    labelled: bool = True
    names: Names = field(default_factory=Names)
    container: array[int] = field(default_factory=lambda: array("i"))
    offset: array[int] = field(default_factory=lambda: array("q"))
    size: array[int] = field(default_factory=lambda: array("q"))
    label: array[int] = field(default_factory=lambda: array("i"))
    changed: array[int] = field(default_factory=lambda: array("q"))  # `change_of` a file; 0 in an archive
    patched: set[int] = field(default_factory=set)  # positions whose bytes come from the patch archive

    def __len__(self) -> int:
        return len(self.names)

    def add(
        self, name: str, container: int, offset: int, size: int, label: int = NO_LABEL, changed: int = 0
    ) -> None:
        self.names.append(name)
        self.container.append(container)
        self.offset.append(offset)
        self.size.append(size)
        self.label.append(label)
        self.changed.append(changed)

    def replace(self, position: int, container: int, offset: int, size: int, changed: int) -> None:
        """Take the bytes of one image from elsewhere: from the patch archive."""
        self.container[position], self.offset[position], self.size[position] = container, offset, size
        self.changed[position] = changed
        self.patched.add(position)

    def to_arrays(self) -> dict[str, NDArray[np.generic]]:
        """All of it as arrays by name, to be kept in a file."""
        letters, ends = self.names.to_arrays()
        columns = {
            name: np.frombuffer(bytes(getattr(self, name)), getattr(self, name).typecode) for name in COLUMNS
        }
        patched = np.array(sorted(self.patched), np.int64)
        return {
            "labelled": np.array(self.labelled),
            "letters": letters,
            "ends": ends,
            "patched": patched,
            **columns,
        }

    @classmethod
    def from_arrays(cls, arrays: dict[str, NDArray[np.generic]]) -> Images:
        """The inverse of `to_arrays`."""
        images = cls(bool(arrays["labelled"]), Names.from_arrays(arrays["letters"], arrays["ends"]))  # type: ignore[arg-type]
        for name in COLUMNS:
            column = getattr(images, name)
            column.frombytes(arrays[name].tobytes())
        images.patched = set(arrays["patched"].tolist())
        return images
