"""Reading: a shard set is opened by its manifest, samples are found by the indexes. `files` reads the images."""

from __future__ import annotations

import hashlib
import io
import itertools
import re
import shlex
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from tokenize import TokenError

import numpy as np
from numpy.typing import NDArray

from .errors import CorruptShardSet, NoShardSet, NoSuchSplit, corrupt
from .index import read_index
from .manifest import MANIFEST_NAME, MEAN_IMAGE_NAME, SAMPLES_NAME, SUMS_NAME, Manifest, ShardEntry, SplitEntry
from .naming import ShardName, Split
from .regular import read_regular
from .rows import read_rows
from .sample import NO_LABEL
from .shelf import LocalShelf, Shelf
from .table import Indexes, Keys, NotPlain, read_indexes, read_row_columns

UNFINISHED = ".build/plan.json"  # what a build keeps in its folder until it has written the manifest


@dataclass(frozen=True, slots=True)
class SplitIndex:
    """Where every image of a split lies, in the order on disk; N samples."""

    split: Split
    shards: tuple[ShardEntry, ...]
    shard: NDArray[np.int32]  # (N,): place in `shards`
    offset: NDArray[np.int64]  # (N,): first byte of the image in its shard
    size: NDArray[np.int64]  # (N,): bytes of the image
    label: NDArray[np.int64]  # (N,): -1 where there is none
    crc32: NDArray[np.uint32]  # (N,): of the image's bytes, as packed
    keys: Sequence[str]

    def __len__(self) -> int:
        return len(self.keys)


@dataclass(frozen=True, slots=True)
class ShardSet:
    """A folder of shards with its manifest: `ShardSet.open("shards/").index("train").keys`."""

    path: Path  # of the folder that holds manifest, samples.tsv, mean image and indexes
    manifest: Manifest
    shelf: Shelf  # opens its shards

    @classmethod
    def open(cls, path: str | Path) -> ShardSet:
        """Open a shard set, or the only one in a folder.

        Raises:
            NoShardSet: there is none, or there are several (the message lists them).
            BadManifest, CorruptShardSet: what is there is damaged.
        """
        folder = find_shard_set(Path(path))
        manifest, shelf = Manifest.load(folder), LocalShelf(folder)
        shelf.check(shard for split in manifest.splits.values() for shard in split.shards)
        return cls(folder, manifest, shelf)

    @property
    def shown(self) -> str:
        """How messages name the set: its folder, or its address."""
        return self.shelf.shown

    @property
    def name(self) -> str:
        """The folder's name."""
        return self.path.resolve().name

    @property
    def digest(self) -> str:
        """The identity of the set: 64 hexadecimal digits."""
        return self.manifest.digest

    def index(self, split: str) -> SplitIndex:
        """Every sample of a split.

        Raises:
            NoSuchSplit: the set has no such split.
            CorruptShardSet: index, samples.tsv and manifest do not agree.
        """
        entry = self.manifest.splits.get(split)
        if entry is None:
            held = ", ".join(self.manifest.splits) or "none"
            raise NoSuchSplit(f"{self.shown} has no split {split!r}; it has {held}")
        try:
            indexes, label, crc32 = self._at_once(split, entry)
        except NotPlain:
            indexes, label, crc32 = self._line_by_line(split, entry)
        counts = [shard.samples for shard in entry.shards]
        shard = np.repeat(np.arange(len(counts), dtype=np.int32), counts)
        return SplitIndex(
            Split(split), entry.shards, shard, indexes.offset, indexes.size, label, crc32, indexes.keys
        )

    def _at_once(self, split: str, entry: SplitEntry) -> tuple[Indexes, NDArray[np.int64], NDArray[np.uint32]]:
        """The whole, where all texts are those that were packed; a million samples take about a second."""
        promised = self.manifest.files.get(SAMPLES_NAME)
        if promised is None:  # early builds did not say
            raise NotPlain
        extension = self.manifest.image.extension
        indexes = read_indexes(self.path, entry.shards, extension=extension, labelled=entry.labelled)
        before = itertools.takewhile(lambda name: name != split, self.manifest.splits)
        first = sum(self.manifest.splits[name].samples for name in before)
        columns = read_row_columns(self.path / SAMPLES_NAME, promised, split=split, first=first, keys=indexes.keys)
        self._check_numbers(entry, indexes, columns[0])
        return indexes, *columns

    def _line_by_line(
        self, split: str, entry: SplitEntry
    ) -> tuple[Indexes, NDArray[np.int64], NDArray[np.uint32]]:
        """The same, slowly.

        Raises:
            CorruptShardSet: what is wrong, with its line where there is one.
        """
        parts = []
        for shard in entry.shards:
            path = self.path / ShardName.parse(shard.name).index_name
            part = read_index(path, extension=self.manifest.image.extension, labelled=entry.labelled)
            if len(part.keys) != shard.samples:
                raise self._corrupt(
                    f"the index {path.name} has {len(part.keys):,} samples, the manifest says {shard.samples:,}"
                )
            parts.append(part)
        keys = [key for part in parts for key in part.keys]
        rows = list(read_rows(self.path / SAMPLES_NAME, split=split))
        if [row.key for row in rows] != keys:
            self._check_texts(entry)
            raise self._corrupt(f"{SAMPLES_NAME} and the indexes list other samples of {split}, or another order")
        offset, size = (
            np.concatenate([getattr(part, name) for part in parts] or [np.zeros(0, np.int64)])
            for name in ("offset", "size")
        )
        indexes = Indexes(Keys.of(keys), offset, size)
        label = np.array([row.label for row in rows], np.int64)
        self._check_numbers(entry, indexes, label)
        self._check_texts(entry)
        return indexes, label, np.array([row.crc32 for row in rows], np.uint32)

    def _check_numbers(self, entry: SplitEntry, indexes: Indexes, label: NDArray[np.int64]) -> None:
        counts = [shard.samples for shard in entry.shards]
        # Offsets and sizes are compared one by one: their sum could pass the largest int64.
        ends = np.repeat([shard.bytes for shard in entry.shards], counts)
        outside = (indexes.size < 0) | (indexes.offset < 0) | (indexes.offset > ends - indexes.size)
        if outside.any():
            number = int(np.searchsorted(np.cumsum(counts), np.flatnonzero(outside)[0], side="right"))
            shard = ShardName.parse(entry.shards[number].name)
            raise self._corrupt(f"the index {shard.index_name} points outside {shard}")
        if len(label) and not (label.min() >= NO_LABEL and label.max() < self.manifest.num_classes):
            raise self._corrupt(f"{SAMPLES_NAME} has a label outside 0..{self.manifest.num_classes - 1}")

    def _check_texts(self, entry: SplitEntry) -> None:
        """Hold each index of a split, and samples.tsv, against its digest."""
        for shard in entry.shards:
            name = ShardName.parse(shard.name).index_name
            self._read(name, f"the index {name}", shard.index_sha256)
        if promised := self.manifest.files.get(SAMPLES_NAME):
            self._read(SAMPLES_NAME, SAMPLES_NAME, promised.sha256)

    def _read(self, name: str, called: str, promised: str | None) -> bytes:
        """The bytes of a file, whose SHA-256 is `promised`, unless an early build did not say."""
        path = self.path / name
        try:
            data = read_regular(path)
        except OSError as error:
            raise corrupt(self.shown, f"{called} cannot be read: {error.strerror}", where=str(path)) from error
        found = hashlib.sha256(data).hexdigest()
        if promised is not None and found != promised:
            what = f"{called} is not the one that was packed: its SHA-256 is {found}, not {promised}"
            raise corrupt(self.shown, what, where=str(path))
        return data

    def mean_image(self) -> NDArray[np.float32]:
        """Mean of the training images, float32 (side, side, 3), RGB, 0..255.

        Raises:
            CorruptShardSet: the file is damaged or of another size.
        """
        entry = self.manifest.files.get(MEAN_IMAGE_NAME)
        data = self._read(MEAN_IMAGE_NAME, MEAN_IMAGE_NAME, None if entry is None else entry.sha256)
        try:
            mean = np.load(io.BytesIO(data), allow_pickle=False)
        except (OSError, ValueError, EOFError, SyntaxError, TokenError) as error:  # a damaged header is parsed
            raise self._corrupt(f"{MEAN_IMAGE_NAME} cannot be read: {error}") from error
        side = self.manifest.image.side
        if mean.shape != (side, side, 3) or mean.dtype != np.float32:
            raise self._corrupt(f"{MEAN_IMAGE_NAME} is {mean.dtype} {mean.shape}, not float32 {(side, side, 3)}")
        return mean  # type: ignore[no-any-return]

    def _corrupt(self, what: str) -> CorruptShardSet:
        return corrupt(self.shown, what)


def find_shard_set(path: Path) -> Path:
    """`path` itself where it is a shard set, else the only shard set directly inside it.

    Raises:
        NoShardSet: neither.
    """
    if (path / MANIFEST_NAME).is_file():
        return path
    if not path.is_dir():
        # A path keeps one of the slashes of an address, and no message shows what may be a password.
        if not path.exists() and (scheme := re.match(r"[A-Za-z][A-Za-z0-9+.-]+(?=:/)", str(path))):
            raise NoShardSet(
                f"{scheme[0]}://{str(path).partition(':/')[2].rpartition('@')[2].lstrip('/')} lies in a store",
                why="this reads folders of this machine",
                remedy="alextrain run --shards URL, alexshard info URL and open_shard_set(URL) read it there; "
                "else copy it here first, with any tool: the objects below the prefix are the files of the set",
            )
        what = "is no folder" if path.exists() else "does not exist"
        raise NoShardSet(
            f"{path} {what}, so it is no shard set", remedy="alexshard build SOURCE makes one under shards/"
        )
    inside = sorted(child.parent for child in path.glob(f"*/{MANIFEST_NAME}"))
    if len(inside) == 1:
        return inside[0]
    if not inside:
        for folder in (path, *sorted(path.glob("*"))):
            _check_incomplete(folder)
        raise NoShardSet(
            f"{path} holds no shard set: neither it nor a folder in it has a {MANIFEST_NAME}",
            why="a build that was stopped leaves no manifest, so that nothing incomplete is read",
            remedy="alexshard build SOURCE makes one under shards/",
        )
    listing = "".join(f"\n    {folder}" for folder in inside)
    raise NoShardSet(f"{path} holds {len(inside)} shard sets; say which:{listing}")


def _check_incomplete(folder: Path) -> None:
    """Whether a folder holds something of a shard set.

    Raises:
        NoShardSet: it holds an unfinished build, or all of a set but its manifest.
    """

    def holds(name: str) -> bool:
        return any(folder.glob(name))  # nothing where one may not look

    if holds(UNFINISHED):
        raise NoShardSet(
            f"{folder} holds an unfinished build, and no shard set yet",
            why="nothing incomplete is read",
            remedy="the command that began it continues it: alexshard build SOURCE --out "
            f"{shlex.quote(str(folder))}, with the options it had",
        )
    if holds(SUMS_NAME) and holds(SAMPLES_NAME):
        raise NoShardSet(
            f"{folder} holds the files of a shard set without its {MANIFEST_NAME}",
            why="shapes, labels, mean and digests are taken from it",
            remedy="restore it from where the set came from, or build the set again, into another folder",
        )
