"""Sources made to do harm: images that are bombs, archives that lie, folders that lead elsewhere.

Everything is drawn or written here, small and the same each time. What a build must make of each stands in the
tables of test_packing_hostile.py; `photographs` and `archives` are also what the fuzz test begins with.
"""

from __future__ import annotations

import gzip
import io
import lzma
import os
import socket
import struct
import tarfile
import zipfile
import zlib
from collections.abc import Iterable
from functools import cache
from pathlib import Path

import numpy as np
from PIL import Image

from tests.tools.drawn import encoded, jpeg, pixels, tar_bytes

ZEROS = bytes(1 << 20)
PICTURE = Image.fromarray(pixels(7))
SOI, EOI = b"\xff\xd8", b"\xff\xd9"


# --- images


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


# --- archives


def header(
    name: bytes, size: int | bytes, flag: bytes = b"0", *, link: bytes = b"", magic: bytes = b"ustar\x0000"
) -> bytes:
    """One header with the right checksum, whatever it says."""
    number = b"%011o\0" % size if isinstance(size, int) else size
    block = name.ljust(100, b"\0")[:100] + b"0000644\0" + b"0000000\0" * 2 + number + b"00000000000\0"
    block = (block + b" " * 8 + flag + link.ljust(100, b"\0") + magic).ljust(512, b"\0")
    return block[:148] + b"%06o\0 " % sum(block) + block[156:]


def padded(data: bytes) -> bytes:
    return data + bytes(-len(data) % 512)


def member(name: bytes, data: bytes, **fields: bytes) -> bytes:
    return header(name, len(data), **fields) + padded(data)


def pax(records: Iterable[tuple[bytes, bytes]], flag: bytes = b"x") -> bytes:
    """An extended header."""
    body = b""
    for key, value in records:
        length = len(key) + len(value) + 3
        while len(str(length)) + len(key) + len(value) + 3 != length:
            length = len(str(length)) + len(key) + len(value) + 3
        body += b"%d %s=%s\n" % (length, key, value)
    return member(b"pax", body, flag=flag)


END = bytes(1024)
NAME = b"n00000002_%d.JPEG"


def names() -> dict[str, bytes]:
    """Case to a member's name, for a pax header."""
    return {
        "above": b"../../escaped.JPEG",
        "above-inside": b"a/../../escaped.JPEG",
        "above-long": b"../" * 3000 + b"escaped.JPEG",
        "absolute": b"/tmp/escaped.JPEG",
        "null": b"a\0b.JPEG",
        "newline": b"two\nlines.JPEG",
        "tab": b"a\tb.JPEG",
        "escape": b"\x1b[2J\x1b]0;owned\x07.JPEG",
        "right-to-left": "gpj\u202egpj.JPEG".encode(),
        "long": b"long/" * 2000 + b"x" * 10_000 + b".JPEG",
        "not-utf-8": b"caf\xe9.JPEG",
        "composed": "\u00e9.JPEG".encode(),
        "decomposed": "e\u0301.JPEG".encode(),
        "upper": b"TWIN.JPEG",
        "lower": b"twin.JPEG",
        "windows": b"CON.JPEG",
        "windows-stream": b"a:b.JPEG",
        "backslashes": b"..\\..\\escaped.JPEG",
        "sanitised-1": b"a b.JPEG",
        "sanitised-2": b"a;b.JPEG",
        "sanitised-3": b"a_b.JPEG",
        "dots": b"....JPEG",
        "option": b"-rf.JPEG",
        "json": b'"},{"x":".JPEG',
        "percent": b"%s%n{0}.JPEG",
        "only-dot": b"folder/.",
    }


def inner_of_names() -> bytes:
    parts = [pax([(b"path", name)]) + member(b"plain.JPEG", jpeg(i)) for i, name in enumerate(names().values())]
    return b"".join(parts) + END


def inner_of_kinds() -> bytes:
    """A sound image, then one member of every kind that is no regular file."""
    image = jpeg(3)
    parts = [member(NAME % 0, image)]
    parts += [
        header(NAME % (1 + i), 0, flag, link=b"../../../etc/passwd")
        for i, flag in enumerate((b"1", b"2", b"3", b"4"))
    ]
    parts += [header(NAME % 5, 0, b"6"), header(NAME % 6, len(image), b"S") + padded(image)]
    parts += [pax([(b"GNU.sparse.major", b"1"), (b"GNU.sparse.realsize", b"9" * 18)]) + member(NAME % 7, image)]
    parts += [member(NAME % 8, image, flag=b"Z"), header(b"folder/", 0, b"5")]
    return b"".join(parts) + END


@cache
def inners() -> dict[str, bytes]:
    """Case to the tar of a class."""
    first, second = member(NAME % 1, jpeg(1)), member(NAME % 2, jpeg(2))
    image = jpeg(3)
    tar = tar_bytes([(f"n0000000{number}.JPEG", jpeg(number)) for number in (4, 5)])
    for level in range(3):
        tar = tar_bytes([(f"n0000000{9 - level}.tar", tar), (f"level-{level}.JPEG", jpeg(30 + level))])
    many = [(b"comment%d" % number, b"") for number in range(40_000)]
    return {
        "tar-in-tar-in-tar": tar,
        "zero-bytes": b"",
        "two-blocks-of-zeros": END,
        "no-tar": image,
        "overlap-by-pax": pax([(b"size", b"100")]) + first + second + END,
        "swallow-by-pax": pax([(b"size", b"%d" % (len(first) - 512 + len(second)))]) + first + second + END,
        "beyond-by-pax": pax([(b"size", b"9" * 17)]) + first + END,
        "negative-by-pax": pax([(b"size", b"-512")]) + first + END,
        "negative": header(NAME % 1, b"\xff" * 11 + b"\x00") + END,
        "negative-octal": header(NAME % 1, b"-0000001000\0") + END,
        "absurd": header(NAME % 1, b"\x80\xff\xff" + bytes(9)) + END,
        "almost-absurd": header(NAME % 1, b"\x80\0\0\0\x3f" + bytes(7)) + END,
        "beyond-the-inner": first + header(NAME % 2, 1_000_000) + padded(jpeg(2)) + END,
        "endless-name": header(b"././@LongLink", 1 << 32, b"L") + END,
        "endless-sparse-map": header(NAME % 1, 0, b"S")[:482] + b"\1" + bytes(29),
        "pax-without-end": member(b"pax", b"99 path=x", flag=b"x") + first + END,
        "pax-of-nothing": member(b"pax", b"0 \n" * 100, flag=b"x") + first + END,
        "many-pax-records": pax(many, b"g")
        + (pax(many[:20_000]) + member(NAME % 3, image))
        + first
        + second
        + END,
        "duplicates": first + first + member(NAME % 1, image) + second + END,
        "names": inner_of_names(),
        "kinds": inner_of_kinds(),
    }


def edition(dest: Path, inner: bytes) -> Path:
    """A source of ILSVRC2012's train: a sound class, then one with this tar."""
    dest.mkdir(parents=True)
    (dest / "ILSVRC2012_img_train.tar").write_bytes(edition_bytes(inner))
    return dest


def edition_bytes(inner: bytes) -> bytes:
    return member(b"n00000001.tar", _sound_class()) + member(b"n00000002.tar", inner) + END


@cache
def _sound_class() -> bytes:
    return tar_bytes([(f"n00000001_{number}.JPEG", jpeg(number)) for number in range(4)])


def edition_of_empty_members(dest: Path, count: int) -> Path:
    """The same with so many members of no bytes; written piece by piece."""
    dest.mkdir(parents=True)
    with (dest / "ILSVRC2012_img_train.tar").open("wb") as file:
        file.write(member(b"n00000001.tar", _sound_class()))
        file.write(header(b"n00000002.tar", 512 * count + len(END)))
        for start in range(0, count, 1000):
            numbers = range(start, min(start + 1000, count))
            file.write(b"".join(header(b"n00000002_%d.JPEG" % number, 0) for number in numbers))
        file.write(END + END)
    return dest


def traps(dest: Path) -> Path:
    """A folder per class with a sound image in each, and everything beside them that is none."""
    for name, number in (("cat", 1), ("dog", 2)):
        (dest / name).mkdir(parents=True)
        (dest / name / "sound.jpg").write_bytes(jpeg(number))
    cat = dest / "cat"
    os.mkfifo(cat / "pipe.jpg")
    with socket.socket(socket.AF_UNIX) as unix:
        here = Path.cwd()
        os.chdir(cat)  # the path of a socket has 108 bytes at most
        try:
            unix.bind("socket.jpg")
        finally:
            os.chdir(here)
    (cat / "loop").symlink_to(dest, target_is_directory=True)
    (cat / "everything").symlink_to("/", target_is_directory=True)
    (cat / "loop.jpg").symlink_to("loop.jpg")
    (cat / "folder.jpg").symlink_to(dest / "dog", target_is_directory=True)
    (cat / "nowhere.jpg").symlink_to(dest / "nowhere")
    (cat / "zeros.jpg").symlink_to("/dev/zero")
    (cat / "directory.jpg").mkdir()
    with (cat / "sparse.jpg").open("wb") as file:
        file.truncate(1 << 40)
    return dest


# --- development kits


def mat_element(kind: int, body: bytes) -> bytes:
    return struct.pack("<II", kind, len(body)) + padded_to_8(body)


def padded_to_8(body: bytes) -> bytes:
    return body + bytes(-len(body) % 8)


def mat_matrix(kind: int, dims: tuple[int, ...], body: bytes, name: bytes = b"synsets") -> bytes:
    head = mat_element(6, struct.pack("<II", kind, 0)) + mat_element(5, struct.pack(f"<{len(dims)}i", *dims))
    return mat_element(14, head + mat_element(1, name) + body)


def mat_fields(*fields: bytes) -> bytes:
    return mat_element(5, struct.pack("<i", 32)) + mat_element(
        1, b"".join(field.ljust(32, b"\0") for field in fields)
    )


@cache
def mats() -> dict[str, bytes]:
    """Case to a table of synsets."""
    start = b"MATLAB 5.0 MAT-file".ljust(124) + b"\x00\x01IM"
    rows = mat_fields(b"ILSVRC2012_ID", b"WNID", b"words", b"num_children")
    deep = b""
    for _ in range(3000):
        deep = mat_matrix(1, (1, 1), deep, b"")
    heads, size = [], 0
    for _ in range(100_000):  # written from the inside, so that it takes no square of its length
        head = (
            mat_element(6, struct.pack("<II", 1, 0))
            + mat_element(5, struct.pack("<ii", 1, 1))
            + mat_element(1, b"")
        )
        size += len(head)
        heads.append(struct.pack("<II", 14, size) + head)
        size += 8
    inflating = zlib.compress(mat_matrix(9, (1, 1 << 27), mat_element(2, ZEROS * 128)), 9)
    return {
        "cells-without-number": start + mat_matrix(1, (1 << 15, 1 << 15), b""),
        "rows-without-number": start + mat_matrix(2, (1 << 15, 1 << 15), rows),
        "rows-without-fields": start + mat_matrix(2, (1 << 15, 1 << 15), mat_fields()),
        "fewer-rows-than-none": start + mat_matrix(2, (-1, -5), rows),
        "deep": start + mat_matrix(2, (1, 1), rows + deep),
        "deeper": start + b"".join(reversed(heads)),
        "inflates-without-end": start + struct.pack("<II", 15, len(inflating)) + inflating,
        "claims": start + struct.pack("<II", 14, 2**32 - 1) + bytes(64),
        "claims-little": start + struct.pack("<HH", 14, 65535) + bytes(64),
        "short": start[:127],
        "nothing": b"",
    }


# --- what the fuzz test begins with


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


@cache
def archives() -> dict[str, bytes]:
    """An inner tar of each dialect, and some that are wrong already."""
    contents = [(f"n00000002_{number}.JPEG", jpeg(number)) for number in range(3)] + [
        ("x" * 150 + ".JPEG", jpeg(4))
    ]
    made = {}
    for dialect in (tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT, tarfile.PAX_FORMAT):
        buffer = io.BytesIO()
        with tarfile.open(fileobj=buffer, mode="w", format=dialect) as archive:
            for name, data in contents if dialect != tarfile.USTAR_FORMAT else contents[:3]:
                info = tarfile.TarInfo(name)
                info.size = len(data)
                archive.addfile(info, io.BytesIO(data))
        made[f"dialect-{dialect}"] = buffer.getvalue()
    wrong = inners()
    return made | {
        name: wrong[name] for name in ("names", "kinds", "swallow-by-pax", "duplicates", "tar-in-tar-in-tar")
    }
