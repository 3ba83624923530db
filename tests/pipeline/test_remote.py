"""Shard sets in stores: fetched once, proved by digests, again where that helps, in words where it does not."""

from __future__ import annotations

import json
import os
import pickle
import re
import signal
import subprocess
import sys
import threading
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import numpy as np
import pytest
from alexshard.pipeline import Loader, fetching, open_shard_set, parse_bytes, shelving
from alexshard.pipeline.cache import Cache
from alexshard.pipeline.cache_files import NoRoom
from alexshard.pipeline.fetching import Stopped
from alexshard.shards import AlexshardError, BadManifest, CorruptShardSet, NoShardSet, ShardSet, WrongCall

from tests.conftest import alexshard
from tests.pipeline.conftest import make_pictures
from tests.pipeline.far import QUICK, Far, read, upload
from tests.s3_server import S3, Cut, Hold, Slow, SpoilAnswer, Status


@pytest.fixture
def far(s3: S3, jpeg_set, tmp_path, monkeypatch) -> Far:
    """The JPEG set in a bucket; its shards come in parts of 40,000 bytes."""
    for name, value in s3.environment.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(fetching, "PART_BYTES", 40_000)
    upload(s3, jpeg_set.path)
    return Far(s3, jpeg_set.path, tmp_path / "cache")


@contextmanager
def opened(far: Far, **options):
    shard_set = far.open(**options)
    try:
        yield shard_set
    finally:
        shard_set.shelf.close()


def batches_of(shards, **options) -> list[tuple[list[str], list[int], bytes]]:
    """Keys, labels and pixels of an epoch."""
    with Loader(shards, batch_size=8, output="uint8", seed=3, drop_last=False, **options) as loader:
        return [(list(batch.keys), batch.labels.tolist(), batch.images.numpy().tobytes()) for batch in loader]


# What fails on the way


@pytest.mark.parametrize(
    "fault", [Status(503, times=3), Status(500), Cut(1000), Cut(0, times=2), Slow(0.1), SpoilAnswer()], ids=repr
)
def test_a_shard_meets_faults_and_is_whole_in_the_end(far, fault):
    far.s3.proxy.add(replace(fault, key=".tar", skip=1))
    with opened(far) as shard_set:
        shard = shard_set.index("train").shards[0]

        assert read(shard_set, shard) == shard.sha256
        assert far.s3.proxy.spent()
        assert shard_set.shelf.statistics().spoilt == isinstance(fault, SpoilAnswer)
    assert far.left() == []


@pytest.mark.parametrize("fault", [Status(503, times=2), Cut(100), SpoilAnswer(times=2)], ids=repr)
@pytest.mark.parametrize("name", ["samples.tsv", "train-000001.idx"])
def test_small_files_meet_them_too(far, fault, name):
    far.s3.proxy.add(replace(fault, key=name))

    with opened(far) as shard_set:
        assert shard_set.index("train").keys[:2] == ShardSet.open(far.here).index("train").keys[:2]
    assert far.s3.proxy.spent()


def test_bytes_that_are_wrong_each_time_are_told_with_both_digests(far):
    far.s3.proxy.add(SpoilAnswer(times=99, key="train-000001.tar"))
    with opened(far) as shard_set:
        good, bad = shard_set.index("train").shards

        with pytest.raises(CorruptShardSet, match="came 3 times with SHA-256") as told:
            read(shard_set, bad)
        assert f"the manifest says {bad.sha256}" in str(told.value)
        assert f"{far.address}/train-000001.tar" in str(told.value)
        assert read(shard_set, good) == good.sha256
    assert far.left() == []


def test_a_missing_shard_a_forbidden_one_and_a_store_that_stays_away_are_told_apart(far):
    far.s3.server.delete("sets/a/train-000000.tar")
    far.s3.proxy.add(Status(403, times=99, key="train-000001.tar"), Status(503, times=999, key="val-000000.tar"))
    with opened(far) as shard_set:
        first, second = shard_set.index("train").shards
        third = shard_set.index("val").shards[0]

        with pytest.raises(CorruptShardSet, match=r"the shard train-000000\.tar is not there"):
            read(shard_set, first)
        with pytest.raises(WrongCall, match=r"may not read .*train-000001\.tar"):
            read(shard_set, second)
        with pytest.raises(AlexshardError, match=r"cannot read .*val-000000\.tar") as told:
            read(shard_set, third)
        assert "9 attempts" in str(told.value)
    assert far.left() == []


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


def test_a_set_that_replaces_another_is_another_and_nothing_is_mixed(far, tmp_path):
    with opened(far) as old:
        assert read(old, old.index("train").shards[0]) == old.index("train").shards[0].sha256
        make_pictures(tmp_path / "raw", "raw")
        upload(far.s3, tmp_path / "raw")

        with pytest.raises(CorruptShardSet, match="was replaced by another one since it was opened"):
            read(old, old.index("train").shards[1])
        with opened(far) as new:
            assert new.digest != old.digest
            assert new.path != old.path
            assert batches_of(new, order="stored") == batches_of(tmp_path / "raw", order="stored")


# Through the loader


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


def test_a_cache_of_two_windows_is_enough_and_is_never_exceeded(s3, tmp_path, monkeypatch):
    far = many_shards(s3, tmp_path, monkeypatch)
    here = ShardSet.open(far.here)
    largest = max(shard.bytes for shard in here.manifest.splits["train"].shards)
    small = sum(path.stat().st_size for path in far.here.iterdir() if path.suffix != ".tar")
    cap = 2 * largest + small

    order = {"order": "windowed", "window": 1}
    with opened(far, cache_bytes=cap) as shard_set, Loader(shard_set, batch_size=4, seed=3, **order) as loader:
        keys = []
        for batch in loader:
            keys += batch.keys
            assert sum(path.stat().st_size for path in far.cache.rglob("*.tar")) <= cap
        assert len(list((far.cache / "shards").iterdir())) <= 3
        assert shard_set.path.is_dir()
    with Loader(far.here, batch_size=4, seed=3, **order) as loader:
        assert keys == [key for batch in loader for key in batch.keys]
    with opened(far, cache_bytes=cap) as shard_set:
        for order, said in [
            ({"order": "global"}, "all 8 shards"),
            ({"order": "windowed", "window": 3}, "3 shards"),
        ]:
            with pytest.raises(WrongCall, match=f"the cache may hold .*{said}") as told:
                Loader(shard_set, batch_size=4, **order)
            assert "--order windowed --window 1" in str(told.value)
            assert "--cache-size" in str(told.value)


def many_shards(s3: S3, tmp_path: Path, monkeypatch) -> Far:
    for name, value in s3.environment.items():
        monkeypatch.setenv(name, value)
    from tests.pipeline import conftest

    monkeypatch.setattr(conftest, "SHARDS", {conftest.Split.TRAIN: (4,) * 8, conftest.Split.VAL: (5,)})
    make_pictures(tmp_path / "many", "jpeg")
    upload(s3, tmp_path / "many")
    return Far(s3, tmp_path / "many", tmp_path / "cache")


def test_who_resumes_asks_for_nothing_that_lies_behind(s3, tmp_path, monkeypatch):
    far = many_shards(s3, tmp_path, monkeypatch)
    order = {"order": "windowed", "window": 1, "batch_size": 4, "seed": 5}
    with Loader(far.here, **order) as loader:
        epoch = iter(loader)
        passed = [next(epoch) for _ in range(5)]
        state, rest = loader.state_dict(), [list(batch.keys) for batch in epoch]
    keys_of = ShardSet.open(far.here).index("train")
    where = dict(zip(keys_of.keys, keys_of.shard.tolist(), strict=True))

    with opened(far) as shard_set, Loader(shard_set, **order) as loader:
        loader.load_state_dict(state)
        assert [list(batch.keys) for batch in loader] == rest
    behind = {f"train-{where[key]:06d}.tar" for batch in passed for key in batch.keys}
    assert len(behind) == 5
    assert set(far.asked(".tar")) & behind == set()
    assert len(set(far.asked(".tar"))) == 3


def test_a_store_that_goes_away_in_the_middle_of_an_epoch_and_comes_back_is_waited_for(s3, tmp_path, monkeypatch):
    far = many_shards(s3, tmp_path, monkeypatch)
    order = {"order": "windowed", "window": 1, "batch_size": 4, "seed": 5}
    with opened(far, pauses=(0.05,) * 400) as shard_set, Loader(shard_set, **order) as loader:
        epoch = iter(loader)
        keys = list(next(epoch).keys)
        far.s3.proxy.away()
        gone = len([seen for seen in far.s3.proxy.seen() if seen.status == 0])
        rest: list[str] = []
        consumer = threading.Thread(target=lambda: rest.extend(key for batch in epoch for key in batch.keys))
        consumer.start()
        assert wait_until(lambda: len([seen for seen in far.s3.proxy.seen() if seen.status == 0]) >= gone + 5)
        far.s3.proxy.back()
        consumer.join(60)
        keys += rest
        assert shard_set.shelf.stalled_s > 0
    with Loader(far.here, **order) as loader:
        assert keys == [key for batch in loader for key in batch.keys]


def wait_until(holds, timeout: float = 60) -> bool:
    pause = threading.Event()
    for _ in range(int(timeout / 0.01)):
        if holds():
            return True
        pause.wait(0.01)
    return False


def test_a_shard_damaged_in_the_cache_is_noticed_and_fetched_again(far):
    with opened(far) as shard_set:
        expected = batches_of(shard_set, order="stored")
        path = far.cache / "shards" / f"{shard_set.index('train').shards[1].sha256}.tar"
        data = bytearray(path.read_bytes())
        data[len(data) // 2 :] = bytes(len(data) - len(data) // 2)
        path.write_bytes(data)

        assert batches_of(shard_set, order="stored") == expected
        assert shard_set.shelf.statistics().damaged == 1


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


# Processes and threads


def test_processes_that_share_a_cache_fetch_each_shard_once(far):
    others = [
        far.beside("far_set.shelf.ahead(shards); say(*[read(far_set, s) == s.sha256 for s in shards])")
        for _ in range(2)
    ]

    for other in others:
        told, errors = other.communicate()
        assert told == "True True\n", errors
    parts = [(seen.path, seen.range) for seen in far.s3.proxy.seen("GET", ".tar")]
    assert len(parts) == len(set(parts)) == 8
    assert len(far.asked("samples.tsv")) == 1
    assert far.left() == []


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGKILL])
def test_who_is_ended_in_the_middle_of_a_shard_leaves_nothing_in_anybodys_way(far, number):
    hold = Hold(key="train-000000.tar", skip=1)
    far.s3.proxy.add(hold)
    other = far.beside("far_set.shelf.ahead(shards[1:]); say(read(far_set, shards[0]))")
    assert hold.reached.wait(60)

    other.send_signal(number)
    other.communicate()

    if number == signal.SIGINT:
        assert far.left() == []
        assert list((far.cache / "leases").iterdir()) == []
    hold.release()
    with opened(far) as shard_set:
        shard = shard_set.index("train").shards[0]
        assert read(shard_set, shard) == shard.sha256
    assert far.left() == []


def test_close_ends_a_download_in_the_middle_and_a_later_call_begins_anew(far, monkeypatch):
    monkeypatch.setattr(fetching, "PART_BYTES", 1 << 20)  # one request, so that nothing else ends it
    hold = Hold(key="train-000000.tar")
    far.s3.proxy.add(hold)
    with opened(far) as shard_set:
        shards = shard_set.index("train").shards
        shard_set.shelf.ahead(shards)
        told: list[BaseException] = []

        def wait() -> None:
            try:
                read(shard_set, shards[0])
            except AlexshardError as error:
                told.append(error)

        waiting = threading.Thread(target=wait)
        waiting.start()
        assert hold.reached.wait(60)
        shard_set.shelf.close()
        waiting.join(30)

        assert [type(error) for error in told] == [Stopped]
        assert [thread.name for thread in threading.enumerate() if thread.name == "alexshard-fetch"] == []
        assert far.left() == []
        hold.release()
        assert read(shard_set, shards[0]) == shards[0].sha256


def test_what_is_needed_now_does_not_wait_for_what_is_needed_next(s3, tmp_path, monkeypatch):
    far = many_shards(s3, tmp_path, monkeypatch)
    with opened(far) as shard_set:
        shards = shard_set.index("train").shards
        holds = [Hold(key=shard.name) for shard in shards[: shelving.SHARDS_AT_ONCE]]
        s3.proxy.add(*holds)
        shard_set.shelf.ahead(shards)
        assert all(hold.reached.wait(60) for hold in holds)  # all threads of the background are busy

        assert read(shard_set, shards[7]) == shards[7].sha256
        assert far.asked(".tar") == [shards[7].name]
        s3.proxy.clear()


def test_shards_are_fetched_in_the_order_of_need(s3, tmp_path, monkeypatch):
    monkeypatch.setattr(shelving, "SHARDS_AT_ONCE", 1)
    far = many_shards(s3, tmp_path, monkeypatch)
    with opened(far) as shard_set:
        shards = shard_set.index("train").shards
        wanted = [shards[n] for n in (5, 2, 7, 0)]
        shard_set.shelf.ahead(wanted)

        assert s3.proxy.wait_for(4, "GET", ".tar")
        assert far.asked(".tar") == [shard.name for shard in wanted]
        with pytest.raises(NoRoom):  # what is announced stays
            Cache(far.cache, 1).begin("f" * 64, 1, now=False)
        assert wait_until(lambda: len(list((far.cache / "shards").glob("*.tar"))) == 4)


def test_a_forked_process_fetches_for_itself(far):
    code = """
read(far_set, shards[0])
child = os.fork()
if not child:
    os._exit(0 if read(far_set, shards[1]) == shards[1].sha256 else 1)
say(os.waitpid(child, 0)[1], read(far_set, shards[1]) == shards[1].sha256)
"""
    told, errors = far.beside(code).communicate()

    assert told == "0 True\n", errors


def test_a_shard_is_never_held_whole(far):
    code = """
import os, sys, tracemalloc
from alexshard.pipeline.fetching import RemoteFiles
files = RemoteFiles(sys.argv[1])
size, come = int(sys.argv[2]), 0
def put(offset, data):
    global come
    assert offset == come
    come += len(data)
files.read("small")
tracemalloc.start()
files.download("large", size, put)
print(come, tracemalloc.get_traced_memory()[1])
"""
    size = 96 << 20
    far.s3.server.put("sets/b/large", os.urandom(1 << 20) * 96)
    far.s3.server.put("sets/b/small", b"x")
    done = subprocess.run(
        [sys.executable, "-c", code, far.s3.url("sets/b"), str(size)],
        env={**os.environ, **far.s3.environment},
        capture_output=True,
        text=True,
        check=True,
    )

    come, most = map(int, done.stdout.split())
    assert come == size
    assert most < size / 2


# Without a network, and other stores


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


@pytest.mark.parametrize("fault", [Cut(1000), Status(503), SpoilAnswer()], ids=repr)
def test_a_stream_that_is_cut_begins_anew(far, fault):
    far.s3.proxy.add(replace(fault, key="train-000000.tar"))
    where = far.s3.http_url("sets/a")
    shard_set = open_shard_set(where, cache=far.cache, pauses=QUICK)
    shard = shard_set.index("train").shards[0]

    assert read(shard_set, shard) == shard.sha256
    assert far.s3.proxy.spent()
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
