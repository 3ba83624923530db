"""The cache on this machine for shards that lie in stores, shared by all its processes.

    CACHE/shards/SHA256.tar     a shard, named by its own digest: equal shards of two sets are one file
    CACHE/shards/SHA256.part    one that arrives; its process holds the lock of the file
    CACHE/sets/DIGEST/          manifest, samples.tsv, mean image and indexes of one set
    CACHE/addresses/…           the digest of the set that an address had when it was last asked
    CACHE/leases/…              what a process needs now or next, the nearest first; it holds the lock of the file
    CACHE/lock                  held while room is made

All locks are the kernel's (flock), so they end with their process however that ends, and what it left behind is
known as such. A shard is used last when it was opened last (its time of change says so); what was used last goes
last. What is open in a process or in its lease stays.
"""

from __future__ import annotations

import errno
import fcntl
import hashlib
import os
import secrets
import shutil
import threading
import weakref
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from .cache_files import (
    FULL,
    PART,
    SHARD,
    Arriving,
    Item,
    NoRoom,
    is_at,
    items_in,
    lock_now,
    remove,
    unusable,
    writing,
)


def default_folder() -> Path:
    """`$XDG_CACHE_HOME/alexshard/shards`, or `~/.cache/alexshard/shards`."""
    base = os.environ.get("XDG_CACHE_HOME", "")
    return (Path(base) if Path(base).is_absolute() else Path.home() / ".cache") / "alexshard" / "shards"


class Cache:
    """Shards by their digests, under a cap. Threads may share one.

    Args:
        folder: made if it is not there.
        most_bytes: what all of it may take up; None: half of what is free there and of what it holds already,
            so that a disk is never filled by what can be fetched again.

    Raises:
        AlexshardError: the folder cannot be made or written to, or its file system knows no locks.
    """

    def __init__(self, folder: Path, most_bytes: int | None = None) -> None:
        self.folder = folder.absolute()
        self._shards, self._sets = self.folder / "shards", self.folder / "sets"
        self._addresses, self._leases = self.folder / "addresses", self.folder / "leases"
        self._mutex = threading.Lock()
        self._fds: set[int] = set()  # with locks that a forked child must not keep
        self._lease: tuple[Path, int] | None = None
        with writing(self.folder):
            for part in (self._shards, self._sets, self._addresses, self._leases):
                part.mkdir(parents=True, exist_ok=True)
            with self._locked():
                self._sweep()
                held = sum(item.bytes for item in items_in(self._shards, self._sets))
            free = shutil.disk_usage(self.folder).free
        self.most_bytes = (free + held) // 2 if most_bytes is None else most_bytes
        _caches.add(self)

    def __reduce__(self) -> tuple[Any, ...]:
        return Cache, (self.folder, self.most_bytes)

    # Shards ----------------------------------------------------------------------------------------------------

    def open(self, sha256: str, size: int) -> int | None:
        """A descriptor of a shard that is here, which the caller closes; until then the shard stays. Else None."""
        path = self._shards / f"{sha256}{SHARD}"
        try:
            fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        except FileNotFoundError:
            return None
        except OSError as error:
            if error.errno in (errno.EMFILE, errno.ENFILE):
                raise
            raise unusable(self.folder, error) from None
        try:
            fcntl.flock(fd, fcntl.LOCK_SH)
            status = os.fstat(fd)
            if status.st_nlink and status.st_size == size:
                with suppress(OSError):  # somebody else's file: it is used all the same
                    os.utime(fd)
                return fd
            if status.st_nlink:
                path.unlink(missing_ok=True)  # somebody cut it
        except BaseException:
            os.close(fd)
            raise
        os.close(fd)
        return None

    def holds(self, sha256: str) -> bool:
        return (self._shards / f"{sha256}{SHARD}").exists()

    def begin(self, sha256: str, size: int, *, now: bool) -> Arriving | None:
        """A shard that is to arrive, with room made for it; None: it is here, or arrives in another process.

        Args:
            now: somebody waits for it; what this process needs only later makes room too, the last first.

        Raises:
            NoRoom: what is open or needed sooner takes up the cap.
            AlexshardError: the disk is full with other things, or cannot be written to.
        """
        part, whole = self._shards / f"{sha256}{PART}", self._shards / f"{sha256}{SHARD}"
        with writing(self.folder), self._locked():
            fd = os.open(part, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o666)
            try:
                # Who had it may have finished or dropped it since: then the name is not this file's any more.
                if not lock_now(fd) or not is_at(fd, part):
                    os.close(fd)
                    return None
                if whole.exists():  # looked at last: before, it might arrive between the look and the opening
                    part.unlink()
                    os.close(fd)
                    return None
                os.ftruncate(fd, 0)
                self._fds.add(fd)
                self._make_room(fd, size, now)
            except BaseException:
                with suppress(OSError):
                    if is_at(fd, part):
                        part.unlink()
                    self._close(fd)
                raise
        return Arriving(fd, part, whole, size, self._fds.discard)

    def drop(self, sha256: str) -> bool:
        """Remove a shard, and say whether it was there; who has it open reads on."""
        try:
            (self._shards / f"{sha256}{SHARD}").unlink()
        except FileNotFoundError:
            return False
        return True

    def copy_of(self, sha256: str) -> int | None:
        """A number of the copy that is here, another for each that arrives; None: there is none."""
        try:
            return (self._shards / f"{sha256}{SHARD}").stat().st_ino
        except OSError:
            return None

    def is_sound(self, sha256: str) -> bool:
        """Whether the shard is here and its bytes are those of its name."""
        try:
            with (self._shards / f"{sha256}{SHARD}").open("rb") as file:
                return hashlib.file_digest(file, "sha256").hexdigest() == sha256
        except OSError:
            return False

    # What is needed --------------------------------------------------------------------------------------------

    def need(self, names: Sequence[str]) -> None:
        """These shards (by SHA-256) and sets (by digest) stay, in all processes; replaces the last list."""
        with writing(self.folder), self._locked():
            if self._lease is None:
                path = self._leases / f"{_process}-{secrets.token_hex(4)}"
                fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o666)
                fcntl.flock(fd, fcntl.LOCK_EX)
                self._lease = path, fd
                self._fds.add(fd)
            data = "".join(f"{name}\n" for name in names).encode("ascii")
            os.ftruncate(self._lease[1], 0)
            os.pwrite(self._lease[1], data, 0)

    def close(self) -> None:
        """Nothing is needed any more."""
        with self._mutex:
            lease, self._lease = self._lease, None
        if lease is not None:
            lease[0].unlink(missing_ok=True)
            self._close(lease[1])

    def _all_needed(self) -> tuple[set[str], list[str]]:
        """What other processes need, and what this one does, in the order of need. Under the lock."""
        others: set[str] = set()
        ours: list[str] = []
        for path in self._leases.iterdir():
            with suppress(FileNotFoundError), path.open("r+b") as file:
                mine = self._lease is not None and path == self._lease[0]
                if not mine and lock_now(file.fileno()):
                    path.unlink(missing_ok=True)  # its process has ended
                elif path.name.startswith(_process):
                    ours += file.read().decode("ascii").split()
                else:
                    others |= set(file.read().decode("ascii").split())
        return others, ours

    # Small files -----------------------------------------------------------------------------------------------

    def set_folder(self, digest: str) -> Path:
        """The folder of the small files of a set; it was used now."""
        folder = self._sets / digest
        with writing(self.folder):
            folder.mkdir(exist_ok=True)
            os.utime(folder)
        return folder

    def bytes_of_set(self, digest: str) -> int:
        """What the small files of a set take up."""
        return sum(entry.stat().st_size for entry in os.scandir(self._sets / digest))

    @contextmanager
    def filling(self, folder: Path) -> Iterator[None]:
        """One process at a time fills a folder of small files; what one left that was killed is removed."""
        with writing(self.folder):
            fd = os.open(folder / ".lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o666)
        try:
            self._fds.add(fd)
            fcntl.flock(fd, fcntl.LOCK_EX)
            for left in folder.glob(f"*{PART}"):
                left.unlink(missing_ok=True)
            yield
        finally:
            self._close(fd)

    def remember(self, address: str, digest: str) -> None:
        """Note the digest of the set at an address (by its `local_name`)."""
        part = self._addresses / f"{address}-{secrets.token_hex(4)}{PART}"
        with writing(self.folder):
            part.write_text(digest + "\n", encoding="ascii")
            part.replace(self._addresses / address)

    def remembered(self, address: str) -> str | None:
        with suppress(OSError, UnicodeDecodeError):
            digest = (self._addresses / address).read_text(encoding="ascii").strip()
            if (self._sets / digest).is_dir() and digest:
                return digest
        return None

    # Room ------------------------------------------------------------------------------------------------------

    def _make_room(self, fd: int, size: int, now: bool) -> None:
        """Under the lock: remove what was not used for longest until `size` more bytes fit, and take them."""
        self._sweep()
        items = items_in(self._shards, self._sets)
        taken = sum(item.bytes for item in items)
        others, ours = self._all_needed()
        going = self._that_may_go(items, others, ours, now)
        while True:
            if taken + size <= self.most_bytes:
                try:
                    os.posix_fallocate(fd, 0, size)
                    return
                except OSError as error:
                    if error.errno not in FULL:
                        raise
                    freed = next(going, None)
                    if freed is None:
                        raise  # by others: `writing` has the words
            else:
                freed = next(going, None)
                if freed is None:
                    wanted = any(item.path.stem in others for item in items)
                    raise NoRoom(self.folder, self.most_bytes, size, others=wanted)
            taken -= freed

    def _that_may_go(self, items: list[Item], others: set[str], ours: list[str], now: bool) -> Iterator[int]:
        """Removes one after another, and says how many bytes each had."""
        later = {name: place for place, name in enumerate(ours) if self.holds(name)} if now else {}
        kept = (others | set(ours)) - (later.keys() - others)

        def turn(item: Item) -> tuple[int, int]:
            place = later.get(item.path.stem)
            return (0, item.used_ns) if place is None else (1, -place)

        for item in sorted(items, key=turn):
            if item.path.suffix != PART and item.path.stem not in kept and remove(item.path):
                yield item.bytes

    def _sweep(self) -> None:
        """Under the lock: remove what processes left that have ended."""
        self._all_needed()
        for part in self._shards.glob(f"*{PART}"):
            with suppress(FileNotFoundError), part.open("r+b") as file:
                if lock_now(file.fileno()) and is_at(file.fileno(), part):
                    part.unlink()

    # How -------------------------------------------------------------------------------------------------------

    def _close(self, fd: int) -> None:
        self._fds.discard(fd)
        os.close(fd)

    @contextmanager
    def _locked(self) -> Iterator[None]:
        with self._mutex:
            fd = os.open(self.folder / "lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o666)
            try:
                self._fds.add(fd)
                fcntl.flock(fd, fcntl.LOCK_EX)
                yield
            finally:
                self._close(fd)


_caches: weakref.WeakSet[Cache] = weakref.WeakSet()
_process = secrets.token_hex(8)  # what is of this process begins so; numbers of processes come again in containers


def _let_go_in_the_child() -> None:
    """A forked child shares the locks of its parent's files; it must not keep them when the parent ends."""
    global _process
    _process = secrets.token_hex(8)
    for cache in _caches:
        cache._mutex = threading.Lock()
        for fd in list(cache._fds):
            with suppress(OSError):
                os.close(fd)
        cache._fds.clear()
        cache._lease = None


os.register_at_fork(after_in_child=_let_go_in_the_child)
