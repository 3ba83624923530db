"""Shard sets in stores: opened by address, the same batches as from a folder, told in words where not."""

from __future__ import annotations

import json
import os
import pickle
import re
import subprocess
import threading
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import numpy as np
import pytest
from alexshard.pipeline import open_shard_set, parse_bytes
from alexshard.shards import AlexshardError, BadManifest, CorruptShardSet, NoShardSet, ShardSet, WrongCall

from tests.conftest import alexshard
from tests.pipeline.far import QUICK, batches_of, opened
from tests.s3_server import Cut, SpoilAnswer, Status


@pytest.mark.parametrize("fault", [Status(503, times=2), Cut(100), SpoilAnswer(times=2)], ids=repr)
@pytest.mark.parametrize("name", ["samples.tsv", "train-000001.idx"])
def test_small_files_meet_them_too(far, fault, name):
    far.s3.proxy.add(replace(fault, key=name))

    with opened(far) as shard_set:
        assert shard_set.index("train").keys[:2] == ShardSet.open(far.here).index("train").keys[:2]
    assert far.s3.proxy.spent()


def test_an_address_without_a_manifest_or_with_a_strange_one_is_refused(far):
    with pytest.raises(NoShardSet, match=r"s3://.*/nothing is no shard set: it has no manifest\.json"):
        open_shard_set(far.s3.url("nothing"), cache=far.cache, pauses=QUICK)
    text = (far.here / "manifest.json").read_text()
    for data, said in [(b"\xff", "not UTF-8"), (b"{}", "not one of alexshard"), (text[:-40].encode(), "no JSON")]:
        far.s3.server.put("sets/a/manifest.json", data)
        with pytest.raises(BadManifest, match=said) as told:
            far.open()
        assert f"{far.address}/manifest.json" in str(told.value)
    with pytest.raises(WrongCall, match="holds credentials"):
        open_shard_set("s3://me:secret@bucket/a", cache=far.cache)
    with pytest.raises(WrongCall, match="no address of a store"):
        open_shard_set("nosuchstore://bucket/a", cache=far.cache)
    with pytest.raises(WrongCall, match="is no address of a store, and no folder"):
        open_shard_set(Path("s3://bucket/a"), cache=far.cache)


def test_a_missing_index_and_one_of_another_set_are_refused_before_anything_is_read(far):
    far.s3.server.put("sets/a/train-000001.idx", (far.here / "train-000000.idx").read_bytes())
    with opened(far) as shard_set:
        with pytest.raises(CorruptShardSet, match=r"train-000001\.idx has SHA-256"):
            shard_set.index("train")
        far.s3.server.delete("sets/a/train-000001.idx")
        with pytest.raises(CorruptShardSet, match="is not there"):
            shard_set.index("train")
        far.s3.server.put("sets/a/train-000001.idx", (far.here / "train-000001.idx").read_bytes())
        assert len(shard_set.index("train")) == 73


@pytest.mark.parametrize(
    "order", [{"order": "global"}, {"order": "windowed", "window": 1}, {"order": "stored"}], ids=str
)
def test_the_loader_gives_the_same_batches_as_from_the_folder_and_a_warm_epoch_asks_for_nothing(far, order):
    with opened(far) as shard_set:
        assert batches_of(shard_set, **order) == batches_of(far.here, **order)
        assert sorted(set(far.asked(".tar"))) == ["train-000000.tar", "train-000001.tar"]
        before = len(far.s3.proxy.seen())

        assert batches_of(shard_set, **order) == batches_of(far.here, **order)
        assert len(far.s3.proxy.seen()) == before
    with opened(far) as again:
        assert batches_of(again, **order) == batches_of(far.here, **order)
    assert far.asked()[before:] == ["manifest.json"]
    assert {seen.method for seen in far.s3.proxy.seen()} == {"GET"}  # nothing is listed or looked at


def test_the_loader_takes_the_address_itself(far, monkeypatch, tmp_path):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))

    assert batches_of(far.address, order="windowed") == batches_of(far.here, order="windowed")
    assert len(list((tmp_path / "xdg/alexshard/shards/shards").iterdir())) == 2
    assert [thread.name for thread in threading.enumerate() if thread.name == "alexshard-fetch"] == []


@pytest.mark.parametrize("name", ["samples.tsv", "train-000000.idx", "mean_image.npy"])
def test_a_small_file_damaged_in_the_cache_is_fetched_again(far, name):
    with opened(far) as shard_set:
        shard_set.index("train")
        mean = shard_set.mean_image()
        (shard_set.path / name).write_bytes((shard_set.path / name).read_bytes()[:-7])

        assert len(shard_set.index("train")) == 73
        assert np.array_equal(shard_set.mean_image(), mean)
    assert (shard_set.path / name).read_bytes() == (far.here / name).read_bytes()
    assert far.asked(name) == [name, name]


def test_offline_the_set_last_seen_is_read_from_a_full_cache_and_nothing_is_asked(far, monkeypatch):
    with opened(far) as shard_set:
        expected = batches_of(shard_set, order="stored")
    before = len(far.s3.proxy.seen())

    monkeypatch.setenv("ALEXSHARD_OFFLINE", "1")
    again = open_shard_set(far.address, cache=far.cache)
    assert batches_of(again, order="stored") == expected
    with pytest.raises(AlexshardError, match="is not in the cache") as told:
        again.index("val")
    assert "ALEXSHARD_OFFLINE" in str(told.value)
    with pytest.raises(NoShardSet, match="the cache knows no shard set"):
        open_shard_set(far.s3.url("other"), cache=far.cache)
    assert len(far.s3.proxy.seen()) == before


def test_a_store_out_of_reach_is_told_with_what_the_cache_has(far):
    digest = far.open().digest
    far.s3.proxy.away()

    with pytest.raises(AlexshardError) as told:
        far.open(pauses=(0.01,))
    assert f"ALEXSHARD_OFFLINE=1 takes what the cache has of the set last seen there ({digest[:16]})" in str(
        told.value
    )


@contextmanager
def web_server(folder: Path):
    """Python's own, which knows no ranges; yields its address and what it was asked for."""
    asked: list[str] = []

    class Handler(SimpleHTTPRequestHandler):
        def log_message(self, format: str, *args: object) -> None:  # noqa: ARG002
            asked.append(self.path)

    with ThreadingHTTPServer(("127.0.0.1", 0), partial(Handler, directory=str(folder))) as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.02,))
        thread.start()
        try:
            yield f"http://127.0.0.1:{server.server_address[1]}", asked
        finally:
            server.shutdown()
            thread.join()


def test_a_web_server_without_ranges_or_listings_is_enough(far):
    with web_server(far.here.parent) as (address, asked):
        where = f"{address}/{far.here.name}?token=secret"
        shard_set = open_shard_set(where, cache=far.cache, pauses=QUICK)

        assert batches_of(shard_set, order="windowed") == batches_of(far.here, order="windowed")
        assert shard_set.name == far.here.name
        assert "secret" not in shard_set.shown
        assert all(path.endswith("?token=secret") for path in asked)
        assert not [path for path in asked if re.search(r"/\?", path)]
        with pytest.raises(NoShardSet, match="is no shard set"):
            open_shard_set(f"{address}/nothing", cache=far.cache, pauses=QUICK)
        shard_set.shelf.close()


@pytest.mark.parametrize("scheme", ["file", "memory"])
def test_other_stores_of_fsspec_are_read_through_the_cache_too(far, scheme):
    where = f"{scheme}://{far.here}"
    if scheme == "memory":
        import fsspec

        fsspec.filesystem("memory").put(f"{far.here}/", f"{far.here}/", recursive=True)
    shard_set = open_shard_set(where, cache=far.cache, pauses=QUICK)

    assert batches_of(shard_set, order="windowed") == batches_of(far.here, order="windowed")
    assert len(list((far.cache / "shards").iterdir())) == 2
    shard_set.shelf.close()


def test_a_folder_is_read_where_it_is(far):
    shard_set = open_shard_set(far.here, cache=far.cache)

    assert shard_set.path == far.here
    assert not far.cache.exists()


@pytest.mark.parametrize(
    ("text", "number"),
    [("100GB", 10**11), ("1.5 TiB", 3 * 2**39), ("4096", 4096), ("500mb", 500 * 10**6), ("7kiB", 7168)],
)
def test_sizes_are_read_as_people_write_them(text, number):
    assert parse_bytes(text) == number


@pytest.mark.parametrize("text", ["", "0", "0GB", "-1GB", "GB", "1XB", "1e9", "nan"])
def test_what_is_no_size_is_refused(text):
    with pytest.raises(WrongCall, match="is no size"):
        parse_bytes(text)


def test_a_set_can_be_sent_to_another_process_without_asking_again(far):
    with opened(far) as shard_set:
        shard_set.index("train")
        before = len(far.s3.proxy.seen())
        copy = pickle.loads(pickle.dumps(shard_set))

        assert (copy.digest, copy.shown, copy.path) == (shard_set.digest, shard_set.shown, shard_set.path)
        assert copy.index("train").keys == shard_set.index("train").keys
        assert len(far.s3.proxy.seen()) == before
        assert batches_of(copy, order="stored") == batches_of(far.here, order="stored")
        copy.shelf.close()


def test_info_of_an_address_tells_what_info_of_the_folder_does_without_fetching_a_shard(far, tmp_path):
    told = [
        subprocess.run(
            alexshard("info", where, "--json"),
            env={**os.environ, **far.s3.environment, "XDG_CACHE_HOME": str(tmp_path / "xdg")},
            capture_output=True,
            text=True,
            check=True,
        ).stdout
        for where in (far.address, far.here)
    ]

    assert json.loads(told[0]) == {**json.loads(told[1]), "path": far.address}
    assert far.asked(".tar") == []
