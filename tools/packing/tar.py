"""Where the members of a tar archive lie: headers are read, data is not.

An inner tar is stored in one piece inside the outer one, so `members(file, start=..., end=...)` lists it in
place, and an image of a nested archive is (offset, size) in the one outer file.

in      any seekable binary file: a disk file, `io.BytesIO`, a remote file that serves ranges
out     one `Member` for everything in it, folders and links included; offsets count from the start of the file
read    ustar, GNU (long names, base-256 sizes) and pax (path, size); every header's checksum
source  POSIX.1-2017, pax, "ustar Interchange Format"; GNU tar manual, "Basic Tar Format"
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import dataclass
from enum import StrEnum
from typing import BinaryIO

from ...shards import AlexshardError

BLOCK = 512
RECORD_LIMIT = 16 << 20  # bytes from the end mark to the end of the file; 10,240 are usual
EXTENSION_LIMIT = 1 << 20  # bytes of a long name or a pax header; real ones have a few hundred


class BadArchive(AlexshardError):
    """An archive is cut, damaged or not a tar."""


class Kind(StrEnum):
    """What a member is."""

    FILE = "file"
    FOLDER = "folder"
    HARD_LINK = "hard link"
    SYMBOLIC_LINK = "symbolic link"
    DEVICE = "device or pipe"
    SPARSE = "sparse file"
    UNKNOWN = "member of unknown type"


_KINDS = {
    b"0": Kind.FILE,
    b"\0": Kind.FILE,
    b"7": Kind.FILE,
    b"1": Kind.HARD_LINK,
    b"2": Kind.SYMBOLIC_LINK,
    b"3": Kind.DEVICE,
    b"4": Kind.DEVICE,
    b"5": Kind.FOLDER,
    b"6": Kind.DEVICE,
    b"S": Kind.SPARSE,
}
_WITHOUT_DATA = {Kind.HARD_LINK, Kind.SYMBOLIC_LINK, Kind.DEVICE, Kind.FOLDER}


@dataclass(frozen=True, slots=True)
class Member:
    """One member: `size` bytes from byte `offset` of the file that was indexed."""

    name: str  # as the archive has it, slashes and all; bytes that are not UTF-8 as surrogates
    kind: Kind
    offset: int
    size: int


def members(file: BinaryIO, *, where: str, start: int = 0, end: int | None = None) -> Iterator[Member]:
    """The members of the tar in bytes `start` to `end` of a file, in archive order.

    Reads headers only and keeps nothing, so memory does not grow with the archive. It ends at the first block
    of zeros, behind which nothing but the padding of a record may lie.

    Args:
        where: what to call this tar in messages.

    Raises:
        BadArchive: a header is damaged, a member claims bytes that are not there, or no block of zeros marks
            the end: the archive is cut. Members before that place have been yielded.
    """
    if end is None:
        end = file.seek(0, os.SEEK_END)
    position = start
    shared: dict[str, str] = {}  # pax records for all members that follow
    own: dict[str, str] = {}  # pax records for the next member
    long_name: str | None = None
    while position < end:
        header = _header(file, position, end, where)
        if not any(header):
            if end - position > RECORD_LIMIT:
                raise _damaged(f"{end - position:,} bytes behind what looks like the end", position, where)
            return
        type_flag = header[156:157]
        size = _number(header[124:136], position, where)
        if type_flag in b"LKxg":
            body = _extension(file, position, size, end, where)
            if type_flag == b"L":
                long_name = body.split(b"\0", 1)[0].decode("utf-8", "surrogateescape")
            elif type_flag == b"x":
                own = _pax_records(body, position, where)
            elif type_flag == b"g":
                shared |= _pax_records(body, position, where)
            position += BLOCK + _padded(size)
            continue

        extended = shared | own
        if "size" in extended:
            size = _pax_size(extended["size"], position, where)
        name = extended.get("path") or long_name or _name(header)
        kind = _KINDS.get(type_flag, Kind.UNKNOWN)
        if kind is Kind.FILE and name.endswith("/"):
            kind = Kind.FOLDER  # how tar marked folders before ustar
        if kind is Kind.FILE and any(key.startswith("GNU.sparse.") for key in extended):
            kind = Kind.SPARSE
        offset = position + BLOCK
        if type_flag == b"S":
            offset = _after_sparse_map(file, header, offset, end, where)
        if kind in _WITHOUT_DATA:
            size = 0
        if offset + size > end:
            what = f"{name!r} needs {size:,} bytes from byte {offset:,}, {end - offset:,} are there"
            raise _cut(what, position, where)
        yield Member(name, kind, offset, size)
        position, own, long_name = offset + _padded(size), {}, None
    raise _cut("it ends without the blocks of zeros that end a tar", end, where)


def _padded(size: int) -> int:
    return -(-size // BLOCK) * BLOCK


def _cut(what: str, position: int, where: str) -> BadArchive:
    return BadArchive(
        f"{where} is cut: {what}",
        where=f"{where}, byte {position:,}",
        why="what follows is lost, and a set without it would look complete",
        remedy="download or copy the archive again and compare its checksum",
    )


def _damaged(what: str, position: int, where: str) -> BadArchive:
    return BadArchive(
        f"{where}: {what} at byte {position:,}",
        where=f"{where}, byte {position:,}",
        why="nothing after this place can be found",
        remedy="download or copy the archive again and compare its checksum",
    )


def _header(file: BinaryIO, position: int, end: int, where: str) -> bytes:
    file.seek(position)
    header = file.read(min(BLOCK, end - position))
    if len(header) < BLOCK:
        raise _damaged(f"cut: {len(header)} bytes of a 512-byte header", position, where)
    if not any(header):
        return header
    try:
        stored = int(header[148:156].strip(b" \0") or b"-1", 8)
    except ValueError:
        stored = -1
    blank = header[:148] + b" " * 8 + header[156:]
    unsigned = sum(blank)
    # Some old tars summed the bytes as signed characters.
    if stored != unsigned and stored != unsigned - 256 * sum(byte > 127 for byte in blank):
        raise _damaged(f"no tar header ({_looks_like(header)})", position, where)
    return header


def _looks_like(header: bytes) -> str:
    if header.startswith(b"\x1f\x8b"):
        return "gzip data: unpack it with gunzip first"
    return "its checksum is wrong"


def _number(digits: bytes, position: int, where: str) -> int:
    """A size field: octal digits, or base 256 when the first bit is set."""
    if digits[0] & 0x80:
        value = int.from_bytes(digits, "big", signed=False) - (0x80 << 8 * (len(digits) - 1))
        if digits[0] != 0x80 or value >= 1 << 62:
            raise _damaged("a member of negative or absurd size", position, where)
        return value
    try:
        value = int(digits.strip(b" \0") or b"0", 8)
    except ValueError:
        value = -1
    if value < 0:
        raise _damaged(f"a size that is no number ({digits!r})", position, where)
    return value


def _name(header: bytes) -> str:
    name = header[:100].split(b"\0", 1)[0]
    # GNU tar ends its magic with a blank and keeps other things where ustar has the prefix.
    if header[257:263] == b"ustar\0" and (prefix := header[345:500].split(b"\0", 1)[0]):
        name = prefix + b"/" + name
    return name.decode("utf-8", "surrogateescape")


def _extension(file: BinaryIO, position: int, size: int, end: int, where: str) -> bytes:
    if size > EXTENSION_LIMIT:
        raise _damaged(f"a name or extended header of {size:,} bytes", position, where)
    body = file.read(size) if position + BLOCK + size <= end else b""
    if len(body) < size:
        raise _damaged("cut: an extended header ends early", position, where)
    return body


def _pax_records(body: bytes, position: int, where: str) -> dict[str, str]:
    """Records `LENGTH KEY=VALUE\\n`; LENGTH counts the whole record."""
    records = {}
    while body.strip(b"\0"):
        digits, _, _ = body.partition(b" ")
        length = int(digits) if digits.isdigit() and len(digits) < 8 else 0
        record, body = body[len(digits) + 1 : length], body[length:]
        key, equals, value = record.partition(b"=")
        if not equals or not value.endswith(b"\n"):
            raise _damaged("an extended header that is none", position, where)
        records[key.decode("utf-8", "replace")] = value[:-1].decode("utf-8", "surrogateescape")
    return records


def _pax_size(text: str, position: int, where: str) -> int:
    if not (text.isascii() and text.isdigit() and len(text) < 19):
        raise _damaged(f"a size that is no number ({text[:40]!r})", position, where)
    return int(text)


def _after_sparse_map(file: BinaryIO, header: bytes, offset: int, end: int, where: str) -> int:
    """Skip the further blocks in which GNU tar keeps a long sparse map."""
    more = header[482]
    while more:
        file.seek(offset)
        block = file.read(min(BLOCK, end - offset))
        if len(block) < BLOCK:
            raise _damaged("cut: a sparse map ends early", offset, where)
        offset, more = offset + BLOCK, block[504]
    return offset
