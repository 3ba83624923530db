"""What a loader and a sampler take as arguments, and what they refuse, before anything starts."""

from __future__ import annotations

import pickle
from pathlib import Path

import numpy as np
import pytest
import torch
from alexshard.pipeline import Loader, OrderSampler, ShardImages
from alexshard.shards import LocalShelf, NoSuchSplit, ShardSet, WrongCall


@pytest.mark.parametrize(
    ("options", "told"),
    [
        ({"augment": "papier"}, "augment is one of 'paper', 'original', None; got 'papier'"),
        ({"order": "random"}, "order is one of 'global', 'windowed', 'stored'"),
        ({"mean": "pixel"}, "mean is one of"),
        ({"output": "float64"}, "output is one of 'float32', 'float16', 'bfloat16', 'uint8'"),
        ({"backend": "ffcv"}, "backend is one of 'threads', 'dali', 'reference', None"),
        ({"decoder": "gpu"}, "decoder is one of 'cores', 'card', 'split', None"),
        ({"backend": "threads", "decoder": "card"}, "decoder='card' is one of DALI's"),
        ({"backend": "reference", "decoder": "split"}, "decoder='split' is one of DALI's"),
        ({"output": "uint8", "channels_last": True}, "channels_last is for floats"),
        ({"drop_last": True, "pad_last": True}, "only one of the two can be"),
        ({"mean_crop": "center"}, "mean_crop is one of"),
        ({"mean": "channel", "mean_crop": "own"}, "mean='channel' subtracts none"),
        ({"eigen": "own"}, "eigen is one of"),
        ({"views": 5}, "views is one of 1, 10"),
        ({"views": 10}, "ten views are for evaluation"),
        ({"batch_size": 0}, "batch_size must be at least 1, got 0"),
        ({"threads": 0}, "threads must be 1 to 1024, got 0"),
        ({"threads": 10**7}, "threads must be 1 to 1024, got 10000000"),
        ({"prefetch": 0}, "prefetch must be 1 to 64, got 0"),
        ({"prefetch": 10**7}, "prefetch must be 1 to 64"),
        ({"jitter_steps": -1}, "jitter_steps must be at least 0"),
        ({"rank": 2, "world_size": 2}, "rank 2 is not one of a world of 2: ranks are 0..1"),
        ({"rank": -1}, "rank -1 is not one of a world of 1"),
        ({"world_size": 0}, "world_size must be at least 1"),
        ({"seed": -1}, "a seed has 64 bits"),
        ({"epoch": -1}, "an epoch 32"),
        ({"crop": 75}, "crop=75 does not fit"),
        ({"crop": 0}, "crop=0 does not fit"),
        ({"device": "gpu"}, "'gpu' is no device"),
        ({"device": "meta"}, "cpu or cuda"),
        ({"batch_size": 74}, "a global batch of 74 is larger than train with its 73 samples"),
        ({"batch_size": 37, "world_size": 2}, "a batch of at most 36 a rank"),
    ],
)
def test_a_wrong_call_is_refused_before_anything_starts(raw_set, options, told):
    with pytest.raises(WrongCall) as refused:
        Loader(raw_set.path, **options)

    assert told in str(refused.value)
    assert refused.value.exit_code == 2


def test_a_set_without_the_split_is_refused_naming_those_it_has(raw_set):
    with pytest.raises(NoSuchSplit, match="it has train, val, test"):
        Loader(raw_set.path, "validation")


def test_a_device_that_is_not_there_is_refused(raw_set, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(WrongCall, match="torch sees no CUDA device"):
        Loader(raw_set.path, device="cuda:3")


NUMBERS = ("batch_size", "seed", "epoch", "rank", "world_size", "window")
LOADERS_NUMBERS = ("jitter_steps", "threads", "prefetch", "crop", "views")


@pytest.mark.parametrize("value", [1.5, 1.0, True, "1", np.float32(1), np.bool_(True), [1]])
@pytest.mark.parametrize("name", [*NUMBERS, *LOADERS_NUMBERS])
def test_what_is_no_whole_number_is_refused_naming_it(raw_set, name, value):
    order = "windowed" if name == "window" else "global"
    for taker in (Loader, OrderSampler)[: 2 if name in NUMBERS else 1]:
        with pytest.raises(WrongCall, match=f"{name} is a whole number; got ") as refused:
            taker(raw_set.path, order=order, **{name: value})

        assert repr(value) in refused.value.what


def test_numbers_that_must_be_given_are_refused_as_none(raw_set):
    for name in ("batch_size", "seed", "epoch", "rank", "world_size"):
        for taker in (Loader, OrderSampler):
            with pytest.raises(WrongCall, match=f"{name} is a whole number; got None"):
                taker(raw_set.path, **{name: None})


@pytest.mark.parametrize("name", ["drop_last", "pad_last", "channels_last"])
def test_what_is_neither_yes_nor_no_is_refused(raw_set, name):
    for value in ("no", 0, 1.0):
        with pytest.raises(WrongCall, match=f"{name} is one of True, False"):
            Loader(raw_set.path, **{name: value})
    with pytest.raises(WrongCall, match="drop_last is one of True, False"):
        OrderSampler(raw_set.path, drop_last="no")


def test_numbers_of_numpy_give_the_batches_of_pythons(raw_set):
    options = {"batch_size": 6, "seed": 2**40 + 3, "epoch": 1, "rank": 1, "world_size": 3, "window": 1}
    more = {"threads": 2, "prefetch": 2, "crop": 60, "jitter_steps": 4}
    of_numpy = {name: np.int64(value) for name, value in options.items()}
    rest = {name: np.int32(value) for name, value in more.items()}
    with (
        Loader(raw_set.path, order="windowed", **options, **more) as one,
        Loader(raw_set.path, order="windowed", **of_numpy, **rest) as other,
    ):
        assert repr(other.state_dict()) == repr(one.state_dict())
        for batch, same in zip(one, other, strict=True):
            assert batch.keys == same.keys
            assert torch.equal(batch.images, same.images)
    places = [list(OrderSampler(raw_set.path, order="windowed", **each)) for each in (options, of_numpy)]

    assert places[0] == places[1]


@pytest.mark.parametrize("taker", [Loader, OrderSampler, ShardImages])
def test_what_is_no_shard_set_is_refused(taker):
    for shards in (None, 3, b"shards"):
        with pytest.raises(WrongCall, match="shards is a folder, an address or a ShardSet; got"):
            taker(shards)


@pytest.mark.parametrize("value", [None, 3.5, True])
def test_a_device_that_is_none_at_all_is_refused(raw_set, value):
    with pytest.raises(WrongCall, match="is no device"):
        Loader(raw_set.path, device=value)


def test_sampler_and_images_take_an_address(raw_set, tmp_path, monkeypatch):
    """As the loader does; the images also where a worker was started afresh."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    address = Path(raw_set.path).resolve().as_uri()
    images = pickle.loads(pickle.dumps(ShardImages(address, transform=np.array)))
    here = ShardImages(raw_set.path, transform=np.array)
    places = list(OrderSampler(address, batch_size=5))
    pixels, label = images[places[0]]

    assert places == list(OrderSampler(raw_set.path, batch_size=5))
    assert np.array_equal(pixels, here[places[0]][0])
    assert label == here[places[0]][1]
    images.shard_set.shelf.close()


def test_a_loader_that_cannot_be_made_closes_what_it_opened_and_no_other(raw_set, monkeypatch):
    closed = []
    monkeypatch.setattr(LocalShelf, "close", lambda self: closed.append(self))
    for options in ({"split": "validation"}, {"crop": 75}, {"batch_size": 74}):
        with pytest.raises(WrongCall):
            Loader(raw_set.path, **options)
        with pytest.raises(WrongCall):
            Loader(ShardSet.open(raw_set.path), **options)

    assert len(closed) == 3
