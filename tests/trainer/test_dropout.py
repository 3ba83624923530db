"""Masks are a function of seed, step, layer, position and unit, and look random."""

import pytest
import torch
from alexshard.trainer.dropout import Masks

CPU = torch.device("cpu")


def splitmix64(x: int) -> int:
    """The published generator's output function, in unbounded integers."""
    x %= 2**64
    x = (x ^ (x >> 30)) * 0xBF58476D1CE4E5B9 % 2**64
    x = (x ^ (x >> 27)) * 0x94D049BB133111EB % 2**64
    return x ^ (x >> 31)


def kept(seed: int, step: int, layer: int, position: int, unit: int, units: int) -> bool:
    golden = 0x9E3779B97F4A7C15
    key = 0
    for word in (seed, step, layer):
        key = splitmix64(key + word + golden)
    counter = position * -(-units // 32) + unit // 32
    return bool(splitmix64(counter * golden + key) >> 32 + unit % 32 & 1)


@pytest.mark.parametrize("units", [8, 72, 4096])
def test_every_bit_is_that_of_the_integer_formula(units):
    seed, step = 2**32 - 1, 843_749
    mask = Masks(seed, step, first=2**33).draw(7, 3, units, CPU)
    places = [(row, unit) for row in range(3) for unit in range(0, units, max(1, units // 50))]

    assert [bool(mask[place]) for place in places] == [
        kept(seed, step, 7, 2**33 + row, unit, units) for row, unit in places
    ]


@pytest.mark.parametrize("layer", [6, 7])
def test_a_step_in_a_tensor_draws_what_its_number_draws(layer):
    number, tensor = Masks(2**32 - 1, 843_749), Masks(2**32 - 1, torch.tensor(843_749))

    assert torch.equal(tensor.draw(layer, 5, 72, CPU), number.draw(layer, 5, 72, CPU))


def test_the_rows_of_a_rank_are_a_slice_of_the_global_batch():
    whole = Masks(3, 14).draw(6, 128, 512, CPU)

    assert torch.equal(Masks(3, 14, first=96).draw(6, 32, 512, CPU), whole[96:])


def test_half_of_the_units_are_kept_in_every_row_and_column_and_bit():
    mask = Masks(0, 0).draw(6, 512, 4096, CPU).double()

    assert abs(mask.mean() - 0.5) < 5 * 0.5 / mask.numel() ** 0.5
    assert (mask.mean(0) - 0.5).abs().max() < 5 * 0.5 / 512**0.5
    assert (mask.mean(1) - 0.5).abs().max() < 5 * 0.5 / 4096**0.5


@pytest.mark.parametrize(
    "other", [(Masks(1, 5), 6), (Masks(0, 6), 6), (Masks(0, 5), 7), (Masks(0, 5, first=1), 6)]
)
def test_another_seed_step_layer_or_position_is_an_independent_mask(other):
    masks, layer = other
    one = Masks(0, 5).draw(6, 256, 1024, CPU)

    agreement = (one == masks.draw(layer, 256, 1024, CPU)).double().mean()

    assert abs(agreement - 0.5) < 5 * 0.5 / (256 * 1024) ** 0.5
