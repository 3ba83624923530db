"""What every byte of a shard must be, by its index and its rows of samples.tsv, and where it is another."""

from __future__ import annotations

import zlib
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import BinaryIO, NamedTuple

from .crc import flipped_bit
from .damage import difference, flip
from .index import IndexEntry
from .manifest import ImageFormat
from .sample import LABEL_EXTENSION
from .tar import BLOCK, END_OF_ARCHIVE, BadMember, member_header, members, padding, stored_size

_WINDOW = 1 << 21  # bytes of a shard in memory at a time
_JPEG_START = b"\xff\xd8\xff"


class Stored(NamedTuple):
    """One sample as it must lie in its shard."""

    key: str
    image_size: int
    label_size: int | None  # bytes of the `.cls` member's payload; None: the sample has no such member
    label: bytes | None  # that payload; None: not known
    crc32: int | None  # of the image; None: not known


@dataclass(frozen=True, slots=True)
class Wrong:
    """Something wrong from one byte of a shard on."""

    what: str
    offset: int
    key: str | None = None


def read_members(file: BinaryIO) -> tuple[list[list[IndexEntry]], BadMember | None]:
    """The members of each sample as the headers of a shard tell them, and where these end to make sense."""
    samples: list[list[IndexEntry]] = []
    try:
        for member in members(file):
            key, _, extension = member.name.partition(".")
            entry = IndexEntry(key, extension, member.offset, member.size)
            if samples and samples[-1][0].key == key and extension == LABEL_EXTENSION:
                samples[-1].append(entry)
            else:
                samples.append([entry])
    except BadMember as bad:
        return samples, bad
    return samples, None


def wrong_bytes(
    file: BinaryIO,
    size: int,
    samples: Iterable[Stored] | None,
    image: ImageFormat,
    *,
    images: bool,
    bad: BadMember | None = None,
    on_bytes: Callable[[memoryview], object],
) -> Iterator[Wrong]:
    """Every place of a shard that is not as it must be.

    Args:
        size: what the shard must have; bytes beyond are not read.
        samples: in order, without gaps; None: they are not known, so only the length is looked at.
        images: whether images are held against their CRC-32, not only against what they must begin with.
        bad: where the list of samples breaks off, if it does.
        on_bytes: is shown every byte of the shard once, in order.
    """
    raw_start = b"P6\n%d %d\n255\n" % (image.side, image.side)
    image_start = raw_start if image.encoding == "raw" else _JPEG_START
    raw_size = len(raw_start) + 3 * image.side**2 if image.encoding == "raw" else None
    window = _Window(file, on_bytes)
    at = 0
    for sample in samples or ():
        image_at = at + BLOCK
        tail_at = image_at + sample.image_size
        label_at = tail_at + padding(sample.image_size) + BLOCK
        end = label_at - BLOCK if sample.label_size is None else label_at + stored_size(sample.label_size) - BLOCK
        if end > size:
            yield Wrong(
                f"its index has it end {end - size:,} bytes after the end of the shard", image_at, sample.key
            )
            break
        # An image is never held whole, since its size is a claim like any other.
        if not window.reach(at, image_at + len(image_start)):
            break
        if place := window.difference(at, member_header(f"{sample.key}.{image.extension}", sample.image_size)):
            yield Wrong(f"in the header of its image, {place[1]}", place[0], sample.key)
        if images and sample.crc32 is not None:
            found = window.crc32(image_at, tail_at)
            if found is None:
                break
            if found != sample.crc32:
                yield _wrong_image(file, found, sample, image_at)
        elif not window.starts(image_at, image_start) or sample.image_size not in (raw_size or sample.image_size,):
            yield Wrong(f"holds no image of the kind {image.encoding}, side {image.side}", image_at, sample.key)
        if not window.reach(tail_at, end):
            break
        if place := window.difference(tail_at, _after_image(sample, window, label_at)):
            yield Wrong(f"{_part_after_image(place[0] - tail_at, sample)}, {place[1]}", place[0], sample.key)
        at = end
    else:
        if bad is not None:
            yield Wrong(bad.what, bad.offset)
        elif samples is not None and window.reach(at, at + len(END_OF_ARCHIVE)):
            place = window.difference(at, END_OF_ARCHIVE)
            if place is not None:
                yield Wrong(f"in the end of the archive, {place[1]}", place[0])
    while window.end < size and window.reach(window.end, min(size, window.end + _WINDOW)):
        pass
    if window.end < size:
        yield Wrong(f"ends {size - window.end:,} bytes too early", window.end)
    elif window.end > size or file.read(1):
        yield Wrong("goes on after its end", size)


def _after_image(sample: Stored, window: _Window, label_at: int) -> bytes:
    """What follows an image up to the next sample; a label that is not known is taken as it is."""
    if sample.label_size is None:
        return bytes(padding(sample.image_size))
    label = window.copy(label_at, label_at + sample.label_size) if sample.label is None else sample.label
    header = member_header(f"{sample.key}.{LABEL_EXTENSION}", sample.label_size)
    return b"".join((bytes(padding(sample.image_size)), header, label, bytes(padding(sample.label_size))))


def _part_after_image(at: int, sample: Stored) -> str:
    """Which part of what follows the image holds its byte `at`."""
    at -= padding(sample.image_size)
    if at < 0:
        return "in the zeros after its image"
    if at < BLOCK:
        return "in the header of its label"
    return "in its label" if at < BLOCK + (sample.label_size or 0) else "in the zeros after its label"


def _wrong_image(file: BinaryIO, found: int, sample: Stored, at: int) -> Wrong:
    """What is wrong with the image at byte `at`, whose CRC-32 is `found`."""
    assert sample.crc32 is not None
    place = flipped_bit(found, sample.crc32, sample.image_size)
    if place is not None:
        byte, bit = place
        here = file.tell()
        file.seek(at + byte)
        damaged = file.read(1)[0]
        file.seek(here)
        return Wrong(f"in its image, {flip(damaged, bit)}", at + byte, sample.key)
    what = f"its {sample.image_size:,} image bytes have CRC-32 {found:08x}, {sample.crc32:08x} was written"
    return Wrong(f"{what}: more than one bit is wrong", at, sample.key)


class _Window:
    """The part of a file that is looked at; it moves from front to back, and each byte is read once."""

    def __init__(self, file: BinaryIO, on_bytes: Callable[[memoryview], object]) -> None:
        self._file, self._on_bytes = file, on_bytes
        self._buffer = bytearray(_WINDOW)
        self._start = 0  # in the file, of the buffer's first byte
        self.end = 0  # in the file, of what was read so far

    def reach(self, start: int, stop: int) -> bool:
        """Bring start..stop into view and let go of what lies before; False: the file ends before `stop`."""
        if stop <= self.end:
            return True
        while self.end < start:
            if not self.reach(self.end, min(start, self.end + _WINDOW)):
                return False
        kept = self._buffer[start - self._start : self.end - self._start]
        if stop - start > len(self._buffer):
            self._buffer = bytearray(stop - start)
        self._buffer[: len(kept)] = kept
        self._start = start
        with memoryview(self._buffer) as view:
            while self.end < stop:
                filled = self.end - start
                got = self._file.readinto(view[filled:])  # type: ignore[attr-defined]
                if not got:
                    return False
                self._on_bytes(view[filled : filled + got])
                self.end += got
        return True

    def crc32(self, start: int, stop: int) -> int | None:
        """The CRC-32 of start..stop; None: the file ends before `stop`."""
        found = 0
        while start < stop:
            upto = min(stop, start + _WINDOW)
            if not self.reach(start, upto):
                return None
            with memoryview(self._buffer) as view:
                found = zlib.crc32(view[start - self._start : upto - self._start], found)
            start = upto
        return found

    def copy(self, start: int, stop: int) -> bytes:
        return bytes(self._buffer[start - self._start : stop - self._start])

    def starts(self, at: int, wanted: bytes) -> bool:
        return self._buffer.startswith(wanted, at - self._start)

    def difference(self, at: int, wanted: bytes) -> tuple[int, str] | None:
        """The first byte at or after `at` that is not as in `wanted`, and what is wrong there."""
        start = at - self._start
        found = self._buffer[start : start + len(wanted)]
        if found == wanted:
            return None
        place = difference(found, wanted)
        assert place is not None
        return at + place[0], place[1]
