"""What came over the network for a shelf, and how long it was waited for."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace


@dataclass(frozen=True, slots=True)
class Arrivals:
    """What came over the network for one shelf, since it was made."""

    shards: int = 0  # that came
    bytes: int = 0  # of them
    spoilt: int = 0  # that came with other bytes, and were fetched again
    damaged: int = 0  # found damaged in the cache, and fetched again
    stalled_s: float = 0.0  # seconds in which somebody waited for a shard


class Tally:
    """Counts arrivals; seconds in which several wait count once."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._arrivals = Arrivals()
        self._waiting, self._since = 0, 0.0

    def add(self, *, shards: int = 0, bytes: int = 0, spoilt: int = 0, damaged: int = 0) -> None:
        with self._lock:
            old = self._arrivals
            self._arrivals = replace(
                old,
                shards=old.shards + shards,
                bytes=old.bytes + bytes,
                spoilt=old.spoilt + spoilt,
                damaged=old.damaged + damaged,
            )

    @contextmanager
    def waiting(self) -> Iterator[None]:
        with self._lock:
            if not self._waiting:
                self._since = time.monotonic()
            self._waiting += 1
        try:
            yield
        finally:
            with self._lock:
                self._waiting -= 1
                if not self._waiting:
                    stalled = self._arrivals.stalled_s + time.monotonic() - self._since
                    self._arrivals = replace(self._arrivals, stalled_s=stalled)

    def now(self) -> Arrivals:
        with self._lock:
            running = time.monotonic() - self._since if self._waiting else 0.0
            return replace(self._arrivals, stalled_s=self._arrivals.stalled_s + running)
