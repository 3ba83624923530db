"""A flat archive looked through from many places at once gives what one chain from its start gives."""

from __future__ import annotations

import io
import tarfile

import pytest
from alexshard.tools.packing.sources import parts
from alexshard.tools.packing.sources.archive import Archive
from alexshard.tools.packing.tar import BadArchive, Member, members
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.tools.test_packing_tar import FORMATS, NAMES, listed, tar_of

INNER = tar_of([(f"inner_{i}.JPEG", b"y" * 900) for i in range(4)])
DATA = st.one_of(st.binary(max_size=1500), st.just(INNER), st.just(INNER[:700]))
LONG = st.one_of(NAMES, NAMES.map(lambda name: "folder/" * 30 + name))


@pytest.fixture(autouse=True)
def small_parts(monkeypatch):
    monkeypatch.setattr(parts, "PART_BYTES", 1024)
    monkeypatch.setattr(parts, "WINDOW_BYTES", 1024)


def outcome(found) -> tuple[list[Member], str]:
    """Members, and the error that ends them."""
    seen: list[Member] = []
    try:
        seen.extend(found)  # keeps what came before an error
    except BadArchive as error:
        return seen, str(error)
    return seen, ""


def archive_of(data: bytes, at_once: int) -> Archive:
    return Archive(lambda offset, size: data[offset : offset + size], len(data), at_once)


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None, max_examples=150)
@given(
    contents=st.lists(st.tuples(LONG, DATA), max_size=12),
    tar_format=FORMATS,
    at_once=st.integers(1, 9),
    damage=st.one_of(st.none(), st.tuples(st.integers(0, 1 << 20), st.integers(0, 255))),
    cut=st.one_of(st.none(), st.integers(0, 1 << 20)),
)
def test_members_and_errors_are_those_of_one_chain(contents, tar_format, at_once, damage, cut):
    data = bytearray(
        b"" if tar_format == tarfile.USTAR_FORMAT and not fits(contents) else tar_of(contents, tar_format)
    )
    if damage is not None and data:
        data[damage[0] % len(data)] = damage[1]
    data = bytes(data if cut is None else data[: cut % (len(data) + 1)])

    expected = outcome(members(lambda offset, size: data[offset : offset + size], where="a.tar", end=len(data)))

    assert outcome(parts.members_in_parts(archive_of(data, at_once), "a.tar")) == expected


def fits(contents: list[tuple[str, bytes]]) -> bool:
    """Whether ustar can write the names."""
    try:
        tar_of(contents, tarfile.USTAR_FORMAT)
    except ValueError:
        return False
    return True


def test_a_header_for_all_that_follow_is_not_lost_on_the_later_chains():
    buffer = io.BytesIO()
    pax = {"GNU.sparse.name": "all that follow are sparse"}
    with tarfile.open(fileobj=buffer, mode="w", format=tarfile.PAX_FORMAT, pax_headers=pax) as archive:
        for number in range(20):
            info = tarfile.TarInfo(f"{number}.JPEG")
            info.size = 1000
            archive.addfile(info, io.BytesIO(bytes(1000)))
    data = buffer.getvalue()

    assert list(parts.members_in_parts(archive_of(data, 8), "a.tar")) == listed(data)
    assert {member.kind for member in listed(data)} == {"sparse file"}


def test_chains_share_the_work():
    data, asked = tar_of([(f"{number}.JPEG", bytes(40_000)) for number in range(64)]), []

    def read_at(offset, size):
        asked.append(offset)
        return data[offset : offset + size]

    found = list(parts.members_in_parts(Archive(read_at, len(data), 8), "a.tar"))

    assert found == listed(data)
    headers = [offset for offset in asked if offset in {member.offset - 512 for member in found}]
    assert len(headers) < 64 + 2 * 8  # each once by its chain, and where a chain begins
