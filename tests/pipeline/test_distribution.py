"""Draws have the distributions of fidelity.md §3, jointly, and none depends on another, or on its neighbours.

Seeds are fixed, so a result is always the same. Bounds are quantiles of the statistic that a fair generator passes
but for once in a million times; on both sides, since too even is not random either.
"""

from __future__ import annotations

from functools import cache
from itertools import combinations

import numpy as np
import pytest
from alexshard.pipeline import ORIGINAL, PAPER, Sharing, draw, epoch_order
from scipy import stats

MANY = 60_000
RARE = 1e-6
PRESETS = [pytest.param(PAPER, 32, id="paper"), pytest.param(ORIGINAL, 33, id="original")]

# fidelity.md §3.5, "Expected covariance of the jitter", on [0, 255]: RR, RG, RB, GG, GB, BB
PAPER_COVARIANCE = [10.028, 10.134, 10.075, 10.385, 10.423, 10.590]
ORIGINAL_COVARIANCE = [45.255, 38.888, 35.740, 42.842, 40.576, 49.054]


@cache
def crops(preset, *, seed=0, epoch=0, count=MANY):
    """y, x, mirror of `count` crops: one for each run of positions that share it."""
    share = preset.sharing_a_crop
    draws = draw(preset, seed=seed, epoch=epoch, start=0, stop=count * share, slack=32)
    return draws.y[::share], draws.x[::share], draws.mirror[::share].astype(np.int64)


def columns(preset, *, seed=0, epoch=0, count=MANY):
    """Everything drawn for `count` crops, and the normals of as many positions; float64 (count, 6)."""
    normals = draw(preset, seed=seed, epoch=epoch, start=0, stop=count, slack=32).normals
    return np.column_stack([*crops(preset, seed=seed, epoch=epoch, count=count), normals])


def is_uniform(values, cells):
    """Chi-squared of how often each of `cells` values occurs."""
    counts = np.bincount(values, minlength=cells)
    assert len(counts) == cells
    expected = len(values) / cells
    statistic = ((counts - expected) ** 2 / expected).sum()
    return stats.chi2.ppf(RARE, cells - 1) < statistic < stats.chi2.ppf(1 - RARE, cells - 1)


def are_uncorrelated(a, b):
    """Of two columns of independent draws, r·√n is a standard normal."""
    return abs(np.corrcoef(a, b)[0, 1]) * np.sqrt(len(a)) < stats.norm.ppf(1 - RARE / 2)


@pytest.mark.parametrize("seed", [0, 1, 2**64 - 1])
@pytest.mark.parametrize(("preset", "offsets"), PRESETS)
def test_offsets_are_uniform_in_y_and_in_x_and_mirror_is_a_fair_coin(preset, offsets, seed):
    y, x, mirror = crops(preset, seed=seed, epoch=5)

    assert is_uniform(y, offsets)
    assert is_uniform(x, offsets)
    assert is_uniform(mirror, 2)


@pytest.mark.parametrize("seed", [0, 1, 2**64 - 1])
@pytest.mark.parametrize(("preset", "offsets"), PRESETS)
def test_every_place_and_mirror_together_is_as_likely_as_any_other(preset, offsets, seed):
    """About 30 crops in each of the 2,048 or 2,178 cells: y, x and mirror are independent of each other."""
    y, x, mirror = crops(preset, seed=seed, epoch=5)

    assert is_uniform((y * offsets + x) * 2 + mirror, offsets * offsets * 2)


@pytest.mark.parametrize(("preset", "offsets"), PRESETS)
def test_a_crop_does_not_depend_on_the_one_before(preset, offsets):
    """Pairs of neighbours are uniform, and no correlation is left at distances up to 40."""
    y, x, mirror = crops(preset, seed=3)

    assert is_uniform(y[:-1:2] * offsets + y[1::2], offsets**2)
    assert is_uniform(x[:-1:2] * offsets + x[1::2], offsets**2)
    assert is_uniform(y[:-1:2] * offsets + x[1::2], offsets**2)
    assert is_uniform(mirror[:-1:2] * 2 + mirror[1::2], 4)
    for lag in range(1, 41):
        for drawn in (y, x, mirror):
            assert are_uncorrelated(drawn[:-lag], drawn[lag:])


@pytest.mark.parametrize("preset", [PAPER, ORIGINAL])
def test_nothing_drawn_for_a_position_depends_on_anything_else_drawn_for_it(preset):
    drawn = columns(preset, seed=4)

    for a, b in combinations(range(drawn.shape[1]), 2):
        assert are_uncorrelated(drawn[:, a], drawn[:, b])
        assert are_uncorrelated(drawn[:, a] ** 2, drawn[:, b] ** 2)


def test_normals_are_normal_at_every_distance_from_their_neighbours():
    normals = draw(PAPER, seed=6, epoch=0, start=0, stop=MANY, slack=32).normals

    for component in normals.T:
        assert stats.kstest(component, "norm").pvalue > RARE
        for lag in (1, 2, 3, 31, 32):
            assert are_uncorrelated(component[:-lag], component[lag:])
    assert (
        stats.kstest(np.abs(normals).max(axis=1), lambda most: (2 * stats.norm.cdf(most) - 1) ** 3).pvalue > RARE
    )


@pytest.mark.parametrize(
    ("preset", "expected"), [(PAPER, PAPER_COVARIANCE), (ORIGINAL, ORIGINAL_COVARIANCE)], ids=["paper", "original"]
)
def test_the_jitters_covariance_is_the_published_one_and_spreads_by_its_sampling_error(preset, expected):
    """40 samples of 5,000 jitters: each entry is off by sqrt((C_ii C_jj + C_ij²)/m), §3.5, no more and no less."""
    samples, m = 40, 5000
    upper = np.triu_indices(3)
    variances = np.array(expected)[[0, 3, 5]]
    error = np.sqrt((np.outer(variances, variances)[upper] + np.array(expected) ** 2) / m)
    found = []
    for seed in range(samples):
        normals = draw(preset, seed=seed, epoch=seed % 7, start=0, stop=m, slack=32).normals
        jitter = normals @ preset.jitter_matrix(None) / preset.divisor
        found.append(np.cov(jitter.T)[upper])
    off = (np.array(found) - expected) / error  # standard normals, in 40 independent rows

    assert np.abs(off).max() < stats.norm.ppf(1 - RARE / 2)
    # Published to three decimals: that is below a hundredth of the error of the mean.
    assert (np.abs(off.mean(axis=0)) * np.sqrt(samples) < stats.norm.ppf(1 - RARE / 2)).all()
    low, high = stats.chi2.ppf([RARE, 1 - RARE], samples - 1) / (samples - 1)
    assert ((low < off.var(axis=0, ddof=1)) & (off.var(axis=0, ddof=1) < high)).all()


@pytest.mark.parametrize("preset", [PAPER, ORIGINAL])
def test_another_epoch_or_seed_has_other_draws_that_know_nothing_of_these(preset):
    few = 10_000
    here = columns(preset, seed=1, epoch=1, count=few)

    for seed, epoch in ((1, 2), (2, 1), (0, 1), (1, 2**32 - 1), (1 + 2**32, 1), (1 + 2**63, 1), (2, 0)):
        other = columns(preset, seed=seed, epoch=epoch, count=few)
        for column in range(here.shape[1]):
            assert are_uncorrelated(here[:, column], other[:, column])
        assert not (here[:, 3:] == other[:, 3:]).any()


def test_each_rank_has_other_draws_than_the_ranks_beside_it():
    """What a rank draws belongs to its positions; with a generator a rank, seeded alike, they would agree."""
    spans = [next(Sharing(4 * MANY // 10, MANY // 10, rank, 4).spans()) for rank in range(4)]
    of_rank = [draw(PAPER, seed=0, epoch=0, start=span.start, stop=span.stop, slack=32) for span in spans]

    for one, other in combinations(of_rank, 2):
        assert are_uncorrelated(one.y, other.y)
        assert are_uncorrelated(one.mirror, other.mirror)
        for i, j in np.ndindex(3, 3):
            assert are_uncorrelated(one.normals[:, i], other.normals[:, j])


@pytest.mark.parametrize("order", ["global", "windowed"])
def test_the_order_knows_nothing_of_the_draws(order):
    """They come from one generator, by tables of their own."""
    samples = epoch_order([300] * (MANY // 300), seed=1, epoch=1, order=order).samples
    drawn = columns(PAPER, seed=1, epoch=1)

    for column in drawn.T:
        assert are_uncorrelated(samples, column)


@pytest.mark.parametrize("order", ["global", "windowed"])
def test_an_order_has_no_neighbours_left_over_from_the_last_epoch(order):
    """Where a sample comes has nothing to do with where it came; under `windowed`, shard for shard."""
    first, second = (
        epoch_order([300] * (MANY // 300), seed=1, epoch=epoch, order=order).samples for epoch in (0, 1)
    )
    positions = np.argsort(first), np.argsort(second)
    if order == "windowed":  # samples of a shard move together, so shards are what is independent: 200 of them
        positions = tuple(each.reshape(-1, 300).mean(axis=1) for each in positions)

    assert are_uncorrelated(*positions)
