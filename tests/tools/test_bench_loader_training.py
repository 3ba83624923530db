"""tools/bench_loader: what is called waiting, where the trainer computes in this process or beside it."""

from __future__ import annotations

from itertools import repeat

import pytest
import torch
from alexshard.tools.loader_meter import Meter
from alexshard.tools.loader_training import _steps


class Batches:
    """Made while this process waits, `seconds` each, on the trainer's clock."""

    def __init__(self, trainer, seconds):
        self.trainer, self.seconds = trainer, seconds

    def __iter__(self):
        for images in repeat([0] * 8):
            self.trainer.now += self.seconds
            yield images


class Beside:
    """A trainer as on a card: a step takes 4 s, and this process goes on at once. Marks are reached in turn."""

    def __init__(self):
        self.now = self.over = 0.0

    def step(self, _batch):
        self.over = max(self.now, self.over) + 4.0

    def mark(self):
        return max(self.now, self.over)

    def seconds_between(self, earlier, later):
        return later - earlier

    def synchronize(self):
        self.now = max(self.now, self.over)


class Here(Beside):
    """A trainer as on the cores: a step takes 4 s of this process."""

    def step(self, _batch):
        self.now += 4.0
        self.over = self.now


@pytest.mark.parametrize(
    ("trainer", "making", "waited"),
    [(Beside, 3.0, 3.0), (Beside, 5.0, 5.0 + 4 * 1.0), (Here, 3.0, 5 * 3.0), (Here, 0.0, 0.0)],
)
def test_a_trainer_waits_only_while_it_has_nothing_to_compute(trainer, making, waited):
    trainer = trainer()
    run = _steps(trainer, iter(Batches(trainer, making)), 5, Meter(torch.device("cpu")), lambda: None).run

    assert run.waited_s == waited
    assert run.images == 40
