"""Threads that do the pieces of a task.

They take pieces in the order in which tasks were begun, so the first threads done with one task go on with the
next instead of waiting for its slowest piece. The work itself (reading, decoding, the kernels) is done below
Python's lock.
"""

from __future__ import annotations

import threading
import time
import weakref
from collections.abc import Callable, Sequence
from functools import cache
from queue import SimpleQueue
from typing import Generic, TypeVar

S = TypeVar("S")  # what each thread keeps for itself, such as its buffers

_LEAVE_AFTER_S = 2.0  # threads that wait for a distant shard are not waited for when the crew ends


class Abandoned(Exception):
    """Told to the thread that waits for a task which somebody else cancelled; goes no further than that thread."""


class Task(Generic[S]):
    """Pieces of work that belong together; made by `Crew.begin`."""

    def __init__(self, pieces: Sequence[Callable[[S], None]]) -> None:
        self._pieces: list[Callable[[S], None] | None] = list(pieces)
        self._left = len(pieces)
        self._lock = threading.Lock()
        self._over = threading.Event()
        self._failed: tuple[int, BaseException] | None = None
        self._cancelled = False
        if not pieces:
            self._over.set()

    def __len__(self) -> int:
        return len(self._pieces)

    def do(self, number: int, own: Callable[[], S]) -> None:
        """Do one piece, unless an earlier one failed: which error is told must not depend on the threads' luck."""
        piece, self._pieces[number] = self._pieces[number], None
        error: BaseException | None = None
        failed = self._failed
        if piece is not None and not self._cancelled and (failed is None or failed[0] > number):
            try:
                piece(own())
            except BaseException as raised:  # whatever it is, whoever waits raises it
                error = raised
        with self._lock:
            if error is not None and (self._failed is None or self._failed[0] > number):
                self._failed = (number, error)
            self._left -= 1
            if self._left == 0:
                self._over.set()

    def wait(self) -> None:
        """Wait until every piece is done.

        Raises:
            Abandoned: the task was cancelled meanwhile.
            BaseException: what the first of the pieces that failed raised.
        """
        self._over.wait()
        if self._cancelled:
            raise Abandoned("this batch is no longer wanted")
        if self._failed is not None:
            raise self._failed[1]

    def cancel(self) -> None:
        """Leave out the pieces that have not begun, and wake whoever waits. Pieces that run end on their own."""
        self._cancelled = True
        self._over.set()


class Crew(Generic[S]):
    """A number of threads, started with the first task.

    They end with `close`, when the crew is forgotten, and before the interpreter exits, so that none is cut off in
    the middle of a call. They do not keep a process alive.

    Args:
        threads: how many.
        own: makes what each thread keeps for itself; called in that thread.
    """

    def __init__(self, threads: int, own: Callable[[], S], name: str = "alexshard-decode") -> None:
        self._queue: SimpleQueue[tuple[Task[S], int] | None] = SimpleQueue()
        self._threads = [
            # Daemons: the interpreter waits for other threads before it runs anything at exit.
            threading.Thread(target=_work, args=(self._queue, own), name=f"{name}_{number}", daemon=True)
            for number in range(threads)
        ]
        self._end = weakref.finalize(self, _end, self._queue, self._threads)

    def __len__(self) -> int:
        return len(self._threads)

    def begin(self, pieces: Sequence[Callable[[S], None]]) -> Task[S]:
        """Have the pieces done, after those of earlier tasks."""
        if self._threads[0].ident is None:
            for thread in self._threads:
                thread.start()
        task = Task(pieces)
        for number in range(len(task)):
            self._queue.put((task, number))
        return task

    def close(self) -> None:
        """End the threads. Those that still wait for something far away are left to end on their own."""
        self._end()


def _work(queue: SimpleQueue[tuple[Task[S], int] | None], own: Callable[[], S]) -> None:
    mine = cache(own)
    while (item := queue.get()) is not None:
        task, number = item
        task.do(number, mine)
        del item, task  # else a batch would be kept until the next piece comes


def _end(queue: SimpleQueue[tuple[Task[S], int] | None], threads: Sequence[threading.Thread]) -> None:
    for _ in threads:
        queue.put(None)
    deadline = time.monotonic() + _LEAVE_AFTER_S
    for thread in threads:
        # It may be one of them that collected the garbage in which the crew lay.
        if thread.is_alive() and thread is not threading.current_thread():
            thread.join(max(0.0, deadline - time.monotonic()))
