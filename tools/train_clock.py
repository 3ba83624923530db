"""Moments of a device for `tools/bench_train`: marked without waiting, told apart afterwards.

On the cores a mark is the clock; on a card it is an event in its stream, reached when all that was queued before
it is done, so that nothing is waited for inside a step.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

import torch

from .loader_figures import Rate

Mark = Any  # int, nanoseconds of time.perf_counter_ns; or torch.cuda.Event


class Clock:
    """Marks on the first of `devices`, the one where logits come out; `wait` is for all of them."""

    def __init__(self, devices: Sequence[torch.device]) -> None:
        self.devices = tuple(devices)
        self.on_card = self.devices[0].type == "cuda"

    def mark(self) -> Mark:
        """This moment: when all that was asked of the device so far is done."""
        if not self.on_card:
            return time.perf_counter_ns()
        event = torch.cuda.Event(enable_timing=True)  # type: ignore[no-untyped-call]
        event.record(torch.cuda.current_stream(self.devices[0]))
        return event

    def seconds(self, earlier: Mark, later: Mark) -> float:
        """Between two marks; after `wait`."""
        return float(earlier.elapsed_time(later)) / 1e3 if self.on_card else (later - earlier) / 1e9

    def wait(self) -> None:
        """Until every device has done what it was asked for."""
        for device in self.devices:
            if device.type == "cuda":
                torch.cuda.synchronize(device)


def spread(runs: Sequence[float]) -> dict[str, Any]:
    """Median, least, most and all of repeated runs, for JSON."""
    return asdict(Rate.of(runs))


def middle(runs: Sequence[float]) -> float:
    """The median; 0 of nothing."""
    return statistics.median(runs) if runs else 0.0
