"""Counts, geometry and values of the network, against fidelity.md §1, §2, §7.3, §8 and §10."""

import dataclasses
import itertools

import pytest
import torch
import torch.nn.functional as F
from alexshard.pipeline import crop_side
from alexshard.shards import WrongCall
from alexshard.trainer import AlexNet, Recipe
from alexshard.trainer.dropout import Masks
from alexshard.trainer.network import pool5_side, scaled_width

SMALL = dataclasses.replace(Recipe.original(), width=0.125)
SIX = dataclasses.replace(SMALL, conv6=True)


def network(recipe=SMALL, num_classes=10, side=64):
    return AlexNet(recipe, num_classes, side)


@pytest.fixture(scope="module")
def full_size():
    return AlexNet(Recipe.original(), 1000, 224).to("meta").eval()


def count(module):
    return sum(parameter.numel() for parameter in module.parameters())


def test_alexnet_has_60_965_224_parameters(full_size):
    assert {name: count(layer) for name, layer in full_size.named_children()} == {
        "conv1": 34_944,
        "conv2": 307_456,
        "conv3": 885_120,
        "conv4": 663_936,
        "conv5": 442_624,
        "fc6": 37_752_832,
        "fc7": 16_781_312,
        "fc8": 4_097_000,
    }
    assert count(full_size) == 60_965_224


def test_with_conv6_it_has_61_555_304_parameters():
    net = AlexNet(dataclasses.replace(Recipe.original(), conv6=True), 1000, 224)

    assert count(net.conv6) == 256 * (256 * 9 + 1) == 590_080
    assert count(net) == 61_555_304
    assert [name for name, _ in net.named_children()][4:7] == ["conv5", "conv6", "fc6"]


@pytest.mark.parametrize(
    ("width", "num_classes", "side", "expected"),
    [
        (0.5, 1000, 224, 16_277_160),
        (0.25, 1000, 224, 4_596_904),
        (0.125, 1000, 224, 1_409_480),
        (0.25, 10, 64, 1_288_394),
        (0.125, 10, 64, 328_170),
    ],
)
def test_other_widths_and_sides_have_the_published_counts(width, num_classes, side, expected):
    recipe = dataclasses.replace(Recipe.original(), width=width)

    assert count(AlexNet(recipe, num_classes, side)) == expected


def test_widths_round_to_eights_ties_up():
    assert [scaled_width(count, w) for w in (0.25, 0.125) for count in (48, 128, 192, 2048)] == [
        *(16, 32, 48, 512),
        *(8, 16, 24, 256),
    ]
    assert scaled_width(48, 0.01) == 8


def test_the_network_has_659_272_neurons(full_size):
    outputs = {}
    for name, layer in full_size.named_children():
        layer.register_forward_hook(lambda _, __, output, name=name: outputs.update({name: output[0].numel()}))

    full_size(torch.empty(1, 3, 224, 224, device="meta"))

    assert outputs == {
        "conv1": 290_400,
        "conv2": 186_624,
        "conv3": 64_896,
        "conv4": 64_896,
        "conv5": 43_264,
        "fc6": 4_096,
        "fc7": 4_096,
        "fc8": 1_000,
    }
    assert sum(outputs.values()) == 659_272


@pytest.mark.parametrize("pad", ["bottom-right", "symmetric"])
@pytest.mark.parametrize(
    ("side", "conv1", "pool5"),
    [(224, 55, 6), (192, 47, 5), (160, 39, 4), (128, 31, 3), (112, 27, 3), (96, 23, 2), (64, 15, 1)],
)
def test_sides_are_those_of_the_table(side, conv1, pool5, pad):
    net = network(dataclasses.replace(SMALL, conv1_pad=pad), side=side).eval()
    sides = []
    net.conv1.register_forward_hook(lambda _, __, output: sides.append(output.shape[-1]))

    maps = net.layers_3_to_5(net.layers_1_to_2(torch.zeros(1, 3, side, side)))

    assert (sides, maps.shape[-1], pool5_side(side)) == ([conv1], pool5, pool5)


def test_images_of_cifar_are_refused_with_a_remedy():
    with pytest.raises(WrongCall, match=r"32×32 pixels leave nothing[\s\S]*at 39 pixels or more[\s\S]*--size 74"):
        network(side=32)


def test_39_stored_pixels_are_the_fewest():
    assert pool5_side(crop_side(39)) == 1
    with pytest.raises(WrongCall, match="third pooling"):
        pool5_side(crop_side(38))


@torch.no_grad()
@pytest.mark.parametrize("conv6", [False, True], ids=["five", "six"])
@pytest.mark.parametrize("side", [64, 96])
@pytest.mark.parametrize("preset", [Recipe.original, Recipe.paper], ids=["original", "paper"])
def test_the_forward_pass_is_the_one_written_out_from_the_page(preset, side, conv6):
    recipe = dataclasses.replace(preset(), width=0.125, conv6=conv6)
    net = network(recipe, side=side).double().eval()
    p = dict(net.named_parameters())
    images = torch.randn(2, 3, side, side, generator=torch.Generator().manual_seed(3), dtype=torch.float64) * 60

    def lrn(x, alpha):
        half = x.shape[1] // 2
        norm = torch.nn.LocalResponseNorm(5, alpha=alpha, beta=0.75, k=2)
        return torch.cat([norm(x[:, :half]), norm(x[:, half:])], 1)

    def pool(x):
        return F.max_pool2d(x, 3, 2, ceil_mode=True)

    canvas = torch.zeros(2, 3, side + 3, side + 3, dtype=torch.float64)
    canvas[:, :, :side, :side] = images
    x = F.conv2d(canvas, p["conv1.weight"], p["conv1.bias"], stride=4)
    if recipe.preset == "original":
        x = pool(lrn(x, 1e-4).relu())
        x = lrn(F.conv2d(x, p["conv2.weight"], p["conv2.bias"], padding=2, groups=2).relu(), 1e-4)
        x = x * (1 + 4e-5 * 25 * F.avg_pool2d(x * x, 5, 1, 2)) ** -0.75
    else:
        x = pool(lrn(x.relu(), 5e-4))
        x = lrn(F.conv2d(x, p["conv2.weight"], p["conv2.bias"], padding=2, groups=2).relu(), 5e-4)
    x = pool(x)
    x = F.conv2d(x, p["conv3.weight"], p["conv3.bias"], padding=1).relu()
    x = F.conv2d(x, p["conv4.weight"], p["conv4.bias"], padding=1, groups=2).relu()
    x = pool(F.conv2d(x, p["conv5.weight"], p["conv5.bias"], padding=1, groups=2).relu())
    if conv6:
        x = F.conv2d(x, p["conv6.weight"], p["conv6.bias"], padding=1).relu()
    x = x.flatten(1)
    x = F.linear(x, p["fc6.weight"], p["fc6.bias"]).relu() * 0.5
    x = F.linear(x, p["fc7.weight"], p["fc7.bias"]).relu() * 0.5
    expected = F.linear(x, p["fc8.weight"], p["fc8.bias"])

    torch.testing.assert_close(net(images), expected, rtol=1e-12, atol=0)


def test_the_window_over_the_edge_reads_zeros_right_and_below_only():
    net = network().eval()
    corner = torch.zeros(1, 3, 64, 64)
    corner[..., 56:, 56:] = 1.0
    found = []
    net.conv1.register_forward_hook(lambda _, __, output: found.append(output))
    net.conv1.bias.data.zero_()

    net(corner)

    expected = (net.conv1.weight[:, :, :8, :8]).sum((1, 2, 3))  # 8 pixels of the window at 56, 3 of the border
    torch.testing.assert_close(found[0][0, :, 14, 14], expected)


@pytest.mark.parametrize(
    ("preset", "conv3_std"), [(Recipe.original, 0.03), (Recipe.paper, 0.01)], ids=["original", "paper"]
)
def test_initial_values_have_the_presets_deviations_and_biases(preset, conv3_std):
    net = network(dataclasses.replace(preset(), width=0.5))
    deviations = {name: layer.weight.std().item() for name, layer in net.named_children()}
    expected = dict.fromkeys(deviations, 0.01) | dict.fromkeys(("conv3", "conv4", "conv5"), conv3_std)

    assert deviations == pytest.approx(expected, rel=0.03)
    assert {name: layer.bias.unique().tolist() for name, layer in net.named_children()} == {
        "conv1": [0],
        "conv2": [1],
        "conv3": [0],
        "conv4": [1],
        "conv5": [1],
        "fc6": [1],
        "fc7": [1],
        "fc8": [0],
    }


def test_conv6_changes_no_other_layers_initial_values():
    plain, six = (dict(network(recipe).named_parameters()) for recipe in (SMALL, SIX))

    assert six.keys() - plain.keys() == {"conv6.weight", "conv6.bias"}
    assert all(torch.equal(plain[name], six[name]) for name in plain)


def test_every_layer_draws_by_its_own_number_and_conv6_has_the_last():
    net = network(SIX)
    for number, name in enumerate(("conv1", "conv2", "conv3", "conv4", "conv5", "fc6", "fc7", "fc8", "conv6")):
        weight = getattr(net, name).weight
        std = {"conv3": 0.03, "conv4": 0.03, "conv5": 0.03, "conv6": 0.03}.get(name, 0.01)
        generator = torch.Generator().manual_seed(number * 0x9E3779B9 % 2**32)

        assert torch.equal(weight, torch.empty_like(weight).normal_(0, std, generator=generator)), name


@pytest.mark.parametrize(("std", "bias"), [(0.03, 1.0), (0.002, 0.1)])
def test_conv6_begins_with_the_deviation_and_bias_of_its_fields(std, bias):
    fields = {} if std == 0.03 else {"conv6_std": std, "conv6_bias": bias}
    net = network(dataclasses.replace(Recipe.original(), width=0.5, conv6=True, **fields))

    assert net.conv6.weight.std().item() == pytest.approx(std, rel=0.03)
    assert net.conv6.bias.unique().tolist() == pytest.approx([bias])
    assert net.conv5.weight.std().item() == pytest.approx(0.03, rel=0.03)


def test_the_seed_alone_decides_the_initial_values():
    state = torch.random.get_rng_state()
    one, same = network(SIX), network(SIX)
    other = network(dataclasses.replace(SIX, seed=1))

    assert torch.equal(torch.random.get_rng_state(), state)
    assert all(torch.equal(a, b) for a, b in zip(one.parameters(), same.parameters(), strict=True))
    assert not any(torch.equal(getattr(one, n).weight, getattr(other, n).weight) for n, _ in one.named_children())


@pytest.mark.parametrize("apart", [2**16, 2**28, 2**29, 2**30, 2**31, 2**32 - 1])
def test_seeds_far_apart_give_other_initial_values_too(apart):
    one, other = network(), network(dataclasses.replace(SMALL, seed=apart))

    assert not any(torch.equal(getattr(one, n).weight, getattr(other, n).weight) for n, _ in one.named_children())


def test_no_two_layers_share_a_draw():
    draws = [layer.weight.flatten()[:8] / layer.weight.std() for _, layer in network(SIX).named_children()]

    assert all(not torch.allclose(a, b, rtol=0.2) for a, b in itertools.combinations(draws, 2))


def test_dropout_keeps_or_zeroes_in_training_and_halves_at_test():
    net = network()
    images = torch.randn(4, 3, 64, 64, generator=torch.Generator().manual_seed(0)) * 60
    maps = net.layers_3_to_5(net.layers_1_to_2(images))
    masks = Masks(0, 12)
    whole = net.fc6(maps.flatten(1)).relu()

    trained, tested = net.layer_6(maps, masks), net.eval().layer_6(maps, None)

    assert torch.equal(trained, whole * masks.draw(6, 4, 512, torch.device("cpu")))
    assert torch.equal(tested, whole * 0.5)


def test_without_dropout_training_and_test_are_one():
    net = network(dataclasses.replace(SMALL, dropout=False))
    images = torch.randn(2, 3, 64, 64, generator=torch.Generator().manual_seed(0))

    assert torch.equal(net.train()(images), net.eval()(images))


def test_training_with_dropout_but_no_masks_is_refused():
    with pytest.raises(ValueError, match="needs masks"):
        network().train()(torch.zeros(1, 3, 64, 64))


def test_scaling_by_fan_in_changes_narrow_layers_and_no_layer_at_width_1():
    narrow = network(dataclasses.replace(SIX, init_fan_in=True))
    plain = network(SIX)
    factors = [(getattr(narrow, n).weight / getattr(plain, n).weight).mean().item() for n in ("conv3", "conv6")]

    assert factors == pytest.approx([(256 / 32) ** 0.5] * 2, rel=1e-5)
    assert torch.equal(narrow.conv1.weight, plain.conv1.weight)
