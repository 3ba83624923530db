"""Looking through an archive of the real shape: what is read, what is kept, what is told meanwhile."""

from __future__ import annotations

import tracemalloc
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from alexshard.shards import ImageFormat, Split
from alexshard.tools.packing.plan import plan_splits
from alexshard.tools.packing.sources import archive, list_source

from tests.tools.sparse import train_archive

COUNTS = [500 + 37 * place for place in range(16)]
HEADER = 512


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    source = tmp_path_factory.mktemp("sparse")
    train_archive(source / "ILSVRC2012_img_train.tar", COUNTS)
    return source


def bytes_read() -> int:
    """Bytes that this process has read so far, from disk or memory."""
    return int(Path("/proc/self/io").read_text(encoding="ascii").split()[1])


def test_looking_reads_the_headers_and_nothing_else(source):
    size = (source / "ILSVRC2012_img_train.tar").stat().st_size
    before = bytes_read()

    listing = list_source(source)

    taken = bytes_read() - before
    ends = len(COUNTS) + 1  # a block of zeros for every inner tar and for the outer one
    assert listing.found(Split.TRAIN) == sum(COUNTS)
    assert (
        taken < HEADER * (sum(COUNTS) + len(COUNTS) + ends) + 60_000
    )  # /proc, the source's folder, 64 probes of what a disk does
    assert size > 100 * taken


def test_a_plan_keeps_a_few_bytes_for_every_image(source):
    list_source(source)  # what is imported late is in memory
    tracemalloc.start()
    try:
        listing = list_source(source)
        plan_splits(listing, ImageFormat(256, "jpeg", 90, "4:2:0"), seed=0, samples_per_shard=None)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()

    assert peak < 160 * sum(COUNTS) + 1_000_000  # classes, containers, the names of one inner tar


def test_images_are_told_of_within_an_archive_too(source):
    told = []

    listing = list_source(source, on_found=told.append)

    assert sum(told) == listing.found(Split.TRAIN)
    assert max(told) <= 500 < max(COUNTS)


@pytest.mark.parametrize("many", [False, True])
def test_the_listing_is_the_same_whether_inner_tars_are_looked_through_one_by_one_or_many_at_once(
    source, monkeypatch, many
):
    asked = []
    monkeypatch.setattr(archive, "_many_pay", lambda *_: asked.append(many) or many)

    listing = list_source(source)

    monkeypatch.setattr(archive, "TRIED_HEADERS", 1 << 30)  # none is asked about
    assert listing == list_source(source)
    assert asked == [many]


@pytest.mark.parametrize(("header_s", "probes"), [(10e-6, 0), (float("inf"), 64)])
def test_a_disk_is_probed_all_over_the_archive_and_memory_is_not(header_s, probes):
    asked = []

    def read_at(offset, size):
        asked.append(offset)
        return bytes(size)

    with ThreadPoolExecutor(archive.DISK_AT_ONCE) as pool:
        pays = archive._many_pay(archive.Archive(read_at, 64 * 10**6), header_s, pool)

    assert (pays, len(set(asked))) == (probes > 0, probes)
    assert all(0 <= offset < 64 * 10**6 and offset % 512 == 0 for offset in asked)
