"""Signals that a process leaves to others, or to later."""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def signals_ignored(*numbers: signal.Signals) -> Iterator[None]:
    """Within the block this process does not notice `numbers`.

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


@contextmanager
def signals_delayed(*numbers: signal.Signals) -> Iterator[None]:
    """Within the block `numbers` wait until its end; processes that are started there never notice them."""
    before = signal.pthread_sigmask(signal.SIG_BLOCK, numbers)
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
