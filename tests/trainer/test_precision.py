"""bf16 rounds operands and keeps sums, weights and velocity in fp32, on any processor."""

import dataclasses

import pytest
import torch
from alexshard.trainer import AlexNet, Recipe, Schedule, Stepper, precision
from torch.nn import functional as F

RECIPE = dataclasses.replace(Recipe.original(), width=0.125, precision="bf16")


def images(count=4):
    return torch.randn(count, 3, 64, 64, generator=torch.Generator().manual_seed(0)) * 60


@pytest.mark.parametrize("native", [False, True], ids=["rounded fp32", "torch's autocast"])
def test_a_product_is_that_of_rounded_numbers_summed_in_fp32(native, monkeypatch):
    monkeypatch.setattr(precision, "cores_have_bf16", lambda: native)
    layer = torch.nn.Conv2d(8, 8, 3, padding=1, groups=2)
    x = torch.randn(2, 8, 9, 9, generator=torch.Generator().manual_seed(0))
    exact = F.conv2d(
        x.bfloat16().double(), layer.weight.bfloat16().double(), layer.bias.double(), padding=1, groups=2
    )

    with torch.autocast("cpu", torch.bfloat16):
        maps = precision.convolve(layer, x)

    assert maps.dtype == torch.bfloat16
    # One rounding of the result, and (autocast) one of the bias.
    assert ((maps.double() - exact).abs() <= 2**-8 * (exact.abs() + layer.bias.abs().max())).all()


def test_logits_are_fp32_and_near_those_of_fp32():
    exact = AlexNet(dataclasses.replace(RECIPE, precision="fp32"), 10, 64).eval()(images())

    logits = AlexNet(RECIPE, 10, 64).eval()(images())

    assert logits.dtype == torch.float32
    assert not torch.equal(logits, exact)
    torch.testing.assert_close(logits, exact, rtol=0.05, atol=0.05 * exact.abs().max().item())


def test_weights_gradients_and_velocity_are_fp32():
    stepper = Stepper(AlexNet(RECIPE, 10, 64), RECIPE, Schedule.of(RECIPE, 1))
    stepper.step(0, images(), torch.tensor([0, 1, 2, 3]))

    kinds = {tensor.dtype for tensor in stepper.sgd.state_dict()["momentum"].values()}
    assert kinds | {parameter.dtype for parameter in stepper.network.parameters()} == {torch.float32}


def test_an_update_too_small_for_bf16_is_not_lost():
    recipe = dataclasses.replace(RECIPE.with_learning_rate(1e-5), max_steps=1)
    network = AlexNet(recipe, 10, 64)
    before = network.fc8.weight.detach().clone()

    Stepper(network, recipe, Schedule.of(recipe, 1)).step(0, images(), torch.tensor([0, 1, 2, 3]))

    moved = network.fc8.weight.detach() != before
    assert moved.float().mean() > 0.5
    assert (network.fc8.weight.detach().bfloat16() == before.bfloat16()).float().mean() > 0.9


def test_float64_is_computed_in_float64_whatever_the_recipe_says():
    double = AlexNet(RECIPE, 10, 64).double().eval()
    exact = AlexNet(dataclasses.replace(RECIPE, precision="fp32"), 10, 64).double().eval()

    assert torch.equal(double(images().double()), exact(images().double()))


def test_tf32_is_asked_of_cards_for_convolutions_and_products_alike():
    for word, wanted in (("tf32", True), ("fp32", False)):
        precision.use(word)

        assert (torch.backends.cudnn.allow_tf32, torch.backends.cuda.matmul.allow_tf32) == (wanted, wanted)
