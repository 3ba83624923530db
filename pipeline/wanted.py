"""Which shards an epoch wants next, told as it enters a window: that one's and the next one's."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
from numpy.typing import NDArray

from ..shards import ShardEntry
from .order import EpochOrder

_LOOK = 16  # samples for each shard: by then a permutation of all samples has met nearly every shard


class Wanted:
    """Tells `need` the shards of the window in which a position lies, and of the next, once for each window.

    Args:
        order: of the epoch.
        shard: (n,), the shard on which each sample lies, by its place on disk.
        need: takes shards in the order in which they are wanted.
    """

    def __init__(self, order: EpochOrder, shard: NDArray[np.int32], need: Callable[[Sequence[int]], None]) -> None:
        self._order, self._shard, self._need = order, shard, need
        self._next = 0  # the first window not yet entered

    def enter(self, start: int, stop: int) -> None:
        """Positions `start` to `stop` are wanted now; they never go back."""
        windows = self._order.windows
        entered = self._next
        while entered < len(windows) and windows[entered].start < max(stop, start + 1):
            entered += 1
        if entered == self._next:
            return
        self._next = entered
        # A batch may lie across the border of two windows, and the first position of a resumed epoch in any.
        first = entered - 1
        while first > 0 and windows[first].start > start:
            first -= 1
        shards = dict.fromkeys(shard for window in windows[first : entered + 1] for shard in window.shards)
        soon = self._order.samples[start : start + _LOOK * len(shards)]
        met = dict.fromkeys(shard for shard in self._shard[soon].tolist() if shard in shards)
        self._need([*met, *(shard for shard in shards if shard not in met)])


def wanted_at_a_time(
    shards: Sequence[ShardEntry], order: str, window: int | None
) -> tuple[Sequence[ShardEntry], int]:
    """For `Shelf.check_fits`: the shards of a split, and how many of them one window of an order has."""
    return shards, {"global": len(shards), "stored": 1}.get(order, window or 1)
