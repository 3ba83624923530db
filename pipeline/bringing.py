"""Bringing shards from a store into the cache: one process's threads, those announced and those waited for."""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable, Sequence
from contextlib import suppress

from ..shards import MANIFEST_NAME, AlexshardError, CorruptShardSet, Manifest, ShardEntry
from .arrivals import Tally
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


class Fetching:
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
