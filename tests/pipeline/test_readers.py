"""Several readers of one shard set: each gets what it wants next, and nobody takes it away from another."""

from __future__ import annotations

import os
import signal
import threading

import numpy as np
import pytest
from alexshard.pipeline import Loader, bringing
from alexshard.pipeline.bytes import StoredImages
from alexshard.pipeline.cache import Cache
from alexshard.pipeline.cache_files import NoRoom
from alexshard.pipeline.order import EpochOrder, Window
from alexshard.pipeline.wanted import Wanted
from alexshard.shards import ShardFiles, ShardSet, WrongCall

from tests.pipeline.far import many_shards, opened, wait_until
from tests.s3_server import Hold


class Reader:
    """Somebody with a list."""


def test_lists_stand_side_by_side_in_turns_until_each_reader_is_done(s3, tmp_path, monkeypatch):
    monkeypatch.setattr(bringing, "SHARDS_AT_ONCE", 1)
    far = many_shards(s3, tmp_path, monkeypatch)
    with opened(far) as shard_set:
        shards, shelf = shard_set.index("train").shards, shard_set.shelf
        one, two, gone = Reader(), Reader(), Reader()
        hold = Hold(key=shards[0].name)
        s3.proxy.add(hold)
        shelf.ahead(shards[:3], by=one)
        assert hold.reached.wait(60)
        shelf.ahead(shards[7:], by=gone)
        del gone
        shelf.ahead([shards[5], shards[1], shards[4]], by=two)
        hold.release()

        assert s3.proxy.wait_for(5, "GET", ".tar")
        assert far.asked(".tar") == [shards[n].name for n in (0, 5, 1, 2, 4)]
        assert wait_until(lambda: len(list((far.cache / "shards").glob("*.tar"))) == 5)
        other = Cache(far.cache, 1)
        assert len(other._all_needed()[1]) == 6  # with the set
        shelf.ahead([], by=two)
        assert len(other._all_needed()[1]) == 4
        with pytest.raises(NoRoom):
            other.begin("f" * 64, 1, now=False)


def test_a_cache_must_hold_what_all_loaders_of_a_set_need_at_a_time(s3, tmp_path, monkeypatch):
    far = many_shards(s3, tmp_path, monkeypatch)
    here = ShardSet.open(far.here).manifest.splits
    train, val = (sorted(shard.bytes for shard in here[split].shards) for split in ("train", "val"))
    with opened(far) as shard_set:
        assert [len(shard_set.index(split)) for split in ("train", "val")] == [32, 5]
        small = sum(path.stat().st_size for path in shard_set.path.iterdir())
    order = {"batch_size": 4, "order": "windowed"}
    with opened(far, cache_bytes=small + sum(train[-4:]) + val[0] - 1) as shard_set:
        with Loader(shard_set, window=2, **order):
            with pytest.raises(WrongCall, match="beside what other loaders of this set read") as told:
                Loader(shard_set, "val", batch_size=4, order="stored", augment=None)
            assert f"--cache-size {-(-(small + sum(train[-4:]) + val[0]) // 10**6)}MB" in told.value.remedy
        Loader(shard_set, "val", batch_size=4, order="stored", augment=None).close()
        with pytest.raises(WrongCall, match="--window 2"):
            Loader(shard_set, window=3, **order)


def test_two_loaders_in_turns_ask_for_each_shard_once(s3, tmp_path, monkeypatch):
    far = many_shards(s3, tmp_path, monkeypatch)
    with (
        opened(far) as shard_set,
        Loader(shard_set, batch_size=4, seed=5, order="windowed", window=1) as train,
        Loader(shard_set, "val", batch_size=4, order="stored", augment=None) as val,
    ):
        batches = iter(train)
        next(batches)
        assert [key for batch in val for key in batch.keys] == [f"val_{n:03d}" for n in range(32, 37)]
        assert len(list(batches)) == 7
    assert sorted(far.asked(".tar")) == sorted(shard.name for shard in far.here.glob("[tv]*.tar"))


def test_the_shards_of_a_window_are_wanted_until_its_last_batch_is_made():
    windows = tuple(Window(4 * n, 4 * n + 4, (n,)) for n in range(4))
    told = []
    wanted = Wanted(EpochOrder(np.arange(16), windows), np.repeat(np.arange(4), 4), told.append, in_flight=1)
    for start in range(0, 16, 2):
        wanted.enter(start, start + 2)

    # Entering a window the last batch of the one before is being made; one batch later it is not.
    assert told == [[0, 1], [0, 1, 2], [1, 2], [1, 2, 3], [2, 3], [2, 3], [3]]


def test_the_loader_counts_the_batches_that_it_makes_at_a_time(s3, tmp_path, monkeypatch):
    far = many_shards(s3, tmp_path, monkeypatch)
    told = []
    monkeypatch.setattr(StoredImages, "will_need", lambda _, shards: told.append(set(shards)))
    with Loader(far.here, batch_size=4, order="stored") as loader:
        assert loader._maker.in_flight >= 8
        assert len(list(loader)) == 8

    assert told[-1] == set(range(8))


def test_a_forked_child_takes_no_lock_that_a_thread_of_its_parent_holds(jpeg_set):
    shard_set = ShardSet.open(jpeg_set.path)
    index = shard_set.index("train")
    with ShardFiles(index, shard_set.shelf) as files:
        opening = files._opening.setdefault(0, threading.Lock())
        with shard_set.shelf._lock, files._lock, opening:
            child = os.fork()
            if not child:
                signal.alarm(20)  # ends it where it waits for ever
                shard_set.shelf.ahead(index.shards)
                shard_set.shelf.close()
                os._exit(0 if os.fstat(files.lease(0).fd).st_size == index.shards[0].bytes else 1)
    assert os.waitpid(child, 0)[1] == 0
