"""The optimiser is the paper's literal rule, through changes of rate and freezes."""

import dataclasses

import numpy as np
import pytest
import torch
from alexshard.trainer import Recipe, Segment
from alexshard.trainer.sgd import PaperSGD, rate_group
from torch import nn


def segment(conv1_weight, weights, biases, conv1_bias) -> Segment:
    own = {"conv1.weight": conv1_weight, "conv1.bias": conv1_bias}
    return Segment(0, {"weights": weights, "biases": biases} | own)


SEGMENTS = {  # by first step
    0: segment(0.01, 0.01, 0.02, 0.02),
    9: segment(0.001, 0.001, 0.002, 0.002),
    17: segment(0.00001, 0.0001, 0.002, 0.002),
    25: segment(None, 0.0001, 0.002, None),
    36: segment(0.01, 0.003, 0.002, 0.02),
}
NAMES = ("conv1.weight", "conv1.bias", "fc6.weight", "fc6.bias")


def parameters() -> dict[str, nn.Parameter]:
    generator = torch.Generator().manual_seed(2)
    return {name: nn.Parameter(torch.randn(6, 5, dtype=torch.float64, generator=generator)) for name in NAMES}


def gradients(step: int) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(100 + step)
    return {name: torch.randn(6, 5, dtype=torch.float64, generator=generator) for name in NAMES}


def walk(sgd: PaperSGD, pieces: dict[str, tuple[nn.Parameter, ...]], steps: range) -> None:
    for step in steps:
        if step in SEGMENTS:
            sgd.use(SEGMENTS[step])
        for name, gradient in gradients(step).items():
            for part, rows in zip(pieces[name], gradient.chunk(len(pieces[name])), strict=True):
                part.grad = rows.clone() if part.requires_grad else None
        sgd.step()


def test_48_steps_equal_the_literal_rule_across_changes_and_a_freeze():
    started = parameters()
    pieces = {name: (parameter,) for name, parameter in started.items()}
    w = {name: parameter.detach().numpy().copy() for name, parameter in started.items()}
    v = {name: np.zeros((6, 5)) for name in NAMES}
    for step in range(48):
        segment = SEGMENTS[max(start for start in SEGMENTS if start <= step)]
        for name, g in gradients(step).items():
            rate = segment.rates[rate_group(name, Recipe.original())]
            if rate is None:  # the source skips the tensor
                continue
            decay = 0.0005 if name.endswith("weight") else 0.0
            v[name] = 0.9 * v[name] - decay * rate * w[name] - rate * g.numpy()
            w[name] = w[name] + v[name]

    walk(PaperSGD(pieces, Recipe.original()), pieces, range(48))

    for name in NAMES:
        np.testing.assert_allclose(started[name].detach().numpy(), w[name], rtol=0, atol=4e-15)


@pytest.mark.parametrize("pieces", [1, 2], ids=["one device", "two towers"])
@pytest.mark.parametrize("stop", [5, 9, 20, 30, 36])
def test_resuming_equals_the_run_that_was_not_stopped(stop, pieces):
    num_pieces, whole, half = pieces, parameters(), parameters()
    pieces = {name: (parameter,) for name, parameter in whole.items()}
    walk(PaperSGD(pieces, Recipe.original()), pieces, range(48))
    first = {name: (parameter,) for name, parameter in half.items()}
    sgd = PaperSGD(first, Recipe.original())
    walk(sgd, first, range(stop))

    # Another network goes on, perhaps as two towers.
    second = {n: tuple(nn.Parameter(q.clone()) for q in p.detach().chunk(num_pieces)) for n, p in half.items()}
    resumed = PaperSGD(second, Recipe.original())
    resumed.load_state_dict(sgd.state_dict())
    resumed.use(SEGMENTS[max(start for start in SEGMENTS if start < stop)])
    walk(resumed, second, range(stop, 48))

    for name in NAMES:
        # Bit for bit in equal pieces; in others, torch's loops end at other elements and round once differently.
        torch.testing.assert_close(
            torch.cat(second[name]), whole[name].data, rtol=0, atol=0 if num_pieces == 1 else 1e-15
        )


def test_a_frozen_tensor_keeps_value_and_velocity():
    pieces = {name: (parameter,) for name, parameter in parameters().items()}
    sgd = PaperSGD(pieces, Recipe.original())
    walk(sgd, pieces, range(25))
    before, weights = sgd.state_dict(), pieces["conv1.weight"][0].detach().clone()

    walk(sgd, pieces, range(25, 36))

    assert torch.equal(pieces["conv1.weight"][0], weights)
    assert torch.equal(sgd.state_dict()["momentum"]["conv1.weight"], before["momentum"]["conv1.weight"])
    assert sgd.rates["conv1.weight"] == before["rates"]["conv1.weight"] == 0.00001


def test_only_weights_decay():
    recipe = dataclasses.replace(Recipe.original(), weight_decay=0.5)
    pieces = {name: (parameter,) for name, parameter in parameters().items()}
    before = {name: parts[0].detach().clone() for name, parts in pieces.items()}
    sgd = PaperSGD(pieces, recipe)
    sgd.use(SEGMENTS[0])
    for parts in pieces.values():
        parts[0].grad = torch.zeros(6, 5, dtype=torch.float64)
    sgd.step()

    changed = {name for name, parts in pieces.items() if not torch.equal(parts[0], before[name])}

    assert changed == {"conv1.weight", "fc6.weight"}
