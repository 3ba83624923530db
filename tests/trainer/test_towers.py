"""Two towers on two devices are the one-device network: values, gradients, state, and what crosses."""

import dataclasses
import math

import pytest
import torch
import torch.nn.functional as F
from alexshard.trainer import AlexNet, Recipe, towers
from alexshard.trainer.dropout import Masks
from alexshard.trainer.sgd import PaperSGD
from alexshard.trainer.towers import TwoTowers

RECIPES = {
    "original": dataclasses.replace(Recipe.original(), width=0.125),
    "paper": dataclasses.replace(Recipe.paper(), width=0.25),
}


@pytest.fixture(params=RECIPES)
def pair(request):
    recipe = RECIPES[request.param]
    return AlexNet(recipe, 10, 64).double(), TwoTowers(recipe, 10, 64, ("cpu", "cpu")).double()


@pytest.fixture
def batch():
    generator = torch.Generator().manual_seed(8)
    images = torch.randn(6, 3, 64, 64, dtype=torch.float64, generator=generator) * 60
    return images, torch.randint(0, 10, (6,), generator=generator)


def joined_gradients(network):
    return {name: torch.cat([part.grad for part in parts]) for name, parts in network.pieces().items()}


def test_values_and_gradients_agree_in_float64(pair, batch):
    images, labels = batch
    losses = [F.cross_entropy(network(images, Masks(0, 3)), labels) for network in pair]
    for loss in losses:
        loss.backward()
    one, two = (joined_gradients(network) for network in pair)

    torch.testing.assert_close(losses[1], losses[0], rtol=1e-12, atol=0)
    assert one.keys() == two.keys()
    for name in one:
        assert one[name].abs().max() > 0
        torch.testing.assert_close(two[name], one[name], rtol=1e-9, atol=1e-6 * one[name].abs().max().item())


def test_twenty_steps_give_the_same_losses(pair, batch):
    images, labels = batch

    def losses(network):
        sgd = PaperSGD(network.pieces(), Recipe.original())
        sgd.use(Recipe.original().schedule[0])
        for step in range(20):
            loss = F.cross_entropy(network(images, Masks(0, step)), labels)
            loss.backward()
            sgd.step()
            yield loss.item()

    assert list(losses(pair[1])) == pytest.approx(list(losses(pair[0])), rel=1e-6)


def test_58_624_activations_an_image_cross_and_only_into_conv3_and_the_fc_layers(monkeypatch):
    crossed = []

    def counting(parts, device):
        crossed.append([tuple(part.shape[1:]) for part in parts])
        return both(parts, device)

    both = towers._both
    monkeypatch.setattr(towers, "_both", counting)
    TwoTowers(Recipe.original(), 1000, 224, ("meta", "meta")).eval()(torch.empty(1, 3, 224, 224, device="meta"))

    maps2, maps5, hidden = (128, 13, 13), (128, 6, 6), (2048,)
    assert crossed == [[maps2] * 2] * 2 + [[maps5] * 2] * 2 + [[hidden] * 2] * 2 + [[hidden] * 2]
    assert sum(math.prod(parts[0]) for parts in crossed) == 58_624  # one of the two parts came from the other side


def test_state_dicts_load_in_either_direction(pair):
    one, two = pair
    names = list(one.state_dict())
    with torch.no_grad():
        for parameter in one.parameters():
            parameter.add_(1)

    two.load_state_dict(one.state_dict())
    assert list(two.state_dict()) == names
    assert all(torch.equal(two.state_dict()[name], one.state_dict()[name]) for name in names)

    fresh = AlexNet(one.recipe, 10, 64).double()
    fresh.load_state_dict(two.state_dict())
    assert all(torch.equal(fresh.state_dict()[name], one.state_dict()[name]) for name in names)


def test_both_start_from_the_same_values(pair):
    one, two = (network.state_dict() for network in pair)

    assert all(torch.equal(one[name], two[name]) for name in one)


def test_a_state_of_another_network_is_refused(pair):
    with pytest.raises(RuntimeError, match="size mismatch"):
        pair[1].load_state_dict(AlexNet(dataclasses.replace(RECIPES["original"], width=0.5), 10, 64).state_dict())
