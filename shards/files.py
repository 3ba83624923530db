"""The open shards of a split: a bounded number of descriptors, whatever the number of shards.

Shards are read by `pread`, not mapped: a map of a file that shrinks or cannot be read ends the process by a
signal, `pread` gives an error that can be told.
"""

from __future__ import annotations

import os
import threading
import weakref
from collections import OrderedDict
from collections.abc import Collection
from pathlib import Path

from .errors import AlexshardError, corrupt
from .reader import SplitIndex
from .shelf import Shelf, no_descriptors

_LEAST_OPEN = 4


class OpenShard:
    """A descriptor that is closed when nobody holds this any more."""

    __slots__ = ("__weakref__", "fd")

    def __init__(self, fd: int) -> None:
        self.fd = fd

    def __del__(self, close=os.close) -> None:  # type: ignore[no-untyped-def]  # os may be gone at the end
        close(self.fd)


class ShardFiles:
    """The shards of a split, each opened when it is first asked for. Threads may share one.

    Args:
        index: of the split.
        shelf: where its shards are opened.
        max_open: descriptors kept at most, beyond those that somebody holds; None: half of what the process has
            left.
    """

    def __init__(self, index: SplitIndex, shelf: Shelf, max_open: int | None = None) -> None:
        self.index, self.shelf = index, shelf
        self.max_open = _descriptors_to_spare() if max_open is None else max_open
        self._open: OrderedDict[int, OpenShard] = OrderedDict()  # the one used last is the last
        self._closed = False
        self._begin()
        _files.add(self)

    def _begin(self) -> None:
        self._lock = threading.Lock()
        self._opening: dict[int, threading.Lock] = {}

    def lease(self, shard: int) -> OpenShard:
        """The shard at a place of `index.shards`; stays open as long as it is held.

        Raises:
            CorruptShardSet: it is missing, cannot be opened, or has another size.
            AlexshardError: the process has no descriptor left.
        """
        with self._lock:
            found = self._open.get(shard)
            if found is not None:
                self._open.move_to_end(shard)
                return found
            opening = self._opening.setdefault(shard, threading.Lock())
        with opening:  # a shard may take long to arrive: others are read meanwhile, and it is fetched once
            with self._lock:
                found = self._open.get(shard)
            if found is None:
                found = OpenShard(self._descriptor(shard))
                with self._lock:
                    if not self._closed:
                        self._open[shard] = found
                    self._opening.pop(shard, None)
                    self._shrink(self.max_open)
        return found

    def again(self, shard: int) -> bool:
        """Its bytes are not those that were packed: let go of it if the shelf has another copy of it."""
        again = self.shelf.again(self.index.shards[shard])
        with self._lock:  # after that: another thread may have opened the old copy meanwhile
            self._open.pop(shard, None)
        return again

    def keep_only(self, shards: Collection[int]) -> None:
        """Let go of all others: they are not wanted soon, and a cache may drop what nobody holds."""
        with self._lock:
            for shard in self._open.keys() - set(shards):
                del self._open[shard]

    def bytes_of(self, position: int) -> bytes:
        """A copy of the image of the sample at `position` of the split's order on disk, as stored (JPEG or PPM).

        Raises:
            CorruptShardSet: its shard is missing, cannot be read, or ends too early.
        """
        shard = int(self.index.shard[position])
        size, offset = int(self.index.size[position]), int(self.index.offset[position])
        opened = self.lease(shard)
        try:
            data = os.pread(opened.fd, size, offset)
        except OSError as error:
            raise self.unreadable(position, f"cannot be read: {error.strerror}") from error
        if len(data) != size:
            raise self.unreadable(position, f"ends at byte {os.fstat(opened.fd).st_size:,}")
        return data

    def unreadable(self, position: int, what: str) -> AlexshardError:
        """The error that names the place of a sample whose shard `what`."""
        index = self.index
        entry = index.shards[index.shard[position]]
        return corrupt(
            self.shelf.shown,
            f"the shard {entry.name} {what}, while sample {index.keys[position]} was read",
            where=self.place_of(position),
        )

    def place_of(self, position: int) -> str:
        """Shard, byte and size of a sample, for messages."""
        index = self.index
        name = index.shards[index.shard[position]].name
        return (
            f"{self.shelf.shown.rstrip('/')}/{name}, at byte {index.offset[position]:,} "
            f"({index.size[position]:,} bytes)"
        )

    def _descriptor(self, shard: int) -> int:
        entry = self.index.shards[shard]
        while True:
            try:
                return self.shelf.open(entry)
            except OSError as error:
                if not no_descriptors(error):
                    raise
                with self._lock:
                    fewer = len(self._open) // 2
                    if not self._open:
                        raise AlexshardError(
                            f"the shard {entry.name} cannot be opened: {error.strerror}",
                            where=self.shelf.shown,
                            # A shelf without room says so in the same way as one without a descriptor.
                            why=getattr(error, "why", "this process may not open another file"),
                            remedy=getattr(
                                error,
                                "remedy",
                                "ulimit -n 4096 before it is started; or close what else it holds open",
                            ),
                        ) from error
                    # Somebody else in this process took what was left: make do with fewer from now on.
                    self.max_open = max(1, min(self.max_open, fewer))
                    self._shrink(fewer)

    def _shrink(self, most: int) -> None:
        while len(self._open) > most:
            self._open.popitem(last=False)

    def close(self) -> None:
        """Let go of all descriptors; those that somebody holds are closed after that."""
        with self._lock:
            self._closed = True
            self._open.clear()

    def __enter__(self) -> ShardFiles:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def _descriptors_to_spare() -> int:
    """Half of the descriptors that this process may still open."""
    try:
        import resource

        most = resource.getrlimit(resource.RLIMIT_NOFILE)[0]
        held = sum(1 for _ in Path("/proc/self/fd").iterdir())
    except (ImportError, OSError):
        return 64
    return max(_LEAST_OPEN, (most - held) // 2)


_files: weakref.WeakSet[ShardFiles] = weakref.WeakSet()


def _begin_in_the_child() -> None:
    """A forked child has none of the threads of its parent, one of which may have held a lock."""
    for files in _files:
        files._begin()


os.register_at_fork(after_in_child=_begin_in_the_child)
