"""What is drawn for a position of an epoch: crop, mirror and the three normals of the jitter.

A pure function of seed, epoch and position: the same on any number of ranks, and at once for any position.

table CROP    one row for each run of positions that share a crop: y, x, mirror, spare
table JITTER  one row for each position: two pairs of uniforms, four normals by Box–Muller, three used
Source: fidelity.md §3.2 and §3.5; architecture.md D1.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from .augment import Augmentation
from .words import Purpose, rows_of_words


@dataclass(frozen=True, slots=True)
class Draws:
    """For N positions."""

    y: NDArray[np.int64]  # (N,): top of the crop
    x: NDArray[np.int64]  # (N,): left of the crop
    mirror: NDArray[np.bool_]  # (N,)
    normals: NDArray[np.float64]  # (N, 3): standard normals, one for each component of the jitter

    def __len__(self) -> int:
        return len(self.y)


def draw(augmentation: Augmentation, *, seed: int, epoch: int, start: int, stop: int, slack: int) -> Draws:
    """The draws of positions `start` to `stop` of an epoch's order; slack = stored side − crop side."""
    share = augmentation.sharing_a_crop
    first = start // share
    rows = -(-stop // share) - first
    words = rows_of_words(Purpose.CROP, seed=seed, epoch=epoch, first=first, rows=rows)
    row_of = np.arange(start, stop) // share - first
    offsets = augmentation.num_offsets(slack)
    return Draws(
        y=_below(offsets, words[:, 0])[row_of],
        x=_below(offsets, words[:, 1])[row_of],
        mirror=(words[:, 2] >> np.uint64(63)).astype(bool)[row_of],
        normals=_normals(rows_of_words(Purpose.JITTER, seed=seed, epoch=epoch, first=start, rows=stop - start))[
            :, :3
        ],
    )


def _below(limit: int, words: NDArray[np.uint64]) -> NDArray[np.int64]:
    """Integers 0..limit−1 by the words' upper halves; off uniform by at most limit / 2^32."""
    return ((words >> np.uint64(32)) * np.uint64(limit) >> np.uint64(32)).astype(np.int64)


def _normals(words: NDArray[np.uint64]) -> NDArray[np.float64]:
    """Standard normals by Box–Muller, one for each word, in pairs.

    Never `Generator.normal`: how many words that takes depends on the words.
    """
    uniform = (
        (words >> np.uint64(11)).astype(np.float64) + 1.0
    ) * 2.0**-53  # in (0, 1], so that the log is finite
    radius = np.sqrt(-2.0 * np.log(uniform[:, 0::2]))
    angle = 2.0 * np.pi * uniform[:, 1::2]
    return np.concatenate([radius * np.cos(angle), radius * np.sin(angle)], axis=1)
