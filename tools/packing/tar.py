"""Where the members of a tar archive lie: headers are read, data is not.

An inner tar is stored in one piece inside the outer one, so `members(read_at, start=..., end=...)` lists it
in place, and an image of a nested archive is (offset, size) in the one outer file.

in      a function that reads bytes at an offset: of a disk file, of memory, of a remote file that serves ranges
out     one `Member` for everything in it, folders and links included; offsets count from the start of the file
read    ustar, GNU (long names, base-256 sizes) and pax (path, size); every header's checksum
source  POSIX.1-2017, pax, "ustar Interchange Format"; GNU tar manual, "Basic Tar Format"
"""

from __future__ import annotations

import zlib
from collections.abc import Callable, Iterator
from enum import StrEnum
from typing import NamedTuple

from ...shards import AlexshardError

BLOCK = 512
RECORD_LIMIT = 16 << 20  # bytes from the end mark to the end of the file; 10,240 are usual
EXTENSION_LIMIT = 1 << 20  # bytes of a long name or a pax header; real ones have a few hundred

ReadAt = Callable[[int, int], bytes]  # (offset, size) to the bytes there; fewer where the file ends


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
_IMAGE = (b"0", b"\0")
_SPARSE = "GNU.sparse"  # stands for any pax record that begins so
_WITHOUT_DATA = {Kind.HARD_LINK, Kind.SYMBOLIC_LINK, Kind.DEVICE, Kind.FOLDER}


class Member(NamedTuple):
    """One member: `size` bytes from byte `offset` of the file that was indexed."""

    name: str  # as the archive has it, slashes and all; bytes that are not UTF-8 as surrogates
    kind: Kind
    offset: int
    size: int


def members(read_at: ReadAt, *, where: str, start: int = 0, end: int) -> Iterator[Member]:
    """The members of the tar in bytes `start` to `end` of a file, in archive order.

    Reads headers only, one read each, and keeps nothing, so memory does not grow with the archive. It ends at
    the first block of zeros, behind which nothing but the padding of a record may lie.

    Args:
        where: what to call this tar in messages.

    Raises:
        BadArchive: a header is damaged, a member claims bytes that are not there, or no block of zeros marks
            the end: the archive is cut. Members before that place have been yielded.
    """
    position = start
    shared: dict[str, str] = {}  # pax records for all members that follow
    own: dict[str, str] = {}  # pax records for the next member
    long_name: str | None = None
    while position < end:
        header = _header(read_at, position, end, where)
        if not header[0] and not any(header):
            if end - position > RECORD_LIMIT:
                raise _damaged(f"{end - position:,} bytes behind what looks like the end", position, where)
            return
        type_flag = header[156:157]
        size = _number(header[124:136], position, where)
        if type_flag in _IMAGE and not (own or shared or long_name):  # nearly all of them
            name, offset = _name(header), position + BLOCK
            if offset + size <= end and not name.endswith("/"):
                yield Member(name, Kind.FILE, offset, size)
                position = offset + _padded(size)
                continue
        if type_flag in b"LKxg":
            body = _extension(read_at, position, size, end, where)
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
        if kind is Kind.FILE and _SPARSE in extended:
            kind = Kind.SPARSE
        offset = position + BLOCK
        if type_flag == b"S":
            offset = _after_sparse_map(read_at, header, offset, end, where)
        if kind in _WITHOUT_DATA:
            size = 0
        if offset + size > end:
            what = f"{name[:200]!r} needs {size:,} bytes from byte {offset:,}, {end - offset:,} are there"
            raise _cut(what, position, where)
        yield Member(name, kind, offset, size)
        position, own, long_name = offset + _padded(size), {}, None
    raise _cut("it ends without the blocks of zeros that end a tar", end, where)


def after(member: Member) -> int:
    """Where the headers of the next member begin."""
    return member.offset + _padded(member.size)


def is_header(block: bytes) -> bool:
    """Whether a block says that it is a header, and its checksum agrees."""
    if block[257:262] != b"ustar":
        return False
    try:
        return bool(_header(lambda *_: block, 0, BLOCK, ""))
    except BadArchive:
        return False


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


def _header(read_at: ReadAt, position: int, end: int, where: str) -> bytes:
    header = read_at(position, min(BLOCK, end - position))
    if len(header) < BLOCK:
        raise _damaged(f"cut: {len(header)} bytes of a 512-byte header", position, where)
    if not header[0] and not any(header):
        return header
    try:
        stored = int(header[148:156].strip(b" \0") or b"-1", 8)
    except ValueError:
        stored = -1
    blank = header[:148] + b"        " + header[156:]
    unsigned = _sum(blank[:256]) + _sum(blank[256:])
    # Some old tars summed the bytes as signed characters.
    if stored != unsigned and stored != unsigned - 256 * sum(byte > 127 for byte in blank):
        raise _damaged(f"no tar header ({_looks_like(header)})", position, where)
    return header


def _sum(half: bytes) -> int:
    """The sum of up to 256 bytes. Adler's lower word is one more, modulo 65521, in a tenth of `sum`'s time."""
    return (zlib.adler32(half) & 0xFFFF) - 1


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


def _extension(read_at: ReadAt, position: int, size: int, end: int, where: str) -> bytes:
    if size > EXTENSION_LIMIT:
        raise _damaged(f"a name or extended header of {size:,} bytes", position, where)
    body = read_at(position + BLOCK, size) if position + BLOCK + size <= end else b""
    if len(body) < size:
        raise _damaged("cut: an extended header ends early", position, where)
    return body


def _pax_records(body: bytes, position: int, where: str) -> dict[str, str]:
    """Records `LENGTH KEY=VALUE\\n`; LENGTH counts the whole record. Those that matter here are kept."""
    records, at, end = {}, 0, len(body.rstrip(b"\0"))
    while at < end:
        blank = body.find(b" ", at, at + 8)
        digits = body[at:blank] if blank > at else b""
        length = int(digits) if digits.isdigit() else 0
        key, equals, value = body[blank + 1 : at + length].partition(b"=")
        if not length or not equals or not value.endswith(b"\n"):
            raise _damaged("an extended header that is none", position, where)
        # Kept one and all, a million records for all members would be copied a million times.
        if key in (b"path", b"size"):
            records[key.decode("ascii")] = value[:-1].decode("utf-8", "surrogateescape")
        elif key.startswith(b"GNU.sparse."):
            records[_SPARSE] = ""
        at += length
    return records


def _pax_size(text: str, position: int, where: str) -> int:
    if not (text.isascii() and text.isdigit() and len(text) < 19):
        raise _damaged(f"a size that is no number ({text[:40]!r})", position, where)
    return int(text)


def _after_sparse_map(read_at: ReadAt, header: bytes, offset: int, end: int, where: str) -> int:
    """Skip the further blocks in which GNU tar keeps a long sparse map."""
    more = header[482]
    while more:
        block = read_at(offset, min(BLOCK, end - offset))
        if len(block) < BLOCK:
            raise _damaged("cut: a sparse map ends early", offset, where)
        offset, more = offset + BLOCK, block[504]
    return offset
