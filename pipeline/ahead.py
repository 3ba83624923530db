"""Reading ahead: an iterator runs in a background thread, some items ahead of whoever takes them."""

from __future__ import annotations

import atexit
import os
import queue
import threading
from collections.abc import Callable, Generator
from contextlib import suppress
from typing import Generic, TypeVar

from .times import Clock

T = TypeVar("T")


class _End:
    """What the thread hands over last: nothing more, or what stopped it."""

    def __init__(self, error: BaseException | None = None) -> None:
        self.error = error


class ReadAhead(Generic[T]):
    """Iterates over `items` as if directly; exceptions arrive where they would.

    The thread starts with the first `next`: one that was never asked for anything holds nothing. It ends when the
    items do, at the first exception, at `close` (whoever began owes that), and before the interpreter exits: it
    never keeps a process alive, and is never cut off in the middle of a call.

    Args:
        items: made in the thread.
        depth: items ready at most.
        interrupt: called, again and again, while `close` waits for the thread: makes an item that is being made
            fail, if it would take long.
        clock: counts how long the thread made items (made_s) and waited for room (full_s), and how long whoever
            takes them waited (waited_s).
    """

    def __init__(
        self,
        items: Generator[T, None, None],
        depth: int,
        *,
        interrupt: Callable[[], None] = lambda: None,
        clock: Clock | None = None,
    ) -> None:
        self._items = items
        self._interrupt = interrupt
        self._clock = clock or Clock()
        self._process = os.getpid()
        self._queue: queue.Queue[T | _End] = queue.Queue(max(1, depth))
        self._stop = threading.Event()
        # A daemon, since the interpreter waits for other threads before it runs anything at exit.
        self._thread = threading.Thread(target=self._run, name="alexshard-read-ahead", daemon=True)

    @property
    def full(self) -> bool:
        """Whether as many items are ready as may be."""
        return self._queue.full()

    def __iter__(self) -> ReadAhead[T]:
        return self

    def __next__(self) -> T:
        if self._stop.is_set():
            raise StopIteration
        if self._thread.ident is None:
            # Functions at exit run last in, first out: whatever the items need and is there by now, DALI for one,
            # which shuts its pipelines down at exit, outlives the thread.
            atexit.register(self.close)
            self._thread.start()
        with self._clock.counting("waited_s"):
            item = self._queue.get()
        if not isinstance(item, _End):
            return item
        self.close()
        if item.error is None:
            raise StopIteration
        raise item.error

    def close(self) -> None:
        """End the thread and wait for it; items read ahead are let go. May be called again."""
        if self._stop.is_set():
            return
        self._stop.set()
        atexit.unregister(self.close)
        if os.getpid() != self._process:  # a fork has no threads, and its copy of the queue may be locked
            return
        if threading.current_thread() is self._thread:  # it collected the garbage that held the iterator
            self._empty()
            return
        # The thread may be waiting for room. It looks at `_stop` after each item: one emptied queue lets it go.
        while self._thread.is_alive():
            self._interrupt()
            self._empty()
            self._thread.join(0.05)
        self._empty()
        self._queue.put(_End())  # for a thread that waits for an item while another closes

    def _empty(self) -> None:
        with suppress(queue.Empty):
            while True:
                self._queue.get_nowait()

    def _run(self) -> None:
        end = _End()
        try:
            while not self._stop.is_set():
                with self._clock.counting("made_s"):
                    item = next(self._items)
                with self._clock.counting("full_s"):
                    self._queue.put(item)
                del item  # else a batch would be kept until the next is ready
        except StopIteration:
            pass
        except BaseException as error:  # whatever it is, the other side raises it
            end = _End(error)
        try:
            self._items.close()
        except BaseException as error:  # else whoever takes the items would wait for ever
            end = _End(end.error or error)
        if not self._stop.is_set():
            self._queue.put(end)
