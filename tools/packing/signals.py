"""Signals that a process leaves to others, or to later."""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def signals_ignored(*numbers: signal.Signals) -> Iterator[None]:
    """Within the block this process, and for good every process that it starts there, does not notice `numbers`.

    Only in the main thread: no other may say so, and no other gets them.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = {number: signal.signal(number, signal.SIG_IGN) for number in numbers}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
