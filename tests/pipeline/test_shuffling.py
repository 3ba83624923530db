"""The figures of shuffle quality tell the three orders apart, follow their law, and are those in the page."""

from __future__ import annotations

import contextlib
import io
import re
from pathlib import Path

import alexshard
import numpy as np
import pytest
from alexshard.pipeline import epoch_order
from alexshard.pipeline.shuffling import expected_meetings, labels_in_batches, meetings, moved, quality
from hypothesis import given
from hypothesis.strategies import integers

PAGE = Path(alexshard.__file__).parent / "docs" / "order.md"


def meetings_by_hand(first, second, batch_size):
    """Pair by pair."""

    def met(order):
        batches = [order[at : at + batch_size] for at in range(0, len(order), batch_size)]
        return {frozenset((a, b)) for batch in batches for a in batch for b in batch if a != b}

    all_pairs = len(first) * (len(first) - 1) / 2
    return len(met(first) & met(second)) / (len(met(first)) * len(met(second)) / all_pairs)


@given(integers(2, 40), integers(2, 9), integers(0, 99))
def test_meetings_are_those_counted_pair_by_pair(num_samples, batch_size, seed):
    rng = np.random.default_rng(seed)
    first, second = rng.permutation(num_samples), rng.permutation(num_samples)

    assert meetings(first, second, batch_size) == pytest.approx(
        meetings_by_hand(first.tolist(), second.tolist(), batch_size)
    )


def test_two_permutations_meet_as_often_as_chance_and_an_order_that_stays_always():
    rng = np.random.default_rng(0)
    chance = [meetings(rng.permutation(1000), rng.permutation(1000), 10) for _ in range(200)]

    # Of 4,500 pairs about 40 are met again, so 200 such figures spread by 0.16 and their mean by 0.011.
    assert np.mean(chance) == pytest.approx(1, abs=0.05)
    assert meetings(np.arange(1000), np.arange(1000), 10) == pytest.approx(999 / 9)


@pytest.mark.parametrize("window", [1, 2, 5, 10, 33, 100])
def test_what_windowed_orders_measure_is_the_closed_form(window):
    """100 shards of 200. A figure counts thousands of pairs met again; 6 % is at least four of its deviations."""
    measured = quality([200] * 100, order="windowed", window=window, batch_size=50, epochs=5).meetings
    # Two samples of a batch are never the same: in shards of 200 that takes 1/200 from k/S.
    exact = expected_meetings(100, window) - (-(-100 // window) - 1) / 200

    assert measured == pytest.approx(exact, rel=0.06)


def test_the_figure_separates_the_three_orders():
    of = {order: quality([200] * 100, order=order, batch_size=50) for order in ("global", "windowed", "stored")}

    assert of["global"].meetings == pytest.approx(1, abs=0.05)
    assert 1.6 < of["windowed"].meetings < 2
    assert of["stored"].meetings == pytest.approx((20_000 - 1) / (50 - 1))
    assert of["stored"].labels < of["windowed"].labels < of["global"].labels
    assert (of["stored"].shards, of["windowed"].shards, of["global"].shards) == (1, 10, 100)
    assert of["stored"].moved == 0
    assert of["windowed"].moved == pytest.approx(1 / 3, abs=0.02)


def test_a_permuted_set_has_as_many_labels_in_a_windowed_batch_as_chance_gives():
    """What packing does to our own sets: then one epoch of windows is as good a draw as any."""
    labels = np.random.default_rng(1).permutation(np.repeat(np.arange(100), 200))
    windowed = epoch_order([200] * 100, seed=0, epoch=0, order="windowed").samples

    assert labels_in_batches(windowed, labels, 50) == pytest.approx(100 * (1 - 0.99**50), rel=0.01)


def test_a_sample_that_stays_has_not_moved_and_a_reversed_order_moves_by_half():
    order = np.arange(100)

    assert moved(order, order) == 0
    assert moved(order, order[::-1]) == pytest.approx(0.5)


def test_the_tables_of_the_page_are_what_its_commands_print():
    text = PAGE.read_text(encoding="utf-8")
    blocks = re.findall(r"```python\n(.*?)```\n\n```text\n(.*?)```", text, re.DOTALL)

    assert len(blocks) >= 2
    for code, shown in blocks:
        printed = io.StringIO()
        with contextlib.redirect_stdout(printed):
            exec(code, {})
        assert printed.getvalue() == shown
