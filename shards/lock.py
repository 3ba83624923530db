"""Who is at work in a folder: one process at a time, and a second one is told who the first is.

The lock is the kernel's (flock), so that it ends with its holder, however that ends. The text in the locked file
says who holds it; it may be of a holder that was killed. Where a file system knows no locks, the text alone has to
do: a living process of this machine keeps others away, one of another machine cannot be asked.
"""

from __future__ import annotations

import errno
import fcntl
import json
import os
import platform
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import TextIO

from .errors import WrongCall
from .json_text import parse_json

LOCK_NAME = "lock"
_NO_LOCKS = (errno.ENOSYS, errno.ENOTSUP, errno.EOPNOTSUPP, errno.ENOLCK)
_TRIES = 10  # a build that ends takes file and folder with it, at any moment, and the next try makes others
_LOOKS, _LOOK_S = 5, 0.1  # `holder_of` holds the lock for an instant itself
Busy = Callable[["Holder | None"], WrongCall]  # the refusal, given who holds the lock


@dataclass(frozen=True, slots=True)
class Holder:
    """Who holds a lock."""

    host: str
    pid: int
    since: str

    def __str__(self) -> str:
        return f"process {self.pid} on {self.host}, since {self.since}"

    @property
    def is_alive_here(self) -> bool:
        """Whether it is another process of this machine that has not ended."""
        return self.host == platform.node() and is_another_running(self.pid)


def is_another_running(pid: int) -> bool:
    """Whether it is a process of this machine that has not ended, and not this one.

    What this one finds under its own number is of an earlier life: in containers numbers come again.
    """
    if pid in (0, os.getpid()):
        return False
    try:
        os.kill(pid, 0)
    except (ProcessLookupError, OverflowError):
        return False
    except PermissionError:
        pass  # it is somebody else's
    return True


@contextmanager
def locked(folder: Path, *, busy: Busy, no_locks: str) -> Iterator[str | None]:
    """Within the block this process alone works in `folder`; gives `no_locks` where that cannot be ensured.

    Raises:
        WrongCall: another one is at work; `busy` makes the message.
        OSError: the folder cannot be made or written to.
    """
    for tries_left in reversed(range(_TRIES)):
        try:
            folder.mkdir(parents=True, exist_ok=True)
            file = (folder / LOCK_NAME).open("a+", encoding="ascii")
        except (FileNotFoundError, FileExistsError):
            if not tries_left:
                raise
            continue  # its last holder has just removed what was there
        with file:
            sure = _lock(file, busy)
            if not os.fstat(file.fileno()).st_nlink:
                continue  # its last holder has removed it
            _write(file, json.dumps(asdict(_me())))
            try:
                yield None if sure else no_locks
            finally:
                _write(file, "")
            return
    raise busy(None)


def holder_of(folder: Path) -> Holder | None:
    """Who is at work there now; None: nobody."""
    try:
        with (folder / LOCK_NAME).open(encoding="ascii") as file:
            try:
                fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
            except BlockingIOError:
                return _holder(file) or Holder("this or another machine", 0, "just now")
            except OSError as error:
                if error.errno not in _NO_LOCKS:
                    raise
                holder = _holder(file)
                return holder if holder is not None and holder.is_alive_here else None
    except OSError:
        pass  # there is no such file, or it is not for our eyes
    return None


def _lock(file: TextIO, busy: Busy) -> bool:
    """Whether it is ensured that nobody else is at work."""
    for looks_left in reversed(range(_LOOKS)):
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return True
        except BlockingIOError:
            if not looks_left:
                raise busy(_holder(file)) from None
            time.sleep(_LOOK_S)
        except OSError as error:
            if error.errno not in _NO_LOCKS:
                raise
            holder = _holder(file)
            if holder is not None and holder.is_alive_here:
                raise busy(holder) from None
            return False
    raise AssertionError("unreachable")


def _me() -> Holder:
    return Holder(platform.node(), os.getpid(), f"{datetime.now(UTC):%Y-%m-%d %H:%M:%S} UTC")


def _holder(file: TextIO) -> Holder | None:
    file.seek(0)
    try:
        return Holder(**parse_json(file.read()))
    except (ValueError, TypeError):
        return None  # it has not said so yet


def _write(file: TextIO, text: str) -> None:
    file.seek(0)
    file.truncate()
    file.write(text)
    file.flush()
