"""The figures of the steps since the last line, kept on the device until they are asked for."""

from __future__ import annotations

import math
import time
from dataclasses import dataclass

import torch
from torch import Tensor

RATE_STEPS = 10  # after the first line, whose step pays for warming up; then a run's length can be told


@dataclass(frozen=True, slots=True)
class Figures:
    """Means over the steps of a window."""

    loss: float
    top1_error: float
    top5_error: float
    images: int
    seconds: float
    wait_s: float
    first_bad: int | None  # place of the first step whose loss is not finite


class Window:
    """The steps since the last line of figures, and the speed of the run's first steps."""

    def __init__(self) -> None:
        self.early_images, self.early_s, self.early_wait_s, self.early_steps = 0, 0.0, 0.0, -1
        self.restart()

    def restart(self) -> None:
        """Begin again, after a line or after a pause."""
        self.sums: list[Tensor] = []
        self.images, self.wait_s, self.started = 0, 0.0, time.perf_counter()

    @property
    def steps(self) -> int:
        """Steps counted since the beginning."""
        return len(self.sums)

    def waited(self, seconds: float) -> None:
        """Count time that the network waited for a batch."""
        self.wait_s += seconds

    def add(self, sums: Tensor, images: int) -> None:
        """Count one step, by its `metrics.sums`."""
        self.sums.append(sums)
        self.images += images

    def read(self) -> Figures:
        """Wait for the device and give the means."""
        per_step = torch.stack(self.sums).cpu()
        seconds = time.perf_counter() - self.started
        loss, top1, top5 = (per_step.sum(0) / self.images).tolist()
        bad = [place for place, value in enumerate(per_step[:, 0].tolist()) if not math.isfinite(value)]
        if self.early_steps >= 0:
            self.early_images += self.images
            self.early_s += seconds
            self.early_wait_s += self.wait_s
        self.early_steps += self.steps if self.early_steps >= 0 else 1
        return Figures(loss, 1 - top1, 1 - top5, self.images, seconds, self.wait_s, bad[0] if bad else None)

    def rate_now(self) -> tuple[float, float] | None:
        """Once, after enough steps: images/s and the share of waiting, without the first line's steps."""
        if self.early_steps < RATE_STEPS or not self.early_s:
            return None
        rate = self.early_images / self.early_s, self.early_wait_s / self.early_s
        self.early_steps = -(2**62)  # told once
        return rate
