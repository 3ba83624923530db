"""The shelf of a set that lies in a store: shards come into the cache before they are opened, in order of need.

Threads in the background fetch what is announced (`ahead`), a few shards at a time. Whoever opens a shard that is
not here yet waits for the thread that has it on its way, or fetches it at once, ahead of everything announced.
A failure in the background is told to nobody: whoever opens that shard tries again, and tells it.
"""

from __future__ import annotations

import os
import threading
import weakref
from collections.abc import Callable, Sequence
from typing import Any

from ..shards import (
    Readers,
    ShardEntry,
    WrongCall,
    byte_size,
)
from .arrivals import Arrivals, Tally
from .bringing import Fetching
from .cache import Cache
from .fetching import RemoteFiles
from .wanted import Claim, bytes_at_a_time


class RemoteShelf:
    """Opens shards of one set through a cache. Threads may share it; a forked process goes on by itself.

    Args:
        shown: how messages name the set.
        digest: of its manifest.
        connect: opens the store; called when something has to be fetched.
        cache: where shards are kept.
    """

    def __init__(self, shown: str, digest: str, connect: Callable[[], RemoteFiles], cache: Cache) -> None:
        self.shown = shown
        self._digest, self._connect, self._cache = digest, connect, cache
        self._begin()
        self._now: list[Fetching] = []  # at most one
        self._sound: dict[str, int] = {}  # which copy of a shard was looked through
        self._cache.need([digest])
        # Also at the end of the interpreter, before it stops threads in the middle of something.
        weakref.finalize(self, _end, self._now, cache)
        _shelves.add(self)

    def _begin(self) -> None:
        """In another process too: its locks and readers are its own."""
        self._lock, self._mending, self._listing = threading.Lock(), threading.Lock(), threading.Lock()
        self._tally, self._readers = Tally(), Readers()
        # The shards of each reader's split, and how many of them its window has.
        self._claims: weakref.WeakKeyDictionary[object, Claim] = weakref.WeakKeyDictionary()

    def __reduce__(self) -> tuple[Any, ...]:
        """Another process goes on by itself, with the same cache."""
        return RemoteShelf, (self.shown, self._digest, self._connect, self._cache)

    @property
    def stalled_s(self) -> float:
        """Seconds in which somebody waited for a shard to arrive, since the shelf was made."""
        return self.statistics().stalled_s

    def statistics(self) -> Arrivals:
        return self._tally.now()

    def open(self, shard: ShardEntry) -> int:
        """A read-only descriptor of the whole shard, which the caller closes; waits until the shard is here.

        Raises:
            CorruptShardSet: the store has it no more, or with other bytes.
            WrongCall: it may not be read, or the shelf was closed meanwhile.
            AlexshardError: the store fails again and again, or the disk of the cache is full.
            OSError: no descriptor is left, or the cap of the cache is taken up by what is open (EMFILE).
        """
        fd = self._cache.open(shard.sha256, shard.bytes)
        if fd is not None:
            return fd
        with self._tally.waiting():
            return self._fetching().open(shard)

    def ahead(self, shards: Sequence[ShardEntry], by: object = None) -> None:
        """A reader wants these next: they are fetched in turns with those of other readers, and stay as long."""
        with self._listing:
            wanted = self._readers.wants(self if by is None else by, shards)
            if not shards:
                self._claims.pop(self if by is None else by, None)
            self._cache.need([self._digest, *(shard.sha256 for shard in wanted)])
            if wanted or self._now:
                self._fetching().ahead(wanted)

    def again(self, shard: ShardEntry) -> bool:
        """Drop a shard whose copy here is damaged, so that `open` fetches it anew. Always worth another try.

        Where the copy is sound, another thread has had it fetched meanwhile, or the fault is the shard's own; it
        is looked through once only.
        """
        with self._mending:
            copy = self._cache.copy_of(shard.sha256)
            if copy is None or self._sound.get(shard.sha256) == copy:
                return True
            if self._cache.is_sound(shard.sha256):
                self._sound[shard.sha256] = copy
            elif self._cache.drop(shard.sha256):
                self._tally.add(damaged=1)
        return True

    def check_fits(self, shards: Sequence[ShardEntry], window: int, by: object = None) -> None:
        """Whether the cache may hold what an order needs at a time: this window of shards and the next.

        What other readers of this shelf need is needed beside it.

        Args:
            shards: of the split.
            window: shards of a window; as many as there are where any may be needed at any time.

        Raises:
            WrongCall: it may not.
        """
        by = self if by is None else by
        with self._listing:
            others = [claim for reader, claim in self._claims.items() if reader is not by]

        def needs(window: int) -> int:
            return small + bytes_at_a_time([*others, (shards, window)])

        small, room = self._cache.bytes_of_set(self._digest), self._cache.most_bytes
        needed = needs(window)
        if needed <= room:
            with self._listing:
                self._claims[by] = shards, window
            return
        fitting = next((n for n in range(window, 0, -1) if needs(n) <= room), 0)
        every, megabytes = window >= len(shards), -(-needed // 1_000_000)
        order = f'order="windowed", window={fitting} (--order windowed --window {fitting}); or ' if fitting else ""
        raise WrongCall(
            f"the cache may hold {byte_size(room)}, and "
            + (f"all {len(shards):,} shards" if every else f"two windows of {window:,} shards")
            + (", beside what other loaders of this set read," if others else "")
            + f" take up to {byte_size(needed)}",
            where=str(self._cache.folder),
            why="shards would be fetched again and again"
            if every
            else "the next window is fetched while one is read",
            remedy=f"{order}--cache-size {megabytes}MB (cache_bytes={megabytes}_000_000), where the disk has room "
            "(--cache DIR)",
        )

    def close(self) -> None:
        """End what goes on in the background, also in the middle of a shard. A later call begins it again."""
        with self._lock:
            ended, self._now[:] = list(self._now), []
        for fetching in ended:
            fetching.end()
        with self._listing:
            self._readers = Readers()
            self._cache.need([self._digest])

    def _fetching(self) -> Fetching:
        with self._lock:
            if not self._now or self._now[0].pid != os.getpid():
                self._now[:] = [Fetching(self._connect, self._cache, self._tally, self._digest)]
            return self._now[0]


def _end(now: list[Fetching], cache: Cache) -> None:
    for fetching in now:
        if fetching.pid == os.getpid():
            fetching.end()
    cache.close()


_shelves: weakref.WeakSet[RemoteShelf] = weakref.WeakSet()


def _new_locks_in_the_child() -> None:
    for shelf in _shelves:
        shelf._begin()


os.register_at_fork(after_in_child=_new_locks_in_the_child)
