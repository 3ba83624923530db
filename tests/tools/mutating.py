"""Edits of bytes as damage and malice make them: flips, numbers at their limits, cuts, splices."""

from __future__ import annotations

import struct
import zlib

import numpy as np

INTERESTING = (0, 1, 2, 0x7F, 0x80, 0xFF, 0x7FFF, 0x8000, 0xFFFF, 0x7FFFFFFF, 0x80000000, 0xFFFFFFFF)

Draw = np.random.Generator


def mutated(draw: Draw, data: bytes, other: bytes) -> bytes:
    """Some edits of the bytes; `other` gives parts to splice in."""
    for _ in range(min(int(draw.geometric(0.5)), 6)):
        data = _EDITS[int(draw.integers(len(_EDITS)))](draw, data, other)[: 1 << 20] or b"\0"
    return data


def _place(draw: Draw, data: bytes) -> int:
    """Anywhere, but every other time near the start, where headers lie."""
    return int(draw.integers(len(data) if draw.random() < 0.5 else min(len(data), 700)))


def _flip(draw: Draw, data: bytes, other: bytes) -> bytes:
    edited = bytearray(data)
    for _ in range(int(draw.integers(1, 9))):
        edited[_place(draw, data)] ^= 1 << int(draw.integers(8))
    return bytes(edited)


def _number(draw: Draw, data: bytes, other: bytes) -> bytes:
    """A field of one, two or four bytes, of either order, gets a value at a limit, or one more or less."""
    size, at = (1, 2, 4)[int(draw.integers(3))], _place(draw, data)
    order = "little" if draw.random() < 0.5 else "big"
    if draw.random() < 0.6:
        value = INTERESTING[int(draw.integers(len(INTERESTING)))]
    else:
        value = int.from_bytes(data[at : at + size], order) + int(draw.integers(-2, 3))
    return data[:at] + (value % (1 << 8 * size)).to_bytes(size, order) + data[at + size :]


def _cut(draw: Draw, data: bytes, other: bytes) -> bytes:
    return data[: _place(draw, data)]


def _shuffle(draw: Draw, data: bytes, other: bytes) -> bytes:
    size = (16, 64, 512)[int(draw.integers(3))]
    blocks = [data[at : at + size] for at in range(0, len(data), size)]
    first, second = (int(draw.integers(len(blocks))) for _ in range(2))
    blocks[first], blocks[second] = blocks[second], blocks[first]
    return b"".join(blocks)


def _repeat(draw: Draw, data: bytes, other: bytes) -> bytes:
    start = _place(draw, data)
    part = data[start : start + int(draw.integers(1, 600))]
    return data[:start] + part * int(draw.integers(2, 40)) + data[start:]


def _remove(draw: Draw, data: bytes, other: bytes) -> bytes:
    start = _place(draw, data)
    return data[:start] + data[start + int(draw.integers(1, 600)) :]


def _splice(draw: Draw, data: bytes, other: bytes) -> bytes:
    start, end = sorted((_place(draw, other), int(draw.integers(len(other)))))
    at = _place(draw, data)
    return data[:at] + other[start:end] + data[at + (end - start if draw.random() < 0.5 else 0) :]


_EDITS = (_flip, _flip, _number, _number, _number, _cut, _shuffle, _repeat, _remove, _splice)


def with_sums(data: bytes) -> bytes:
    """The same with the checksums of a tar's or a PNG's parts put right, so that a damaged field is believed."""
    if data.startswith(b"\x89PNG\r\n\x1a\n"):
        return _with_png_sums(data)
    edited, at = bytearray(data), 0
    while at + 512 <= len(edited):
        block = bytes(edited[at : at + 512])
        if b"ustar" in block[257:263]:
            blank = block[:148] + b" " * 8 + block[156:]
            edited[at + 148 : at + 156] = b"%06o\0 " % sum(blank)
        at += 512
    return bytes(edited)


def _with_png_sums(data: bytes) -> bytes:
    edited, at = bytearray(data), 8
    while at + 12 <= len(edited):
        end = at + 8 + int.from_bytes(edited[at : at + 4], "big")
        if end + 4 > len(edited):
            break
        edited[end : end + 4] = struct.pack(">I", zlib.crc32(edited[at + 4 : end]))
        at = end + 4
    return bytes(edited)
