"""Windows: each lies on few shards, and among themselves its samples come as in the global permutation."""

from __future__ import annotations

import numpy as np
import pytest
from alexshard.pipeline import ORDERS, default_window, epoch_order
from alexshard.pipeline.order import _by_key
from alexshard.pipeline.shuffling import expected_meetings
from hypothesis import example, given
from hypothesis.strategies import integers, lists, sampled_from

SHARDS = lists(integers(0, 40), max_size=25)  # samples of each, uneven, some without any
WINDOWS, SEEDS, EPOCHS = integers(1, 30), integers(0, 2**64 - 1), integers(0, 2**32 - 1)


def windowed(sizes, window=None, *, seed=0, epoch=0):
    return epoch_order(sizes, seed=seed, epoch=epoch, order="windowed", window=window)


def places_of(sizes, shards):
    """The samples of some shards, in the order on disk."""
    stops = np.cumsum(sizes)
    return sorted(p for shard in shards for p in range(stops[shard] - sizes[shard], stops[shard]))


@given(SHARDS, SEEDS, EPOCHS, sampled_from(ORDERS))
@example([], 0, 0, "windowed")
@example([0, 0], 0, 0, "global")
@example([7], 0, 0, "windowed")
def test_every_order_visits_each_sample_once_and_its_windows_follow_each_other(sizes, seed, epoch, order):
    made = epoch_order(sizes, seed=seed, epoch=epoch, order=order)

    assert sorted(made.samples.tolist()) == list(range(sum(sizes)))
    assert made.samples.dtype == np.int64
    edges = [0, *(edge for window in made.windows for edge in (window.start, window.stop)), sum(sizes)]
    assert edges[::2] == edges[1::2]
    assert all(window.start < window.stop for window in made.windows)
    assert sorted(shard for window in made.windows for shard in window.shards) == np.flatnonzero(sizes).tolist()


@given(SHARDS, SEEDS, EPOCHS, sampled_from(ORDERS))
def test_a_window_holds_every_sample_of_its_shards_and_no_other(sizes, seed, epoch, order):
    made = epoch_order(sizes, seed=seed, epoch=epoch, order=order)

    for window in made.windows:
        assert sorted(made.samples[window.start : window.stop].tolist()) == places_of(sizes, window.shards)


@given(SHARDS, WINDOWS, SEEDS, EPOCHS)
def test_windows_are_as_few_and_as_even_as_they_can_be(sizes, window, seed, epoch):
    lengths = [len(each.shards) for each in windowed(sizes, window, seed=seed, epoch=epoch).windows]

    assert len(lengths) == -(-np.count_nonzero(sizes) // window)
    assert max(lengths, default=0) <= window
    assert max(lengths, default=0) - min(lengths, default=0) <= 1


@given(SHARDS, WINDOWS, SEEDS, EPOCHS)
def test_within_a_window_samples_come_as_in_the_global_permutation(sizes, window, seed, epoch):
    position = np.argsort(epoch_order(sizes, seed=seed, epoch=epoch).samples)
    made = windowed(sizes, window, seed=seed, epoch=epoch)

    for each in made.windows:
        assert (np.diff(position[made.samples[each.start : each.stop]]) > 0).all()


@given(SHARDS, SEEDS, EPOCHS)
def test_one_window_of_all_shards_is_the_global_permutation(sizes, seed, epoch):
    everything = max(1, len(sizes))

    assert np.array_equal(
        windowed(sizes, everything, seed=seed, epoch=epoch).samples,
        epoch_order(sizes, seed=seed, epoch=epoch).samples,
    )


def test_another_epoch_or_seed_has_other_windows():
    sizes = [10] * 40
    here = windowed(sizes, seed=5, epoch=3)

    for other in (windowed(sizes, seed=5, epoch=4), windowed(sizes, seed=6, epoch=3)):
        assert [each.shards for each in other.windows] != [each.shards for each in here.windows]
        assert (other.samples != here.samples).any()
    assert (windowed(sizes, seed=5, epoch=3).samples == here.samples).all()


def test_shards_move_evenly():
    """Which of 8 shards is read first is uniform: over 2,000 epochs each is 250 ± 5 sigma times."""
    first = [windowed([1] * 8, 1, epoch=epoch).samples[0] for epoch in range(2000)]

    assert np.abs(np.bincount(first, minlength=8) - 250).max() < 5 * np.sqrt(2000 / 8 * 7 / 8)


def test_the_stored_order_has_a_window_for_each_shard():
    made = epoch_order([3, 0, 2], seed=0, epoch=0, order="stored")

    assert [(window.start, window.stop, window.shards) for window in made.windows] == [(0, 3, (0,)), (3, 5, (2,))]


def test_this_windowed_order_never_changes():
    """Golden, as printed; another order would end every resumed run."""
    made = windowed([1, 2, 0, 3, 1, 2, 1, 2], 3, seed=2012, epoch=90)

    assert made.samples.tolist() == [3, 10, 4, 5, 9, 11, 7, 0, 8, 2, 6, 1]
    assert [window.shards for window in made.windows] == [(6, 7, 3), (0, 5), (4, 1)]


@given(lists(integers(0, 2**64 - 1) | integers(0, 3) | integers(2**64 - 4, 2**64 - 1), max_size=60))
def test_sorting_by_keys_is_exact_also_where_keys_agree(keys):
    """Keys that agree in all bits but those that hold the place are what the quick way could get wrong."""
    keys = np.array(keys, np.uint64)

    assert _by_key(keys).tolist() == np.argsort(keys, kind="stable").tolist()


def test_the_default_window_is_the_smallest_that_keeps_meetings_at_twice_those_of_chance():
    for shards in range(1, 3000):
        window = default_window(shards)
        assert expected_meetings(shards, window) <= 2
        assert window == 1 or expected_meetings(shards, window - 1) > 2


def test_a_window_that_cannot_be_is_refused():
    with pytest.raises(ValueError, match="at least one shard"):
        windowed([3, 4], 0)
    with pytest.raises(ValueError, match="only windowed has any"):
        epoch_order([3, 4], seed=0, epoch=0, window=2)
    with pytest.raises(ValueError, match="global, windowed, stored"):
        epoch_order([3, 4], seed=0, epoch=0, order="random")
