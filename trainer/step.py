"""One step of training, the same wherever it is taken: in a run, in a measurement, in a test."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from .dropout import Masks
from .metrics import sums
from .recipe import Recipe, Segment
from .schedule import Schedule
from .sgd import PaperSGD
from .towers import Network


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
