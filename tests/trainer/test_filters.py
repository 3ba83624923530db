"""The picture of the first layer's kernels: where each lies, how it is stretched; and how much is colour."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from alexshard.trainer import colourfulness, filters_picture
from hypothesis import given
from hypothesis.strategies import integers


def kernels(count: int = 96, side: int = 11, seed: int = 0) -> torch.Tensor:
    return torch.randn(count, 3, side, side, generator=torch.Generator().manual_seed(seed))


def cell(picture: np.ndarray, row: int, column: int, side: int = 11) -> np.ndarray:
    """The pixels of the kernel at a place of the grid, borders left out."""
    top, left = 1 + row * (side + 1), 1 + column * (side + 1)
    return picture[top : top + side, left : left + side]


def stretched(values: torch.Tensor, over: torch.Tensor) -> np.ndarray:
    """One kernel as RGB rows on 0..255, stretched over the kernels of its tower."""
    low, high = over.min(), over.max()
    return ((values - low) / (high - low) * 255).round().byte().permute(1, 2, 0).numpy()


def test_the_96_kernels_lie_16_a_row_tower_a_above_tower_b():
    weights = kernels()
    picture = filters_picture(weights)

    assert (picture.shape, picture.dtype) == ((6 * 12 + 1, 16 * 12 + 1, 3), np.uint8)
    for number in range(96):
        tower = weights[:48] if number < 48 else weights[48:]
        row, column = divmod(number, 16)  # 48 is three whole rows
        assert np.abs(cell(picture, row, column).astype(int) - stretched(weights[number], tower)).max() <= 1


def test_borders_are_one_black_pixel_around_every_kernel():
    picture = filters_picture(kernels() + 100)

    assert picture[::12].max() == picture[:, ::12].max() == 0
    assert sum(cell(picture, row, column).any() for row in range(6) for column in range(16)) == 96


def test_each_tower_is_stretched_by_itself():
    weights = kernels()
    louder = torch.cat([weights[:48], 50 * weights[48:] + 3])

    assert np.array_equal(filters_picture(weights), filters_picture(louder))
    assert not np.array_equal(filters_picture(weights, towers=1), filters_picture(louder, towers=1))


def test_per_kernel_no_kernel_is_louder_or_brighter_than_another():
    weights = kernels()
    uneven = (
        weights * torch.linspace(0.1, 5, 96)[:, None, None, None] + torch.linspace(-3, 3, 96)[:, None, None, None]
    )

    one, other = (filters_picture(kernel, per_kernel=True).astype(int) for kernel in (weights, uneven))
    assert np.abs(one - other).max() <= 1
    assert np.abs(one - filters_picture(uneven).astype(int)).max() > 50


def test_red_green_and_blue_are_the_planes_in_that_order():
    weights = torch.zeros(2, 3, 4, 4)
    weights[0, 0] = weights[1, 2] = 1  # tower A's one kernel is red, tower B's blue
    picture = filters_picture(weights)

    assert picture.shape == (11, 6, 3)
    assert (picture[1:5, 1:5] == (255, 0, 0)).all()
    assert (picture[6:10, 1:5] == (0, 0, 255)).all()


def test_enlarged_pixels_stay_squares_of_one_colour():
    small = filters_picture(kernels(16))

    assert np.array_equal(filters_picture(kernels(16), scale=4), np.kron(small, np.ones((4, 4, 1), np.uint8)))


@given(per_tower=integers(1, 40), towers=integers(1, 3), side=integers(1, 5))
def test_towers_of_any_width_begin_a_row_each_and_show_every_kernel(per_tower, towers, side):
    weights = kernels(per_tower * towers, side)
    picture = filters_picture(weights, towers)

    columns, rows = min(16, per_tower), -(-per_tower // 16)
    assert picture.shape == (1 + towers * rows * (side + 1), 1 + columns * (side + 1), 3)
    for tower in range(towers):
        own = weights[tower * per_tower : (tower + 1) * per_tower]
        for number, kernel in enumerate(own):
            row, column = divmod(number, columns)
            if own.max() > own.min():
                shown = cell(picture, tower * rows + row, column, side).astype(int)
                assert np.abs(shown - stretched(kernel, own)).max() <= 1


def test_a_tower_of_one_value_and_weights_that_are_no_numbers_are_black():
    weights = kernels(4, 3)
    weights[:2] = 7.0
    weights[2, 0, 0, 0] = float("nan")
    weights[3, 1, 2, 2] = float("inf")
    picture = filters_picture(weights)

    assert picture[:5].max() == 0
    assert cell(picture, 1, 0, 3)[0, 0, 0] == cell(picture, 1, 1, 3)[2, 2, 1] == 0
    assert picture[5:].max() == 255


def test_grey_kernels_have_no_colour_and_opposed_channels_nothing_else():
    grey = torch.randn(8, 1, 11, 11, generator=torch.Generator().manual_seed(1)).expand(8, 3, 11, 11)
    opposed = kernels(8)
    opposed -= opposed.mean(1, keepdim=True)  # every pixel's three values add up to nothing

    assert colourfulness(torch.cat([grey, opposed])) == (pytest.approx(0, abs=1e-12), pytest.approx(1))
    assert colourfulness(torch.cat([opposed, grey])) == (pytest.approx(1), pytest.approx(0, abs=1e-12))


def test_colour_is_the_mean_share_of_the_variance_across_red_green_and_blue():
    weights = kernels(32, 5).double()
    expected = []
    for tower in (weights[:16], weights[16:]):
        shares = []
        for kernel in tower.numpy():
            at_a_pixel = [np.var(kernel[:, y, x]) for y in range(5) for x in range(5)]
            shares.append(np.mean(at_a_pixel) / np.var(kernel))
        expected.append(np.mean(shares))

    assert colourfulness(weights.float()) == pytest.approx(tuple(expected), rel=1e-5)
    assert colourfulness(100 * weights + 7) == pytest.approx(tuple(expected), rel=1e-5)


def test_kernels_of_zeros_count_as_without_colour():
    assert colourfulness(torch.zeros(4, 3, 2, 2)) == (0.0, 0.0)


@pytest.mark.parametrize("shape", [(5, 3, 11, 11), (4, 1, 11, 11), (4, 3, 11), (0, 3, 11, 11)])
def test_weights_of_another_shape_are_refused(shape):
    with pytest.raises(ValueError, match="kernels of 2 towers"):
        filters_picture(torch.zeros(shape))
