"""Where a loader's time went, always counted."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Times:
    """Since the loader was made, in seconds. What is waited for tells which side is the slower one."""

    waited_s: float  # the consumer, for a batch: the loader is the limit
    made_s: float  # the background thread, making batches
    full_s: float  # the background thread, for room: the consumer is the limit
    store_s: float  # threads, for a shard to arrive from a store; of all loaders of one shard set
    images: int  # delivered


class Clock:
    """Adds up seconds by name; each name belongs to one thread at a time."""

    def __init__(self) -> None:
        self.waited_s = self.made_s = self.full_s = 0.0
        self.images = 0

    @contextmanager
    def counting(self, name: str) -> Iterator[None]:
        """Add the block's seconds to `name`."""
        began = time.perf_counter()
        try:
            yield
        finally:
            setattr(self, name, getattr(self, name) + time.perf_counter() - began)
