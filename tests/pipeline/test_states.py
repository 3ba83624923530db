"""What a state says, and which are refused: whatever is handed in, in one readable line, and nothing moves."""

from __future__ import annotations

import json

import numpy as np
import pytest
from alexshard.pipeline import OrderSampler, OtherState
from alexshard.shards import ShardSet
from hypothesis import given, settings
from hypothesis.strategies import binary, booleans, floats, integers, none, one_of, sampled_from, text

from tests.pipeline.test_elastic import SLOW_FIXTURES, in_turns, loader_of

HOSTILE = one_of(
    none(),
    booleans(),
    floats(),
    text(max_size=5),
    binary(max_size=3),
    integers(max_value=-1),
    integers(min_value=2**32),
    sampled_from([10**5000, -(10**5000), [], {}, (1,), object(), np.arange(3), np.float64("nan"), "\x1b[2J" * 99]),
)


@pytest.fixture(scope="module")
def resumable(raw_set):
    """A loader that has delivered 12 samples, and a sampler at the same place."""
    with loader_of(raw_set, 6, seed=1, order="windowed", window=2) as loader:
        in_turns([loader], steps=2)
        sampler = OrderSampler(raw_set.path, batch_size=6, seed=1, order="windowed", window=2)
        sampler.load_state_dict(loader.state_dict())
        yield loader, sampler


@settings(deadline=None, suppress_health_check=SLOW_FIXTURES)
@given(
    name=sampled_from(["version", "shard_set", "split", "seed", "order", "window", "epoch", "position"]),
    value=HOSTILE,
)
def test_a_hostile_value_is_refused_in_one_readable_line_and_moves_nothing(resumable, name, value):
    for one in resumable:
        here = one.state_dict()
        with pytest.raises(OtherState) as refused:
            one.load_state_dict({**here, name: value})

        assert name in refused.value.what
        assert refused.value.what.isprintable()
        assert len(refused.value.what) < 300
        assert one.state_dict() == here


@pytest.mark.parametrize(
    "state", [None, 3, "state", [], [("epoch", 1)], {}, {"epoch": 0, "position": 0}, object()]
)
def test_what_is_no_state_is_refused(resumable, state):
    for one in resumable:
        here = one.state_dict()
        with pytest.raises(OtherState):
            one.load_state_dict(state)
        assert one.state_dict() == here


@pytest.mark.parametrize("state", [{}, {"x": 1}])
def test_what_has_nothing_of_a_state_is_not_called_one_of_another_version(resumable, state):
    for one in resumable:
        with pytest.raises(OtherState, match="a loader's state is what state_dict"):
            one.load_state_dict(state)


def test_a_window_of_more_shards_than_there_are_is_one_of_all(raw_set):
    with loader_of(raw_set, 6, seed=1, order="windowed", window=999) as loader:
        shards = len(ShardSet.open(raw_set.path).index("train").shards)

        assert loader.window == loader.state_dict()["window"] == shards
        assert OrderSampler(raw_set.path, batch_size=6, seed=1, order="windowed", window=999).window == shards


@pytest.mark.parametrize(
    "left_out", ["version", "shard_set", "split", "seed", "order", "window", "epoch", "position"]
)
def test_a_state_without_one_of_its_parts_is_refused_naming_it(resumable, left_out):
    for one in resumable:
        state = {name: value for name, value in one.state_dict().items() if name != left_out}
        with pytest.raises(OtherState, match=left_out):
            one.load_state_dict(state)


@pytest.mark.parametrize(
    ("options", "told"),
    [
        ({"seed": 2}, "has seed 2, this loader has 1"),
        ({"split": "val"}, "has split 'val', this loader has 'train'"),
        ({"order": "global", "window": None}, "has order 'global', this loader has 'windowed'"),
        ({"window": 1}, "has window 1, this loader has 2"),
    ],
)
def test_a_state_of_another_loader_is_refused_naming_both(raw_set, resumable, options, told):
    other = OrderSampler(raw_set.path, **{"seed": 1, "order": "windowed", "window": 2, **options})
    for one in resumable:
        with pytest.raises(OtherState) as refused:
            one.load_state_dict(other.state_dict())

        assert told in refused.value.what
        assert "samples not yet seen" in refused.value.why
        assert next(iter(options)) in refused.value.remedy


def test_a_state_of_another_set_or_format_is_refused_naming_both_digests(raw_set, jpeg_set, resumable):
    """The same pictures as JPEG files are another set: their digest is another."""
    other = OrderSampler(jpeg_set.path, seed=1, order="windowed", window=2)
    for one in resumable:
        with pytest.raises(OtherState) as refused:
            one.load_state_dict(other.state_dict())

        assert ShardSet.open(raw_set.path).digest in refused.value.what
        assert ShardSet.open(jpeg_set.path).digest in refused.value.what


@pytest.mark.parametrize("version", [2, 0, "1", 1.0, True])
def test_a_state_of_another_version_is_refused_naming_both(resumable, version):
    for one in resumable:
        with pytest.raises(OtherState) as refused:
            one.load_state_dict({**one.state_dict(), "version": version})

        assert refused.value.what == f"the loader's state has version {version!r}, this loader has 1"


def test_a_global_state_with_a_window_is_refused(raw_set):
    sampler = OrderSampler(raw_set.path)
    with pytest.raises(OtherState, match="has window 2, this loader has None"):
        sampler.load_state_dict({**sampler.state_dict(), "window": 2})


def test_numbers_of_numpy_are_numbers(raw_set):
    sampler = OrderSampler(raw_set.path, batch_size=5, seed=np.uint64(3))
    state = {**sampler.state_dict(), "epoch": np.int64(4), "position": np.int32(7), "seed": np.int64(3)}
    sampler.load_state_dict(state)

    assert json.loads(json.dumps(sampler.state_dict()))["position"] == 7
    assert sampler.epoch == 4


# Where only the first steps are jittered


def test_a_state_of_a_run_whose_jitter_ends_carries_where(raw_set):
    options = {"augment": "original", "jitter_steps": 7}
    with loader_of(raw_set, 6, **options) as one, loader_of(raw_set, 3, 1, 2, **options) as other:
        in_turns([one], steps=2)
        state = json.loads(json.dumps(one.state_dict()))
        other.load_state_dict(state)

        assert (state["jitter_steps"], state["global_batch"], state["drop_last"]) == (7, 6, True)
        assert other.state_dict() == state
    with loader_of(raw_set, 6) as loader:
        assert not {"jitter_steps", "global_batch", "drop_last"} & set(loader.state_dict())


@pytest.mark.parametrize(
    ("batch_size", "options", "told"),
    [
        (4, {"jitter_steps": 7}, "has global_batch 6, this loader has 4"),
        (6, {"jitter_steps": 8}, "has jitter_steps 7, this loader has 8"),
        (6, {"jitter_steps": 7, "drop_last": False}, "has drop_last True, this loader has False"),
        (6, {}, "has jitter_steps 7, this loader has None"),
    ],
)
def test_a_state_that_would_move_the_end_of_the_jitter_is_refused_naming_both(raw_set, batch_size, options, told):
    with loader_of(raw_set, 6, jitter_steps=7) as one:
        state = one.state_dict()
    with loader_of(raw_set, batch_size, **options) as other, pytest.raises(OtherState) as refused:
        other.load_state_dict(state)

    assert told in refused.value.what
    assert "jitter" in refused.value.why


def test_a_sampler_jitters_nothing_and_takes_either_state(raw_set):
    sampler = OrderSampler(raw_set.path, batch_size=5)
    with loader_of(raw_set, 6, jitter_steps=7) as loader:
        in_turns([loader], steps=2)
        sampler.load_state_dict(loader.state_dict())
        with pytest.raises(OtherState, match="has jitter_steps None, this loader has 7"):
            loader.load_state_dict(sampler.state_dict())

    assert sampler.state_dict()["position"] == 12
