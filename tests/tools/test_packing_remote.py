"""SOURCE in a store: the same set from ranges of the archives, whatever fails on the way."""

from __future__ import annotations

import functools
import os
import pickle
import subprocess
import threading
from array import array
from collections.abc import Iterator
from dataclasses import replace
from http.server import BaseHTTPRequestHandler, SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
from alexshard.shards import AlexshardError, Split, WrongCall
from alexshard.tools.packing import BadSource, BuildSettings, MaxBad, build, plan_build, source_at
from alexshard.tools.packing.reading import SourceReader
from alexshard.tools.packing.sources import Listing, cached_listing, list_source, remote, save_listing
from alexshard.tools.packing.sources.remote import remote_source
from PIL import Image

from tests.conftest import alexshard
from tests.s3_server import S3, Cut, Seen, Slow, Status
from tests.tools.drawn import (
    SMALL,
    encoded,
    files_of,
    folders,
    ilsvrc,
    jpeg,
    named_images,
    pack,
    pixels,
    tar_bytes,
)
from tests.tools.test_packing_reading import planned

PAUSES = (0.0, 0.0, 0.0, 0.0)
TRAIN = "ILSVRC2012_img_train.tar"


@pytest.fixture
def store(s3: S3, monkeypatch: pytest.MonkeyPatch) -> S3:
    """A bucket that this process finds."""
    for name, value in s3.environment.items():
        monkeypatch.setenv(name, value)
    return s3


@pytest.fixture
def source(tmp_path: Path) -> Path:
    """Archives of which the images are by far the largest part."""
    train = named_images()
    train["n00000001"].append(("n00000001_big.JPEG", jpeg(5, 900, 700, quality=100)))
    return ilsvrc(tmp_path / "source", train)


def upload(s3: S3, folder: Path) -> str:
    for name, data in files_of(folder).items():
        s3.server.put(f"data/{name}", data)
    return s3.url("data")


def asked_of(s3: S3) -> list[Seen]:
    """What was asked of the bytes of the training archive."""
    return [seen for seen in s3.proxy.seen("GET") if seen.path.endswith(f"/data/{TRAIN}")]


def contents(listing: Listing) -> list[tuple[str, bytes]]:
    with SourceReader(listing.containers) as reader:
        return [(sample.name, take()) for sample, take in reader.read_all(planned(listing))]


def without_places(listing: Listing) -> tuple[object, ...]:
    containers = [(held.label, held.is_folder) for held in listing.containers]
    splits = {split: replace(images, changed=array("q")) for split, images in listing.splits.items()}
    return listing.kind, listing.classes, splits, listing.refusals, listing.remarks, containers


@pytest.mark.parametrize("form", ["archives", "folders"])
def test_a_source_in_a_store_is_listed_and_read_as_on_the_disk(store, source, tmp_path, form):
    if form == "folders":
        names = {
            "train/cat": {"1.jpg": jpeg(1), "two words.jpg": jpeg(2)},
            "train/dog/deep": {"é%41.jpg": jpeg(3)},
        }
        source = folders(tmp_path / "folders", {**names, "val/dog": {"4.jpg": jpeg(4)}, "": {"loose.jpg": b""}})
    here = list_source(source)

    there = list_source(source_at(upload(store, source)))

    assert without_places(there) == without_places(here)
    assert contents(there) == contents(here)
    assert contents(pickle.loads(pickle.dumps(there))) == contents(here)


def test_an_archive_is_read_by_ranges_of_headers_and_images_and_never_whole(store, source):
    size = (source / TRAIN).stat().st_size
    listing = list_source(source_at(upload(store, source)))
    headers = asked_of(store)
    images = listing.splits[Split.TRAIN]
    big = images.size.index(max(images.size))

    with SourceReader(listing.containers) as reader:
        reader.read(planned(listing)[big])

    assert {seen.sent for seen in headers} == {512}
    assert len(headers) == 13 + 3 + 3 + 1  # images, inner tars, an end for each and one for all
    assert asked_of(store)[-1].sent == images.size[big]
    assert sum(seen.sent for seen in asked_of(store)) < size - 10_000
    assert all(seen.range for seen in asked_of(store))


def test_a_build_from_a_store_gives_the_bytes_of_one_from_the_disk_and_survives_faults(store, source, tmp_path):
    pack(source, tmp_path / "here", workers=1)
    address = upload(store, source)
    store.proxy.add(
        Status(status=500, times=2, method="GET", key="img_train"),
        Cut(after=100, method="GET", key="img_train", skip=5),
        Status(status=503, method="GET", key="list-type"),
        Slow(seconds=0.2, method="GET", key="img_val"),
        Cut(after=10, method="GET", key="img_val", skip=2, times=2),
    )

    done = subprocess.run(
        [*alexshard("build", address, "--out", tmp_path / "there", "--size", 32, "-j", 2)],
        env={**os.environ, **store.environment},
        capture_output=True,
        text=True,
        check=False,
    )

    assert (done.returncode, done.stderr.count("Traceback")) == (0, 0), done.stderr
    assert "look 1 folders" in done.stderr
    assert store.proxy.spent()
    shards = [name for name in files_of(tmp_path / "here") if name.endswith((".tar", ".idx", ".tsv"))]
    assert len(shards) >= 5
    there = files_of(tmp_path / "there")
    assert {name: there[name] for name in shards} == {name: files_of(tmp_path / "here")[name] for name in shards}


def test_an_answer_that_does_not_come_is_given_up_and_asked_for_again(store, source):
    address = upload(store, source)
    store.proxy.add(Slow(seconds=20, method="GET", key=TRAIN, skip=3))

    listing = list_source(remote_source(address, pauses=PAUSES, answer_s=0.5))

    assert listing.found(Split.TRAIN) == 13


def test_a_store_that_stays_ill_ends_in_words(store, source):
    address = upload(store, source)
    store.proxy.add(Status(status=500, times=100, method="GET", key=TRAIN))

    with pytest.raises(AlexshardError, match=r"cannot read s3://.*/data/ILSVRC2012_img_train\.tar") as caught:
        list_source(remote_source(address, pauses=PAUSES))

    assert "5 attempts" in caught.value.why


@pytest.mark.parametrize("when", ["before the first image", "after the first image"])
def test_an_archive_exchanged_for_one_of_the_same_size_is_noticed(store, source, when):
    listing = list_source(source_at(upload(store, source)))
    other = bytearray((source / TRAIN).read_bytes())
    other[-1] ^= 1  # behind the end mark, so nothing but the ETag tells
    with SourceReader(listing.containers) as reader:
        if when == "after the first image":
            reader.read(planned(listing)[0])
        store.server.put(f"data/{TRAIN}", bytes(other))

        with pytest.raises(BadSource, match="changed after it was listed"):
            reader.read(planned(listing)[1])


def test_an_image_exchanged_for_one_of_the_same_size_while_others_are_packed_is_noticed_at_the_end(
    store, tmp_path
):
    bitmap = [encoded(Image.fromarray(pixels(number)), "BMP") for number in range(9)]
    source = folders(tmp_path / "source", {"cat": {f"{number}.bmp": bitmap[number] for number in range(8)}})
    settings = BuildSettings(
        source=source_at(upload(store, source)), out=tmp_path / "set", image=SMALL, max_bad=MaxBad.parse("0")
    )

    def exchange(images: int, bad: int) -> None:
        store.server.put("data/cat/3.bmp", bitmap[8])

    with pytest.raises(BadSource, match="the source changed while it was packed") as caught:
        build(plan_build(settings), workers=1, on_progress=exchange)

    assert caught.value.where == f"{settings.source}/cat/3.bmp: another image than was listed"
    assert not (tmp_path / "set" / "manifest.json").exists()


def test_an_archive_that_is_exchanged_and_not_read_again_is_noticed_at_the_end_of_the_shard(store, source):
    listing = list_source(source_at(upload(store, source)))
    with SourceReader(listing.containers) as reader:
        images = reader.read_all(planned(listing))
        for _ in range(13):
            next(images)[1]()
        store.server.put(f"data/{TRAIN}", (source / TRAIN).read_bytes() + b"\0")

        with pytest.raises(BadSource, match="changed after it was listed"):
            next(images, None)


def test_the_listing_of_a_store_is_kept_until_anything_there_changes(store, source, tmp_path):
    address, cache = upload(store, source), tmp_path / "cache"
    save_listing(cached_listing(source_at(address), cache), cache)
    asked = len(asked_of(store))

    again = cached_listing(source_at(address), cache)

    assert len(asked_of(store)) == asked
    assert again == cached_listing(source_at(address), tmp_path / "no cache")
    assert contents(again) == contents(list_source(source))
    asked = len(asked_of(store))
    store.server.put("data/ILSVRC2012_img_val.tar", (source / "ILSVRC2012_img_val.tar").read_bytes() + bytes(512))
    cached_listing(source_at(address), cache)
    assert len(asked_of(store)) > asked


@pytest.mark.parametrize("address", ["https://me:secret@host/data", "s3://bucket/data?token=secret"])
def test_an_address_with_a_secret_is_refused_without_repeating_it(address):
    with pytest.raises(WrongCall) as caught:
        source_at(address)

    assert "secret" not in str(caught.value)


def test_what_is_not_there_is_a_wrong_call(store):
    with pytest.raises(WrongCall, match="does not exist"):
        list_source(source_at(store.url("nowhere")))


@pytest.fixture
def web(tmp_path: Path) -> Iterator[tuple[Path, str]]:
    """A folder, and the address at which a web server that knows no ranges shows it."""

    class Quiet(SimpleHTTPRequestHandler):
        def log_message(self, format: str, *args: object) -> None:
            """Nothing."""

    folder = tmp_path / "web"
    folder.mkdir()
    with ThreadingHTTPServer(("127.0.0.1", 0), functools.partial(Quiet, directory=str(folder))) as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.02,))
        thread.start()
        yield folder, f"http://127.0.0.1:{server.server_address[1]}"
        server.shutdown()
        thread.join()


@pytest.fixture
def endless() -> Iterator[tuple[list[str], str, list[str]]]:
    """The links that every folder of a web server shows, its address, and what it was asked for."""
    links, asked = ["a/"], []

    class Endless(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            asked.append(self.path)
            if len(asked) > 1000:  # an end after all, for a client that knows none
                self.send_error(404)
                return
            page = "".join(f'<a href="{link}">{link}</a>' for link in links).encode()
            self.send_response(200)
            self.send_header("Content-Type", "text/html")
            self.send_header("Content-Length", str(len(page)))
            self.end_headers()
            self.wfile.write(page)

        def log_message(self, format: str, *args: object) -> None:
            """Nothing."""

    with ThreadingHTTPServer(("127.0.0.1", 0), Endless) as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.02,))
        thread.start()
        yield links, f"http://127.0.0.1:{server.server_address[1]}", asked
        server.shutdown()
        thread.join()


def test_a_web_server_of_folders_without_end_is_told_before_it_is_asked_for_them(endless, monkeypatch):
    links, address, asked = endless
    links[:] = [f"{name}/" for name in "abcde"]
    monkeypatch.setattr(remote, "_MOST_FOLDERS", 100)
    seen = []

    with pytest.raises(BadSource, match=r"holds more than 100 folders, and there is no end to them"):
        source_at(address, seen.append)

    assert (len(asked), sum(seen)) == (31, 31)  # one, five of it, 25 of them; 125 are too many


def test_a_web_server_of_folders_deeper_and_deeper_is_told(endless, monkeypatch):
    links, address, asked = endless
    links[:] = ["train/", "other/"]
    monkeypatch.setattr(remote, "_DEEPEST", 2)

    with pytest.raises(BadSource, match="holds folders 32 deep in each other and more"):
        list_source(source_at(address))

    assert len(asked) < 200


def test_folders_of_images_are_read_from_any_web_server(web):
    folder, address = web
    folders(folder, {"cat": {"1.jpg": jpeg(1), "two words.jpg": jpeg(2)}, "dog": {"é%41.jpg": jpeg(3)}})

    listing = list_source(source_at(address))

    assert without_places(listing) == without_places(list_source(folder))
    assert contents(listing) == contents(list_source(folder))


def test_archives_on_a_web_server_without_ranges_are_refused_not_fetched(web):
    folder, address = web
    ilsvrc(folder)

    with pytest.raises(BadSource, match="served whole or not at all"):
        list_source(source_at(address))


def test_inner_tars_looked_through_at_once_are_listed_in_the_order_of_the_archive(store, tmp_path):
    wnids = [f"n{place:08d}" for place in range(90, 0, -1)]
    inner = [(f"{wnid}.tar", tar_bytes([(f"{wnid}_{i}.JPEG", b"x" * i) for i in range(3)])) for wnid in wnids]
    (tmp_path / "source").mkdir()
    (tmp_path / "source" / TRAIN).write_bytes(tar_bytes(inner))

    listing = list_source(source_at(upload(store, tmp_path / "source")))

    assert without_places(listing) == without_places(list_source(tmp_path / "source"))
