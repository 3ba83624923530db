"""Images made to do harm, and a sound one of every kind that is read.

Everything is drawn or written here, small and the same each time. What a build must make of `images` stands in the
table of test_packing_hostile.py; the fuzz test begins with `photographs`.
"""

from __future__ import annotations

import gzip
import io
import lzma
import struct
import zipfile
import zlib
from functools import cache

import numpy as np
from PIL import Image

from tests.tools.drawn import encoded, jpeg, pixels, tar_bytes

ZEROS = bytes(1 << 20)
PICTURE = Image.fromarray(pixels(7))
SOI, EOI = b"\xff\xd8", b"\xff\xd9"


def claiming(data: bytes, width: int, height: int) -> bytes:
    """A JPEG whose header claims another size."""
    at = _frame(data)
    return data[: at + 5] + struct.pack(">HH", height, width) + data[at + 9 :]


def _frame(data: bytes) -> int:
    return min(at for marker in (b"\xff\xc0", b"\xff\xc1", b"\xff\xc2") if (at := data.find(marker)) > 0)


def with_frame(data: bytes, at: int, value: int) -> bytes:
    """A JPEG with one byte of its frame header replaced: 1 the kind, 4 the precision, 9 the components."""
    start = _frame(data) + at
    return data[:start] + bytes([value]) + data[start + 1 :]


def many_scans(width: int, height: int, scans: int) -> bytes:
    """A grey progressive JPEG that goes over its pixels once a scan, without anything a decoder would warn of.

    One scan for the mean of each block, then for every coefficient from its highest bit to its lowest: each is
    a run of blocks that end before they begin, so it takes some bytes.
    """
    data = claiming(encoded(PICTURE.convert("L"), "JPEG", progressive=True), width, height)
    blocks = -(-width // 8) * -(-height // 8)
    # Two tables of one symbol: means whose difference is 0, and runs of 2**14 blocks and more (14 bits follow).
    tables = b"".join(
        b"\xff\xc4" + struct.pack(">HB", 20, table) + b"\1" + bytes(15) + symbol
        for table, symbol in ((0x00, b"\0"), (0x10, b"\xe0"))
    )
    runs = [min(32767, blocks - done) for done in range(0, blocks, 32767)]
    body = _bits("".join("0" + format(max(run, 1 << 14) - (1 << 14), "014b") for run in runs))
    plan = [
        (k, high, low) for k in range(1, 64) for high, low in [(0, 13), *((n, n - 1) for n in range(13, 0, -1))]
    ]
    parts = [data[: data.find(b"\xff\xc4")], tables, _scan(0, 0, 0, 0), _bits("0" * blocks)]
    for k, high, low in plan[: scans - 1]:
        parts += [_scan(k, k, high, low), body]
    return b"".join((*parts, EOI))


def _scan(first: int, last: int, high: int, low: int) -> bytes:
    return b"\xff\xda" + struct.pack(">HBBBBBB", 8, 1, 1, 0, first, last, high << 4 | low)


def _bits(bits: str) -> bytes:
    bits += "1" * (-len(bits) % 8)
    return int(bits, 2).to_bytes(len(bits) // 8, "big").replace(b"\xff", b"\xff\0")


def segment(marker: int, body: bytes) -> bytes:
    return struct.pack(">BBH", 0xFF, marker, len(body) + 2) + body


def png_chunk(kind: bytes, body: bytes) -> bytes:
    return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))


def png(width: int, height: int, *, bits: int = 8, colour: int = 0, body: bytes, before: bytes = b"") -> bytes:
    header = struct.pack(">IIBBBBB", width, height, bits, colour, 0, 0, 0)
    parts = (png_chunk(b"IHDR", header), before, png_chunk(b"IDAT", body), png_chunk(b"IEND", b""))
    return b"\x89PNG\r\n\x1a\n" + b"".join(parts)


def bmp(width: int, height: int, bits: int, body: bytes, *, compression: int = 0, offset: int = 62) -> bytes:
    info = struct.pack("<IiiHHIIiiII", 40, width, height, 1, bits, compression, len(body), 0, 0, 2, 0)
    return b"BM" + struct.pack("<IHHI", 62 + len(body), 0, 0, offset) + info + bytes(8) + body


def webp_of_frames(frames: int, width: int = 64, height: int = 64) -> bytes:
    """An animated WebP of one picture shown again and again."""
    pictures = [Image.fromarray(pixels(number, 64, 64)) for number in (1, 2)]
    data = encoded(pictures[0], "WEBP", save_all=True, append_images=pictures[1:])
    start = data.find(b"ANMF")
    frame = data[start : start + 8 + int.from_bytes(data[start + 4 : start + 8], "little")]
    canvas = (width - 1).to_bytes(3, "little") + (height - 1).to_bytes(3, "little")
    body = b"WEBP" + data[12:24] + canvas + data[30:start] + frame * frames
    return b"RIFF" + struct.pack("<I", len(body)) + body


def zipped(data: bytes) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr(zipfile.ZipInfo("image.jpg"), data, zipfile.ZIP_DEFLATED)
    return buffer.getvalue()


def gzipped(data: bytes) -> bytes:
    return gzip.compress(data, mtime=0)


def looping_exif() -> bytes:
    """EXIF whose directory names itself as the next one, and as its own directory of thumbnails."""
    entry = struct.pack("<HHII", 0x8769, 4, 1, 8)
    return b"Exif\0\0II*\0\x08\0\0\0" + struct.pack("<H", 1) + entry + struct.pack("<I", 8)


def multi_picture() -> bytes:
    """A multi-picture directory of two thousand million pictures."""
    entries = ((0xB000, 7, 4, 0x30303130), (0xB001, 4, 1, 2**31 - 1), (0xB002, 7, 16, 50))
    fields = b"".join(struct.pack("<HHII", *entry) for entry in entries)
    return b"MPF\0II*\0\x08\0\0\0" + struct.pack("<H", len(entries)) + fields + bytes(4)


@cache
def images() -> dict[str, bytes]:
    """Case to bytes of one image."""
    sound, cmyk = jpeg(7), encoded(PICTURE.convert("CMYK"), "JPEG")
    bomb = zlib.compress(ZEROS * 64, 9)
    tiny = png(1, 1, body=zlib.compress(b"\0\0"))
    return {
        "sound": sound,
        "one-pixel": jpeg(7, 1, 1),
        "thread": jpeg(7, 1, 60_000),
        "thread-across": encoded(Image.fromarray(pixels(7, 60_000, 1)), "PNG"),
        "empty": b"",
        "text": b"<html>not found</html>",
        "svg": b"<svg xmlns='http://www.w3.org/2000/svg'/>",
        "a-tar": tar_bytes([("x.JPEG", sound)]),
        "zip-bomb": zipped(ZEROS * 64),
        "xz-bomb": lzma.compress(ZEROS * 64),
        "gzip-bomb": gzipped(ZEROS * 64),
        "gzip-in-gzip": gzipped(gzipped(sound)),
        "gzip-of-text": gzipped(b"text"),
        "gzip-cut": gzipped(sound)[:-9],
        "jpeg-4-gigapixel": claiming(sound, 65500, 65500),
        "jpeg-no-pixels": claiming(sound, 0, 40),
        "jpeg-scans": many_scans(64, 64, 800),
        "jpeg-too-many-scans": gzipped(many_scans(64, 64, 882) * 2),
        "jpeg-large-too-many-scans": many_scans(8000, 8000, 60),
        "jpeg-segments": gzipped(SOI + segment(0xE1, b"") * 4_000_000 + cmyk[2:]),
        "jpeg-fill": gzipped(SOI + b"\xff" * 16_000_000 + cmyk[2:]),
        "jpeg-junk": gzipped(SOI + bytes(16_000_000) + cmyk[2:]),
        "jpeg-arithmetic": with_frame(sound, 1, 0xC9),
        "jpeg-lossless": with_frame(sound, 1, 0xC3),
        "jpeg-12-bits": with_frame(sound, 4, 12),
        "jpeg-no-components": with_frame(sound, 9, 0),
        "jpeg-two-components": with_frame(sound, 9, 2),
        "jpeg-five-components": with_frame(sound, 9, 5),
        "jpeg-many-components": with_frame(sound, 9, 255),
        "jpeg-only-start": SOI,
        "jpeg-exif-thumbnail": SOI + segment(0xE1, b"Exif\0\0" + jpeg(8)) + sound[2:],
        "jpeg-exif-loop": SOI + segment(0xE1, looping_exif()) + sound[2:],
        "jpeg-multi-picture": SOI + segment(0xE2, multi_picture()) + cmyk[2:],
        "png-huge-data": png(48, 40, body=bomb),
        "png-4-gigapixel": png(65500, 65500, body=bomb),
        "png-huge-text": tiny[:33] + png_chunk(b"zTXt", b"k\0\0" + bomb) + tiny[33:],
        "png-huge-profile": tiny[:33] + png_chunk(b"iCCP", b"k\0\0" + bomb) + tiny[33:],
        "png-many-texts": tiny[:33] + png_chunk(b"zTXt", b"k\0\0" + zlib.compress(ZEROS[:-1])) * 80 + tiny[33:],
        "png-many-chunks": gzipped(tiny[:33] + png_chunk(b"prVt", b"") * 2_000_000 + tiny[33:]),
        "png-16-bits-large": png(5000, 5000, bits=16, body=zlib.compress(bytes(10_001 * 5000), 9)),
        "bmp-upside-down": bmp(48, -40, 24, bytes(48 * 40 * 3)),
        "bmp-negative-width": bmp(-48, 40, 24, bytes(48 * 40 * 3)),
        "bmp-lowest-height": bmp(48, -(2**31), 24, bytes(48 * 40 * 3)),
        "bmp-far-away": bmp(48, 40, 24, bytes(48 * 40 * 3), offset=2**32 - 1),
        "bmp-run-lengths": bmp(99_000_000, 1, 8, b"\1\1\0\0", compression=1),
        "bmp-run-leaps": bmp(40_000_000, 2, 4, b"\0\2\0\xff", compression=2),
        "webp-frames": webp_of_frames(4000),
        "webp-large": webp_of_frames(1, 16383, 16383),
        "webp-cut": webp_of_frames(1)[:-30],
    }


def photographs() -> dict[str, bytes]:
    """A small sound image of every format and colour space that is read."""
    rgba = Image.fromarray(np.dstack([pixels(9), pixels(8)[:, :, :1]]))
    exif = SOI + segment(0xE1, looping_exif()) + jpeg(9)[2:]
    return {
        "jpeg": jpeg(1),
        "jpeg-444": jpeg(2, subsampling=0),
        "jpeg-progressive": jpeg(3, progressive=True),
        "jpeg-restart": jpeg(4, restart_marker_blocks=2),
        "jpeg-grey": encoded(PICTURE.convert("L"), "JPEG"),
        "jpeg-cmyk": encoded(PICTURE.convert("CMYK"), "JPEG"),
        "jpeg-cmyk-progressive": encoded(PICTURE.convert("CMYK"), "JPEG", progressive=True),
        "jpeg-large": jpeg(5, 700, 600, progressive=True),
        "jpeg-exif": exif,
        "png": encoded(PICTURE, "PNG"),
        "png-palette": encoded(PICTURE.quantize(16), "PNG"),
        "png-alpha": encoded(rgba, "PNG"),
        "png-16": encoded(Image.fromarray(pixels(1)[:, :, 0].astype(np.uint16) * 257), "PNG"),
        "png-texts": png(
            4, 4, body=zlib.compress(bytes(20)), before=png_chunk(b"zTXt", b"k\0\0" + zlib.compress(b"x"))
        ),
        "bmp": encoded(PICTURE, "BMP"),
        "bmp-palette": encoded(PICTURE.quantize(16), "BMP"),
        "webp": encoded(PICTURE, "WEBP"),
        "webp-lossless": encoded(rgba, "WEBP", lossless=True),
        "webp-frames": webp_of_frames(3),
        "gzip": gzipped(jpeg(6)),
        "gzip-png": gzipped(encoded(PICTURE, "PNG")),
    }
