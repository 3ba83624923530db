"""Both normalisers against loops in float64, torch's own, and finite differences."""

import numpy as np
import pytest
import torch
from alexshard.trainer import lrn
from alexshard.trainer.lrn import lrn_across_maps, lrn_same_map
from torch.autograd import gradcheck


@pytest.fixture
def maps() -> torch.Tensor:
    """Values as conv1 gives them at the start: std about 11 (fidelity.md §2.3)."""
    generator = torch.Generator().manual_seed(5)
    return torch.randn(3, 16, 7, 9, generator=generator, dtype=torch.float64) * 11


def test_across_maps_is_the_formula_within_each_tower(maps):
    k, a, half = 2.0, 1e-4, 8
    expected = np.empty(maps.shape)
    for at in np.ndindex(*maps.shape):
        n, i, y, x = at
        tower = i // half * half
        window = [j for j in range(i - 2, i + 3) if tower <= j < tower + half]
        expected[at] = maps[at] * (k + a * sum(float(maps[n, j, y, x]) ** 2 for j in window)) ** -0.75

    np.testing.assert_allclose(lrn_across_maps(maps, towers=2, k=k, a=a), expected, rtol=1e-13)


def test_same_map_is_the_formula_with_the_window_clipped_at_the_border(maps):
    k, a = 1.0, 4e-5
    expected = np.empty(maps.shape)
    for at in np.ndindex(*maps.shape):
        n, i, y, x = at
        window = maps[n, i, max(0, y - 2) : y + 3, max(0, x - 2) : x + 3]
        expected[at] = maps[at] * (k + a * float((window**2).sum())) ** -0.75

    np.testing.assert_allclose(lrn_same_map(maps, k=k, a=a), expected, rtol=1e-13)


@pytest.mark.parametrize(("a", "torch_alpha"), [(1e-4, 5e-4), (2e-5, 1e-4)], ids=["paper", "original"])
def test_each_preset_is_torchs_norm_with_alpha_times_five(maps, a, torch_alpha):
    expected = torch.nn.LocalResponseNorm(5, alpha=torch_alpha, beta=0.75, k=2)(maps)

    torch.testing.assert_close(lrn_across_maps(maps, towers=1, k=2, a=a), expected, rtol=1e-12, atol=0)


@pytest.mark.parametrize(
    "normalise",
    [
        lambda x: lrn_across_maps(x, towers=2, k=2, a=0.02),
        lambda x: lrn_across_maps(x, towers=1, k=1, a=0.1),
        lambda x: lrn_same_map(x, k=1, a=0.03),
    ],
    ids=["two towers", "one tower", "same map"],
)
def test_the_closed_form_gradient_is_the_derivative(normalise):
    x = torch.randn(1, 6, 5, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(1)) * 3

    assert gradcheck(normalise, x.requires_grad_())


def test_work_in_pieces_gives_the_bits_of_work_at_once(maps, monkeypatch):
    def results():
        x = maps.float().requires_grad_()
        y = lrn_same_map(lrn_across_maps(x, towers=2, k=2, a=1e-4), k=1, a=4e-5)
        (gradient,) = torch.autograd.grad((y * y).sum(), x)
        return y.detach(), gradient

    at_once = results()
    monkeypatch.setattr(lrn, "CPU_PIECE", maps[0].numel())

    assert all(torch.equal(one, other) for one, other in zip(results(), at_once, strict=True))


def test_bf16_values_are_summed_in_fp32(maps):
    values = maps.bfloat16()
    exact = lrn_across_maps(values.double(), towers=2, k=2, a=2e-5)

    result = lrn_across_maps(values, towers=2, k=2, a=2e-5)

    assert result.dtype == torch.bfloat16
    assert ((result.double() - exact).abs() / exact.abs()).max() <= 2**-8  # one rounding, of the result


def test_at_initialisation_it_divides_by_two_to_the_three_quarters():
    tiny = torch.full((1, 8, 2, 2), 1e-3)

    torch.testing.assert_close(lrn_across_maps(tiny, towers=2, k=2, a=1e-4), tiny / 2**0.75)
