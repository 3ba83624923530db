"""A request to stop that is answered between two steps.

SIGINT is Ctrl-C, SIGTERM what clusters and `kill` send, SIGUSR1 Slurm's warning before its time is over
(sbatch --signal=B:USR1@120), SIGHUP that the terminal has gone.
"""

from __future__ import annotations

import os
import signal
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType


class Interrupt:
    """The signal that asked to stop, once one did."""

    def __init__(self) -> None:
        self.signal: signal.Signals | None = None
        self.at = 0.0  # by time.monotonic

    def __call__(self) -> bool:
        return self.signal is not None


REPEAT_S = 2.0
SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1, signal.SIGHUP)


@contextmanager
def stopping_in_order() -> Iterator[Interrupt]:
    """Within the block these signals are noted; a Ctrl-C later, or the same again, acts at once, as outside.

    Not within `REPEAT_S`: who signals all processes of a job has those of torchrun signalled twice, since it hands
    on what it gets.

    Another one than the first is not heeded: a cluster warns by one signal and stops by another, while the state
    is being written.
    """
    interrupt = Interrupt()
    if threading.current_thread() is not threading.main_thread():
        yield interrupt  # Python lets only the main thread handle signals
        return
    before = {number: signal.getsignal(number) for number in SIGNALS}
    if before[signal.SIGHUP] is signal.SIG_IGN:
        del before[signal.SIGHUP]  # nohup

    def note(number: int, _frame: FrameType | None) -> None:
        if interrupt.signal is None:
            interrupt.signal, interrupt.at = signal.Signals(number), time.monotonic()
        elif number in (interrupt.signal, signal.SIGINT) and time.monotonic() - interrupt.at > REPEAT_S:
            signal.signal(number, before[signal.Signals(number)])
            os.kill(os.getpid(), number)

    for number in before:
        signal.signal(number, note)
    try:
        yield interrupt
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
