"""A run goes on at any step, on any number of ranks, with any batch: the samples not yet seen, drawn alike."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys

import numpy as np
import pytest
from alexshard.pipeline import ORIGINAL, PAPER, Loader, Sharing, draw, epoch_order
from alexshard.pipeline.bytes import StoredImages
from hypothesis import HealthCheck, example, given, settings
from hypothesis.strategies import (
    booleans,
    integers,
    lists,
    sampled_from,
    tuples,
)

ORDERS = ["global", "windowed", "stored"]
RANKS = (1, 2, 4, 8)
BEFORE = {1: 13, 2: 6, 4: 3, 8: 2}  # samples of a rank in a batch, by the number of ranks
AFTER = {1: 7, 2: 4, 4: 3, 8: 1}
SLOW_FIXTURES = [HealthCheck.function_scoped_fixture, HealthCheck.too_slow]


# As functions


def rows_of(preset, samples, seed, epoch, start, stop):
    """Everything that belongs to positions: sample, place of the crop, mirror, normals."""
    draws = draw(preset, seed=seed, epoch=epoch, start=start, stop=stop, slack=32)
    return np.column_stack([samples[start:stop], draws.y, draws.x, draws.mirror, draws.normals])


@given(
    shards=lists(integers(0, 60), min_size=1, max_size=8),
    seed=integers(0, 2**64 - 1),
    epoch=integers(0, 2**32 - 1),
    order=sampled_from(ORDERS),
    preset=sampled_from([PAPER, ORIGINAL]),
    parts=lists(tuples(integers(1, 8), integers(1, 20), integers(0, 9)), min_size=1, max_size=4),
    drop_last=booleans(),
)
def test_parts_of_an_epoch_on_any_ranks_are_together_the_epoch_of_one(
    shards, seed, epoch, order, preset, parts, drop_last
):
    """Each part (ranks, batch, steps) goes on where the one before it stopped; the last goes to the end."""
    samples = epoch_order(shards, seed=seed, epoch=epoch, order=order).samples
    num_samples, position, seen = sum(shards), 0, [np.empty((0, 7))]
    for number, (world_size, batch_size, steps) in enumerate(parts):
        ranks = [
            list(Sharing(num_samples, batch_size, rank, world_size, drop_last).spans(position))
            for rank in range(world_size)
        ]
        assert len({len(spans) for spans in ranks}) == 1
        if number < len(parts) - 1:
            ranks = [spans[:steps] for spans in ranks]
        for spans in zip(*ranks, strict=True):
            seen += [rows_of(preset, samples, seed, epoch, span.start, span.stop) for span in spans]
            position = spans[0].end
    dropped = num_samples - position

    assert np.array_equal(np.concatenate(seen), rows_of(preset, samples, seed, epoch, 0, position))
    assert dropped < world_size * batch_size if drop_last else dropped == 0


# As loaders


def loader_of(pictures, batch_size, rank=0, world_size=1, split="train", **options):
    """uint8 needs no arithmetic, and shows crop and mirror; the jitter is in `offset`."""
    asked = {"output": "uint8", "threads": 1, "prefetch": 1, **options}
    return Loader(pictures.path, split, batch_size, rank=rank, world_size=world_size, **asked)


def row(batch, i):
    """All of one sample, to be compared at once."""
    return (
        batch.keys[i],
        int(batch.labels[i]),
        batch.images[i].numpy().tobytes(),
        batch.crop[i].tolist(),
        bool(batch.mirror[i]),
        batch.offset[i].tolist(),
    )


def in_turns(batches_of_ranks, steps=None):
    """The samples of global batches, rank after rank; all ranks step together, as a training does."""
    iterators, rows = [iter(batches) for batches in batches_of_ranks], []
    while steps is None or steps > 0:
        found = [next(iterator, None) for iterator in iterators]
        if found[0] is None:
            assert found == [None] * len(found), "ranks with different numbers of steps"
            break
        rows += [row(batch, i) for batch in found for i in range(len(batch))]
        steps = None if steps is None else steps - 1
    return rows


def whole_epoch(pictures, **options):
    with loader_of(pictures, 10, drop_last=False, **options) as loader:
        return in_turns([loader])


@pytest.mark.parametrize("order", ORDERS)
def test_a_state_of_1_2_4_or_8_ranks_goes_on_on_1_2_4_or_8(raw_set, order):
    options = {"seed": 11, "epoch": 1, "order": order, "augment": "original"}
    expected, states = whole_epoch(raw_set, **options), {}
    for ranks in RANKS:
        loaders = [loader_of(raw_set, BEFORE[ranks], rank, ranks, **options) for rank in range(ranks)]
        taken = in_turns(loaders, steps=2)
        states[ranks] = [json.loads(json.dumps(loader.state_dict())) for loader in loaders]
        for loader in loaders:
            loader.close()
        assert taken == expected[: 2 * BEFORE[ranks] * ranks]
        assert states[ranks] == [states[ranks][0]] * ranks
    for ranks in RANKS:
        loaders = [loader_of(raw_set, AFTER[ranks], rank, ranks, **options) for rank in range(ranks)]
        for before in RANKS:
            for rank, loader in enumerate(loaders):
                loader.load_state_dict(states[before][rank % before])
            position = 2 * BEFORE[before] * before
            kept = (73 - position) // (AFTER[ranks] * ranks) * AFTER[ranks] * ranks

            assert in_turns(loaders) == expected[position : position + kept]
            assert {loader.epoch for loader in loaders} == {2}
        for loader in loaders:
            loader.close()


@settings(max_examples=12, deadline=None, suppress_health_check=SLOW_FIXTURES)
@given(
    order=sampled_from(ORDERS),
    seed=integers(0, 2**64 - 1),
    split=sampled_from(["train", "val"]),
    first=tuples(integers(1, 3), integers(1, 7), integers(0, 4)),
    second=tuples(integers(1, 3), integers(1, 7), integers(0, 4)),
    last=tuples(integers(1, 3), integers(1, 7)),
)
@example("windowed", 2**64 - 1, "train", (2, 6, 0), (3, 2, 0), (1, 73))  # twice at the start
@example("global", 1, "train", (1, 73, 1), (1, 5, 1), (2, 3))  # at the boundary: the next epoch
@example("stored", 2, "val", (3, 7, 1), (2, 3, 1), (3, 7))  # the end of a split that keeps its last batch
@example("global", 3, "train", (1, 24, 3), (2, 6, 3), (1, 1))  # the last step; one sample is left
def test_a_run_resumed_twice_gives_each_sample_once(raw_set, order, seed, split, first, second, last):
    epochs = [whole_epoch(raw_set, split=split, seed=seed, order=order, epoch=epoch) for epoch in (0, 1, 2)]
    state, epoch, position = None, 0, 0
    for ranks, batch_size, steps in (first, second, (*last, None)):
        world = [
            loader_of(raw_set, batch_size, rank, ranks, split=split, seed=seed, order=order)
            for rank in range(ranks)
        ]
        for loader in world:
            if state is not None:
                loader.load_state_dict(state)
        taken = in_turns(world, steps)
        states = [loader.state_dict() for loader in world]
        for loader in world:
            loader.close()
        if Sharing(len(epochs[0]), batch_size, 0, ranks, split == "train").steps(position) == 0:
            epoch, position = epoch + 1, 0  # what is left fills no global batch of these ranks

        assert taken == epochs[epoch][position : position + len(taken)]
        assert states == [states[0]] * ranks
        position += len(taken)
        state = states[0]
        assert len(taken) == ranks * batch_size * (steps or 0) or len(epochs[0]) - position < ranks * batch_size
        if state["epoch"] != epoch:
            assert (state["epoch"], state["position"]) == (epoch + 1, 0)
            epoch, position = epoch + 1, 0
        else:
            assert state["position"] == position


@pytest.mark.parametrize("order", ORDERS)
def test_nothing_before_the_place_of_a_resume_is_read_again(raw_set, order, monkeypatch):
    """Going on in the middle costs what beginning costs: no fast-forward."""
    read, in_the_shard = [], StoredImages.read
    monkeypatch.setattr(
        StoredImages, "read", lambda self, sample, into: read.append(sample) or in_the_shard(self, sample, into)
    )
    samples = epoch_order([40, 33], seed=0, epoch=3, order=order).samples
    with loader_of(raw_set, 8, order=order) as loader:
        loader.load_state_dict({**loader.state_dict(), "epoch": 3, "position": 41})
        batch = next(iter(loader))

    assert batch.keys == [raw_set.keys["train"][sample] for sample in samples[41:49]]
    assert set(samples[41:49]) <= set(read) <= set(samples[41:])


@pytest.mark.parametrize("ranks", RANKS)
def test_where_the_last_batch_is_filled_up_each_sample_is_valid_once(raw_set, ranks):
    """21 samples in batches of 4 a rank: all ranks take as many whole batches, also one for whom none is left."""
    world = [loader_of(raw_set, 4, rank, ranks, split="val", pad_last=True) for rank in range(ranks)]
    steps = [list(loader) for loader in world]
    for loader in world:
        loader.close()
    valid = [
        batch.keys[i]
        for batches in zip(*steps, strict=True)
        for batch in batches
        for i in np.flatnonzero(batch.valid.numpy())
    ]

    assert {len(batch) for batches in steps for batch in batches} == {4}
    assert valid == [key for key, *_ in whole_epoch(raw_set, split="val")]


# As processes

RANK = """
import json, os, signal, sys
from pathlib import Path
from alexshard.pipeline import Loader

pictures, folder, batch_size, stop = sys.argv[1], Path(sys.argv[2]), int(sys.argv[3]), int(sys.argv[4])
rank, ranks = int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"])
loader = Loader(pictures, batch_size=batch_size, rank=rank, world_size=ranks, seed=7, order="windowed",
                output="uint8", threads=1)
saved = folder / "state.json"
if stop == 0:  # the second time
    loader.load_state_dict(json.loads(saved.read_text()))
for step, batch in enumerate(loader, 1):
    drawn = zip(batch.keys, batch.crop.tolist(), batch.mirror.tolist(), batch.offset.tolist())
    with (folder / f"seen-{ranks}-{rank}").open("a") as seen:
        seen.write(json.dumps(list(drawn)) + "\\n")
    if step == stop and rank == 0:
        saved.write_text(json.dumps(loader.state_dict()))
    if stop and step == stop + rank:  # others are a step further when they end
        os.kill(os.getpid(), signal.SIGKILL)
"""


def run_ranks(pictures, folder, ranks, *, batch_size, stop=0):
    """As torchrun starts them; returns exit codes, and the samples of the steps that all ranks took."""
    processes = [
        subprocess.Popen(
            [sys.executable, "-c", RANK, str(pictures.path), str(folder), str(batch_size), str(stop)],
            env={**os.environ, "RANK": str(rank), "WORLD_SIZE": str(ranks), "OMP_NUM_THREADS": "1"},
        )
        for rank in range(ranks)
    ]
    codes = [process.wait() for process in processes]
    seen = [(folder / f"seen-{ranks}-{rank}").read_text().splitlines() for rank in range(ranks)]
    steps = [[json.loads(line) for line in step] for step in zip(*seen, strict=False)]
    return codes, [sample for step in steps for batch in step for sample in batch]


@pytest.mark.slow
def test_two_killed_processes_go_on_as_one_and_as_four(raw_set, tmp_path):
    options = {"seed": 7, "order": "windowed", "output": "uint8", "threads": 1}
    with Loader(raw_set.path, batch_size=73, **options) as loader:
        (batch,) = loader
    drawn = zip(batch.keys, batch.crop.tolist(), batch.mirror.tolist(), batch.offset.tolist(), strict=True)
    expected = [list(sample) for sample in drawn]
    codes, seen = run_ranks(raw_set, tmp_path, 2, batch_size=5, stop=3)

    assert codes == [-signal.SIGKILL] * 2
    assert seen == expected[:30]
    for ranks, batch_size, until in ((1, 6, 72), (4, 2, 70)):
        codes, seen = run_ranks(raw_set, tmp_path, ranks, batch_size=batch_size)
        assert codes == [0] * ranks
        assert seen == expected[30:until]


def test_where_the_jitter_ends_after_so_many_batches_it_does_so_on_any_ranks(raw_set):
    """Five batches of 12: 60 samples, then none. Going on in the middle of them, and after them."""
    options = {"augment": "original", "jitter_steps": 5}
    with loader_of(raw_set, 12, **options) as one:
        expected = in_turns([one])
        jittered = [offset != [0.0, 0.0, 0.0] for *_, offset in expected]
        states = [{**one.state_dict(), "epoch": 0, "position": position} for position in (24, 60)]
    for ranks in (2, 3, 4):
        loaders = [loader_of(raw_set, 12 // ranks, rank, ranks, **options) for rank in range(ranks)]
        for state in states:
            for loader in loaders:
                loader.load_state_dict(state)
            assert in_turns(loaders) == expected[state["position"] :]
        for loader in loaders:
            loader.close()

    assert jittered == [True] * 60 + [False] * 12
