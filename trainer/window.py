"""The figures of the steps since the last line, read late, so that no step waits for them; a run's speed."""

from __future__ import annotations

import math
import time
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor

from .ranks import Ranks

WARM_STEPS = {"cpu": 1, "cuda": 8}  # that pay for warming up: on a card, for choosing kernels and recording
RATE_STEPS = {"cpu": 10, "cuda": 100}  # after these; then a run's length can be told
STEPS_AHEAD = 4  # that the host may be ahead of a card


@dataclass(frozen=True, slots=True)
class Figures:
    """Means over the steps of a window, on all ranks."""

    loss: float
    top1_error: float
    top5_error: float
    images_per_s: float
    wait_s: float
    seconds: float
    updates: tuple[float, ...]  # |Δw| / |w| of the last step, by layer


class Watch:
    """Images, and seconds of training since the start; of these, seconds of waiting for batches."""

    def __init__(self) -> None:
        self.images, self.wait_s, self.started = 0, 0.0, time.perf_counter()

    @property
    def seconds(self) -> float:
        """Without the pauses."""
        return time.perf_counter() - self.started


class Leash:
    """Holds the host to a few steps ahead of its card.

    Else nothing would until CUDA's own queue is full, some eighty batches later: batches in flight are memory, and
    the time that the host waits would say nothing of the card. The card itself never waits for this.
    """

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._ends: deque[torch.cuda.Event] = deque()

    def queued(self) -> None:
        """Called when a step was given to the device."""
        if self._device.type != "cuda":
            return
        end = torch.cuda.Event(blocking=True)  # type: ignore[no-untyped-call]
        end.record(torch.cuda.current_stream(self._device))
        self._ends.append(end)
        if len(self._ends) > STEPS_AHEAD:
            self._ends.popleft().synchronize()


class _Coming:
    """A tensor on its way from the device to the host."""

    def __init__(self, tensor: Tensor) -> None:
        self._tensor, self._arrived = tensor, None
        if tensor.device.type == "cuda":
            self._tensor = torch.empty(tensor.shape, dtype=tensor.dtype, pin_memory=True)
            self._tensor.copy_(tensor, non_blocking=True)
            self._arrived = torch.cuda.Event()  # type: ignore[no-untyped-call]
            self._arrived.record(torch.cuda.current_stream(tensor.device))

    @property
    def there(self) -> bool:
        return self._arrived is None or bool(self._arrived.query())  # type: ignore[no-untyped-call]

    def values(self) -> Tensor:
        """The tensor on the host; waits for it."""
        if self._arrived is not None:
            self._arrived.synchronize()
        return self._tensor


class Line:
    """The sums of some steps and the size of the last update, on their way from the device to the host."""

    def __init__(self, sums: Tensor, updates: Tensor, watch: Watch) -> None:
        self.steps, self._images = len(sums), watch.images
        self._seconds, self._wait_s = watch.seconds, watch.wait_s
        self._sums, self._updates = _Coming(sums), _Coming(updates)

    @property
    def there(self) -> bool:
        """Whether reading would not wait."""
        return self._sums.there and self._updates.there

    def first_bad(self) -> int | None:
        """The place among the steps of the first one whose loss is not finite; waits."""
        values = self._sums.values()[:, 0].tolist()
        return next((place for place, value in enumerate(values) if not math.isfinite(value)), None)

    def figures(self) -> Figures:
        """The means; waits."""
        loss, top1, top5 = (self._sums.values().sum(0) / self._images).tolist()
        updates = tuple(self._updates.values().tolist())
        return Figures(
            loss, 1 - top1, 1 - top5, self._images / self._seconds, self._wait_s, self._seconds, updates
        )


class Window:
    """The steps since the last line of figures, and the speed of the run's first steps."""

    def __init__(self, ranks: Ranks, kind: str = "cpu") -> None:
        self._ranks, self._warm = ranks, WARM_STEPS[kind]
        self._rated = self._warm + RATE_STEPS[kind]
        self.early, self.taken = Watch(), 0
        self.restart()

    def restart(self) -> None:
        """Begin again, after a line."""
        self._sums: list[Tensor] = []
        self.watch = Watch()

    @property
    def steps(self) -> int:
        """Steps counted since the beginning."""
        return len(self._sums)

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
        """Count one step, by its `metrics.sums` on this rank and the images of this rank."""
        self._sums.append(sums)
        for watch in (self.watch, self.early):
            watch.images += images * self._ranks.count

    def line(self, updates: Tensor) -> Line:
        """The steps so far as one line, and begin again. All ranks do this after the same step."""
        line = Line(self._ranks.sum(torch.stack(self._sums)), updates, self.watch)
        self.restart()
        return line

    def speed(self, synchronize: Callable[[], None]) -> Watch | None:
        """Called after each step: once, the watch of the first `RATE_STEPS` after those that warm up."""
        self.taken += 1
        if self.taken not in (self._warm, self._rated):
            return None
        synchronize()
        if self.taken == self._rated:
            return self.early
        self.early = Watch()
        return None
