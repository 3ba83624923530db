"""Who is at work on an output: one build at a time, and a second one is told who the first is.

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
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import TextIO

from ...shards import WrongCall

LOCK_NAME = "lock"
_NO_LOCKS = (errno.ENOSYS, errno.ENOTSUP, errno.EOPNOTSUPP, errno.ENOLCK)
_TRIES = 10  # a build that ends takes file and folder with it, at any moment, and the next try makes others


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
def locked(folder: Path, output: Path) -> Iterator[str | None]:
    """Within the block this process alone works in `folder`; gives a remark where that cannot be ensured.

    Raises:
        WrongCall: another build is at work; the message says who.
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
            remark = _lock(file, output)
            if not os.fstat(file.fileno()).st_nlink:
                continue  # its last holder has removed it
            _write(file, json.dumps(asdict(_me())))
            try:
                yield remark
            finally:
                _write(file, "")
            return
    raise _busy(output, None)


def _lock(file: TextIO, output: Path) -> str | None:
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        raise _busy(output, _holder(file)) from None
    except OSError as error:
        if error.errno not in _NO_LOCKS:
            raise
        holder = _holder(file)
        if holder is not None and holder.is_alive_here:
            raise _busy(output, holder) from None
        return (
            f"the disk of {output} knows no locks: see to it that no other machine builds there at the same time"
        )
    return None


def _me() -> Holder:
    return Holder(platform.node(), os.getpid(), f"{datetime.now(UTC):%Y-%m-%d %H:%M:%S} UTC")


def _holder(file: TextIO) -> Holder | None:
    file.seek(0)
    try:
        return Holder(**json.loads(file.read()))
    except (ValueError, TypeError):
        return None  # it has not said so yet


def _write(file: TextIO, text: str) -> None:
    file.seek(0)
    file.truncate()
    file.write(text)
    file.flush()


def _busy(output: Path, holder: Holder | None) -> WrongCall:
    return WrongCall(
        f"another build is at work on {output}",
        where=str(holder) if holder else "",
        why="two builds would spoil each other's shards",
        remedy="wait for it, or choose another folder with --out",
    )
