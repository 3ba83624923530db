"""Draws are a function of seed, epoch and position, and have the published distributions (fidelity.md §3)."""

from __future__ import annotations

import numpy as np
import pytest
from alexshard.pipeline import ORIGINAL, PAPER, crop_side, draw, ten_views
from hypothesis import given
from hypothesis.strategies import integers, sampled_from

PRESETS = sampled_from([PAPER, ORIGINAL])
MANY = 20_000

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


@pytest.mark.parametrize(("preset", "offsets"), [(PAPER, 32), (ORIGINAL, 33)])
def test_offsets_are_uniform_over_exactly_their_range(preset, offsets):
    draws = draw(preset, seed=0, epoch=0, start=0, stop=MANY * preset.sharing_a_crop, slack=32)
    expected = MANY / offsets

    for drawn in (draws.y, draws.x):
        counts = np.bincount(drawn[:: preset.sharing_a_crop])
        assert len(counts) == offsets
        assert np.abs(counts - expected).max() < 5 * np.sqrt(expected)


@pytest.mark.parametrize("preset", [PAPER, ORIGINAL])
def test_half_of_the_images_are_mirrored_and_independently_of_the_crop(preset):
    draws = draw(preset, seed=0, epoch=0, start=0, stop=MANY * preset.sharing_a_crop, slack=32)
    y, x, mirror = (d[:: preset.sharing_a_crop].astype(float) for d in (draws.y, draws.x, draws.mirror))

    assert abs(mirror.mean() - 0.5) < 5 * 0.5 / np.sqrt(MANY)
    correlations = np.corrcoef([y, x, mirror]) - np.eye(3)
    assert np.abs(correlations).max() < 5 / np.sqrt(MANY)


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
def test_the_jitter_has_the_published_covariance(preset, expected):
    """The sampling error of an entry from 20,000 draws is at most about 1.2 %, §3.5; five of them are allowed."""
    expected = np.array(expected)
    draws = draw(preset, seed=0, epoch=0, start=0, stop=MANY, slack=32)
    matrix = preset.jitter_matrix(None)
    jitter = draws.normals @ matrix / preset.divisor
    sampling = np.sqrt((np.outer(np.diag(expected), np.diag(expected)) + expected**2) / MANY)

    assert matrix.T @ matrix / preset.divisor**2 == pytest.approx(expected, rel=1e-4)
    assert (np.abs(np.cov(jitter.T) - expected) < 5 * sampling).all()
    assert (np.abs(jitter.mean(0)) < 5 * np.sqrt(np.diag(expected) / MANY)).all()


def test_the_jitter_follows_the_sets_own_components(raw_set):
    statistics = raw_set.statistics
    covariance = np.array(statistics.covariance)
    paper, original = PAPER.jitter_matrix(statistics), ORIGINAL.jitter_matrix(statistics)

    assert original.T @ original == pytest.approx(0.01 * covariance)
    assert paper.T @ paper == pytest.approx(0.01 * covariance @ covariance / 255**2)


def test_a_normal_is_a_normal():
    normals = draw(PAPER, seed=0, epoch=0, start=0, stop=MANY, slack=32).normals

    assert np.abs(normals.mean(0)).max() < 5 / np.sqrt(MANY)
    assert np.abs(normals.std(0) - 1).max() < 5 / np.sqrt(2 * MANY)
    assert (np.abs(normals) < 1.959964).mean() == pytest.approx(0.95, abs=0.005)
    assert np.abs(np.corrcoef(normals.T) - np.eye(3)).max() < 5 / np.sqrt(MANY)


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
