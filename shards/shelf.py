"""Where the shards of a set are opened: a folder of this machine, or what else can give a descriptor of one."""

from __future__ import annotations

import errno
import os
import threading
import weakref
from collections.abc import Iterable, Sequence
from itertools import zip_longest
from pathlib import Path
from typing import Protocol

from .errors import CorruptShardSet, corrupt
from .manifest import ShardEntry
from .regular import open_descriptor, regular_status

# Linux reads at most the read-ahead of the disk for one advice (128 KiB where nobody set it otherwise) and
# forgets the rest, so it is given in pieces of that size.
_PIECE = 128 << 10
_MOST_OF_MEMORY = 4  # at most this part of the free memory is filled ahead


class Shelf(Protocol):
    """Opens the shards of one set. Threads may share it."""

    shown: str
    """How messages name the set: a folder, or an address without what is secret in it."""

    def open(self, shard: ShardEntry) -> int:
        """A read-only descriptor of the whole shard, which the caller closes; waits until the shard is here.

        Raises:
            CorruptShardSet: it is missing, cannot be opened, or has another size.
            OSError: no descriptor is left (EMFILE, ENFILE).
        """

    def ahead(self, shards: Sequence[ShardEntry], by: object = None) -> None:
        """A reader wants these next, in this order: its whole list, which replaces its last one; [] is none.

        Lists of several readers, loaders of one set, stand side by side; each is known by an object of its own.
        """

    def check_fits(self, shards: Sequence[ShardEntry], window: int, by: object = None) -> None:
        """Whether two windows of `window` of these shards fit where they are kept, beside what others read.

        Raises:
            WrongCall: they do not.
        """

    def again(self, shard: ShardEntry) -> bool:
        """Bytes of a shard are not those that were packed: whether `open` now gives another copy of it."""

    def close(self) -> None:
        """End what goes on in the background. It is not final: several loaders may share a shelf."""


class Readers:
    """What the readers of a shelf want next. A reader that is gone wants nothing. Not safe across threads."""

    def __init__(self) -> None:
        self._lists: weakref.WeakKeyDictionary[object, list[ShardEntry]] = weakref.WeakKeyDictionary()

    def wants(self, by: object, shards: Sequence[ShardEntry]) -> list[ShardEntry]:
        """Note a reader's list. Returns all of them as one: the first shard of each, the second of each, ..."""
        self._lists.pop(by, None)
        if shards:
            self._lists[by] = list(shards)
        turns = zip_longest(*list(self._lists.values()))
        return list(dict.fromkeys(shard for turn in turns for shard in turn if shard is not None))


def no_descriptors(error: OSError) -> bool:
    """Whether the process or the machine has no descriptor left."""
    return error.errno in (errno.EMFILE, errno.ENFILE)


class LocalShelf:
    """The shards in a folder of this machine.

    What is wanted next is read into the memory that the system has to spare, by a thread of its own that ends
    with the list.
    """

    def __init__(self, folder: Path) -> None:
        self.shown = str(folder)
        self._folder = folder
        self._begin()
        _shelves.add(self)

    def _begin(self) -> None:
        self._lock = threading.Lock()
        self._readers = Readers()
        self._wanted: list[ShardEntry] = []  # by the thread; changed under the lock
        self._list = 0  # counts lists, so that the thread drops what it has begun of an old one
        self._thread: threading.Thread | None = None

    def __reduce__(self) -> tuple[type[LocalShelf], tuple[Path]]:
        """A set goes to the workers of a `DataLoader`; what is read ahead stays here."""
        return LocalShelf, (self._folder,)

    def check(self, shards: Iterable[ShardEntry]) -> None:
        """Compare shards with what is promised of them, at the cost of one look at each.

        Raises:
            CorruptShardSet: a shard is missing, no file, not to be read, or of another size.
        """
        for shard in shards:
            try:
                size = regular_status(self._folder / shard.name).st_size
            except OSError as error:
                raise self._unusable(shard, f"cannot be opened: {error.strerror}") from error
            self._check_size(shard, size)

    def open(self, shard: ShardEntry) -> int:
        try:
            number = open_descriptor(self._folder / shard.name)
        except OSError as error:
            if no_descriptors(error):
                raise
            raise self._unusable(shard, f"cannot be opened: {error.strerror}") from error
        try:
            self._check_size(shard, os.fstat(number).st_size)
        except BaseException:
            os.close(number)
            raise
        return number

    def _check_size(self, shard: ShardEntry, size: int) -> None:
        if size != shard.bytes:
            raise self._unusable(shard, f"has {size:,} bytes, the manifest says {shard.bytes:,}")

    def _unusable(self, shard: ShardEntry, what: str) -> CorruptShardSet:
        return corrupt(self.shown, f"the shard {shard.name} {what}")

    def ahead(self, shards: Sequence[ShardEntry], by: object = None) -> None:
        if not hasattr(os, "posix_fadvise"):
            return
        with self._lock:
            self._wanted = self._readers.wants(self if by is None else by, shards)
            self._list += 1
            if self._wanted and self._thread is None:
                self._thread = threading.Thread(target=self._advise, name="alexshard-ahead", daemon=True)
                self._thread.start()

    def _advise(self) -> None:
        """In the thread: ask for one shard after another, until the list is done."""
        left, of = 0, -1
        while True:
            with self._lock:
                if of != self._list:
                    left, of = _bytes_to_spare(), self._list
                if not self._wanted or left <= 0:
                    self._thread = None
                    return
                shard = self._wanted.pop(0)
            left -= shard.bytes
            self._ask_for(shard, of)

    def _ask_for(self, shard: ShardEntry, of: int) -> None:
        try:
            number = open_descriptor(self._folder / shard.name)
        except OSError:
            return  # whoever reads it will say what is wrong
        try:
            for start in range(0, shard.bytes, _PIECE):
                if of != self._list:
                    return
                os.posix_fadvise(number, start, _PIECE, os.POSIX_FADV_WILLNEED)
        except OSError:
            return  # a file system that takes no advice
        finally:
            os.close(number)

    def check_fits(self, shards: Sequence[ShardEntry], window: int, by: object = None) -> None:
        """They lie where they are kept."""

    def again(self, shard: ShardEntry) -> bool:
        """It may have been put right since it was opened: who opens it once more will see."""
        return (self._folder / shard.name).is_file()

    def close(self) -> None:
        with self._lock:
            self._wanted, self._readers = [], Readers()
            self._list += 1
            thread = self._thread
        if thread is not None:
            thread.join()


def _bytes_to_spare() -> int:
    """How much is read ahead at most: what is read too early is pushed out again before it is used."""
    try:
        with Path("/proc/meminfo").open(encoding="ascii") as lines:
            available = next(int(line.split()[1]) for line in lines if line.startswith("MemAvailable:")) << 10
    except (OSError, StopIteration):
        available = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") // 2
    return available // _MOST_OF_MEMORY


_shelves: weakref.WeakSet[LocalShelf] = weakref.WeakSet()


def _begin_in_the_child() -> None:
    """A forked child has none of the threads of its parent, one of which may have held a lock."""
    for shelf in _shelves:
        shelf._begin()


os.register_at_fork(after_in_child=_begin_in_the_child)
