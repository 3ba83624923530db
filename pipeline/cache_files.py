"""What lies in the folder of a cache: shards that arrive, locks, and what can be removed. See cache.py."""

from __future__ import annotations

import errno
import fcntl
import hashlib
import os
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

from ..shards import AlexshardError, WrongCall, byte_size

SHARD, PART = ".tar", ".part"
_NO_LOCKS = (errno.ENOSYS, errno.ENOTSUP, errno.EOPNOTSUPP, errno.ENOLCK)
FULL = (errno.ENOSPC, errno.EDQUOT)


class NoRoom(OSError):
    """The cap of a cache is taken up by what is open or needed now.

    It says EMFILE, as where a process has no descriptor left, since the cure is the same: keep fewer shards open.
    Where that does not help either, `why` and `remedy` are for the message.
    """

    why = "shards that are read now, or needed next by other processes, stay in the cache"
    remedy = "give the cache more room (--cache-size, cache_bytes); or end what else uses it"

    def __init__(self, folder: Path, most_bytes: int, size: int, *, others: bool) -> None:
        self.others = others  # whether other processes need some of it
        super().__init__(
            errno.EMFILE,
            f"the cache {folder} may hold {byte_size(most_bytes)} (--cache-size), and what is open "
            f"or needed in its place leaves no room for {byte_size(size)}",
        )


class Arriving:
    """A shard on its way: its bytes are digested as they come, in order."""

    def __init__(self, fd: int, part: Path, whole: Path, size: int, let_go: Callable[[int], None]) -> None:
        self._fd, self._part, self._whole, self._size, self._let_go = fd, part, whole, size, let_go
        self._digest = hashlib.sha256()
        self._next = 0

    def put(self, offset: int, data: bytes) -> None:
        """The bytes from `offset`, where the last ones ended, or from 0 again."""
        if offset == 0:
            self._digest, self._next = hashlib.sha256(), 0
        if offset != self._next or offset + len(data) > self._size:
            raise OSError(f"{len(data):,} bytes came for byte {offset:,} of {self._size:,}")
        self._digest.update(data)
        with writing(self._part.parent):
            view = memoryview(data)
            while view:
                view = view[os.pwrite(self._fd, view, self._next + len(data) - len(view)) :]
        self._next += len(data)

    @property
    def sha256(self) -> str:
        return self._digest.hexdigest()

    def finish(self) -> int:
        """Give the shard its name. Returns its descriptor, which the caller closes; until then the shard stays."""
        with writing(self._part.parent):
            self._part.replace(self._whole)
        fcntl.flock(self._fd, fcntl.LOCK_SH)
        self._let_go(self._fd)
        return self._fd

    def abandon(self) -> None:
        """Nothing of it remains."""
        self._part.unlink(missing_ok=True)
        self._let_go(self._fd)
        os.close(self._fd)


@dataclass(frozen=True, slots=True)
class Item:
    """Something that can go: a shard, or the small files of a set."""

    path: Path
    bytes: int
    used_ns: int


def items_in(shards: Path, sets: Path) -> list[Item]:
    """All that takes up room: shards, whole and on their way, and the small files of sets."""
    found = []
    for entry in os.scandir(shards):
        with suppress(FileNotFoundError):
            status = entry.stat(follow_symlinks=False)
            found.append(Item(Path(entry.path), status.st_size, status.st_mtime_ns))
    for folder in sets.iterdir():
        with suppress(FileNotFoundError):
            sizes = sum(entry.stat(follow_symlinks=False).st_size for entry in os.scandir(folder))
            found.append(Item(folder, sizes, folder.stat().st_mtime_ns))
    return found


def lock_now(fd: int) -> bool:
    """Take the lock of an open file, if nobody else has it."""
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def is_at(fd: int, path: Path) -> bool:
    """Whether a path still is the file of a descriptor."""
    try:
        there, here = path.stat(), os.fstat(fd)
    except FileNotFoundError:
        return False
    return (there.st_dev, there.st_ino) == (here.st_dev, here.st_ino)


def remove(path: Path) -> bool:
    """Remove a shard that nobody has open, or the small files of a set that nobody fills."""
    is_shard = path.suffix == SHARD
    locked = path if is_shard else path / ".lock"
    try:
        fd = os.open(locked, os.O_RDWR | os.O_CLOEXEC | (0 if is_shard else os.O_CREAT), 0o666)
    except OSError:
        return False
    try:
        if not lock_now(fd) or not is_at(fd, locked):
            return False
        if is_shard:
            path.unlink()
        else:
            shutil.rmtree(path, ignore_errors=True)
        return True
    except OSError:
        return False
    finally:
        os.close(fd)


@contextmanager
def writing(folder: Path) -> Iterator[None]:
    """Turn what the disk of a cache refuses within the block into words."""
    try:
        yield
    except NoRoom:
        raise
    except OSError as error:
        raise unusable(folder, error) from None


def unusable(folder: Path, error: OSError) -> AlexshardError:
    """What the disk refuses, in words."""
    if error.errno in FULL:
        return AlexshardError(
            f"the disk of the cache is full: {error.strerror}",
            where=str(folder),
            why="a shard is read from this machine once it is here whole",
            remedy="make room, or give a cache on another disk (--cache DIR); everything in it can be deleted",
        )
    if error.errno in _NO_LOCKS:
        return WrongCall(
            f"the file system of the cache knows no locks: {error.strerror}",
            where=str(folder),
            why="processes that share a cache agree by them",
            remedy="give a cache on a disk of this machine (--cache DIR)",
        )
    return WrongCall(
        f"the cache cannot be used: {error.strerror or error}",
        where=str(error.filename or folder),
        remedy="give a folder that you may write to (--cache DIR, or XDG_CACHE_HOME)",
    )
