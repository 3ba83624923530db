"""Shards come from a store: once, whole, in the order of need, again where that helps; nothing is left behind."""

from __future__ import annotations

import os
import threading
from dataclasses import replace

import numpy as np
import pytest
from alexshard.pipeline import Loader, UndecodableSample, bringing, open_shard_set
from alexshard.pipeline.bytes import StoredImages
from alexshard.pipeline.cache import Cache
from alexshard.pipeline.cache_files import NoRoom
from alexshard.shards import AlexshardError, CorruptShardSet, ShardSet, WrongCall

from tests.pipeline.conftest import make_pictures
from tests.pipeline.far import QUICK, batches_of, many_shards, opened, read, upload, wait_until
from tests.s3_server import Cut, Hold, Slow, SpoilAnswer, Status


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


def test_a_cache_of_two_windows_is_enough_and_is_never_exceeded(s3, tmp_path, monkeypatch):
    monkeypatch.setattr(bringing, "_OUR_ROOM_S", 0.2)  # many small batches at a time keep more open than that
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


def test_a_shard_damaged_in_the_cache_is_noticed_and_fetched_again(far):
    with opened(far) as shard_set:
        expected = batches_of(shard_set, order="stored")
        path = far.cache / "shards" / f"{shard_set.index('train').shards[1].sha256}.tar"
        data = bytearray(path.read_bytes())
        data[len(data) // 2 :] = bytes(len(data) - len(data) // 2)
        path.write_bytes(data)

        assert batches_of(shard_set, order="stored") == expected
        assert shard_set.shelf.statistics().damaged == 1


def test_what_is_needed_now_does_not_wait_for_what_is_needed_next(s3, tmp_path, monkeypatch):
    far = many_shards(s3, tmp_path, monkeypatch)
    with opened(far) as shard_set:
        shards = shard_set.index("train").shards
        holds = [Hold(key=shard.name) for shard in shards[: bringing.SHARDS_AT_ONCE]]
        s3.proxy.add(*holds)
        shard_set.shelf.ahead(shards)
        assert all(hold.reached.wait(60) for hold in holds)  # all threads of the background are busy

        assert read(shard_set, shards[7]) == shards[7].sha256
        assert far.asked(".tar") == [shards[7].name]
        s3.proxy.clear()


def test_shards_are_fetched_in_the_order_of_need(s3, tmp_path, monkeypatch):
    monkeypatch.setattr(bringing, "SHARDS_AT_ONCE", 1)
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


@pytest.mark.parametrize("fault", [Cut(1000), Status(503), SpoilAnswer()], ids=repr)
def test_a_stream_that_is_cut_begins_anew(far, fault):
    far.s3.proxy.add(replace(fault, key="train-000000.tar"))
    where = far.s3.http_url("sets/a")
    shard_set = open_shard_set(where, cache=far.cache, pauses=QUICK)
    shard = shard_set.index("train").shards[0]

    assert read(shard_set, shard) == shard.sha256
    assert far.s3.proxy.spent()
    shard_set.shelf.close()


def test_a_shard_is_looked_through_once_however_many_of_its_images_are_bad(far, monkeypatch):
    looked = []
    monkeypatch.setattr(Cache, "is_sound", lambda self, sha: looked.append(sha) or sound(self, sha))
    with opened(far) as shard_set:
        stored = StoredImages(shard_set.index("train"), shard_set.shelf, 74)
        stored.index.crc32[:3] ^= 1  # packed badly: no copy is any better
        into = np.empty(stored.largest, np.uint8)

        for sample in range(3):
            with pytest.raises(UndecodableSample):
                stored.read(sample, into)
        assert looked == [stored.index.shards[0].sha256]
        stored.close()


sound = Cache.is_sound


def test_a_cache_without_room_is_told_as_such(far, monkeypatch):
    monkeypatch.setattr(bringing, "_OUR_ROOM_S", 0.0)
    with opened(far) as shard_set:
        shards = shard_set.index("train").shards
        small = sum(path.stat().st_size for path in shard_set.path.iterdir())
    with opened(far, cache_bytes=small + shards[0].bytes) as shard_set:
        fd = shard_set.shelf.open(shards[0])
        stored = StoredImages(shard_set.index("train"), shard_set.shelf, 74)
        with pytest.raises(AlexshardError, match=r"the cache .* may hold") as told:
            stored.read(50, np.empty(stored.largest, np.uint8))
        os.close(fd)

    assert "ulimit" not in str(told.value)
    assert "--cache-size" in told.value.remedy
