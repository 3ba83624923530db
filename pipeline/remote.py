"""Shard sets in stores: opened by their address, read through a cache on this machine.

    shard_set = open_shard_set("s3://bucket/sets/ilsvrc2010", cache_bytes=parse_bytes("100GB"))
    loader = Loader(shard_set, "train", order="windowed")

The manifest's digest is the identity of a set, as anywhere: what lies below the address may be replaced by another
set, but nothing of the two is ever mixed. Small files come once, and are held against their SHA-256 as shards are.
"""

from __future__ import annotations

import hashlib
import os
import re
from collections.abc import Callable, Iterable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..shards import (
    MANIFEST_NAME,
    MEAN_IMAGE_NAME,
    PAUSES_S,
    SAMPLES_NAME,
    SUMS_NAME,
    AlexshardError,
    BadManifest,
    CorruptShardSet,
    Manifest,
    NoShardSet,
    ShardName,
    ShardSet,
    SplitIndex,
    WrongCall,
    folder_at,
    is_address,
    local_name,
    masked,
    promised_digests,
)
from .cache import Cache, default_folder
from .cache_files import writing
from .fetching import LONG_PAUSES_S, RemoteFiles
from .shelving import RemoteShelf

OFFLINE = "ALEXSHARD_OFFLINE"
_SIZE = re.compile(r"\s*(\d+(?:\.\d+)?)\s*(?:([kMGTP]i?)?B?)\s*", re.IGNORECASE)
_LARGE = 8 << 20  # bytes of a file that comes in parts


def parse_bytes(text: str) -> int:
    """A number of bytes as people write it.

    >>> parse_bytes("100GB"), parse_bytes("1.5 TiB"), parse_bytes("4096")
    (100000000000, 1649267441664, 4096)

    Raises:
        WrongCall: it is none, or none at all.
    """
    found = _SIZE.fullmatch(text)
    if found is None or float(found[1]) == 0:
        raise WrongCall(f"{text!r} is no size", remedy="a size is as 100GB, 1.5TB or 500MiB")
    unit = (found[2] or "").lower()
    base = 1024 if unit.endswith("i") else 1000
    return int(float(found[1]) * base ** ("kmgtp".index(unit[0]) + 1 if unit else 0))


def open_shard_set(
    where: str | Path,
    *,
    cache: Path | None = None,
    cache_bytes: int | None = None,
    offline: bool | None = None,
    pauses: tuple[float, ...] = LONG_PAUSES_S,
) -> ShardSet:
    """A shard set in a folder, or at the address of any store that fsspec knows.

    Args:
        where: a folder, or an address as s3://BUCKET/PREFIX. Shards of a folder are read where they are; those of
            an address, file:// too, through the cache.
        cache: a folder of this machine; None: `$XDG_CACHE_HOME/alexshard/shards`.
        cache_bytes: what the cache may take up; None: half of what is free, and of what it holds already.
        offline: take the set that the address had when it was last asked, and nothing but what is in the cache;
            None: as ALEXSHARD_OFFLINE says (1: yes).
        pauses: between attempts at what fails, in seconds.

    Raises:
        NoShardSet: there is none.
        BadManifest, CorruptShardSet: what is there is damaged.
        WrongCall: the address, its credentials or the cache's folder are not right.
        AlexshardError: the store cannot be reached.
    """
    text = os.fspath(where)
    if not is_address(text):
        return ShardSet.open(folder_at(text))
    if cache_bytes is not None and cache_bytes <= 0:
        raise WrongCall(f"a cache of {cache_bytes} bytes holds nothing", remedy="cache_bytes=100_000_000_000")
    store = Cache(cache or default_folder(), cache_bytes)
    if os.environ.get(OFFLINE, "") not in ("", "0") if offline is None else offline:
        return _offline(text, store)
    # Who has just begun is told sooner that a store is not there than a run that has gone on for days.
    files = RemoteFiles(text, pauses=pauses if len(pauses) < len(PAUSES_S) else PAUSES_S)
    try:
        data = files.read(MANIFEST_NAME)
    except FileNotFoundError:
        raise NoShardSet(
            f"{files.shown} is no shard set: it has no {MANIFEST_NAME}",
            remedy="give the address of the prefix that alexshard build --out wrote to, or that the set's files "
            "were copied to",
        ) from None
    except AlexshardError as error:
        if (digest := store.remembered(local_name(text))) is not None and error.exit_code == 1:
            error.remedy += f"; or {OFFLINE}=1 takes what the cache has of the set last seen there ({digest[:16]})"
        raise
    try:
        manifest = Manifest.parse(data.decode("utf-8"))
    except UnicodeDecodeError as error:
        raise _bad(files.shown, f"the manifest is not UTF-8 text: {error.reason} at byte {error.start}") from None
    except BadManifest as error:
        raise _bad(files.shown, error.what, error.why, error.remedy) from None
    connect = _Connect(text, pauses)
    shelf = RemoteShelf(files.shown, manifest.digest, connect, store)
    small = _SmallFiles(manifest, store, connect, files)
    small.bring_first(data)
    store.remember(local_name(text), manifest.digest)
    return RemoteShardSet(small.folder, manifest, shelf, small)


@dataclass(frozen=True, slots=True)
class _Connect:
    """Opens the store of an address."""

    address: str
    pauses: tuple[float, ...]

    def __call__(self) -> RemoteFiles:
        return RemoteFiles(self.address, pauses=self.pauses)


@dataclass(frozen=True, slots=True)
class _Refuse:
    """Says that the store of an address is not to be asked."""

    shown: str
    folder: Path

    def __call__(self) -> RemoteFiles:
        raise AlexshardError(
            f"something of {self.shown} is not in the cache",
            where=str(self.folder),
            why=f"{OFFLINE} says that stores are not asked",
            remedy=f"open the set without {OFFLINE}, and let an epoch run, in a cache that may hold all of it",
        )


def _offline(address: str, store: Cache) -> ShardSet:
    shown = masked(address).rstrip("/")
    digest = store.remembered(local_name(address))
    if digest is None:
        raise NoShardSet(
            f"the cache knows no shard set of {shown}",
            where=str(store.folder),
            why=f"{OFFLINE} says that stores are not asked",
            remedy=f"open it once without {OFFLINE}, or give the cache that it is in (--cache DIR)",
        )
    manifest, refuse = Manifest.load(store.set_folder(digest)), _Refuse(shown, store.folder)
    small = _SmallFiles(manifest, store, refuse)
    return RemoteShardSet(small.folder, manifest, RemoteShelf(shown, digest, refuse, store), small)


def _bad(shown: str, what: str, why: str = "", remedy: str = "") -> BadManifest:
    return BadManifest(
        what,
        where=f"{shown}/{MANIFEST_NAME}",
        why=why or "shapes, labels, mean and digests are taken from it",
        remedy=remedy or "put it there again, as it was built",
    )


class _SmallFiles:
    """Manifest, samples.tsv, mean image and indexes of a set, in a folder of the cache named by its digest."""

    def __init__(
        self,
        manifest: Manifest,
        cache: Cache,
        connect: Callable[[], RemoteFiles],
        files: RemoteFiles | None = None,
    ) -> None:
        self.folder = cache.set_folder(manifest.digest)
        self._manifest, self._cache, self._connect = manifest, cache, connect
        self._files, self._pid = files, os.getpid()

    def __reduce__(self) -> tuple[Any, ...]:
        return _SmallFiles, (self._manifest, self._cache, self._connect)

    def _connected(self) -> RemoteFiles:
        if self._files is None or self._pid != os.getpid():
            self._files, self._pid = self._connect(), os.getpid()
        return self._files

    def bring_first(self, manifest: bytes) -> None:
        """What is needed of any split."""
        with self._cache.filling(self.folder):
            self._write(MANIFEST_NAME, manifest)
        self.bring(self._manifest.files or (SUMS_NAME, SAMPLES_NAME, MEAN_IMAGE_NAME))

    def indexes(self, split: str) -> list[str]:
        entry = self._manifest.splits.get(split)
        return [ShardName.parse(shard.name).index_name for shard in entry.shards] if entry else []

    def bring(self, names: Iterable[str], *, anew: bool = False) -> None:
        """See that these files are here and as promised; with `anew` also those that are.

        Raises:
            CorruptShardSet: one is missing in the store, or comes with other bytes again and again.
        """
        with self._cache.filling(self.folder):
            wanted = [name for name in names if anew or not (self.folder / name).is_file()]
            if not wanted:
                return
            files = self._connected()
            for name in [name for name in wanted if name == SUMS_NAME]:
                self._write(name, self._proved(files, name, files.read(name), self._manifest.sums_sha256))
            promised = promised_digests(self.folder, self._manifest)
            lengths = {name: entry.bytes for name, entry in self._manifest.files.items() if entry.bytes > _LARGE}
            for name in wanted:
                if name in lengths:
                    self._stream(files, name, lengths[name], promised[name])
            small = [name for name in wanted if name not in lengths and name != SUMS_NAME]
            try:
                for name, data in files.read_all(small):
                    self._write(name, self._proved(files, name, data, promised.get(name, "")))
            except FileNotFoundError as error:
                raise self._unusable(files, "", f"one of {len(small)} files is not there: {error}") from None

    def _proved(self, files: RemoteFiles, name: str, data: bytes, sha256: str) -> bytes:
        for _ in range(2):
            if hashlib.sha256(data).hexdigest() == sha256:
                return data
            data = files.read(name)
        if hashlib.sha256(data).hexdigest() == sha256:
            return data
        raise self._unusable(files, name, f"{name} has SHA-256 {hashlib.sha256(data).hexdigest()}, not {sha256}")

    def _write(self, name: str, data: bytes) -> None:
        part = self.folder / f"{name}.part"
        with writing(self.folder):
            part.write_bytes(data)
            part.replace(self.folder / name)

    def _stream(self, files: RemoteFiles, name: str, size: int, sha256: str) -> None:
        part = self.folder / f"{name}.part"
        found = ""
        with writing(self.folder), part.open("wb") as file:
            for _ in range(3):
                digest = hashlib.sha256()

                def put(offset: int, data: bytes) -> None:
                    nonlocal digest
                    if offset == 0:
                        digest = hashlib.sha256()
                    digest.update(data)
                    file.seek(offset)
                    file.write(data)

                try:
                    files.download(name, size, put)
                except FileNotFoundError:
                    raise self._unusable(files, name, f"{name} is not there") from None
                found = digest.hexdigest()
                if found == sha256:
                    file.flush()
                    part.replace(self.folder / name)
                    return
        raise self._unusable(files, name, f"{name} has SHA-256 {found}, not {sha256}")

    def _unusable(self, files: RemoteFiles, name: str, what: str) -> CorruptShardSet:
        for part in self.folder.glob("*.part"):
            with suppress(OSError):
                part.unlink()
        return CorruptShardSet(
            what,
            where=f"{files.shown}/{name}".rstrip("/"),
            why="samples would be missed, or taken for others",
            remedy="put the file there again, as it was built; if another set was put there, open it anew",
        )


@dataclass(frozen=True, slots=True)
class RemoteShardSet(ShardSet):
    """A shard set at an address; its `path` is the folder of its small files in the cache."""

    small: _SmallFiles

    @property
    def name(self) -> str:
        """The last part of the address."""
        return re.split(r"[/\\]", self.shown.partition("?")[0].rstrip("/"))[-1] or "set"

    def index(self, split: str) -> SplitIndex:
        """As of any set; its small files are fetched first, and once more where they were damaged here."""
        self.small.bring(self.small.indexes(split))
        try:
            return ShardSet.index(self, split)
        except CorruptShardSet:
            self.small.bring([SAMPLES_NAME, *self.small.indexes(split)], anew=True)
            return ShardSet.index(self, split)

    def mean_image(self) -> NDArray[np.float32]:
        """As of any set."""
        try:
            return ShardSet.mean_image(self)
        except CorruptShardSet:
            self.small.bring([MEAN_IMAGE_NAME], anew=True)
            return ShardSet.mean_image(self)
