"""Images are read ahead: the same bytes, each error at its own image, a bounded number on their way."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from alexshard.shards import Split
from alexshard.tools.packing import reading
from alexshard.tools.packing.plan import PlannedSample
from alexshard.tools.packing.reading import SourceReader
from alexshard.tools.packing.sources import BadSource, Listing, list_source

from tests.tools.drawn import folders, ilsvrc, named_images, tar_bytes

PER_CLASS = 40


def planned(listing: Listing) -> list[PlannedSample]:
    """The training images in source order."""
    images = listing.splits[Split.TRAIN]
    return [
        PlannedSample(
            key=str(i),
            label=images.label[i],
            name=name,
            container=images.container[i],
            offset=images.offset[i],
            size=images.size[i],
            patched=False,
            changed=images.changed[i],
        )
        for i, name in enumerate(images.names)
    ]


def open_files() -> int:
    return len(list(Path("/proc/self/fd").iterdir()))


@pytest.fixture(params=["archive", "folder", "folder of archives"])
def source(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    """120 images of three classes."""
    train = {wnid: [(n, n.encode() * 40) for n, _ in images] for wnid, images in named_images(PER_CLASS).items()}
    if request.param == "archive":
        return ilsvrc(tmp_path / "source", train, val=0)
    if request.param == "folder":
        return folders(tmp_path / "source", {wnid: dict(images) for wnid, images in train.items()})
    (tmp_path / "source").mkdir()
    for wnid, images in train.items():
        (tmp_path / "source" / f"{wnid}.tar").write_bytes(tar_bytes(images))
    return tmp_path / "source"


def test_reading_ahead_gives_every_image_its_own_bytes_in_the_order_asked_for(source):
    listing = list_source(source)
    samples = planned(listing)[::-1]

    with SourceReader(listing.containers) as reader:
        read = [(sample, take()) for sample, take in reader.read_all(samples)]

    assert [sample for sample, _ in read] == samples
    assert [data for _, data in read] == [sample.name.rpartition("/")[2].encode() * 40 for sample in samples]
    assert len(read) == 3 * PER_CLASS


@pytest.mark.parametrize(("images", "size"), [(5, 1 << 40), (1000, 4_000)])
def test_what_is_on_its_way_is_bounded_in_images_and_in_bytes(source, monkeypatch, images, size):
    monkeypatch.setattr(reading, "AHEAD_IMAGES", images)
    monkeypatch.setattr(reading, "AHEAD_BYTES", size)
    begun = []
    monkeypatch.setattr(
        SourceReader, "_begin", lambda self, sample: begun.append(sample) or (lambda: self.read(sample))
    )
    listing = list_source(source)
    samples, ahead = planned(listing), []

    with SourceReader(listing.containers) as reader:
        for number, _ in enumerate(reader.read_all(samples)):
            ahead.append(begun[number + 1 :])

    assert begun == samples
    assert max(map(len, ahead)) == min(images, size // samples[0].size)
    # The image that was begun last may come on top.
    assert max(sum(sample.size for sample in on_their_way[:-1]) for on_their_way in ahead) <= size


def test_the_system_is_told_every_page_of_the_images_that_come_next_in_hints_that_it_does_not_cut(
    tmp_path, monkeypatch
):
    train = {"n00000001": [(f"n00000001_{i}.JPEG", bytes(i * 30_000)) for i in range(1, PER_CLASS)]}
    listing = list_source(ilsvrc(tmp_path, train, val=0))
    told = []
    advise = os.posix_fadvise

    def telling(descriptor, offset, size, advice):
        if advice == os.POSIX_FADV_WILLNEED:
            told.append((offset, offset + size))
        advise(descriptor, offset, size, advice)

    monkeypatch.setattr(os, "posix_fadvise", telling)
    samples = planned(listing)

    with SourceReader(listing.containers) as reader:
        next(reader.read_all(samples))

    coming = samples[: reading.AHEAD_IMAGES + 1]
    pages = {page for sample in coming for page in pages_of(sample.offset, sample.offset + sample.size)}
    assert pages == {page for start, end in told for page in pages_of(start, end)}
    assert (
        max(len(pages_of(start, end)) for start, end in told) == 32 < max(sample.size for sample in coming) / 4096
    )


def pages_of(start: int, end: int) -> range:
    return range(start // 4096, -(-end // 4096))


def test_an_error_comes_at_its_own_image_and_those_before_it_are_read(tmp_path):
    source = folders(tmp_path / "source", {"cat": {f"{i:02d}.jpg": b"image" for i in range(20)}})
    listing = list_source(source)
    (source / "cat" / "07.jpg").unlink()
    (source / "cat" / "09.jpg").write_bytes(b"longer than it was")
    outcome = {}

    with SourceReader(listing.containers) as reader:
        for sample, take in reader.read_all(planned(listing)):
            try:
                outcome[sample.name] = take()
            except BadSource as error:
                outcome[sample.name] = error.what.rpartition(": ")[2]

    good = {f"cat/{i:02d}.jpg": b"image" for i in range(20)}
    gone = {"cat/07.jpg": "No such file or directory", "cat/09.jpg": "5 bytes were listed, more are there"}
    assert outcome == good | gone


def test_hundreds_of_archives_are_read_with_a_few_open(tmp_path, monkeypatch):
    for place in range(150):
        name = f"n{place:08d}"
        (tmp_path / f"{name}.tar").write_bytes(tar_bytes([(f"{name}_1.JPEG", name.encode())]))
    listing = list_source(tmp_path)
    before, most = open_files(), 0

    with SourceReader(listing.containers) as reader:
        for sample, take in reader.read_all(planned(listing)):
            assert take() == sample.name[:9].encode()
            most = max(most, open_files())

    assert most - before <= reading.MOST_OPEN + 1
    assert open_files() == before
