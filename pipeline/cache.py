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
from dataclasses import dataclass
from pathlib import Path

from ..shards import AlexshardError, WrongCall, byte_size

_SHARD, _PART = ".tar", ".part"
_NO_LOCKS = (errno.ENOSYS, errno.ENOTSUP, errno.EOPNOTSUPP, errno.ENOLCK)
_FULL = (errno.ENOSPC, errno.EDQUOT)


def default_folder() -> Path:
    """`$XDG_CACHE_HOME/alexshard/shards`, or `~/.cache/alexshard/shards`."""
    base = os.environ.get("XDG_CACHE_HOME", "")
    return (Path(base) if Path(base).is_absolute() else Path.home() / ".cache") / "alexshard" / "shards"


class NoRoom(OSError):
    """The cap of a cache is taken up by what is open or needed now.

    It says EMFILE, as where a process has no descriptor left, since the cure is the same: keep fewer shards open.
    """

    def __init__(self, cache: Cache, size: int, *, others: bool) -> None:
        self.others = others  # whether other processes need some of it
        super().__init__(
            errno.EMFILE,
            f"the cache {cache.folder} may hold {byte_size(cache.most_bytes)} (--cache-size), and what is open "
            f"or needed in its place leaves no room for {byte_size(size)}",
        )


class Arriving:
    """A shard on its way: its bytes are digested as they come, in order."""

    def __init__(self, cache: Cache, fd: int, part: Path, whole: Path, size: int) -> None:
        self._cache, self._fd, self._part, self._whole, self._size = cache, fd, part, whole, size
        self._digest = hashlib.sha256()
        self._next = 0

    def put(self, offset: int, data: bytes) -> None:
        """The bytes from `offset`, where the last ones ended, or from 0 again."""
        if offset == 0:
            self._digest, self._next = hashlib.sha256(), 0
        if offset != self._next or offset + len(data) > self._size:
            raise OSError(f"{len(data):,} bytes came for byte {offset:,} of {self._size:,}")
        self._digest.update(data)
        with self._cache.writing():
            view = memoryview(data)
            while view:
                view = view[os.pwrite(self._fd, view, self._next + len(data) - len(view)) :]
        self._next += len(data)

    @property
    def sha256(self) -> str:
        return self._digest.hexdigest()

    @property
    def is_whole(self) -> bool:
        return self._next == self._size

    def finish(self) -> int:
        """Give the shard its name. Returns its descriptor, which the caller closes; until then the shard stays."""
        with self._cache.writing():
            self._part.replace(self._whole)
        fcntl.flock(self._fd, fcntl.LOCK_SH)
        self._cache.let_go(self._fd, close=False)
        return self._fd

    def abandon(self) -> None:
        """Nothing of it remains."""
        self._part.unlink(missing_ok=True)
        self._cache.let_go(self._fd)


@dataclass(frozen=True, slots=True)
class _Item:
    """Something that can go: a shard, or the small files of a set."""

    path: Path
    bytes: int
    used_ns: int


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
        with self.writing():
            for part in (self._shards, self._sets, self._addresses, self._leases):
                part.mkdir(parents=True, exist_ok=True)
            with self._locked():
                self._sweep()
                held = sum(item.bytes for item in self._items())
            free = shutil.disk_usage(self.folder).free
        self.most_bytes = (free + held) // 2 if most_bytes is None else most_bytes
        _caches.add(self)

    # Shards ----------------------------------------------------------------------------------------------------

    def open(self, sha256: str, size: int) -> int | None:
        """A descriptor of a shard that is here, which the caller closes; until then the shard stays. Else None."""
        path = self._shards / f"{sha256}{_SHARD}"
        try:
            fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        except FileNotFoundError:
            return None
        except OSError as error:
            if error.errno in (errno.EMFILE, errno.ENFILE):
                raise
            raise self._unusable(error) from None
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
        return (self._shards / f"{sha256}{_SHARD}").exists()

    def begin(self, sha256: str, size: int, *, now: bool) -> Arriving | None:
        """A shard that is to arrive, with room made for it; None: it is here, or arrives in another process.

        Args:
            now: somebody waits for it; what this process needs only later makes room too, the last first.

        Raises:
            NoRoom: what is open or needed sooner takes up the cap.
            AlexshardError: the disk is full with other things, or cannot be written to.
        """
        part, whole = self._shards / f"{sha256}{_PART}", self._shards / f"{sha256}{_SHARD}"
        with self.writing(), self._locked():
            if whole.exists():
                return None
            fd = os.open(part, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o666)
            try:
                # Who had it may have finished or dropped it since: then the name is not this file's any more.
                if not _lock_now(fd) or not _is_at(fd, part):
                    os.close(fd)
                    return None
                os.ftruncate(fd, 0)
                self._fds.add(fd)
                self._make_room(fd, size, now)
            except BaseException:
                with suppress(OSError):
                    if _is_at(fd, part):
                        part.unlink()
                    self.let_go(fd)
                raise
        return Arriving(self, fd, part, whole, size)

    def drop(self, sha256: str) -> None:
        """Remove a shard; who has it open reads on."""
        (self._shards / f"{sha256}{_SHARD}").unlink(missing_ok=True)

    def is_sound(self, sha256: str) -> bool:
        """Whether the shard is here and its bytes are those of its name."""
        try:
            with (self._shards / f"{sha256}{_SHARD}").open("rb") as file:
                return hashlib.file_digest(file, "sha256").hexdigest() == sha256
        except OSError:
            return False

    def let_go(self, fd: int, *, close: bool = True) -> None:
        """End what a descriptor of `begin` holds."""
        self._fds.discard(fd)
        if close:
            os.close(fd)

    # What is needed --------------------------------------------------------------------------------------------

    def need(self, names: Sequence[str]) -> None:
        """These shards (by SHA-256) and sets (by digest) stay, in all processes; replaces the last list."""
        with self.writing(), self._locked():
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
            self.let_go(lease[1])

    def _all_needed(self) -> tuple[set[str], list[str]]:
        """What other processes need, and what this one does, in the order of need. Under the lock."""
        others: set[str] = set()
        ours: list[str] = []
        for path in self._leases.iterdir():
            with suppress(FileNotFoundError), path.open("r+b") as file:
                mine = self._lease is not None and path == self._lease[0]
                if not mine and _lock_now(file.fileno()):
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
        with self.writing():
            folder.mkdir(exist_ok=True)
            os.utime(folder)
        return folder

    def bytes_of_set(self, digest: str) -> int:
        """What the small files of a set take up."""
        return sum(entry.stat().st_size for entry in os.scandir(self._sets / digest))

    @contextmanager
    def filling(self, folder: Path) -> Iterator[None]:
        """One process at a time fills a folder of small files; what one left that was killed is removed."""
        with self.writing():
            fd = os.open(folder / ".lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o666)
        try:
            self._fds.add(fd)
            fcntl.flock(fd, fcntl.LOCK_EX)
            for left in folder.glob(f"*{_PART}"):
                left.unlink(missing_ok=True)
            yield
        finally:
            self.let_go(fd)

    def remember(self, address: str, digest: str) -> None:
        """Note the digest of the set at an address (by its `local_name`)."""
        part = self._addresses / f"{address}-{secrets.token_hex(4)}{_PART}"
        with self.writing():
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
        items = self._items()
        taken = sum(item.bytes for item in items)
        others, ours = self._all_needed()
        going = self._that_may_go(items, others, ours, now)
        while True:
            if taken + size <= self.most_bytes:
                try:
                    os.posix_fallocate(fd, 0, size)
                    return
                except OSError as error:
                    if error.errno not in _FULL:
                        raise
                    freed = next(going, 0)
                    if not freed:
                        raise  # by others: `writing` has the words
            else:
                freed = next(going, 0)
                if not freed:
                    raise NoRoom(self, size, others=any(item.path.stem in others for item in items))
            taken -= freed

    def _that_may_go(self, items: list[_Item], others: set[str], ours: list[str], now: bool) -> Iterator[int]:
        """Removes one after another, and says how many bytes each had."""
        later = {name: place for place, name in enumerate(ours)} if now else {}
        kept = others if now else others | set(ours)

        def turn(item: _Item) -> tuple[int, int]:
            place = later.get(item.path.stem)
            return (0, item.used_ns) if place is None else (1, -place)

        for item in sorted(items, key=turn):
            if item.path.suffix != _PART and item.path.stem not in kept and _remove(item.path):
                yield item.bytes

    def _items(self) -> list[_Item]:
        found = []
        for entry in os.scandir(self._shards):
            with suppress(FileNotFoundError):
                status = entry.stat(follow_symlinks=False)
                found.append(_Item(Path(entry.path), status.st_size, status.st_mtime_ns))
        for folder in self._sets.iterdir():
            with suppress(FileNotFoundError):
                sizes = sum(entry.stat(follow_symlinks=False).st_size for entry in os.scandir(folder))
                found.append(_Item(folder, sizes, folder.stat().st_mtime_ns))
        return found

    def _sweep(self) -> None:
        """Under the lock: remove what processes left that have ended."""
        self._all_needed()
        for part in self._shards.glob(f"*{_PART}"):
            with suppress(FileNotFoundError), part.open("r+b") as file:
                if _lock_now(file.fileno()) and _is_at(file.fileno(), part):
                    part.unlink()

    # How -------------------------------------------------------------------------------------------------------

    @contextmanager
    def _locked(self) -> Iterator[None]:
        with self._mutex:
            fd = os.open(self.folder / "lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o666)
            try:
                self._fds.add(fd)
                fcntl.flock(fd, fcntl.LOCK_EX)
                yield
            finally:
                self.let_go(fd)

    @contextmanager
    def writing(self) -> Iterator[None]:
        """Turn what the disk refuses within the block into words."""
        try:
            yield
        except NoRoom:
            raise
        except OSError as error:
            raise self._unusable(error) from None

    def _unusable(self, error: OSError) -> AlexshardError:
        if error.errno in _FULL:
            return AlexshardError(
                f"the disk of the cache is full: {error.strerror}",
                where=str(self.folder),
                why="a shard is read from this machine once it is here whole",
                remedy="make room, or give a cache on another disk (--cache DIR); everything in it can be deleted",
            )
        if error.errno in _NO_LOCKS:
            return WrongCall(
                f"the file system of the cache knows no locks: {error.strerror}",
                where=str(self.folder),
                why="processes that share a cache agree by them",
                remedy="give a cache on a disk of this machine (--cache DIR)",
            )
        return WrongCall(
            f"the cache cannot be used: {error.strerror or error}",
            where=str(error.filename or self.folder),
            remedy="give a folder that you may write to (--cache DIR, or XDG_CACHE_HOME)",
        )


def _lock_now(fd: int) -> bool:
    """Take the lock of an open file, if nobody else has it."""
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def _is_at(fd: int, path: Path) -> bool:
    """Whether a path still is the file of a descriptor."""
    try:
        there, here = path.stat(), os.fstat(fd)
    except FileNotFoundError:
        return False
    return (there.st_dev, there.st_ino) == (here.st_dev, here.st_ino)


def _remove(path: Path) -> bool:
    """Remove a shard that nobody has open, or the small files of a set that nobody fills."""
    is_shard = path.suffix == _SHARD
    locked = path if is_shard else path / ".lock"
    try:
        fd = os.open(locked, os.O_RDWR | os.O_CLOEXEC | (0 if is_shard else os.O_CREAT), 0o666)
    except OSError:
        return False
    try:
        if not _lock_now(fd) or not _is_at(fd, locked):
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
