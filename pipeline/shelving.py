"""The shelf of a set that lies in a store: shards come into the cache before they are opened, in order of need.

Threads in the background fetch what is announced (`ahead`), a few shards at a time. Whoever opens a shard that is
not here yet waits for the thread that has it on its way, or fetches it at once, ahead of everything announced.
A failure in the background is told to nobody: whoever opens that shard tries again, and tells it.
"""

from __future__ import annotations

import os
import threading
import time
import weakref
from collections.abc import Callable, Sequence
from contextlib import suppress
from typing import Any

from ..shards import MANIFEST_NAME, AlexshardError, CorruptShardSet, Manifest, ShardEntry, WrongCall, byte_size
from .arrivals import Arrivals, Tally
from .cache import Cache
from .cache_files import NoRoom
from .fetching import RemoteFiles, Stopped
from .trace import span

SHARDS_AT_ONCE = 2  # in the background; more of them only make the first one late
ATTEMPTS = 3  # at a shard that comes with other bytes
_LOOK_S = 0.1  # how often it is asked whether another process is done, or room was made
# Until whoever waits for room is told: threads of this process soon let go of what they read, and are told so that
# they let go of what they keep open; other processes may be slow.
_OUR_ROOM_S, _OTHERS_ROOM_S = 5.0, 300.0
_END_S = 5.0  # that closing waits for threads to end


class _Flight:
    """A shard that this process has on its way."""

    def __init__(self) -> None:
        self.done = False
        self.error: Exception | None = None


class _Fetching:
    """What goes on between two calls of `close`, in one process."""

    def __init__(self, connect: Callable[[], RemoteFiles], cache: Cache, tally: Tally, digest: str) -> None:
        self.pid = os.getpid()
        self._connect, self._cache, self._tally, self._digest = connect, cache, tally, digest
        self._files: RemoteFiles | None = None
        self._connecting = threading.Lock()
        self._changed = threading.Condition()
        self._ended = threading.Event()
        self._flights: dict[str, _Flight] = {}
        self._elsewhere: set[str] = set()  # on their way in another process
        self._wanted: list[ShardEntry] = []
        self._threads: list[threading.Thread] = []
        self._at_work = 0  # of them; one that has seen the end of the list is not, though it may be alive still

    @property
    def files(self) -> RemoteFiles:
        with self._connecting:  # opened when something is fetched: a full cache needs no connection
            if self._files is None:
                self._files = self._connect()
                if self._ended.is_set():
                    self._files.stop()
            return self._files

    def open(self, shard: ShardEntry) -> int:
        """Wait for a shard, or fetch it now."""
        began = time.monotonic()
        while True:
            fd = self._cache.open(shard.sha256, shard.bytes)
            if fd is not None:
                return fd
            flight = self._flight_of(shard)
            if flight is None:
                continue
            try:
                fd = self._fetch(shard, flight, now=True)
            except NoRoom as error:
                if time.monotonic() > began + (_OTHERS_ROOM_S if error.others else _OUR_ROOM_S):
                    raise
            if fd is not None:
                return fd
            if self._ended.wait(_LOOK_S):
                raise Stopped(shard.name)

    def _flight_of(self, shard: ShardEntry) -> _Flight | None:
        """A flight to begin; None: another thread's has ended."""
        with self._changed:
            flight = self._flights.get(shard.sha256)
            if flight is None:
                if self._ended.is_set():
                    raise Stopped(shard.name)
                flight = self._flights[shard.sha256] = _Flight()
                return flight
            while not flight.done:
                self._changed.wait()
            if flight.error is not None:
                raise flight.error
            return None

    def ahead(self, shards: Sequence[ShardEntry]) -> None:
        with self._changed:
            self._wanted = list(shards)
            self._elsewhere.clear()
            self._changed.notify_all()
            self._threads = [thread for thread in self._threads if thread.is_alive()]
            while self._at_work < min(SHARDS_AT_ONCE, len(shards)) and not self._ended.is_set():
                thread = threading.Thread(target=self._work, name="alexshard-fetch", daemon=True)
                thread.start()
                self._threads.append(thread)
                self._at_work += 1

    def end(self) -> None:
        """Threads end soon, also in the middle of a shard; what waits gets `Stopped`.

        A thread in a library that cannot be interrupted is left behind after a while; it ends with the process.
        """
        self._ended.set()
        with self._changed:
            self._wanted = []
            threads, self._threads = self._threads, []
            self._changed.notify_all()
        if self._files is not None:
            self._files.stop()
        until = time.monotonic() + _END_S
        for thread in threads:
            thread.join(max(0.0, until - time.monotonic()))

    def _work(self) -> None:
        """In a thread: fetch what is wanted, until there is nothing left."""
        try:
            self._bring_all()
        except Exception:  # told to whoever opens a shard
            with self._changed:
                self._at_work -= 1

    def _bring_all(self) -> None:
        while (begun := self._next()) is not None:
            shard, flight = begun
            try:
                fd = self._fetch(shard, flight, now=False)
            except NoRoom:
                self._ended.wait(_LOOK_S)
            except Exception:  # told to whoever opens the shard
                with self._changed, suppress(ValueError):
                    self._wanted.remove(shard)
            else:
                if fd is not None:
                    os.close(fd)
                else:
                    self._elsewhere.add(shard.sha256)

    def _next(self) -> tuple[ShardEntry, _Flight] | None:
        """The first shard that is wanted and neither here nor on its way; waits for one; None: that was all."""
        with self._changed:
            while not self._ended.is_set():
                for shard in list(self._wanted):
                    if shard.sha256 in self._flights or shard.sha256 in self._elsewhere:
                        continue
                    if self._cache.holds(shard.sha256):
                        self._wanted.remove(shard)
                        continue
                    flight = self._flights[shard.sha256] = _Flight()
                    return shard, flight
                if not self._elsewhere:
                    break
                # Another process has the rest on its way; should it end, this one goes on.
                self._changed.wait(_LOOK_S)
                self._elsewhere.clear()
            self._at_work -= 1
            return None

    def _fetch(self, shard: ShardEntry, flight: _Flight, *, now: bool) -> int | None:
        """Bring a shard here. Returns its descriptor; None: it is here, or another process brings it."""
        try:
            with span("store", shard=shard.name, bytes=shard.bytes):
                return self._brought(shard, now)
        except NoRoom:
            raise
        except Exception as error:
            flight.error = error
            raise
        finally:
            with self._changed:
                flight.done = True
                del self._flights[shard.sha256]
                self._changed.notify_all()

    def _brought(self, shard: ShardEntry, now: bool) -> int | None:
        arriving = self._cache.begin(shard.sha256, shard.bytes, now=now)
        if arriving is None:
            return None
        try:
            for _ in range(ATTEMPTS):
                self.files.download(shard.name, shard.bytes, arriving.put)
                if arriving.sha256 == shard.sha256:
                    self._tally.add(shards=1, bytes=shard.bytes)
                    return arriving.finish()
                self._tally.add(spoilt=1)
            raise self._unusable(
                shard, f"came {ATTEMPTS} times with SHA-256 {arriving.sha256}, the manifest says {shard.sha256}"
            )
        except FileNotFoundError:
            arriving.abandon()
            raise self._unusable(shard, "is not there") from None
        except BaseException:
            arriving.abandon()
            raise

    def _unusable(self, shard: ShardEntry, what: str) -> CorruptShardSet:
        shown = self.files.shown
        replaced = False
        with suppress(AlexshardError, FileNotFoundError, UnicodeDecodeError):
            replaced = Manifest.parse(self.files.read(MANIFEST_NAME).decode("utf-8")).digest != self._digest
        if replaced:
            return CorruptShardSet(
                f"the shard set at {shown} was replaced by another one since it was opened: {shard.name} {what}",
                why="samples of two sets would be mixed",
                remedy="begin again with the new set; its digest is another, so states and checkpoints of the "
                "old one do not go on with it",
            )
        return CorruptShardSet(
            f"the shard {shard.name} {what}",
            where=f"{shown}/{shard.name}",
            why="images or labels would be wrong or missing",
            remedy="put the object there again, as it was built (SHA256SUMS beside it has its digest)",
        )


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
        self._tally = Tally()
        self._lock, self._mending = threading.Lock(), threading.Lock()
        self._now: list[_Fetching] = []  # at most one
        self._sound: dict[str, int] = {}  # which copy of a shard was looked through
        self._cache.need([digest])
        # Also at the end of the interpreter, before it stops threads in the middle of something.
        weakref.finalize(self, _end, self._now, cache)
        _shelves.add(self)

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

    def ahead(self, shards: Sequence[ShardEntry]) -> None:
        """These are wanted next, in this order: they are fetched, and stay until another list comes."""
        self._cache.need([self._digest, *(shard.sha256 for shard in shards)])
        self._fetching().ahead(shards)

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

    def check_fits(self, shards: Sequence[ShardEntry], window: int) -> None:
        """Whether the cache may hold what an order needs at a time: this window of shards and the next.

        Args:
            shards: of the split.
            window: shards of a window; as many as there are where any may be needed at any time.

        Raises:
            WrongCall: it may not.
        """
        sizes = sorted((shard.bytes for shard in shards), reverse=True)
        small = self._cache.bytes_of_set(self._digest)
        needed, room = small + sum(sizes[: 2 * window]), self._cache.most_bytes
        if needed <= room:
            return
        fitting = next((n for n in range(window, 0, -1) if small + sum(sizes[: 2 * n]) <= room), 0)
        every = window >= len(shards)
        order = f'order="windowed", window={fitting} (--order windowed --window {fitting}); or ' if fitting else ""
        raise WrongCall(
            f"the cache may hold {byte_size(room)}, and "
            + (f"all {len(shards):,} shards" if every else f"two windows of {window:,} shards")
            + f" take up to {byte_size(needed)}",
            where=str(self._cache.folder),
            why="shards would be fetched again and again"
            if every
            else "the next window is fetched while one is read",
            remedy=f"{order}cache_bytes={needed} (--cache-size {needed}), where the disk has room (--cache DIR)",
        )

    def close(self) -> None:
        """End what goes on in the background, also in the middle of a shard. A later call begins it again."""
        with self._lock:
            ended, self._now[:] = list(self._now), []
        for fetching in ended:
            fetching.end()
        self._cache.need([self._digest])

    def _fetching(self) -> _Fetching:
        with self._lock:
            if not self._now or self._now[0].pid != os.getpid():
                self._now[:] = [_Fetching(self._connect, self._cache, self._tally, self._digest)]
            return self._now[0]


def _end(now: list[_Fetching], cache: Cache) -> None:
    for fetching in now:
        if fetching.pid == os.getpid():
            fetching.end()
    cache.close()


_shelves: weakref.WeakSet[RemoteShelf] = weakref.WeakSet()


def _new_locks_in_the_child() -> None:
    for shelf in _shelves:
        shelf._lock, shelf._mending = threading.Lock(), threading.Lock()
        shelf._tally = Tally()


os.register_at_fork(after_in_child=_new_locks_in_the_child)
