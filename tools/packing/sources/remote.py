"""A source in a store or behind a web server: folders and archives by their addresses, read by ranges.

`RemotePath` answers what the listing asks of a `pathlib.Path`, so that one listing does for both. What a folder
holds is asked once. An archive is never fetched whole, and one that is exchanged meanwhile is noticed by its ETag
or, where the store has none, its size and time.
"""

from __future__ import annotations

import errno
import hashlib
import os
import stat
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import nullcontext
from dataclasses import dataclass
from fnmatch import fnmatchcase
from pathlib import PurePosixPath
from typing import Any, NamedTuple
from urllib.parse import quote, unquote

from ....shards import is_address
from ..stores import Store
from .archive import Archive
from .listing import BadSource

AT_ONCE = 32  # requests on their way
_DEEPEST = 10  # levels of folders that are asked for at once; others are where they are needed
_TOO_DEEP = 32
_MOST_FOLDERS = 100_000  # a web server may show the same folders below each other without end
_WEB = {"http", "https"}
_CHANGED = {"FileExpired"}  # s3fs: the ETag is another one
_REMEDY = "let the source rest, and build again"


class Status(NamedTuple):
    """What of `os.stat_result` a listing asks for."""

    st_mode: int
    st_size: int
    st_mtime_ns: int  # a number that is another one when the store's ETag or time of change is


@dataclass(frozen=True, slots=True)
class Entry:
    """What a folder holds under one name; answers as an `os.DirEntry`."""

    name: str
    path: str
    status: Status

    def is_dir(self, *, follow_symlinks: bool = True) -> bool:  # noqa: ARG002
        return stat.S_ISDIR(self.status.st_mode)

    def is_file(self, *, follow_symlinks: bool = True) -> bool:  # noqa: ARG002
        return stat.S_ISREG(self.status.st_mode)

    def stat(self, *, follow_symlinks: bool = True) -> Status:  # noqa: ARG002
        return self.status


class RemoteStore(Store):
    """The store of one source. Names are those below the source; "" is the source itself."""

    def __init__(self, address: str, **options: Any) -> None:
        super().__init__(address, **options)
        self._address, self._options = address, options
        if hasattr(self._fs, "config_kwargs"):  # s3fs, which has not connected yet
            self._fs.config_kwargs["max_pool_connections"] = AT_ONCE
        self._folders: dict[str, dict[str, Entry]] = {}
        # Some back ends keep one connection, which no two threads may use.
        free = self.parallel or self.protocol == "memory"
        self._alone: Any = nullcontext() if free else threading.Lock()

    def __reduce__(self) -> tuple[Any, ...]:
        return _store, (type(self), self._address, self._options)

    def anew(self) -> RemoteStore:
        """The same store, all folders of which have just been asked for again."""
        store = type(self)(self._address, **self._options)
        store.walk()
        return store

    def walk(self, on_folders: Callable[[int], object] = int) -> None:
        """Ask for all folders, many at a time, so that nobody waits for one after the other.

        Args:
            on_folders: called with the number of folders that were asked for since the last call.

        Raises:
            BadSource: there is no end to them.
        """
        with ThreadPoolExecutor(AT_ONCE, "folders") as pool:
            level = [""]
            for _ in range(_DEEPEST):
                if len(self._folders) + len(level) > _MOST_FOLDERS:
                    raise self._endless(f"more than {_MOST_FOLDERS:,} folders")  # and none of these is asked for
                found = []
                for entries in pool.map(self.entries, level):
                    found.append(entries)
                    on_folders(1)
                level = [
                    f"{folder}/{name}".lstrip("/")
                    for folder, entries in zip(level, found, strict=True)
                    for name, entry in entries.items()
                    if entry.is_dir() and not name.startswith(".")
                ]

    def entries(self, folder: str) -> dict[str, Entry]:
        """What lies in a folder, by name; nothing where there is none."""
        if folder not in self._folders:
            if folder.count("/") >= _TOO_DEEP:
                raise self._endless(f"folders {_TOO_DEEP} deep in each other and more")
            if len(self._folders) >= _MOST_FOLDERS:
                raise self._endless(f"more than {_MOST_FOLDERS:,} folders")
            self._folders[folder] = self._ask_for(folder)
        return self._folders[folder]

    def _ask_for(self, folder: str) -> dict[str, Entry]:
        at = self._at(folder) if folder else self._path
        asked = at + "/" if self.protocol in _WEB else at

        def ask() -> list[dict[str, Any]]:
            with self._alone:
                self._fs.invalidate_cache()
                return list(self._fs.ls(asked, detail=True))

        try:
            listed = self._patience.run("list", folder, ask)
        except (FileNotFoundError, NotADirectoryError):
            return {}
        entries = {}
        for info in listed:
            inner = info["name"].strip("/").removeprefix(at.strip("/") + "/")
            if inner and inner != info["name"].strip("/") and not set(inner) & set("/?#"):
                name = unquote(inner) if self.protocol in _WEB else inner
                if info["type"] != "directory" and info["size"] is None:  # a page of links tells no sizes
                    info = self._info(f"{folder}/{name}".lstrip("/"))
                entries[name] = Entry(name, f"{folder}/{name}".lstrip("/"), _status(info))
        return entries

    def _info(self, name: str) -> dict[str, Any]:
        def ask() -> dict[str, Any]:
            with self._alone:
                self._fs.invalidate_cache()
                return dict(self._fs.info(self._at(name)))

        try:
            info: dict[str, Any] = self._patience.run("look at", name, ask)
            return info
        except FileNotFoundError:
            raise self.gone(name) from None

    def state(self, name: str) -> tuple[int, int]:
        """Size and change of a file as they are now."""
        status = _status(self._info(name))
        return status.st_size, status.st_mtime_ns

    def read_range(self, name: str, offset: int, size: int) -> bytes:
        """Up to `size` bytes of a file, fewer only where it ends."""

        def ask() -> bytes:
            with self._alone:
                return bytes(self._fs.cat_file(self._at(name), start=offset, end=offset + size))

        try:
            return self._patience.run("read", name, ask) if size else b""
        except FileNotFoundError:
            raise self.gone(name) from None

    def archive(self, name: str) -> Archive:
        """An archive of which ranges are read."""
        info = self._info(name)
        size = int(info["size"])
        file: Any = None

        def fetch(start: int, end: int) -> bytes:
            nonlocal file
            with self._alone:
                if file is None:
                    file = self._fs.open(self._at(name), "rb", cache_type="none")
                # Of fsspec's buffered files; S3's asks for the ETag that it began with.
                if hasattr(file, "_fetch_range"):
                    return bytes(file._fetch_range(start, end))
                return bytes(self._fs.cat_file(self._at(name), start=start, end=end))

        def ask(start: int, end: int) -> bytes:
            try:
                data = fetch(start, end)
            except ValueError as error:
                if "range" not in str(error):
                    raise
                raise BadSource(
                    f"{self.where(name)} is served whole or not at all: {self._patience.said(error)}",
                    why="archives are read by ranges; nobody wants 140 GB for a header",
                    remedy="serve the source by a web server that knows ranges, or by a store",
                ) from None
            except OSError as error:
                if type(error).__name__ in _CHANGED or str(getattr(error, "status", "")) == "412":
                    raise self.changed(name) from None
                raise
            if len(data) != end - start:
                raise OSError(f"{end - start:,} bytes were asked for, {len(data):,} came")
            return data

        def read_at(offset: int, size_asked: int) -> bytes:
            end = min(offset + size_asked, size)
            try:
                return self._patience.run("read", name, lambda: ask(offset, end)) if end > offset else b""
            except FileNotFoundError:
                raise self.gone(name) from None

        return Archive(read_at, size, AT_ONCE)

    def changed(self, name: str) -> BadSource:
        return BadSource(
            "the source changed while it is read: the file was changed after it was listed",
            where=self.where(name),
            why="a set of half one source and half another is of no use",
            remedy=_REMEDY,
        )

    def gone(self, name: str) -> OSError:
        return OSError(errno.ENOENT, os.strerror(errno.ENOENT), self.where(name))

    def _endless(self, what: str) -> BadSource:
        return BadSource(
            f"{self.shown} holds {what}, and there is no end to them",
            why="a server that shows the same folders below each other would be asked for ever",
            remedy="give the address of a folder that holds the archives, or a folder per class",
        )

    def where(self, name: str) -> str:
        return f"{self.shown}/{name}"

    def _at(self, name: str) -> str:
        return super()._at(quote(name) if self.protocol in _WEB else name)


class RemotePath:
    """A file or folder of a store; `/`, `name`, `iterdir` and so on as of `pathlib.Path`."""

    __slots__ = ("inner", "store")

    def __init__(self, store: RemoteStore, inner: str = "") -> None:
        self.store, self.inner = store, inner

    def __truediv__(self, name: str) -> RemotePath:
        return RemotePath(self.store, f"{self.inner}/{name}".strip("/") if name != "." else self.inner)

    def __str__(self) -> str:
        return f"{self.store.shown}/{self.inner}".rstrip("/")

    __fspath__ = __str__

    def __repr__(self) -> str:
        return f"RemotePath({str(self)!r})"

    def __eq__(self, other: object) -> bool:
        return isinstance(other, RemotePath) and str(self) == str(other)

    def __lt__(self, other: RemotePath) -> bool:
        return self.inner.split("/") < other.inner.split("/")

    def __hash__(self) -> int:
        return hash(str(self))

    @property
    def name(self) -> str:
        return (self.inner or self.store.shown).rpartition("/")[2]

    def absolute(self) -> RemotePath:
        return self

    resolve = absolute

    def relative_to(self, other: RemotePath) -> PurePosixPath:
        return PurePosixPath(self.inner).relative_to(other.inner)

    def _entry(self) -> Entry | None:
        folder, _, name = self.inner.rpartition("/")
        return self.store.entries(folder).get(name)

    def is_dir(self) -> bool:
        entry = self._entry() if self.inner else None
        return entry.is_dir() if entry else not self.inner and bool(self.store.entries(""))

    def is_file(self) -> bool:
        entry = self._entry() if self.inner else None
        return entry is not None and entry.is_file()

    def exists(self) -> bool:
        return self.is_file() or self.is_dir()

    def scan(self) -> list[Entry]:
        return list(self.store.entries(self.inner).values()) if self.is_dir() else []

    def iterdir(self) -> Iterator[RemotePath]:
        return (self / entry.name for entry in self.scan())

    def glob(self, pattern: str) -> Iterator[RemotePath]:
        first, _, rest = pattern.partition("/")
        for path in self.iterdir():
            if fnmatchcase(path.name, first):
                yield from path.glob(rest) if rest else (path,)

    def stat(self) -> Status:
        """Of a folder: a number that changes with anything that lies right in it."""
        if not self.is_dir():
            if (entry := self._entry()) is None:
                raise self.store.gone(self.inner)
            return entry.status
        held = sorted((entry.name, *entry.status) for entry in self.scan())
        return Status(stat.S_IFDIR, 0, _number(repr(held)))

    def read_bytes(self) -> bytes:
        return self.store.read_range(self.inner, 0, self.stat().st_size)


def remote_source(address: str, on_folders: Callable[[int], object] = int, **options: Any) -> RemotePath:
    """The source at an address, as s3://BUCKET/PREFIX or https://HOST/FOLDER."""
    assert is_address(address)
    store = RemoteStore(address, **options)
    store.walk(on_folders)
    return RemotePath(store)


def _store(kind: type[RemoteStore], address: str, options: dict[str, Any]) -> RemoteStore:
    return kind(address, **options)


def _status(info: dict[str, Any]) -> Status:
    if info["type"] == "directory":
        return Status(stat.S_IFDIR, 0, 0)
    keys = ("ETag", "etag", "md5Hash", "Last-Modified", "mtime", "LastModified", "modified", "created")
    tag = next((info[key] for key in keys if info.get(key)), "")
    return Status(stat.S_IFREG, int(info["size"] or 0), _number(str(tag).strip('"')))


def _number(text: str) -> int:
    return int.from_bytes(hashlib.sha256(text.encode("utf-8", "surrogateescape")).digest()[:7], "big")
