"""The tar indexer against Python's tarfile, and against archives that are cut, damaged or made to harm."""

from __future__ import annotations

import io
import tarfile

import pytest
from alexshard.tools.packing.tar import RECORD_LIMIT, BadArchive, Kind, Member, members
from hypothesis import example, given, settings
from hypothesis import strategies as st

FORMATS = st.sampled_from([tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT, tarfile.PAX_FORMAT])
NAMES = st.text(st.characters(codec="utf-8", exclude_characters="/\0"), min_size=1, max_size=20).filter(
    lambda name: name not in (".", "..")
)
CONTENTS = st.lists(st.tuples(NAMES, st.binary(max_size=1500)), max_size=5)


def tar_of(contents: list[tuple[str, bytes]], tar_format: int = tarfile.GNU_FORMAT) -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w", format=tar_format) as archive:
        for name, data in contents:
            info = tarfile.TarInfo(name)
            info.size = len(data)
            archive.addfile(info, io.BytesIO(data))
    return buffer.getvalue()


def listed(data: bytes, start: int = 0, end: int | None = None) -> list[Member]:
    end = len(data) if end is None else end
    return list(members(lambda offset, size: data[offset : offset + size], where="a.tar", start=start, end=end))


def contents_of(data: bytes, found: list[Member]) -> list[tuple[str, bytes]]:
    return [(member.name, data[member.offset : member.offset + member.size]) for member in found]


def with_header(data: bytes, at: int, field: slice, value: bytes) -> bytes:
    """The archive with one header field replaced and the checksum made right again."""
    changed = bytearray(data)
    changed[at + field.start : at + field.start + len(value)] = value
    changed[at + 148 : at + 156] = b" " * 8
    changed[at + 148 : at + 156] = b"%06o\0 " % sum(changed[at : at + 512])
    return bytes(changed)


SIZE, TYPE = slice(124, 136), slice(156, 157)


@given(contents=CONTENTS, tar_format=FORMATS)
def test_members_lie_where_tarfile_wrote_them(contents, tar_format):
    data = tar_of(contents, tar_format)

    assert contents_of(data, listed(data)) == contents


@pytest.mark.parametrize("tar_format", [tarfile.GNU_FORMAT, tarfile.PAX_FORMAT])
def test_long_and_foreign_names_come_back_whole(tar_format):
    names = ["x" * 300 + ".JPEG", "folder/" * 40 + "é.JPEG", "ゴルフボール.JPEG", "a" * 99 + "é.JPEG"]
    data = tar_of([(name, b"image") for name in names], tar_format)

    assert [member.name for member in listed(data)] == names


def test_ustar_prefixes_belong_to_the_name():
    name = "folder/" * 20 + "image.JPEG"
    data = tar_of([(name, b"image")], tarfile.USTAR_FORMAT)

    assert [member.name for member in listed(data)] == [name]


def test_an_inner_tar_is_listed_in_place():
    inner = tar_of([("a.JPEG", b"first"), ("b.JPEG", b"second")])
    outer = tar_of([("n00000001.tar", inner), ("n00000002.tar", inner)])
    places = listed(outer)

    found = [listed(outer, place.offset, place.offset + place.size) for place in places]

    assert [contents_of(outer, each) for each in found] == [[("a.JPEG", b"first"), ("b.JPEG", b"second")]] * 2


@given(cut=st.integers(0, 5 * 512))
@example(cut=0)
@example(cut=3 * 512)  # between the members
@example(cut=5 * 512)
def test_an_archive_cut_anywhere_before_its_end_mark_is_refused(cut):
    data = tar_of([("a.JPEG", b"x" * 700), ("b.JPEG", b"y" * 512)])
    assert not any(data[5 * 512 :])  # the end mark; headers are at 0 and 1536

    with pytest.raises(BadArchive, match=r"cut"):
        listed(data[:cut])


def test_an_archive_whose_middle_was_never_written_is_refused_although_it_seems_to_end_there():
    whole = tar_of([(f"{i}.JPEG", bytes(RECORD_LIMIT)) for i in range(2)])
    hole = bytearray(whole)
    hole[512 + RECORD_LIMIT : 1024 + RECORD_LIMIT] = bytes(512)

    with pytest.raises(BadArchive, match="bytes behind what looks like the end"):
        listed(bytes(hole))


def test_a_member_that_claims_more_than_its_inner_tar_holds_is_refused_although_the_outer_has_the_bytes():
    inner = tar_of([("a.JPEG", b"x" * 512)])
    inner = with_header(inner, 0, SIZE, b"%011o\0" % 50_000)
    outer = tar_of([("n00000001.tar", inner), ("n00000002.tar", bytes(100_000))])
    place = listed(outer)[0]

    with pytest.raises(BadArchive, match=r"is cut: 'a\.JPEG' needs 50,000 bytes"):
        listed(outer, place.offset, place.offset + place.size)


@pytest.mark.parametrize(
    ("flag", "kind"),
    [
        (b"1", Kind.HARD_LINK),
        (b"2", Kind.SYMBOLIC_LINK),
        (b"3", Kind.DEVICE),
        (b"4", Kind.DEVICE),
        (b"5", Kind.FOLDER),
        (b"6", Kind.DEVICE),
        (b"S", Kind.SPARSE),
        (b"V", Kind.UNKNOWN),
    ],
)
def test_what_is_no_regular_file_is_told_apart(flag, kind):
    data = with_header(tar_of([("odd", b""), ("a.JPEG", b"image")]), 0, TYPE, flag)

    assert [member.kind for member in listed(data)] == [kind, Kind.FILE]


def test_sizes_in_base_256_are_read():
    data = with_header(tar_of([("a.JPEG", b"image")]), 0, SIZE, b"\x80" + (5).to_bytes(11, "big"))

    assert contents_of(data, listed(data)) == [("a.JPEG", b"image")]


@pytest.mark.parametrize(
    ("size", "what"),
    [
        (b"\xff" * 12, "negative or absurd"),
        (b"\x80" + b"\xff" * 11, "negative or absurd"),
        (b"12345678zzz\0", "no number"),
        (b"-0000000001\0", "no number"),
    ],
)
def test_sizes_that_are_none_are_refused(size, what):
    data = with_header(tar_of([("a.JPEG", b"image")]), 0, SIZE, size)

    with pytest.raises(BadArchive, match=what):
        listed(data)


def test_a_wrong_checksum_is_refused_with_its_place():
    data = bytearray(tar_of([("a.JPEG", b"x" * 512), ("b.JPEG", b"y")]))
    data[1024] ^= 1

    with pytest.raises(BadArchive, match=r"no tar header .* at byte 1,024"):
        listed(bytes(data))


def test_gzip_data_is_named():
    with pytest.raises(BadArchive, match="gunzip"):
        listed(b"\x1f\x8b" + bytes(1000))


def test_a_long_name_that_never_ends_takes_no_memory():
    data = with_header(tar_of([("x" * 300, b"")]), 0, SIZE, b"%011o\0" % (1 << 32))

    with pytest.raises(BadArchive, match="a name or extended header of 4,294,967,296 bytes"):
        listed(data)


def test_only_headers_are_read_each_in_one_read():
    data = tar_of([(f"{i}.JPEG", bytes(100_000)) for i in range(5)])
    taken = []

    def read_at(offset, size):
        taken.append(size)
        return data[offset : offset + size]

    assert len(list(members(read_at, where="a.tar", end=len(data)))) == 5
    assert taken == [512] * 6


@settings(max_examples=300)
@given(
    contents=CONTENTS,
    tar_format=FORMATS,
    places=st.lists(st.tuples(st.integers(0, 4000), st.integers(0, 255)), max_size=8),
)
def test_a_damaged_archive_is_listed_or_refused_but_never_read_beyond_its_end(contents, tar_format, places):
    data = bytearray(tar_of(contents, tar_format))
    for at, value in places:
        data[at % len(data)] = value

    try:
        found = listed(bytes(data))
    except BadArchive:
        return

    assert all(0 <= member.offset <= member.offset + member.size <= len(data) for member in found)


def test_a_checksum_over_signed_bytes_is_accepted():
    data = bytearray(tar_of([("é.JPEG", b"image")]))
    blank = data[:148] + b" " * 8 + data[156:512]
    signed = sum(byte - 256 * (byte > 127) for byte in blank)
    data[148:156] = b"%06o\0 " % signed

    assert signed != sum(blank)
    assert [member.name for member in listed(bytes(data))] == ["é.JPEG"]
