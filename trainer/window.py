"""The figures of the steps since the last line, kept on the device until they are asked for; a run's speed."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor

RATE_STEPS = 10  # after the very first, which pays for warming up; then a run's length can be told


@dataclass(frozen=True, slots=True)
class Figures:
    """Means over the steps of a window."""

    loss: float
    top1_error: float
    top5_error: float
    images_per_s: float
    wait_s: float


class Watch:
    """Images, and seconds of training since the start; of these, seconds of waiting for batches."""

    def __init__(self) -> None:
        self.images, self.wait_s, self.started = 0, 0.0, time.perf_counter()

    @property
    def seconds(self) -> float:
        """Without the pauses."""
        return time.perf_counter() - self.started


class Window:
    """The steps since the last line of figures, and the speed of the run's first steps."""

    def __init__(self) -> None:
        self.early, self.taken = Watch(), 0
        self.restart()

    def restart(self) -> None:
        """Begin again, after a line."""
        self.sums: list[Tensor] = []
        self.watch = Watch()

    @property
    def steps(self) -> int:
        """Steps counted since the beginning."""
        return len(self.sums)

    @contextmanager
    def paused(self) -> Iterator[None]:
        """What is done in the block, such as saving, is not charged to training."""
        began = time.perf_counter()
        yield
        pause = time.perf_counter() - began
        for watch in (self.watch, self.early):
            watch.started += pause

    def waited(self, seconds: float) -> None:
        """Count time that the network waited for a batch."""
        for watch in (self.watch, self.early):
            watch.wait_s += seconds

    def add(self, sums: Tensor, images: int) -> None:
        """Count one step, by its `metrics.sums`."""
        self.sums.append(sums)
        for watch in (self.watch, self.early):
            watch.images += images

    def first_bad(self) -> int | None:
        """Wait for the device; the place in the window of the first step whose loss is not finite."""
        values = torch.stack(self.sums)[:, 0].tolist()
        return next((place for place, value in enumerate(values) if not math.isfinite(value)), None)

    def read(self) -> Figures:
        """Wait for the device and give the means."""
        images = self.watch.images
        loss, top1, top5 = (torch.stack(self.sums).sum(0).cpu() / images).tolist()
        return Figures(loss, 1 - top1, 1 - top5, images / self.watch.seconds, self.watch.wait_s)

    def speed(self, synchronize: Callable[[], None]) -> Watch | None:
        """Called after each step: once, the watch of the first `RATE_STEPS` after the very first."""
        self.taken += 1
        if self.taken not in (1, 1 + RATE_STEPS):
            return None
        synchronize()
        if self.taken > 1:
            return self.early
        self.early = Watch()
        return None
