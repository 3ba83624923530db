"""pipeline/stages.py: each stage does the work of the loader as far as it goes, and that of those before it."""

from __future__ import annotations

import threading
from contextlib import closing
from itertools import islice

import numpy as np
import pytest
import torch
from alexshard.pipeline import STAGES, Loader, Stages, Trace, UndecodableSample, decode, kernels
from alexshard.pipeline import bytes as stored_bytes
from alexshard.pipeline.crew import Crew
from alexshard.shards import WrongCall

BACKENDS = [{"backend": "dali"}, {"backend": "dali", "decoder": "card"}, {"backend": "dali", "decoder": "split"}]
if kernels.AVAILABLE:
    BACKENDS.insert(0, {"backend": "threads"})


def name_of(about):
    return "-".join(about.values())


@pytest.fixture
def read(monkeypatch):
    """The samples read, in any order; every stage reads them by this one way."""
    samples: list[int] = []
    read = stored_bytes.StoredImages.read

    def noting(self, sample, into):
        samples.append(sample)
        return read(self, sample, into)

    monkeypatch.setattr(stored_bytes.StoredImages, "read", noting)
    return samples


def spans_of(trace):
    return {event["name"] for event in trace.events() if event["ph"] == "X"}


@pytest.mark.parametrize("about", BACKENDS, ids=name_of)
@pytest.mark.parametrize("encoding", ["jpeg", "raw"])
def test_every_stage_takes_whole_epochs_of_this_ranks_batches(about, encoding, jpeg_set, raw_set):
    path = (jpeg_set if encoding == "jpeg" else raw_set).path
    with Loader(path, "train", 16, seed=3, threads=2, drop_last=False, **about) as loader:
        for stage in STAGES:
            with closing(Stages(loader).batches(stage)) as batches:
                assert list(islice(batches, 7)) == [16, 16, 16, 16, 9, 16, 16], stage


@pytest.mark.parametrize("stage", STAGES)
def test_every_stage_reads_each_image_of_the_epoch_once(stage, jpeg_set, read):
    with Loader(jpeg_set.path, "train", 73, seed=3, threads=1) as loader:  # one: two read two epochs at a time
        with closing(Stages(loader).batches(stage)) as batches:
            next(batches)
        first = read[:73]

    assert sorted(first) == list(range(73))


def test_the_stages_go_through_the_epochs_in_other_orders(jpeg_set, read):
    with Loader(jpeg_set.path, "train", 73, seed=3, threads=1) as loader:
        stages = Stages(loader)
        for _ in range(2):
            with closing(stages.batches("bytes")) as batches:
                next(batches)
            del read[73:]
            orders = loader.order_of(0).samples.tolist(), read.copy()
            read.clear()

    assert sorted(orders[1]) == sorted(orders[0])
    assert orders[1] != orders[0]


def workers():
    """Threads of ours, but for the one that asks the system to read ahead, which ends by itself."""
    names = ("alexshard-decode", "alexshard-read-ahead")
    return {each for each in threading.enumerate() if each.is_alive() and each.name.startswith(names)}


@pytest.mark.parametrize("batch_size", [16, 73])
@pytest.mark.parametrize("about", BACKENDS[:-1], ids=name_of)  # a split batch is two tasks, as bytes it is one
def test_stages_have_pieces_and_batches_on_their_way_as_the_loader_has(about, batch_size, jpeg_set, monkeypatch):
    begun: list[int] = []
    begin = Crew.begin
    monkeypatch.setattr(Crew, "begin", lambda crew, pieces: (begun.append(len(pieces)), begin(crew, pieces))[1])
    seen = {}
    with Loader(jpeg_set.path, "train", batch_size, threads=2, **about) as loader:
        for stage in STAGES[:-2]:
            with closing(Stages(loader).batches(stage)) as batches:
                next(batches)
            seen[stage] = begun.copy()
            begun.clear()

    assert all(pieces == seen["finish"] for pieces in seen.values())


def test_a_rank_without_samples_is_told_so_instead_of_looking_for_them_for_ever(jpeg_set):
    with (
        Loader(jpeg_set.path, "val", 1, rank=0, world_size=64, drop_last=False) as loader,
        pytest.raises(WrongCall, match="rank 0 has no sample of val"),
    ):
        Stages(loader)


@pytest.mark.parametrize("stage", STAGES)
def test_a_stage_that_is_closed_leaves_no_thread_behind(stage, jpeg_set):
    with Loader(jpeg_set.path, "train", 16, threads=2, backend="dali", decoder="cores") as loader:
        with closing(iter(loader)) as own:  # the loader's own threads are there from now on
            next(own)
        before = workers()
        with closing(Stages(loader).batches(stage)) as batches:
            next(batches)
            during = workers()
        after = workers()

    assert during > before or stage == "loader"
    assert after <= before


@pytest.mark.skipif(not kernels.AVAILABLE, reason="NO C KERNELS: the threads backend is not there")
def test_a_stage_does_what_it_is_named_for_and_no_more(jpeg_set, monkeypatch):
    """Of what decodes, cuts and finishes."""
    called: list[str] = []
    decode_into = decode.decode_into
    monkeypatch.setattr(decode, "decode_into", lambda *a: (called.append("decode"), decode_into(*a)))
    cut, finish = kernels.cut, kernels.finish
    monkeypatch.setattr(kernels, "cut", lambda *a, **k: (called.append(f"cut {k['mirror']}"), cut(*a, **k)))
    monkeypatch.setattr(kernels, "finish", lambda *a, **k: (called.append("finish"), finish(*a, **k)))
    seen = {}
    with Loader(jpeg_set.path, "train", 73, threads=2, backend="threads") as loader:
        for stage in STAGES:
            with closing(Stages(loader).batches(stage)) as batches:
                next(batches)
            seen[stage] = set(called)
            called.clear()

    assert seen == {
        "bytes": set(),
        "decode": {"decode"},
        "crop": {"decode", "cut False"},
        "finish": {"decode", "finish"},
        "device": {"decode", "finish"},
        "loader": {"decode", "finish"},
    }


def test_a_damaged_image_is_told_of_by_every_stage(jpeg_set, monkeypatch):
    def damaged(self, sample, into):
        raise self.undecodable(sample, "it is damaged")

    monkeypatch.setattr(stored_bytes.StoredImages, "read", damaged)
    with Loader(jpeg_set.path, "train", 16) as loader:
        for stage in STAGES:
            with (
                closing(Stages(loader).batches(stage)) as batches,
                pytest.raises(UndecodableSample, match="it is damaged"),
            ):
                next(batches)


def test_batches_kept_are_the_loaders_and_replayed_as_they_are(jpeg_set):
    with Loader(jpeg_set.path, "train", 32, prefetch=2) as loader:
        stages = Stages(loader)
        kept = stages.kept()
        with closing(stages.replayed(kept)) as batches:
            replayed = list(islice(batches, 7))

    assert len(kept) == 3
    assert len({key for batch in kept[:2] for key in batch.keys}) == 64
    assert [id(batch) for batch in replayed] == [id(kept[number % 3]) for number in range(7)]


def test_finished_batches_are_those_that_the_loader_delivers(jpeg_set):
    """The stage "device" runs the loader's own deliveries, in this thread."""
    with Loader(jpeg_set.path, "train", 16, seed=5) as loader, Loader(jpeg_set.path, "train", 16, seed=5) as other:
        with closing(loader._deliveries.of_epoch(loader._maker, 0, 0)) as deliveries:
            mine = next(deliveries).batch()
        with closing(iter(other)) as batches:
            theirs = next(batches)

    assert mine.keys == theirs.keys
    assert torch.equal(mine.images, theirs.images)
    assert np.array_equal(mine.labels, theirs.labels)


@pytest.mark.parametrize("about", BACKENDS, ids=name_of)
def test_a_trace_of_the_loader_names_what_its_threads_do(about, jpeg_set):
    with Loader(jpeg_set.path, "train", 16, threads=2, **about) as loader, Trace(None) as trace:
        for _ in loader:
            pass
    names = {event["args"]["name"] for event in trace.events() if event["name"] == "thread_name"}

    assert {"order", "draws", "batch", "wait"} <= spans_of(trace)
    assert spans_of(trace) & {"bytes", "decode"}
    assert "alexshard-read-ahead" in names
    assert any(name.startswith("alexshard-decode") for name in names)
