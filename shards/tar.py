"""A shard is a plain ustar archive with fixed owner, mode and time, so that equal content is equal bytes."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import BinaryIO

BLOCK = 512
END_OF_ARCHIVE = bytes(2 * BLOCK)
_MODE, _OWNER, _TIME = b"0000644\0", b"0000000\0", b"00000000000\0"
_BEFORE_SIZE = _MODE + _OWNER + _OWNER
_AFTER_SIZE = b"\0" + _TIME
_AFTER_CHECKSUM = (b"0".ljust(101, b"\0") + b"ustar\x0000".ljust(72, b"\0") + _OWNER + _OWNER).ljust(356, b"\0")
# What every header adds to its checksum, which counts its own field as eight spaces.
_CHECKSUM = sum(_BEFORE_SIZE + _AFTER_SIZE + b" " * 8 + _AFTER_CHECKSUM)


def member_header(name: str, size: int) -> bytes:
    """The 512-byte header of a regular file, `name` ASCII of at most 100 bytes.

    Source: POSIX.1-1988 ustar interchange format.
    """
    name_bytes = name.encode("ascii")
    if len(name_bytes) > 100 or not 0 <= size < 8**11:
        raise ValueError(f"ustar holds no member {name!r} of {size} bytes")
    digits = b"%011o" % size
    checksum = b"%06o\0 " % (sum(name_bytes) + sum(digits) + _CHECKSUM)
    return b"".join((name_bytes.ljust(100, b"\0"), _BEFORE_SIZE, digits, _AFTER_SIZE, checksum, _AFTER_CHECKSUM))


def padding(size: int) -> int:
    """Bytes of zeros that follow `size` payload bytes."""
    return -size % BLOCK


def stored_size(size: int) -> int:
    """Bytes that a member of `size` payload bytes takes in the archive."""
    return BLOCK + size + padding(size)


@dataclass(frozen=True, slots=True)
class Member:
    """Where one regular file of a shard lies."""

    name: str
    offset: int  # of the first payload byte
    size: int  # payload bytes


class BadMember(Exception):
    """The archive is not as this project writes it, from byte `offset` on."""

    def __init__(self, what: str, offset: int) -> None:
        super().__init__(what, offset)
        self.what, self.offset = what, offset


def members(file: BinaryIO) -> Iterator[Member]:
    """The members of a shard by its headers alone; what lies between them is not read.

    Raises:
        BadMember: a header is not one that `ShardWriter` would have written.
    """
    at = 0
    while any(header := file.read(BLOCK)):
        try:
            name = header[:100].rstrip(b"\0").decode("ascii")
            size = int(header[124:135], 8)
            if header != member_header(name, size):
                raise ValueError
        except ValueError:
            raise BadMember("is no tar header as this project writes it", at) from None
        yield Member(name, at + BLOCK, size)
        at += stored_size(size)
        file.seek(at)
