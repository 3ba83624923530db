"""A shard is a plain ustar archive with fixed owner, mode and time, so that equal content is equal bytes."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import BinaryIO

BLOCK = 512
END_OF_ARCHIVE = bytes(2 * BLOCK)
_MODE, _OWNER, _TIME = b"0000644\0", b"0000000\0", b"00000000000\0"


def member_header(name: str, size: int) -> bytes:
    """The 512-byte header of a regular file, `name` ASCII of at most 100 bytes.

    Source: POSIX.1-1988 ustar interchange format.
    """
    name_bytes = name.encode("ascii")
    if len(name_bytes) > 100 or not 0 <= size < 8**11:
        raise ValueError(f"ustar holds no member {name!r} of {size} bytes")
    header = bytearray(BLOCK)
    header[0 : len(name_bytes)] = name_bytes
    header[100:136] = _MODE + _OWNER + _OWNER + b"%011o\0" % size
    header[136:148] = _TIME
    header[148:156] = b" " * 8  # the checksum counts its own field as spaces
    header[156:157] = b"0"
    header[257:265] = b"ustar\x0000"
    header[329:345] = _OWNER + _OWNER
    header[148:156] = b"%06o\0 " % sum(header)
    return bytes(header)


def padding(size: int) -> int:
    """Bytes of zeros that follow `size` payload bytes."""
    return -size % BLOCK


def stored_size(size: int) -> int:
    """Bytes that a member of `size` payload bytes takes in the archive."""
    return BLOCK + size + padding(size)


@dataclass(frozen=True, slots=True)
class Member:
    """One regular file of a shard."""

    name: str
    offset: int  # of the first payload byte
    payload: bytes


class BadMember(Exception):
    """The archive is not as this project writes it, from byte `offset` on."""

    def __init__(self, what: str, offset: int) -> None:
        super().__init__(what, offset)
        self.what, self.offset = what, offset


def walk(file: BinaryIO, on_bytes: Callable[[bytes], None]) -> Iterator[Member]:
    """The members of a shard; every byte read is shown to `on_bytes` too, to the end of the file.

    Raises:
        BadMember: at the first byte that `ShardWriter` would have written otherwise. What one flipped bit can do
            to a header, a padding or the end is found here; payloads are the caller's to check.
    """
    offset = 0

    def take(size: int) -> bytes:
        nonlocal offset
        data = file.read(size)
        on_bytes(data)
        if len(data) < size:
            raise BadMember(f"ends {size - len(data)} bytes too early", offset + len(data))
        offset += size
        return data

    while any(header := take(BLOCK)):
        start = offset - BLOCK
        try:
            name = header[:100].rstrip(b"\0").decode("ascii")
            size = int(header[124:135], 8)
            if header != member_header(name, size):
                raise ValueError
        except ValueError:
            raise BadMember("is no tar header as this project writes it", start) from None
        payload = take(size)
        yield Member(name, offset - size, payload)
        if any(take(padding(size))):
            raise BadMember(f"the padding after {name} is not zero", offset - padding(size))
    if header + take(BLOCK) != END_OF_ARCHIVE:
        raise BadMember("does not end with two blocks of zeros", offset - BLOCK)
    if on := file.read(1):
        on_bytes(on)
        raise BadMember("goes on after its end", offset)
