"""Reading ahead: an iterator runs in a background thread, some items ahead of whoever takes them."""

from __future__ import annotations

import queue
import threading
import weakref
from collections.abc import Generator
from typing import Generic, TypeVar

T = TypeVar("T")


class _End:
    """What the thread hands over last: nothing more, or what stopped it."""

    def __init__(self, error: BaseException | None = None) -> None:
        self.error = error


class ReadAhead(Generic[T]):
    """Iterates over `items` as if directly; exceptions arrive where they would.

    The thread ends when the items do, at the first exception, at `close`, when this object is forgotten, and
    before the interpreter exits: it never keeps a process alive, and is never cut off in the middle of a call.
    """

    def __init__(self, items: Generator[T, None, None], depth: int) -> None:
        self._queue: queue.Queue[T | _End] = queue.Queue(max(1, depth))
        stop = threading.Event()
        # The thread knows nothing of this object, so that forgetting it ends the thread. A daemon, since the
        # interpreter waits for other threads before it runs finalizers.
        thread = threading.Thread(
            target=_run, args=(items, self._queue, stop), name="alexshard-read-ahead", daemon=True
        )
        self._close = weakref.finalize(self, _stop, self._queue, stop, thread)
        thread.start()

    @property
    def closed(self) -> bool:
        return not self._close.alive

    def __iter__(self) -> ReadAhead[T]:
        return self

    def __next__(self) -> T:
        if self.closed:
            raise StopIteration
        item = self._queue.get()
        if not isinstance(item, _End):
            return item
        self.close()
        if item.error is None:
            raise StopIteration
        raise item.error

    def close(self) -> None:
        """End the thread and wait for it; items read ahead are let go. May be called again."""
        self._close()


def _run(items: Generator[T, None, None], out: queue.Queue[T | _End], stop: threading.Event) -> None:
    end = _End()
    try:
        for item in items:
            out.put(item)
            del item  # else a batch would be kept until the next is ready
            if stop.is_set():
                break
    except BaseException as error:  # whatever it is, the other side raises it
        end = _End(error)
    finally:
        items.close()
    if not stop.is_set():
        out.put(end)


def _stop(out: queue.Queue[T | _End], stop: threading.Event, thread: threading.Thread) -> None:
    stop.set()
    # The thread may be waiting for room. It looks at `stop` after each item, so one emptied queue lets it go.
    while thread.is_alive():
        _empty(out)
        thread.join(0.05)
    _empty(out)
    out.put(_End())  # for a thread that waits for an item while another closes


def _empty(out: queue.Queue[T | _End]) -> None:
    try:
        while True:
            out.get_nowait()
    except queue.Empty:
        return
