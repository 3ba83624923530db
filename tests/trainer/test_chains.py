"""The chain behind a convolution, as one kernel, against the composition of its parts in float64."""

import numpy as np
import pytest
import torch
from alexshard.trainer import chains as module
from alexshard.trainer.chains import COMPILED, Chain, composed, has_kernels, normalise

LRN = Chain(2, n=5, k=2.0, a=2e-5)
CHAINS = {
    "layer 1, original": Chain(2, n=5, k=2.0, a=2e-5, relu="after", pool=True),
    "layer 1, paper": Chain(2, n=5, k=2.0, a=1e-4, relu="before", pool=True),
    "layer 2, original": Chain(2, n=5, k=2.0, a=2e-5, same_n=5, same_k=1.0, same_a=4e-5, relu="before", pool=True),
    "layer 5": Chain(2, relu="after", pool=True),
    "strong, without a pool": Chain(2, n=3, k=1.0, a=0.02, same_n=3, same_k=1.0, same_a=0.02),
    "a ReLU behind, without a pool": Chain(1, n=5, k=2.0, a=0.02, relu="after"),
}
SHAPES = [(3, 16, 7, 9), (2, 48, 13, 14), (1, 20, 6, 3)]  # 20: 10 maps a tower, no multiple of a vector's lanes

needs_kernels = pytest.mark.skipif(not COMPILED, reason="no C compiler was there at set-up, torch composes")


def values(shape, dtype=torch.float32, seed=0):
    """As conv1 gives them at the start: std about 11 (fidelity.md §2.3)."""
    generator = torch.Generator().manual_seed(seed)
    return (torch.randn(shape, generator=generator) * 11).to(dtype).to(memory_format=torch.channels_last)


def with_gradient(function, x, chain, seed=1):
    """What a function makes of x, and the gradient of x for given gradients of that, in float64."""
    x = x.clone().requires_grad_()
    y = function(x, chain)
    g = torch.randn(y.shape, generator=torch.Generator().manual_seed(seed)).bfloat16()
    y.backward(g.to(y.dtype))
    return y.detach().double(), x.grad.double()


def worst(found, expected):
    return [((a - b).abs().max() / b.abs().max()).item() for a, b in zip(found, expected, strict=True)]


@needs_kernels
@pytest.mark.parametrize("chain", CHAINS.values(), ids=CHAINS)
@pytest.mark.parametrize("shape", SHAPES)
def test_kernel_and_composition_in_float64_give_the_same_values_and_gradients(chain, shape):
    x = values(shape)

    assert max(worst(with_gradient(normalise, x, chain), with_gradient(composed, x.double(), chain))) < 1e-6


@needs_kernels
@pytest.mark.parametrize("chain", CHAINS.values(), ids=CHAINS)
def test_bf16_is_rounded_once_on_the_way_out(chain):
    x = values((3, 16, 7, 9), torch.bfloat16)

    # Twice 2^-9 of the largest value: an element's own rounding, and headroom for none.
    assert max(worst(with_gradient(normalise, x, chain), with_gradient(composed, x.double(), chain))) <= 2**-8


@needs_kernels
def test_the_bits_do_not_depend_on_the_number_of_threads():
    x, chain = values((5, 16, 13, 13)), CHAINS["layer 2, original"]
    threads, found = torch.get_num_threads(), []
    try:
        for count in (1, 2, 7):
            torch.set_num_threads(count)
            found.append(with_gradient(normalise, x, chain))
    finally:
        torch.set_num_threads(threads)

    assert all(torch.equal(a, b) for one in found[1:] for a, b in zip(one, found[0], strict=True))


@needs_kernels
def test_the_layout_of_the_input_changes_no_bit():
    x, chain = values((2, 16, 9, 9)), CHAINS["layer 1, original"]

    assert torch.equal(normalise(x, chain), normalise(x.contiguous(), chain))


@needs_kernels
@pytest.mark.parametrize("exponent", range(-6, 12))
def test_the_power_is_right_over_eighteen_decades(exponent):
    # With a = 0 the denominator is k, and y = x · k^-0.75.
    k = float(np.float32(1.7 * 10.0**exponent))
    y = normalise(torch.ones(1, 8, 1, 1), Chain(1, n=1, k=k, a=0.0))

    np.testing.assert_allclose(y.numpy(), k**-0.75, rtol=6e-7)


@needs_kernels
def test_what_is_no_number_stays_none_through_every_chain():
    x = values((1, 16, 7, 7))
    x[0, 3, 4, 4] = torch.nan

    assert all(normalise(x, chain).isnan().any() for chain in CHAINS.values())


@needs_kernels
def test_of_equal_maxima_the_first_has_the_gradient_as_in_torch():
    x = torch.randint(0, 3, (2, 16, 9, 9), generator=torch.Generator().manual_seed(0)).float()
    pool = Chain(2, pool=True)

    assert torch.equal(with_gradient(normalise, x, pool)[1], with_gradient(composed, x, pool)[1])


def test_float64_is_composed_and_differentiated_by_finite_differences():
    x = torch.randn(1, 6, 5, 5, dtype=torch.float64, generator=torch.Generator().manual_seed(1)) * 3
    chain = Chain(2, n=3, k=1.0, a=0.05, same_n=3, same_k=1.0, same_a=0.05, relu="after")

    assert not has_kernels(x)
    assert torch.autograd.gradcheck(lambda x: normalise(x, chain), x.requires_grad_())


def test_without_a_compiler_the_composition_serves(monkeypatch):
    x, chain = values((2, 16, 9, 9)), CHAINS["layer 2, original"]
    expected = composed(x, chain)
    monkeypatch.setattr(module, "COMPILED", False)

    assert torch.equal(normalise(x, chain), expected)


@needs_kernels
@pytest.mark.parametrize("chain", [CHAINS["layer 2, original"], LRN], ids=["with places", "without"])
def test_it_is_an_operator_that_torch_compiles_around(chain):
    x = values((2, 16, 9, 9)).requires_grad_()
    arguments = (x, *module._arguments(chain))

    checked = torch.library.opcheck(
        torch.ops.alexshard.normalise, arguments, test_utils=("test_schema", "test_faketensor")
    )

    assert set(checked.values()) == {"SUCCESS"}


@needs_kernels
@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"x": np.zeros((1, 5, 5, 7), np.float32)}, "x: 200 items"),
        ({"out": np.zeros((1, 2, 2, 8), np.float64)}, "out: 32 items of 4 bytes"),
        ({"where": None}, "goes with a pool"),
        ({"sizes": (1, 5, 5, 9)}, "make no chain"),
        ({"sizes": (-1, 5, 5, 8)}, "make no chain"),
        ({"n": 4}, "make no chain"),
        ({"k": 0.0}, "make no chain"),
        ({"threads": 0}, "make no chain"),
    ],
)
def test_arrays_and_sizes_that_do_not_fit_are_refused(change, reason):
    from alexshard.trainer import _chains

    call = {
        "x": np.zeros((1, 5, 5, 8), np.float32),
        "g": None,
        "out": np.zeros((1, 2, 2, 8), np.float32),
        "where": np.zeros((1, 2, 2, 8), np.uint8),
        "sizes": (1, 5, 5, 8),
        "half": False,
        "towers": 2,
        "n": 3,
        "k": 2.0,
        "a": 1.0,
        **{"same_n": 0, "same_k": 1.0, "same_a": 0.0, "relu": 0, "pool": True, "threads": 1},
    }
    _chains.run(*call.values())

    with pytest.raises(ValueError, match=reason):
        _chains.run(*(call | change).values())
