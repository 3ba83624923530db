"""One step of training, the same wherever it is taken: in a run, in a measurement, in a test."""

from __future__ import annotations

import time

import torch
import torch.nn.functional as F
from torch import Tensor

from .dropout import Masks
from .machine import Machine
from .metrics import sums
from .recipe import Recipe, Segment
from .schedule import Schedule
from .sgd import PaperSGD
from .towers import Network, build_network


class Stepper:
    """A network with its optimiser, moved one batch at a time along a schedule."""

    def __init__(self, network: Network, recipe: Recipe, schedule: Schedule) -> None:
        self.network, self.recipe, self.schedule = network, recipe, schedule
        self.sgd = PaperSGD(network.pieces(), recipe)
        self._segment: Segment | None = None

    def step(self, step: int, images: Tensor, labels: Tensor) -> Tensor:
        """Update number `step` on a global batch; returns `metrics.sums` of the network before it, on its device.

        No value is read back: on a GPU the work is queued, and may not have begun when this returns.
        """
        segment = self.schedule.at(step)
        if segment is not self._segment:
            self.sgd.use(segment)
            self._segment = segment
        self.network.train()
        logits = self.network(images, Masks(self.recipe.seed, step) if self.recipe.dropout else None)
        F.cross_entropy(logits, labels).backward()  # type: ignore[no-untyped-call]
        self.sgd.step()
        with torch.no_grad():
            return sums(logits, labels)


def measure_demand(
    recipe: Recipe,
    *,
    num_classes: int,
    side: int,
    device: str = "auto",
    batch_size: int,
    repeats: int = 3,
    steps: int | None = None,
) -> list[float]:
    """Images/s of training on a batch that stays on the device, measured `repeats` times after a warm-up.

    The device is waited for after every `steps` steps, None: 10 on a GPU, where launching one step overlaps with
    computing the one before as it does in a run, and 1 on a CPU.
    """
    machine = Machine.choose(device)
    generator = torch.Generator().manual_seed(0)
    # Noise of the size of mean-subtracted pixels: what is in a batch does not change how long a step takes.
    images = (torch.randn(batch_size, 3, side, side, generator=generator) * 60).to(machine.device)
    labels = torch.randint(num_classes, (batch_size,), generator=generator).to(machine.device)
    stepper = Stepper(build_network(recipe, num_classes, side, machine.devices), recipe, Schedule.of(recipe, 1))
    steps = steps or (10 if machine.device.type == "cuda" else 1)
    rates = []
    for repeat in range(repeats + 1):
        machine.synchronize()
        started = time.perf_counter()
        for step in range(repeat * steps, (repeat + 1) * steps):
            stepper.step(step, images, labels)
        machine.synchronize()
        rates.append(batch_size * steps / (time.perf_counter() - started))
    return rates[1:]
