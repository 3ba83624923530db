"""How well an order shuffles: figures measured on the orders themselves, and the law that the first one follows.

meetings    How many times as often as under `global` two samples that shared a batch share one in the next epoch.
            Shards are filled by a permutation of the whole set when they are packed, so the batches of *one* epoch
            are fair draws under every order, even `stored`. What an order can lose is that the next epoch is
            another draw: this is that, and it tells a window from a full permutation, which no figure of one epoch
            does on such a set.
labels      Different labels in a batch of a set that was NOT permuted, each label in a run: as folders are packed
            by others. `global` does not care; the others then depend on the packing.
moved       How far a sample moves from one epoch to the next, as a part of the epoch: a third for two independent
            permutations, nothing for `stored`. It sees no windows: a shard's samples move far, but together.
shards      Shards that a window lies on: what must be at hand at once, in bytes. The price of the others.

legend  n samples, S shards, k windows, B samples in a batch
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
from numpy.typing import NDArray

from .order import EpochOrder, default_window, epoch_order


def expected_meetings(num_shards: int, window: int | None) -> float:
    """`meetings` of `windowed` where all shards are equally long: 1 + (k − 1)² / (S − 1).

    Two samples of one batch are in one of k windows, so on one shard with probability k/S, and then in one window
    again, k times as likely in one batch as by chance; on two shards they are with probability (S − k)/(S − 1) in
    one window again, by chance alone: k²/S + (1 − k/S)·(S − k)/(S − 1), which is the above. In short shards it is
    a little less: with m samples on each, two of a batch are on one shard with probability k/S − 1/m, nearly.
    """
    windows = -(-num_shards // (window or default_window(num_shards)))
    return 1.0 + (windows - 1) ** 2 / max(1, num_shards - 1)


def meetings(first: NDArray[np.int64], second: NDArray[np.int64], batch_size: int) -> float:
    """How many times as often as by chance pairs that share a batch in one order share one in the other.

    Both are permutations, int64 (n,); 1 is what two independent ones have on average.
    """
    of_sample = np.empty(len(first), np.int64)  # the batch in the first order
    of_sample[first] = np.arange(len(first)) // batch_size
    batch_of_both = of_sample[second] + (np.arange(len(second)) // batch_size) * (len(first) // batch_size + 1)
    counts = np.unique(batch_of_both, return_counts=True)[1]
    sizes = np.bincount(of_sample)
    pairs = _pairs(sizes)
    return float(_pairs(counts) * _pairs(np.array([len(first)])) / pairs**2)


def labels_in_batches(order: NDArray[np.int64], labels: NDArray[np.int64], batch_size: int) -> float:
    """Different labels in a whole batch, on average; order and labels int64 (n,)."""
    whole = len(order) // batch_size * batch_size
    batches = np.sort(labels[order[:whole]].reshape(-1, batch_size), axis=1)
    return float(1 + np.count_nonzero(np.diff(batches, axis=1)) / len(batches))


def moved(first: NDArray[np.int64], second: NDArray[np.int64]) -> float:
    """Mean distance of a sample's positions in two orders, both int64 (n,), as a part of n."""
    position = np.empty(len(first), np.int64)
    position[first] = np.arange(len(first))
    return float(np.abs(position[second] - np.arange(len(second))).mean() / len(first))


def _pairs(counts: NDArray[np.int64]) -> float:
    return float((counts * (counts - 1) // 2).sum())


@dataclass(frozen=True, slots=True)
class Quality:
    """The figures of one order on one layout of shards."""

    order: str
    meetings: float
    labels: float  # of a set packed in runs of one label, a label a shard
    moved: float
    shards: int  # of the largest window


def quality(
    shard_samples: Sequence[int], *, order: str, window: int | None = None, batch_size: int = 128, epochs: int = 4
) -> Quality:
    """The figures of `order` over consecutive epochs of one seed."""
    made = [epoch_order(shard_samples, seed=0, epoch=epoch, order=order, window=window) for epoch in range(epochs)]
    label = np.repeat(np.arange(len(shard_samples)), shard_samples)
    return Quality(
        order=order,
        meetings=float(np.mean([meetings(a.samples, b.samples, batch_size) for a, b in pairwise(made)])),
        labels=float(np.mean([labels_in_batches(each.samples, label, batch_size) for each in made])),
        moved=float(np.mean([moved(a.samples, b.samples) for a, b in pairwise(made)])),
        shards=max(_shards_of(each) for each in made),
    )


def _shards_of(order: EpochOrder) -> int:
    return max((len(window.shards) for window in order.windows), default=0)
