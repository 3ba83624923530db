"""The networks that `tools/bench_train` runs in turns.

alexshard    as `alextrain run` trains it: Stepper on the machine as chosen (compiled, a CUDA graph, two towers)
bare         the same without LRN and same-map normaliser; pools and ReLUs stay
one device   beside two towers: the same on the first device alone
stock        the same network in torch's stock modules (train_stock.py)
torchvision  torchvision's AlexNet, another network, in torch's stock modules

All begin with the same weights where they have the same, and learn at 1e-6 of pixels: values stay as they are in
the first steps, whatever the number of steps, and nothing freezes as it would along the preset's schedule.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import replace
from itertools import cycle
from typing import Any

import torch
from torch import Tensor

from ..trainer import AlexNet, Fed, Machine, Recipe, Schedule, Stepper, TwoTowers, build_network
from .train_batches import FedRun, Feeding, as_stock
from .train_clock import Clock
from .train_parts import StepParts, Watch, seconds_of_normalisers, watching, without_normalisers
from .train_stock import STOCK, Stock, StockSteps, torchvision_alexnet

MEANINGS = {
    "alexshard": "as alextrain trains it",
    "bare": "the same without its normalisers",
    "one device": "the same on one device",
    "stock": "the same in torch's stock modules",
    "torchvision": "torchvision's network",
}
AGAINST = ("bare", "stock", "torchvision")
RATE = 1e-6  # of learning
WARM_UPS = {"cpu": 1, "cuda": 6}  # steps before any is counted: on a card kernels are chosen, a graph is recorded


class Contender:
    """One network with what updates it, and how it is given its batches."""

    def __init__(self, name: str, clock: Clock) -> None:
        self.name, self.clock = name, clock
        self.taken = 0  # steps
        self.last: Tensor | None = None  # what the last step gave
        self.taken_bytes: int | None = None  # of the card's memory

    @property
    def way(self) -> str:
        """How its steps are taken."""
        return "eager"

    def step(self) -> None:
        """One step on the next of its batches that stay."""
        raise NotImplementedError

    def parts(self) -> StepParts:
        """One step with hooks, operation by operation."""
        raise NotImplementedError

    def warm_up(self) -> float:
        """Steps that are not counted; seconds of the last one."""
        for _ in range(WARM_UPS[self.clock.devices[0].type] + ("compiled" in self.way)):
            self.clock.wait()
            began = time.perf_counter()
            self.step()
            self.clock.wait()
            seconds = time.perf_counter() - began
        return seconds

    def run(self, steps: int) -> float:
        """Seconds of so many steps, with all that was given to the device."""
        if self.clock.on_card:
            self.step()  # memory that others have given back is asked for again
        self.clock.wait()
        began = time.perf_counter()
        for _ in range(steps):
            self.step()
        self.clock.wait()
        return time.perf_counter() - began

    @property
    def loss(self) -> float:
        """Of the last step, the batch's mean."""
        raise NotImplementedError


class Ours(Contender):
    """A network of this project."""

    def __init__(
        self,
        name: str,
        recipe: Recipe,
        machine: Machine,
        batches: Sequence[Fed],
        *,
        num_classes: int,
        side: int,
        feeding: Feeding | None = None,
    ) -> None:
        super().__init__(name, Clock(machine.devices))
        self.network = build_network(recipe, num_classes, side, machine.devices)
        if name == "bare":
            for network in _alexnets(self.network):
                first, second, third = map(without_normalisers, network.chains)
                network.chains = first, second, third
        schedule = Schedule.of(recipe, 2**31)
        self.stepper = Stepper(self.network, recipe, schedule, compiled=machine.compiled, graphs=machine.graphs)
        # Hooks see nothing of a graph or of compiled code.
        plain = not (self.stepper.compiled or self.stepper.graphs)
        self._eager = self.stepper if plain else Stepper(self.network, recipe, schedule)
        self._batches, self._feeding = cycle(batches), feeding
        self.recipe, self.side = recipe, side

    @property
    def way(self) -> str:
        """In fact: what cannot be compiled or recorded goes on without, with a warning."""
        ways = {"compiled": self.stepper.compiled, "graph": self.stepper.graphs}
        return " + ".join(name for name, is_so in ways.items() if is_so) or "eager"

    def step(self) -> None:
        self._take(self.stepper)

    def _take(self, stepper: Stepper) -> None:
        batch = next(self._batches)
        self.last = stepper.step(self.taken, batch.images, batch.labels)
        self.taken, self._count = self.taken + 1, batch.count

    def parts(self) -> StepParts:
        if self.clock.on_card:
            self._take(self._eager)  # as in `run`; its momentum comes into being
        watch = self.watched(keep=isinstance(self.network, AlexNet))
        chains: dict[str, dict[str, float]] = {}
        if isinstance(self.network, AlexNet):
            chains = seconds_of_normalisers(watch.kept, self.network.chains, self.clock)
        return StepParts(watch.seconds(), chains)

    def watched(self, *, keep: bool = False) -> Watch:
        """One step with hooks, done when this returns."""
        with watching(self.network, self._eager.sgd, self.clock, keep=keep) as watch:
            watch.begin("step")
            self._take(self._eager)
            watch.end("step")
        self.clock.wait()
        return watch

    def fed(self, steps: int) -> FedRun:
        """Steps on the loader's batches."""
        assert self._feeding is not None
        done = self._feeding.run(self.stepper, steps, self.taken)
        self.taken += steps + 1
        return done

    @property
    def loss(self) -> float:
        assert self.last is not None
        return float(self.last[0]) / self._count


class Theirs(Contender):
    """A network of stock modules."""

    def __init__(self, name: str, steps: StockSteps, batches: Sequence[Fed], device: torch.device) -> None:
        super().__init__(name, Clock([device]))
        self._steps = steps
        self._batches = cycle([as_stock(batch) for batch in batches])

    def step(self) -> None:
        self.last = self._steps.step(*next(self._batches))

    def parts(self) -> StepParts:
        if self.clock.on_card:
            self.step()
        with watching(self._steps.network, self._steps.sgd, self.clock) as watch:
            watch.begin("step")
            self.step()
            watch.end("step")
        self.clock.wait()
        return StepParts(watch.seconds(), {})

    @property
    def loss(self) -> float:
        assert self.last is not None
        return float(self.last)


def contender(
    name: str,
    recipe: Recipe,
    machine: Machine,
    batches: Sequence[Fed],
    *,
    num_classes: int,
    side: int,
    feeding: Feeding | None,
) -> Contender:
    """The network of that name, ready to be warmed up."""
    if name in ("alexshard", "bare"):
        return Ours(name, recipe, machine, batches, num_classes=num_classes, side=side, feeding=feeding)
    alone = replace(machine, devices=machine.devices[:1], parallel="single", compiled=False, graphs=False)
    if name == "one device":
        first = [Fed(_first(each), each.labels, each.count) for each in batches]
        return Ours(name, recipe, alone, first, num_classes=num_classes, side=side)
    if name == "stock":
        network: Any = Stock(AlexNet(recipe, num_classes, side), dropout=recipe.dropout)
    else:
        network = torchvision_alexnet(num_classes)
    return Theirs(name, StockSteps(network, recipe, machine.device), batches, machine.device)


def explained(name: str) -> str:
    """What the network is, for whoever reads the figures."""
    return STOCK if name == "stock" else MEANINGS[name]


def _alexnets(network: AlexNet | TwoTowers) -> list[Any]:
    return list(network.towers) if isinstance(network, TwoTowers) else [network]


def _first(batch: Fed) -> Tensor:
    return batch.images if isinstance(batch.images, Tensor) else batch.images[0]
