"""Order and sharing are pure functions: each sample once, every rank as many steps, whatever the ranks."""

from __future__ import annotations

import numpy as np
import pytest
from alexshard.pipeline import Sharing, epoch_order
from hypothesis import given
from hypothesis.strategies import booleans, integers

SIZES, SEEDS, EPOCHS = integers(0, 3000), integers(0, 2**64 - 1), integers(0, 2**32 - 1)


@given(SIZES, SEEDS, EPOCHS)
def test_an_epoch_visits_every_sample_once(num_samples, seed, epoch):
    order = epoch_order([num_samples], seed=seed, epoch=epoch).samples

    assert sorted(order.tolist()) == list(range(num_samples))


@given(integers(50, 3000), SEEDS, EPOCHS)
def test_another_epoch_or_seed_has_another_order(num_samples, seed, epoch):
    order = epoch_order([num_samples], seed=seed, epoch=epoch).samples

    assert (order != epoch_order([num_samples], seed=seed, epoch=(epoch + 1) % 2**32).samples).any()
    assert (order != epoch_order([num_samples], seed=(seed + 1) % 2**64, epoch=epoch).samples).any()


def test_the_stored_order_is_the_one_on_disk():
    assert epoch_order([5], seed=3, epoch=9, order="stored").samples.tolist() == [0, 1, 2, 3, 4]


def test_this_order_never_changes():
    """Golden: `epoch_order([12], seed=2012, epoch=90).samples`, as printed; another would end all resumed runs."""
    assert epoch_order([12], seed=2012, epoch=90).samples.tolist() == [3, 2, 10, 4, 5, 7, 0, 6, 9, 1, 8, 11]


def test_samples_move_evenly():
    """Where a sample lands is uniform: over 2,000 epochs, each of 8 samples is first 250 ± 5 sigma times."""
    first = [epoch_order([8], seed=1, epoch=epoch).samples[0] for epoch in range(2000)]
    counts = np.bincount(first, minlength=8)

    assert np.abs(counts - 250).max() < 5 * np.sqrt(2000 / 8 * 7 / 8)


@given(integers(0, 500), integers(1, 40), integers(1, 9), booleans(), integers(0, 500))
def test_the_ranks_together_see_every_position_from_any_point_on_once(
    num_samples, batch_size, world_size, drop_last, position
):
    position = min(position, num_samples)
    ranks = [Sharing(num_samples, batch_size, rank, world_size, drop_last) for rank in range(world_size)]
    spans = [list(rank.spans(position)) for rank in ranks]
    seen = [p for row in zip(*spans, strict=True) for span in row for p in range(span.start, span.stop)]
    dropped = (num_samples - position) % (batch_size * world_size) if drop_last else 0

    assert seen == list(range(position, num_samples - dropped))
    assert {len(row) for row in spans} == {ranks[0].steps(position)}


@given(integers(1, 500), integers(1, 40), integers(1, 9))
def test_a_rank_takes_its_contiguous_slice_of_each_global_batch(num_samples, batch_size, world_size):
    for rank in range(world_size):
        for number, span in enumerate(Sharing(num_samples, batch_size, rank, world_size).spans()):
            start = (number * world_size + rank) * batch_size
            assert (span.start, span.stop) == (start, start + batch_size)


@given(integers(1, 500), integers(1, 40), integers(1, 9))
def test_an_incomplete_batch_is_shared_evenly(num_samples, batch_size, world_size):
    last = [
        list(Sharing(num_samples, batch_size, rank, world_size, drop_last=False).spans())[-1]
        for rank in range(world_size)
    ]
    sizes = [len(span) for span in last]

    assert max(sizes) - min(sizes) <= 1
    assert max(sizes) <= batch_size


def test_a_seed_beyond_its_width_is_refused():
    with pytest.raises(ValueError, match="64 bits"):
        epoch_order([5], seed=2**64, epoch=0)
    with pytest.raises(ValueError, match="64 bits"):
        epoch_order([5], seed=0, epoch=-1)
