"""Images of a few bytes that take minutes or gigabytes to read, told by their structure before any decoder runs.

in   bytes of an image, inflated
out  a sentence that says why it is refused, or None; some microseconds an image

What the limits are about: a progressive JPEG is gone over once a scan, all of its pixels each time; Pillow
walks the segments of a JPEG, the chunks of a PNG and the runs of a BMP in Python.
"""

from __future__ import annotations

import struct

JPEG_SEGMENTS = 4_000  # before the first scan: 64 MB of full ones have 1,000
JPEG_STRAY = 4_000  # bytes between two of them
PNG_CHUNKS = 100_000  # 64 MB in chunks of 8 kB, as libpng writes them, have 8,000
SCANNED_PIXELS = 2_000_000_000  # pixels times scans, so 20 scans of the largest image; usual are 10
_SMALLEST_SCANNED = 2_000_000  # no image is counted as smaller, so that none has more than 1,000 scans
_SCAN = 0xDA
_FRAMES = {*range(0xC0, 0xD0)} - {0xC4, 0xC8, 0xCC}
_PROGRESSIVE = {0xC2, 0xC6, 0xCA, 0xCE}
_WITHOUT_LENGTH = {0x00, 0x01, *range(0xD0, 0xDA)}
_BMP_RUNS = {1: "8", 2: "4"}  # by the field of compression: bits a pixel


def bomb(data: bytes) -> str | None:
    """Why an image would take too much time or memory; None where it does not."""
    if data.startswith(b"\xff\xd8"):
        return _jpeg(data)
    if data.startswith(b"\x89PNG\r\n\x1a\n"):
        return _png(data)
    if data.startswith(b"BM") and len(data) >= 34:
        bits = _BMP_RUNS.get(int.from_bytes(data[30:34], "little"))
        return f"a BMP of run lengths ({bits} bits), which is not read" if bits else None
    return None


def _jpeg(data: bytes) -> str | None:
    pixels = components = at = 0
    progressive = False
    for _ in range(JPEG_SEGMENTS):
        start = data.find(b"\xff", at)
        stray = (start if start >= 0 else len(data)) - at
        if stray > JPEG_STRAY:
            return f"{stray:,} bytes that belong to no segment"
        if start < 0 or start + 10 > len(data):
            return None  # it ends here, and the decoder will say so
        marker = data[start + 1]
        if marker == _SCAN:
            # With all components in its one scan an image is done after it; nearly all are, and are not searched.
            several = progressive or data[start + 4] < components
            return _scans(data.count(b"\xff\xda", start), pixels) if several else None
        if marker in _WITHOUT_LENGTH or marker == 0xFF:  # the latter fills
            at = start + (1 if marker == 0xFF else 2)
            continue
        if marker in _FRAMES:
            height, width, components = struct.unpack_from(">HHB", data, start + 5)
            pixels, progressive = max(pixels, height * width), progressive or marker in _PROGRESSIVE
        at = start + 2 + int.from_bytes(data[start + 2 : start + 4], "big")
    return f"more than {JPEG_SEGMENTS:,} segments before the first scan"


def _scans(scans: int, pixels: int) -> str | None:
    most = SCANNED_PIXELS // max(pixels, _SMALLEST_SCANNED)
    return f"{scans:,} scans; an image of its size has up to {most:,}" if scans > most else None


def _png(data: bytes) -> str | None:
    at = 8
    for _ in range(PNG_CHUNKS):
        if at + 8 > len(data):
            return None
        at += 12 + int.from_bytes(data[at : at + 4], "big")
    return f"more than {PNG_CHUNKS:,} chunks"
