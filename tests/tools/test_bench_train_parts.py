"""tools/bench_train: the stock network is the same network, the work is fidelity.md's, hooks leave no trace."""

from __future__ import annotations

import dataclasses
import sys
from types import SimpleNamespace

import pytest
import torch
import torch.nn.functional as F
from alexshard.tools import train_networks, train_stock
from alexshard.tools.train_batches import as_stock, drawn, drawn_batches
from alexshard.tools.train_clock import Clock
from alexshard.tools.train_networks import Ours, contender
from alexshard.tools.train_parts import watching
from alexshard.tools.train_stock import Stock, StockSteps
from alexshard.tools.train_towers import busy_intervals, length, overlap, union
from alexshard.tools.train_verdict import group_shares, verdict_of
from alexshard.tools.train_work import forward_macs, peak_of, step_macs
from alexshard.trainer import LAYERS, AlexNet, Machine, Recipe, TwoTowers
from torch import nn

CPU = torch.device("cpu")
MACHINE = Machine((CPU,), graphs=False)


def recipe(preset="original", **fields):
    made = getattr(Recipe, preset)()
    return dataclasses.replace(made, width=0.125, batch_size=4, **fields).with_constant_rate()


def gradients(network, images, labels, *masks):
    F.cross_entropy(network(images, *masks), labels).backward()
    return {name: parameter.grad for name, parameter in network.named_parameters()}


@pytest.mark.parametrize("preset", ["original", "paper"])
@pytest.mark.parametrize("side", [64, 96])
def test_the_stock_network_gives_the_outputs_and_gradients_of_alexnet_in_float64(preset, side):
    network = AlexNet(recipe(preset, dropout=False, init_fan_in=True), 10, side).double()
    stock = Stock(network, dropout=False).double()
    images = drawn(3, side).double()
    labels = torch.tensor([0, 3, 9])
    ours, theirs = gradients(network, images, labels), gradients(stock, images.contiguous(), labels)

    torch.testing.assert_close(stock(images), network(images), rtol=1e-12, atol=1e-12)
    assert ours.keys() == theirs.keys() == {f"{name}.{kind}" for name in LAYERS for kind in ("weight", "bias")}
    for name, gradient in ours.items():
        assert gradient.abs().max() > 0
        torch.testing.assert_close(theirs[name], gradient, rtol=1e-8, atol=1e-9 * gradient.abs().max().item())


def test_the_stock_network_has_weights_of_its_own():
    network = AlexNet(recipe(), 10, 64)
    before = network.conv1.weight.clone()
    steps = StockSteps(Stock(network), recipe().with_learning_rate(1e-3), CPU)
    steps.step(*as_stock(drawn_batches(4, 64, 10, MACHINE, bf16=False)[0]))

    assert not torch.equal(steps.network.conv1.weight, before)
    assert torch.equal(network.conv1.weight, before)


def test_the_work_of_a_step_is_that_of_fidelity_md():
    forward = forward_macs(AlexNet(Recipe.original(), 1000, 224), 224)

    assert forward == {
        "conv1": 105_415_200,
        "conv2": 223_948_800,
        "conv3": 149_520_384,
        "conv4": 112_140_288,
        "conv5": 74_760_192,
        "fc6": 37_748_736,
        "fc7": 16_777_216,
        "fc8": 4_096_000,
    }
    assert sum(forward.values()) == 724_406_816
    assert step_macs(forward) == 2_067_805_248


def test_two_towers_do_the_work_of_one_device():
    assert forward_macs(TwoTowers(recipe(), 10, 64), 64) == forward_macs(AlexNet(recipe(), 10, 64), 64)


def test_on_cores_without_bf16_the_peak_is_that_of_what_the_network_multiplies_there(monkeypatch):
    monkeypatch.setattr("alexshard.tools.train_work.CORES_SIDES", (64,))
    monkeypatch.setattr("alexshard.tools.train_work.cores_have_bf16", lambda: False)
    rates = {torch.bfloat16: 1.0, torch.float32: 2.0}
    monkeypatch.setattr("alexshard.tools.train_work._fastest", lambda _device, kind, _side: rates[kind])

    assert peak_of(CPU, "bf16") == {"flop_per_s": 2.0, "product_side": 64, "product_type": "float32"}


def test_images_are_as_pixels_less_their_mean_smooth_and_never_zero():
    images = drawn(4, 64)
    step = (images[..., 1:] - images[..., :-1]).std()

    assert images.shape == (4, 3, 64, 64)
    assert images.is_contiguous(memory_format=torch.channels_last)
    assert 30 < images.std() < 80
    assert images.abs().max() <= 150
    assert step < images.std() / 2
    assert not torch.equal(images[0], images[1])


def test_hooks_leave_a_network_and_its_module_as_they_were():
    where = sys.modules[AlexNet.__module__]
    before = (where.convolve, where.multiply, where.normalise)
    ours = Ours(
        "alexshard", recipe(), MACHINE, drawn_batches(4, 64, 10, MACHINE, bf16=False), num_classes=10, side=64
    )
    parts = ours.parts()

    assert (where.convolve, where.multiply, where.normalise) == before
    assert "step" not in vars(ours.stepper.sgd)
    assert not ours.network._forward_hooks
    assert {name for name, way in parts.seconds if way == "backward"} >= {*LAYERS, "chain1", "chain2", "chain5"}


def test_a_step_with_hooks_is_the_same_step():
    batches = drawn_batches(4, 64, 10, MACHINE, bf16=False)

    def weights(steps):
        ours = Ours("alexshard", recipe(), MACHINE, batches, num_classes=10, side=64)
        for step in steps:
            getattr(ours, step)()
        return ours.network.state_dict()

    plain, watched = weights(["step"] * 3), weights(["step", "parts", "step"])
    for name, weight in plain.items():
        assert torch.equal(watched[name], weight)


@pytest.mark.parametrize("devices", [(CPU,), (CPU, CPU)])
def test_the_bare_network_is_ours_without_normalisers(devices):
    machine = Machine(devices, "single" if len(devices) == 1 else "towers", graphs=False)
    batches = drawn_batches(4, 64, 10, machine, bf16=False)
    bare = Ours("bare", recipe(), machine, batches, num_classes=10, side=64)
    networks = bare.network.towers if len(devices) == 2 else [bare.network]

    for network in networks:
        assert [(chain.n, chain.same_n, chain.pool) for chain in network.chains] == [(0, 0, True)] * 3
        assert network.chains[0].relu == "after"
    bare.step()
    assert bare.loss > 0


def test_an_installed_torchvision_is_run_beside_ours(monkeypatch):
    class Alike(nn.Sequential):
        def __init__(self, num_classes):
            super().__init__(nn.Flatten(), nn.Linear(3 * 64 * 64, num_classes))

    models = SimpleNamespace(alexnet=Alike)
    modules = {"torchvision": SimpleNamespace(__version__="1.2"), "torchvision.models": models}
    monkeypatch.setattr(train_stock, "import_module", modules.__getitem__)
    batches = drawn_batches(4, 64, 10, MACHINE, bf16=False)
    made = contender("torchvision", recipe(), MACHINE, batches, num_classes=10, side=64, feeding=None)

    assert train_stock.torchvision_version() == "1.2"
    assert made.run(2) > 0
    assert made.loss > 0
    assert made.parts().seconds["forward", "whole"] > 0


def test_a_learning_rate_too_small_to_matter_is_not_zero():
    assert 0 < train_networks.RATE < 1e-4


def test_what_has_no_end_of_its_own_ends_with_the_backward_pass():
    network = nn.Linear(2, 2)
    sgd = torch.optim.SGD(network.parameters(), lr=0.1)
    with watching(network, sgd, Clock([CPU])) as watch:
        watch.begin("conv1", "backward")
        network(torch.ones(1, 2)).sum().backward()
        sgd.step()
    spans = {name: (began, ended) for name, _, began, ended in watch.spans()}

    assert spans["conv1"][1] == spans["backward"][1]
    assert "step" not in vars(sgd)


def test_how_long_both_towers_compute_is_the_time_in_spans_of_both():
    def event(name, began, lasting):
        return {"ph": "X", "name": name, "ts": began, "dur": lasting}

    one, other = busy_intervals(
        [
            event("tower 0 layer_6 forward", 0, 10),
            event("tower 1 layer_6 forward", 4, 10),
            event("tower 0 layer_7 forward", 20, 5),
            event("step", 0, 100),
        ]
    )

    assert overlap(union(one), union(other)) == 6
    assert length(union([*one, *other])) == 14 + 5


def parts_of(**shares):
    names = [*LAYERS, "chain1", "chain2", "chain5"]
    layers = [{"name": name, "share": shares.get(name, 0.01)} for name in names]
    return {
        "layers": layers,
        "step_s": {"median": 2.0},
        "shares": {"forward": 0.3, "backward": 0.5, "optimiser": shares.get("optimiser", 0.1)},
        "normalisers": {"share": shares.get("normalisers", 0.02)},
    }


def report(parts, *, waited=None, way="eager", loss=6.9):
    ours = {
        "name": "alexshard",
        "images_per_s": {"median": 64.0},
        "step_s": {"median": 1.0},
        "peak_share": 0.5,
        "way": way,
        "loss": loss,
    }
    return {
        "precision": "fp32",
        "networks": [ours],
        "ratios": [],
        "fed": None if waited is None else {"waited_share": {"median": waited}},
        "parts": {"alexshard": parts},
        "peak": {"flop_per_s": 1e9},
    }


NETWORK = {"step_flop_per_image": 1e6}


def test_shares_of_a_step_add_up_to_one():
    shares = group_shares(parts_of(conv2=0.3, chain1=0.2, normalisers=0.15))

    assert sum(shares.values()) == pytest.approx(1)
    assert shares["normalisers"] == 0.15
    assert shares["pools and ReLUs behind them"] == pytest.approx(0.2 + 0.02 - 0.15)


@pytest.mark.parametrize(
    ("about", "said"),
    [
        (report(parts_of(conv2=0.6)), "convolutions are the limit; of single parts conv2, 60%."),
        (report(parts_of(optimiser=0.7)), "optimiser is the limit"),
        (report(parts_of(chain1=0.7, normalisers=0.6)), "normalisers are the limit"),
        (report(parts_of(fc6=0.6), waited=0.2), "The limit is the loader: 20% of the time there is no batch."),
        (report(parts_of(fc6=0.6), waited=0.01), "matrix products are the limit"),
        (report(parts_of(fc6=0.6), way="graph"), "As graph a step takes 50% less than operation by operation."),
        (report(parts_of(fc6=0.6), loss=float("nan")), "The loss of alexshard is not finite"),
    ],
)
def test_the_verdict_names_the_limit(about, said):
    assert said in verdict_of(about, NETWORK, 128, "cpu")
