"""Draws are a function of seed, epoch and position, as in fidelity.md §3; distributions: test_distribution.py."""

from __future__ import annotations

import numpy as np
import pytest
from alexshard.pipeline import ORIGINAL, PAPER, crop_side, draw, ten_views
from hypothesis import given
from hypothesis.strategies import integers, sampled_from

PRESETS = sampled_from([PAPER, ORIGINAL])

# fidelity.md §3.5, "Expected covariance of the jitter", on [0, 255]
PAPER_COVARIANCE = [[10.028, 10.134, 10.075], [10.134, 10.385, 10.423], [10.075, 10.423, 10.590]]
ORIGINAL_COVARIANCE = [[45.255, 38.888, 35.740], [38.888, 42.842, 40.576], [35.740, 40.576, 49.054]]


def as_rows(draws):
    return np.column_stack([draws.y, draws.x, draws.mirror, draws.normals])


@given(PRESETS, integers(0, 2**64 - 1), integers(0, 2**32 - 1), integers(0, 10_000), integers(1, 300))
def test_any_range_of_positions_is_drawn_at_once_and_alike(preset, seed, epoch, start, count):
    whole = draw(preset, seed=seed, epoch=epoch, start=max(0, start - 70), stop=start + count, slack=32)
    part = draw(preset, seed=seed, epoch=epoch, start=start, stop=start + count, slack=32)

    assert np.array_equal(as_rows(whole)[-count:], as_rows(part))


@given(PRESETS, integers(0, 5), integers(1, 100), integers(1, 8))
def test_the_draws_of_all_ranks_are_those_of_one(preset, epoch, batch_size, world_size):
    stop = batch_size * world_size
    one = draw(preset, seed=1, epoch=epoch, start=0, stop=stop, slack=32)
    parts = [
        draw(preset, seed=1, epoch=epoch, start=rank * batch_size, stop=(rank + 1) * batch_size, slack=32)
        for rank in range(world_size)
    ]

    assert np.array_equal(as_rows(one), np.concatenate([as_rows(part) for part in parts]))


def test_in_original_32_consecutive_positions_share_crop_and_mirror_but_not_jitter():
    draws = draw(ORIGINAL, seed=7, epoch=3, start=0, stop=128, slack=32)
    places = as_rows(draws)[:, :3].reshape(4, 32, 3)

    assert (places == places[:, :1]).all()
    assert len(np.unique(places[:, 0], axis=0)) == 4
    assert len(np.unique(draws.normals, axis=0)) == 128


def test_in_paper_every_image_has_its_own_crop():
    draws = draw(PAPER, seed=7, epoch=3, start=0, stop=128, slack=32)

    assert len(np.unique(as_rows(draws)[:, :3], axis=0)) > 110


@pytest.mark.parametrize(("preset", "expected"), [(PAPER, PAPER_COVARIANCE), (ORIGINAL, ORIGINAL_COVARIANCE)])
def test_the_matrix_of_the_jitter_gives_the_published_covariance(preset, expected):
    matrix = preset.jitter_matrix(None) / preset.divisor

    assert matrix.T @ matrix == pytest.approx(np.array(expected), rel=1e-4)


def test_the_jitter_follows_the_sets_own_components(raw_set):
    statistics = raw_set.statistics
    covariance = np.array(statistics.covariance)
    paper, original = PAPER.jitter_matrix(statistics), ORIGINAL.jitter_matrix(statistics)

    assert original.T @ original == pytest.approx(0.01 * covariance)
    assert paper.T @ paper == pytest.approx(0.01 * covariance @ covariance / 255**2)


def test_this_row_of_draws_never_changes():
    """Golden: `draw(ORIGINAL, seed=2012, epoch=90, start=1000, stop=1001, slack=32)`, as printed."""
    row = as_rows(draw(ORIGINAL, seed=2012, epoch=90, start=1000, stop=1001, slack=32))[0]

    assert row == pytest.approx([1, 30, 0, 0.1822926373259092, 0.8391533435508864, 1.8574028246468268], abs=1e-12)


def test_a_crop_as_large_as_the_image_stays_where_it_is():
    for preset in (PAPER, ORIGINAL):
        draws = draw(preset, seed=0, epoch=0, start=0, stop=100, slack=0)
        assert not draws.y.any()
        assert not draws.x.any()


@given(integers(1, 600))
def test_every_stored_side_has_a_crop(stored):
    side = crop_side(stored)

    assert 1 <= side <= stored
    assert side % 4 == 0 or stored < 4


def test_the_ten_views_are_corners_and_centre_then_their_mirrors():
    places = ((0, 0), (0, 32), (16, 16), (32, 0), (32, 32))

    assert ten_views(32) == tuple((y, x, mirror) for mirror in (False, True) for y, x in places)
