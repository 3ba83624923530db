"""What is done to each image of a batch: from augmentation and draws to crops, mirrors and jitter."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from ..shards import Statistics
from .augment import Augmentation, centre
from .draws import draw


@dataclass(frozen=True, slots=True)
class Treated:
    """For N images: image = (crop of the pixels, mirrored or not − mean + jitter) / divisor."""

    y: NDArray[np.int64]  # (N,): top of the crop
    x: NDArray[np.int64]  # (N,): left of the crop
    mirror: NDArray[np.bool_]  # (N,)
    jitter: NDArray[np.float32]  # (N, 3): the same for every pixel of an image
    divisor: float

    def __len__(self) -> int:
        return len(self.y)

    def part(self, rows: slice | NDArray[np.int64]) -> Treated:
        """Of some of the images."""
        return Treated(self.y[rows], self.x[rows], self.mirror[rows], self.jitter[rows], self.divisor)


@dataclass(frozen=True, slots=True)
class Treatment:
    """How a split's images are treated over a whole run."""

    augmentation: Augmentation | None  # None: the central crop, nothing else
    slack: int  # stored side − crop side
    seed: int
    statistics: Statistics | None  # of the jitter; None: the published ones
    jitter_steps: int | None  # steps of the run that are jittered and divided; None: all

    def of(self, start: int, stop: int, *, epoch: int, step: int) -> Treated:
        """For positions `start` to `stop` of an epoch; `step` counts batches over the whole run."""
        count = stop - start
        jitter = np.zeros((count, 3), np.float32)
        if self.augmentation is None or count == 0:
            middle = np.full(count, centre(self.slack), np.int64)
            return Treated(middle, middle, np.zeros(count, bool), jitter, 1.0)
        draws = draw(self.augmentation, seed=self.seed, epoch=epoch, start=start, stop=stop, slack=self.slack)
        if self._jittered(step):
            jitter = (draws.normals @ self.augmentation.jitter_matrix(self.statistics)).astype(np.float32)
        return Treated(draws.y, draws.x, draws.mirror, jitter, self.divisor(step))

    def divisor(self, step: int) -> float:
        """Of the images of a step: one number up to `jitter_steps`, 1 after them."""
        return self.augmentation.divisor if self.augmentation and self._jittered(step) else 1.0

    def _jittered(self, step: int) -> bool:
        return self.jitter_steps is None or step < self.jitter_steps
