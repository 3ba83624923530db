"""Archives that lie, folders that lead elsewhere, development kits that claim what they have not.

Everything is drawn or written here, small and the same each time. What a build must make of each stands in the
tables of test_packing_hostile.py; the fuzz test begins with `archives`. The images are in hostile_images.py.
"""

from __future__ import annotations

import io
import os
import socket
import struct
import tarfile
import zlib
from collections.abc import Iterable
from functools import cache
from pathlib import Path

from tests.tools.drawn import jpeg, tar_bytes

ZEROS = bytes(1 << 20)


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
