"""Axes of a picture: from values to pixels, round limits around values, and the values written beside them."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from .loader_chart import nice

LOG_FROM = 15.0  # times between the least and the largest loss: from there on the axis is logarithmic
LABELS_AT_MOST = 8  # powers of ten of a logarithmic axis


@dataclass(frozen=True)
class Axis:
    """Values from `low` to `high` on pixels from `begin` to `end`."""

    low: float
    high: float
    begin: int
    end: int
    log: bool = False

    def place(self, values: Sequence[float] | NDArray[np.float64]) -> NDArray[np.float64]:
        """Pixels of these values; those outside are on the edge."""
        clipped = np.clip(np.asarray(values, dtype=np.float64), self.low, self.high)
        if self.log:
            share = np.log(clipped / self.low) / math.log(self.high / self.low)
        else:
            share = (clipped - self.low) / (self.high - self.low)
        return self.begin + share * (self.end - self.begin)

    def ticks(self) -> list[tuple[float, str]]:
        """Round values on the axis, and how they are written."""
        if self.log:
            first, last = math.floor(math.log10(self.low)), math.ceil(math.log10(self.high))
            digits = (1, 2, 5) if self.high / self.low < 2000 else (1,)
            apart = -(-(last - first) // LABELS_AT_MOST)
            words = [f"{digit}e{power}" for power in range(first, last + 1, apart) for digit in digits]
            inside = [(float(word), word) for word in words if self.low <= float(word) <= self.high * 1.0001]
            if inside and (inside[0][0] < 1e-4 or inside[-1][0] >= 1e5):
                return inside  # all of them by their powers
            return [(value, f"{value:g}") for value, _ in inside]
        step = nice((self.high - self.low) / 4)
        decimals = max(0, -math.floor(math.log10(step)))
        first, last = math.ceil(self.low / step - 1e-6), math.floor(self.high / step + 1e-6)
        return [(n * step, f"{n * step:,.{decimals}f}") for n in range(first, last + 1)]


def from_zero(values: NDArray[np.float64], begin: int, end: int) -> Axis:
    """To the last value, which is not on the edge."""
    high = float(values.max()) if len(values) and values.max() > 0 else 1.0
    return Axis(0.0, high * 1.005, begin, end)


def around(levels: NDArray[np.float64], begin: int, end: int, *, log_allowed: bool, most: float) -> Axis:
    """Round limits around all levels, within 0 and `most`; logarithmic where they are far apart."""
    if not len(levels):
        levels = np.array([0.0, 100.0])
    low, high = float(levels.min()), float(levels.max())
    if log_allowed and low > 0 and high / low >= LOG_FROM:
        return Axis(low / 1.15, high * 1.15, begin, end, log=True)
    if high - low < 1e-3 * max(abs(high), 1e-9):  # one level
        low, high = low - max(abs(low), 1.0) / 10, high + max(abs(high), 1.0) / 10
    step = nice((high - low) / 4)
    # A little room, so that no line runs along the edge.
    low_edge = math.floor((low - 0.03 * (high - low)) / step) * step
    high_edge = math.ceil((high + 0.03 * (high - low)) / step) * step
    return Axis(max(0.0, low_edge), min(high_edge, most), begin, end)
