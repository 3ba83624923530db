"""Writing: a file appears whole or not at all, a shard is streamed to disk, the manifest comes last."""

from __future__ import annotations

import hashlib
import io
import json
import os
import platform
import re
import secrets
import zlib
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from types import TracebackType
from typing import Any, BinaryIO

import numpy as np
from numpy.typing import NDArray

from .index import IndexEntry, index_text
from .interop import classes_text, info_text
from .manifest import (
    CLASSES_NAME,
    INFO_NAME,
    MANIFEST_NAME,
    MEAN_IMAGE_NAME,
    QUARANTINE_NAME,
    SAMPLES_NAME,
    SUMS_NAME,
    ClassEntry,
    ImageFormat,
    Manifest,
    ShardEntry,
    SplitEntry,
    Statistics,
    file_entry,
    sums_text,
)
from .naming import ShardName, is_key
from .rows import SampleRow, rows_text
from .sample import LABEL_EXTENSION, Sample
from .tar import END_OF_ARCHIVE, member_header, padding

PART_SUFFIX = ".part"


@contextmanager
def appearing_whole(path: Path, *, unique: bool = False) -> Iterator[BinaryIO]:
    """A file that gets its name only when complete and on the disk; on an exception nothing remains.

    Args:
        unique: others may be writing the same file at this moment, so its temporary name is used by nobody else.
    """
    part = path.with_name(path.name + (unique_part_suffix() if unique else PART_SUFFIX))
    try:
        with part.open("wb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        part.replace(path)
    except BaseException:
        part.unlink(missing_ok=True)
        raise
    sync_folder(path.parent)


def unique_part_suffix() -> str:
    """`.part-HOST-PID-RANDOM`, for a temporary name that no other process makes."""
    host = re.sub(r"[^A-Za-z0-9_-]", "_", platform.node())[:40]
    return f"{PART_SUFFIX}-{host}-{os.getpid()}-{secrets.token_hex(4)}"


def sync_folder(folder: Path) -> None:
    """Bring the names of a folder to the disk, so that a rename outlives a power cut."""
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


class ShardWriter:
    """Streams samples into one shard and its index.

    Both are written under temporary names; a clean exit brings them to the disk and renames them, the index last.
    An exception removes both.

        with ShardWriter(folder, ShardName(Split.TRAIN, 0)) as writer:
            writer.write(Sample("n01440764_10026", 0, jpeg, "jpg"))
        writer.entry.sha256
    """

    entry: ShardEntry  # set on a clean exit

    def __init__(self, folder: Path, name: ShardName) -> None:
        self.name = name
        self._path = folder / str(name)
        self._index_path = folder / name.index_name
        self._samples: list[list[IndexEntry]] = []
        self._keys: set[str] = set()
        self._offset = 0
        self._digest = hashlib.sha256()

    def __enter__(self) -> ShardWriter:
        self._whole = appearing_whole(self._path, unique=True)
        self._file = self._whole.__enter__()
        return self

    def write(self, sample: Sample) -> int:
        """Append one sample; returns the CRC-32 of its image bytes, for its row of samples.tsv."""
        if not is_key(sample.key):
            raise ValueError(f"{sample.key!r} is no key; safe_key() makes one")
        if sample.key in self._keys:
            raise ValueError(f"{sample.key!r} is in {self.name} already")
        self._keys.add(sample.key)
        members = [self._append(sample.key, sample.extension, sample.image)]
        if sample.label is not None:
            members.append(self._append(sample.key, LABEL_EXTENSION, str(sample.label).encode("ascii")))
        self._samples.append(members)
        return zlib.crc32(sample.image)

    def _append(self, key: str, extension: str, payload: bytes) -> IndexEntry:
        header = member_header(f"{key}.{extension}", len(payload))
        entry = IndexEntry(key, extension, self._offset + len(header), len(payload))
        for piece in (header, payload, bytes(padding(len(payload)))):
            self._put(piece)
        return entry

    def _put(self, piece: bytes) -> None:
        self._file.write(piece)
        self._digest.update(piece)
        self._offset += len(piece)

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if kind is not None:
            self._whole.__exit__(kind, error, trace)
            return
        if not self._samples:
            empty = ValueError(f"{self.name} would be empty, and an empty shard is an error to every reader")
            self._whole.__exit__(type(empty), empty, None)
            raise empty
        self._put(END_OF_ARCHIVE)
        index = index_text(self._samples).encode("ascii")
        self._whole.__exit__(None, None, None)
        try:
            with appearing_whole(self._index_path, unique=True) as file:
                file.write(index)
        except BaseException:
            self._path.unlink(missing_ok=True)
            raise
        self.entry = ShardEntry(
            name=str(self.name),
            samples=len(self._samples),
            bytes=self._offset,
            sha256=self._digest.hexdigest(),
            index_sha256=hashlib.sha256(index).hexdigest(),
        )


def samples_file(rows: Iterable[SampleRow]) -> bytes:
    """The bytes of samples.tsv."""
    return rows_text(rows).encode("utf-8", "surrogateescape")


def mean_image_file(mean_image: NDArray[np.floating[Any]]) -> bytes:
    """The bytes of mean_image.npy."""
    file = io.BytesIO()
    np.save(file, np.ascontiguousarray(mean_image, dtype="<f4"), allow_pickle=False)
    return file.getvalue()


def quarantine_file(items: Iterable[Mapping[str, Any]]) -> bytes:
    """The bytes of quarantine.jsonl; with ASCII escapes, since a source name need not be valid UTF-8."""
    return "".join(json.dumps(dict(item)) + "\n" for item in items).encode("ascii")


def finish_shard_set(
    folder: Path,
    *,
    image: ImageFormat,
    splits: Mapping[str, SplitEntry],
    classes: Iterable[ClassEntry],
    statistics: Statistics,
    mean_image: NDArray[np.floating[Any]],
    build: Mapping[str, Any],
    rows: Iterable[SampleRow],
    quarantine: Iterable[Mapping[str, Any]],
) -> Manifest:
    """Write everything that turns finished shards into a shard set; `manifest.json` comes last.

    Args:
        mean_image: (side, side, 3), RGB, 0..255; stored as float32.
        rows: one per sample, in the order of splits (train, val, test), shards and places.
        quarantine: one object per source image that was refused: split, source, name, reason.

    Raises:
        ValueError: the parts do not fit together.
    """
    side = image.side
    if mean_image.shape != (side, side, 3):
        raise ValueError(f"the mean image of {side}x{side} images is not {mean_image.shape}")
    classes = tuple(classes)
    files = {
        SAMPLES_NAME: samples_file(rows),
        MEAN_IMAGE_NAME: mean_image_file(mean_image),
        QUARANTINE_NAME: quarantine_file(quarantine),
        INFO_NAME: info_text(splits).encode("ascii"),
        CLASSES_NAME: classes_text(classes).encode("utf-8"),
    }
    entries = {name: file_entry(data) for name, data in files.items()}
    sums = sums_text(splits, entries).encode("ascii")
    manifest = Manifest(
        image=image,
        splits=dict(splits),
        classes=classes,
        statistics=statistics,
        build=dict(build),
        sums_sha256=hashlib.sha256(sums).hexdigest(),
        files=entries,
    ).sealed()
    for name, data in {**files, SUMS_NAME: sums, MANIFEST_NAME: manifest.to_json().encode("utf-8")}.items():
        with appearing_whole(folder / name) as file:
            file.write(data)
    return manifest
