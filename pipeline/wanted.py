"""Which shards an epoch wants next, told as it enters a window: that one's and the next one's."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Sequence

import numpy as np
from numpy.typing import NDArray

from ..shards import ShardEntry
from .order import EpochOrder

Claim = tuple[Sequence[ShardEntry], int]  # the shards of a split, and how many of them a window has
_LOOK = 16  # samples for each shard: by then a permutation of all samples has met nearly every shard


class Wanted:
    """Tells `need` the shards of the window in which a position lies, and of the next, as windows come and go.

    Args:
        order: of the epoch.
        shard: (n,), the shard on which each sample lies, by its place on disk.
        need: takes shards in the order in which they are wanted.
        in_flight: batches that may still be made when one is entered: their windows have not gone.
    """

    def __init__(
        self,
        order: EpochOrder,
        shard: NDArray[np.int32],
        need: Callable[[Sequence[int]], None],
        in_flight: int = 0,
    ) -> None:
        self._order, self._shard, self._need = order, shard, need
        self._starts: deque[int] = deque(maxlen=in_flight + 1)  # of the batches that may be read
        self._told = (0, 0)  # the first window that is wanted, the first not yet entered

    def enter(self, start: int, stop: int) -> None:
        """Positions `start` to `stop` are wanted now; they never go back."""
        windows = self._order.windows
        self._starts.append(start)
        start = self._starts[0]
        first, entered = self._told
        while entered < len(windows) and windows[entered].start < max(stop, start + 1):
            entered += 1
        while first + 1 < entered and windows[first + 1].start <= start:
            first += 1
        if (first, entered) == self._told:
            return
        self._told = first, entered
        shards = dict.fromkeys(shard for window in windows[first : entered + 1] for shard in window.shards)
        soon = self._order.samples[start : start + _LOOK * len(shards)]
        met = dict.fromkeys(shard for shard in self._shard[soon].tolist() if shard in shards)
        self._need([*met, *(shard for shard in shards if shard not in met)])


def wanted_at_a_time(shards: Sequence[ShardEntry], order: str, window: int | None) -> Claim:
    """For `Shelf.check_fits`: the shards of a split, and how many of them one window of an order has."""
    return shards, {"global": len(shards), "stored": 1}.get(order, window or 1)


def bytes_at_a_time(claims: Iterable[Claim]) -> int:
    """What readers of one set need at a time at most, two windows each, in bytes."""
    needed, every = 0, set[ShardEntry]()
    for shards, window in claims:
        needed += sum(sorted((shard.bytes for shard in shards), reverse=True)[: 2 * window])
        every.update(shards)
    return min(needed, sum(shard.bytes for shard in every))
