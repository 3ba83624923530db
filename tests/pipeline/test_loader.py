"""What a loader delivers, how it resumes, and what it refuses."""

from __future__ import annotations

import json
import shutil
from collections import Counter

import numpy as np
import pytest
import torch
from alexshard.pipeline import (
    GraphFailed,
    Loader,
    OtherState,
    StaleIteration,
    UndecodableSample,
    epoch_order,
    graph,
)
from alexshard.pipeline.bytes import StoredImages
from alexshard.pipeline.crew import Crew
from alexshard.pipeline.decode import ImageSource, Scratch
from alexshard.shards import LocalShelf, ShardSet, WrongCall
from hypothesis import HealthCheck, given, settings
from hypothesis.strategies import integers


def keys_of(loader):
    return [key for batch in loader for key in batch.keys]


def test_ten_lines_give_batches(jpeg_set):
    seen = 0
    with Loader(jpeg_set.path, batch_size=24) as loader:
        for batch in loader:
            assert batch.images.shape == (24, 3, 64, 64)
            assert batch.labels.dtype == torch.int64
            seen += len(batch)

    assert seen == 72  # of 73: one does not fill a batch


def test_every_sample_has_its_own_label_and_pixels(raw_set):
    by_key = dict(zip(raw_set.keys["train"], raw_set.labels["train"].tolist(), strict=True))
    with Loader(raw_set.path, batch_size=10, augment=None, output="uint8", drop_last=False) as loader:
        batches = list(loader)
    seen = {key: label for batch in batches for key, label in zip(batch.keys, batch.labels.tolist(), strict=True)}
    pixels = {key: image for batch in batches for key, image in zip(batch.keys, batch.images, strict=True)}

    assert seen == by_key
    for key, expected in zip(raw_set.keys["train"], raw_set.pixels["train"], strict=True):
        assert torch.equal(pixels[key].permute(1, 2, 0), torch.from_numpy(expected[5:69, 5:69]))


def test_in_evaluation_nothing_is_dropped(jpeg_set):
    with Loader(jpeg_set.path, "val", batch_size=8, augment=None) as loader:
        sizes = [len(batch) for batch in loader]

    assert sizes == [8, 8, 5]


def test_a_split_without_labels_has_the_label_minus_one(jpeg_set):
    with Loader(jpeg_set.path, "test", batch_size=5, augment=None) as loader:
        assert next(iter(loader)).labels.tolist() == [-1] * 5


def test_the_stored_order_is_the_one_in_the_shards_every_epoch(raw_set):
    with Loader(raw_set.path, batch_size=73, order="stored") as loader:
        assert keys_of(loader) == raw_set.keys["train"]
        assert keys_of(loader) == raw_set.keys["train"]


def test_an_epoch_follows_an_epoch_in_another_order(raw_set):
    with Loader(raw_set.path, batch_size=10, seed=4) as loader:
        orders = [(loader.epoch, keys_of(loader)) for _ in range(3)]
    keys = raw_set.keys["train"]

    assert orders == [(e, [keys[i] for i in epoch_order([73], seed=4, epoch=e).samples[:70]]) for e in range(3)]


def test_ranks_share_the_order_and_the_draws_of_one(raw_set):
    options = {"seed": 3, "augment": "paper", "output": "uint8"}
    with Loader(raw_set.path, batch_size=24, **options) as one:
        whole = list(one)
    for world_size in (2, 3, 4):
        parts = []
        for rank in range(world_size):
            with Loader(
                raw_set.path, batch_size=24 // world_size, rank=rank, world_size=world_size, **options
            ) as loader:
                assert len(loader) == len(whole)
                parts.append(list(loader))
        for batch, *slices in zip(whole, *parts, strict=True):
            assert batch.keys == [key for part in slices for key in part.keys]
            for field in ("images", "labels", "crop", "mirror", "offset"):
                assert torch.equal(getattr(batch, field), torch.cat([getattr(part, field) for part in slices]))


def test_in_evaluation_the_ranks_see_each_sample_once_in_as_many_steps(raw_set):
    loaders = [Loader(raw_set.path, "val", 4, rank=rank, world_size=8, augment=None) for rank in range(8)]
    batches = [list(loader) for loader in loaders]
    for loader in loaders:
        loader.close()

    assert {len(row) for row in batches} == {1}  # 21 samples, a global batch of 32
    assert Counter(key for row in batches for b in row for key in b.keys) == Counter(raw_set.keys["val"])
    assert all(len(b) == len(b.labels) == len(b.images) for row in batches for b in row)


def test_a_rank_without_a_sample_gets_an_empty_batch(raw_set):
    with Loader(raw_set.path, "test", 2, rank=0, world_size=7, augment=None, views=10) as loader:
        (batch,) = loader

    assert batch.images.shape == (0, 10, 3, 64, 64)
    assert (batch.keys, len(batch.labels), batch.crop.shape) == ([], 0, (0, 10, 2))


@settings(max_examples=12, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(seed=integers(0, 9), taken=integers(0, 14), again=integers(0, 4))
def test_a_loader_resumed_anywhere_gives_exactly_the_rest(raw_set, seed, taken, again):
    """Twice in a row, across an epoch of seven batches, through JSON."""
    with Loader(raw_set.path, batch_size=10, seed=seed, output="uint8") as loader:
        whole = [(batch.keys, batch.images) for _ in range(3) for batch in loader]

    def resumed(state, count):
        with Loader(raw_set.path, batch_size=10, seed=seed, output="uint8") as other:
            if state is not None:
                other.load_state_dict(json.loads(json.dumps(state)))
            got = []
            while len(got) < count:
                for batch in other:
                    got.append((batch.keys, batch.images))
                    if len(got) == count:
                        break
            return got, other.state_dict()

    first, state = resumed(None, taken)
    second, state = resumed(state, again)
    third, _ = resumed(state, 2)
    got = first + second + third

    assert [keys for keys, _ in got] == [keys for keys, _ in whole[: len(got)]]
    assert all(torch.equal(a, b) for (_, a), (_, b) in zip(got, whole, strict=False))


def test_an_iteration_left_early_does_not_mix_into_the_next(raw_set):
    pixels = dict(zip(raw_set.keys["train"], raw_set.pixels["train"], strict=True))
    seen = []
    with Loader(raw_set.path, batch_size=10, augment=None, output="uint8") as loader:
        while len(seen) < 70:
            batch = next(iter(loader))
            seen += batch.keys
            for key, image in zip(batch.keys, batch.images, strict=True):
                assert torch.equal(image.permute(1, 2, 0), torch.from_numpy(pixels[key][5:69, 5:69]))

    assert len(set(seen)) == 70


@pytest.mark.parametrize("backend", ["threads", "dali"])
@pytest.mark.parametrize(("split", "size", "world_size"), [("val", 4, 4), ("test", 2, 7), ("train", 8, 3)])
def test_padded_batches_are_full_on_every_rank_and_tell_what_is_valid(raw_set, backend, split, size, world_size):
    """Also where a rank's part of the last global batch is empty."""
    options = {"augment": "paper" if split == "train" else None, "output": "uint8", "backend": backend}
    valid, last = Counter(), raw_set.keys[split]
    for rank in range(world_size):
        common = {**options, "rank": rank, "world_size": world_size}
        with (
            Loader(raw_set.path, split, size, pad_last=True, **common) as padded,
            Loader(raw_set.path, split, size, drop_last=False, **common) as plain,
        ):
            order = padded.order_of(0).samples
            for batch, expected in zip(padded, plain, strict=True):
                count = len(expected)
                assert (len(batch), len(batch.images), len(batch.valid)) == (size, size, size)
                assert batch.valid.tolist() == [True] * count + [False] * (size - count)
                assert torch.equal(batch.images[:count], expected.images)
                assert torch.equal(batch.crop[:count], expected.crop)
                assert set(batch.keys[count:]) <= {last[order[-1]]}
                assert expected.valid.all()
                valid.update(key for key, here in zip(batch.keys, batch.valid.tolist(), strict=True) if here)

    assert valid == Counter(raw_set.keys[split])


def test_every_rank_is_at_the_same_position(raw_set):
    for rank in range(3):
        with Loader(raw_set.path, batch_size=10, rank=rank, world_size=3) as loader:
            next(iter(loader))
            assert loader.state_dict()["position"] == 30


def test_what_was_read_ahead_does_not_count_as_delivered(raw_set):
    with Loader(raw_set.path, batch_size=10, prefetch=4) as loader:
        assert loader.state_dict()["position"] == 0
        next(iter(loader))
        assert loader.state_dict()["position"] == 10


def test_after_the_last_batch_the_state_is_the_next_epoch(raw_set):
    with Loader(raw_set.path, batch_size=10) as loader:
        batches = iter(loader)
        for _ in range(7):
            next(batches)

        assert loader.epoch == 0
        assert (loader.state_dict()["epoch"], loader.state_dict()["position"]) == (1, 0)


def test_a_state_goes_on_with_other_ranks_and_batches(raw_set):
    with Loader(raw_set.path, batch_size=12, seed=1) as loader:
        next(iter(loader))
        state = loader.state_dict()
    parts = []
    for rank in range(2):
        with Loader(raw_set.path, batch_size=5, seed=1, rank=rank, world_size=2) as other:
            other.load_state_dict(state)
            parts.append([batch.keys for batch in other])
    rest = [key for pair in zip(*parts, strict=True) for keys in pair for key in keys]
    keys = raw_set.keys["train"]

    assert rest == [keys[i] for i in epoch_order([73], seed=1, epoch=0).samples[12:72]]


@pytest.mark.parametrize(
    ("name", "value"),
    [("seed", 1), ("shard_set", "0" * 64), ("version", 0), ("order", "stored"), ("split", "val")],
)
def test_a_state_of_something_else_is_refused_naming_both(raw_set, name, value):
    with Loader(raw_set.path, batch_size=10) as loader:
        here = loader.state_dict()
        with pytest.raises(OtherState) as refused:
            loader.load_state_dict({**here, name: value})

    assert refused.value.exit_code == 2
    assert repr(value) in str(refused.value)
    assert repr(here[name]) in str(refused.value)


def test_a_state_that_is_none_is_refused(raw_set):
    with Loader(raw_set.path, batch_size=10) as loader:
        for broken in ({"position": 74}, {"position": -1}, {"position": "0"}, {"epoch": None}, {"epoch": -1}):
            with pytest.raises(OtherState, match="position"):
                loader.load_state_dict({**loader.state_dict(), **broken})


def test_a_second_iteration_ends_the_first(raw_set):
    with Loader(raw_set.path, batch_size=10) as loader:
        first = iter(loader)
        one = next(first)
        two = next(iter(loader))

        assert set(one.keys).isdisjoint(two.keys)
        with pytest.raises(StaleIteration, match="second Loader"):
            next(first)
        assert loader.state_dict()["position"] == 20


def test_an_iteration_begun_before_a_state_was_loaded_does_not_move_the_loader(raw_set):
    with Loader(raw_set.path, batch_size=10) as loader:
        state = loader.state_dict()
        stale = iter(loader)
        loader.load_state_dict(state)
        with pytest.raises(StaleIteration):
            next(stale)

        assert loader.state_dict() == state


def spoiled(pictures, folder, *, at, by):
    """A copy of a set with the image of train's first sample altered; returns the loader's view of that sample."""
    shutil.copytree(pictures.path, folder)
    index = ShardSet.open(folder).index("train")
    start = int(index.offset[0])
    shard = folder / index.shards[0].name
    data = bytearray(shard.read_bytes())
    data[start + at : start + at + len(by)] = by
    shard.write_bytes(data)
    return index


@pytest.mark.parametrize(("at", "by"), [(0, b"not a JPEG"), (300, bytes(2000))])
def test_a_jpeg_that_does_not_decode_is_named_with_its_place_and_remedy(jpeg_set, tmp_path, at, by):
    index = spoiled(jpeg_set, tmp_path / "spoiled", at=at, by=by)
    with Loader(tmp_path / "spoiled", batch_size=73) as loader, pytest.raises(UndecodableSample) as told:
        next(iter(loader))
    message = str(told.value)

    assert told.value.exit_code == 1
    for part in ("train_000 ", "train-000000.tar", f"byte {index.offset[0]:,}", "alexshard verify"):
        assert part in message


def test_raw_pixels_of_another_size_are_named_with_their_place(raw_set, tmp_path):
    spoiled(raw_set, tmp_path / "spoiled", at=0, by=b"P6\n37 148")
    with (
        Loader(tmp_path / "spoiled", batch_size=73) as loader,
        pytest.raises(UndecodableSample, match="train_000 is no 74x74 RGB image"),
    ):
        next(iter(loader))


def test_the_graph_is_never_given_a_damaged_jpeg(jpeg_set, tmp_path):
    """On a card the graph decodes, and DALI's decoder can end the process on a damaged file."""
    index = spoiled(jpeg_set, tmp_path / "spoiled", at=300, by=bytes(20))
    stored = StoredImages(index, LocalShelf(tmp_path / "spoiled"), 74)
    source = ImageSource(stored, Crew(2, lambda: Scratch(stored)), encoded=True, decode=False)

    assert len(source.begin(np.arange(1, 73)).wait()) == 72
    with pytest.raises(UndecodableSample, match=r"train_000 .* CRC-32") as told:
        source.begin(np.arange(73)).wait()
    assert f"byte {index.offset[0]:,}" in str(told.value)


def test_a_graph_that_cannot_be_built_says_what_dali_says(raw_set):
    plan = graph.GraphPlan(
        batch_size=-1, stored_side=74, side=64, threads=1, device_id=None, encoded=False, floats=True
    )
    with pytest.raises(GraphFailed, match="DALI could not build the graph"):
        graph.Graph(plan)


def test_a_closed_loader_says_so(raw_set):
    loader = Loader(raw_set.path, batch_size=10)
    loader.close()
    loader.close()

    with pytest.raises(WrongCall, match="closed"):
        iter(loader)
