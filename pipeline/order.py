"""The order of an epoch, and how ranks share it: pure functions, so nothing is stored and any rank can resume.

legend  n samples of the split; a *position* is a place in the epoch's order, 0..n-1, the same on every rank
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from .words import WORDS_PER_ROW, Purpose, rows_of_words

ORDERS = ("global", "stored")


def epoch_order(num_samples: int, *, seed: int, epoch: int, order: str = "global") -> NDArray[np.int64]:
    """The samples (places on disk) in the order one epoch visits them; int64 (num_samples,), a permutation.

    `global` is another permutation each epoch, `stored` the order on disk. Depends on nothing but its arguments:
    sorting 64-bit keys needs no generator method whose stream a version of NumPy could change.
    """
    if order == "stored":
        return np.arange(num_samples, dtype=np.int64)
    if order != "global":
        raise ValueError(f"an order is one of {', '.join(ORDERS)}; got {order!r}")
    rows = -(-num_samples // WORDS_PER_ROW)
    keys = rows_of_words(Purpose.ORDER, seed=seed, epoch=epoch, first=0, rows=rows).ravel()[:num_samples]
    return np.argsort(keys, kind="stable").astype(np.int64, copy=False)


@dataclass(frozen=True, slots=True)
class Span:
    """One rank's part of one global batch: positions `start` to `stop`; the next global batch starts at `end`."""

    start: int
    stop: int
    end: int

    def __len__(self) -> int:
        return self.stop - self.start


@dataclass(frozen=True, slots=True)
class Sharing:
    """How an epoch is cut into global batches, and these into one contiguous slice for each rank.

    Every rank takes the same number of steps. An incomplete last global batch is dropped, or kept and shared as
    evenly as it goes (a rank's slice may then be empty).
    """

    num_samples: int
    batch_size: int  # of one rank
    rank: int = 0
    world_size: int = 1
    drop_last: bool = True

    @property
    def global_batch(self) -> int:
        return self.batch_size * self.world_size

    def steps(self, position: int = 0) -> int:
        """Batches from `position` to the end of the epoch."""
        left = self.num_samples - position
        return left // self.global_batch if self.drop_last else -(-left // self.global_batch)

    def spans(self, position: int = 0) -> Iterator[Span]:
        """This rank's slices from `position` on."""
        for start in range(position, position + self.steps(position) * self.global_batch, self.global_batch):
            end = min(start + self.global_batch, self.num_samples)
            size = end - start
            yield Span(
                start + size * self.rank // self.world_size,
                start + size * (self.rank + 1) // self.world_size,
                end,
            )
