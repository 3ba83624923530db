"""Where a file differs from what was promised of it, to the byte wherever that can be known."""

from __future__ import annotations

import hashlib
import zlib
from dataclasses import dataclass

import numpy as np

from .crc import flipped_bit
from .manifest import FileEntry
from .words import printable

# The end of a manifest, whose length nothing changes: so its two sums are found there also when it is damaged.
_BEFORE_CRC, _BEFORE_DIGEST, _END = b'\n "crc32": "', b'",\n "digest": "', b'"\n}\n'
_CRC_DIGITS, _DIGEST_DIGITS = 8, 64
_CRC_FROM_END = _CRC_DIGITS + len(_BEFORE_DIGEST) + _DIGEST_DIGITS + len(_END)
_DIGEST_FROM_END = _DIGEST_DIGITS + len(_END)
_TAIL = len(_BEFORE_CRC) + _CRC_FROM_END


@dataclass(frozen=True, slots=True)
class Problem:
    """One thing that is wrong with a shard set."""

    file: str
    what: str
    offset: int | None = None  # byte in the file
    key: str | None = None

    def __str__(self) -> str:
        at = "" if self.offset is None else f" at byte {self.offset:,}"
        of = "" if self.key is None else f", sample {self.key}"
        return printable(f"{self.file}{at}{of}: {self.what}")


@dataclass(frozen=True, slots=True)
class Damage:
    """What is wrong with a text, from which byte on, and the text as it was, where that is certain."""

    what: str
    offset: int | None = None
    mended: bytes | None = None


def flip(found: int, bit: int) -> str:
    """A flipped bit in words, `found` being the byte as it is now."""
    return f"bit {bit} is flipped: 0x{found:02x} where 0x{found ^ 1 << bit:02x} was written"


def difference(found: bytes | bytearray, wanted: bytes) -> tuple[int, str] | None:
    """The first byte of `found` that is not as in `wanted`, and what is wrong there."""
    if found == wanted:
        return None
    common = min(len(found), len(wanted))
    apart = np.flatnonzero(np.frombuffer(found, np.uint8, common) != np.frombuffer(wanted, np.uint8, common))
    if len(apart):
        at = int(apart[0])
        xor = found[at] ^ wanted[at]
        if len(apart) == 1 and xor.bit_count() == 1:
            return at, flip(found[at], xor.bit_length() - 1)
        more = "" if len(apart) == 1 else f", and so are {len(apart) - 1:,} of the bytes that follow"
        return at, f"is wrong: 0x{found[at]:02x} where 0x{wanted[at]:02x} was written{more}"
    if len(found) < len(wanted):
        return common, f"ends {len(wanted) - common:,} bytes too early"
    return common, f"goes on for {len(found) - common:,} bytes after its end"


def file_damage(data: bytes, sha256: str, entry: FileEntry | None, size: int) -> Damage | None:
    """What is wrong with a file of this SHA-256, of which `entry` tells more than the digest.

    A single flipped bit is named by the CRC-32, and proved by the digest.

    Args:
        data: the file's bytes; of one that is longer than promised, those that were promised.
        size: of the whole file.
    """
    found = hashlib.sha256(data).hexdigest()
    if entry is not None and size > entry.bytes:
        if found == sha256:
            return Damage(f"goes on for {size - len(data):,} bytes after its end", len(data), data)
        return Damage(f"has {size:,} bytes, the manifest says {entry.bytes:,}")
    if found == sha256:
        return None
    if entry is not None and len(data) < entry.bytes:
        return Damage(f"ends {entry.bytes - len(data):,} bytes too early", len(data))
    place = None if entry is None else flipped_bit(zlib.crc32(data), int(entry.crc32, 16), len(data))
    if place is not None:
        mended = flipped(data, *place)
        if hashlib.sha256(mended).hexdigest() == sha256:
            return Damage(flip(data[place[0]], place[1]), place[0], mended)
    return Damage(f"has SHA-256 {found}, {sha256} was written: more than one bit is wrong")


def flipped(data: bytes, byte: int, bit: int) -> bytes:
    """A copy with one bit flipped."""
    copy = bytearray(data)
    copy[byte] ^= 1 << bit
    return bytes(copy)


def manifest_damage(text: bytes) -> Damage | None:
    """The single flipped bit of a manifest, with the manifest as it was; None where none is found.

    Of body, CRC-32 and digest each is held against the other two, so that it is certain which of them is damaged.
    """
    if len(text) <= _TAIL:
        return None
    body = text[:-_TAIL]
    crc32 = text[-_CRC_FROM_END:][:_CRC_DIGITS]
    actual = zlib.crc32(_manifest(body, b"0" * _CRC_DIGITS, b"0" * _DIGEST_DIGITS))
    candidates = [(body, b"%08x" % actual)]
    try:
        place = flipped_bit(actual, int(crc32, 16), len(text))
    except ValueError:
        place = None
    if place is not None and place[0] < len(body):
        candidates.append((flipped(body, *place), crc32))
    for right_body, right_crc32 in candidates:
        blank = _manifest(right_body, right_crc32, b"0" * _DIGEST_DIGITS)
        right_digest = hashlib.sha256(blank).hexdigest().encode("ascii")
        mended = _manifest(right_body, right_crc32, right_digest)
        wrong = sum(a != b for a, b in zip(text[-_TAIL:], mended[-_TAIL:], strict=True)) + (right_body != body)
        if wrong == 1:
            return Damage(*_in_field(text, mended), mended)
    return None


def _manifest(body: bytes, crc32: bytes, digest: bytes) -> bytes:
    return b"".join((body, _BEFORE_CRC, crc32, _BEFORE_DIGEST, digest, _END))


def _in_field(text: bytes, mended: bytes) -> tuple[str, int]:
    place = difference(text, mended)
    assert place is not None
    at, what = place
    from_end = len(text) - at
    if _CRC_FROM_END - _CRC_DIGITS < from_end <= _CRC_FROM_END:
        return f"in its own CRC-32 {what}", at
    if len(_END) < from_end <= _DIGEST_FROM_END:
        return f"in its own digest {what}", at
    return what, at
