"""Files of a shard set that can be had again from the rest of it, to the byte, without the source."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from pathlib import Path

from .contents import read_members
from .damage import file_damage
from .index import index_text
from .interop import classes_text, info_text
from .manifest import (
    CLASSES_NAME,
    INFO_NAME,
    MEAN_IMAGE_NAME,
    QUARANTINE_NAME,
    SAMPLES_NAME,
    SUMS_NAME,
    Manifest,
    file_entry,
    sums_text,
)
from .naming import ShardName
from .regular import open_regular, read_regular

_OF_THE_FIRST = (SAMPLES_NAME, MEAN_IMAGE_NAME, QUARANTINE_NAME)


def promised_digests(folder: Path, manifest: Manifest) -> dict[str, str]:
    """SHA-256 of every file of a set but the manifest; of early builds only as far as SHA256SUMS is sound."""
    digests = {SUMS_NAME: manifest.sums_sha256}
    files = {name: entry.sha256 for name, entry in manifest.files.items()}
    sums = sums_text(manifest.splits, manifest.files)
    if not files:
        found = _read(folder / SUMS_NAME)
        sums = found.decode("utf-8") if hashlib.sha256(found).hexdigest() == manifest.sums_sha256 else sums
    for line in sums.splitlines():
        digest, _, name = line.partition("  ")
        digests[name] = digest
    return digests


def restored(folder: Path, manifest: Manifest, name: str, sha256: str) -> bytes | None:
    """The bytes of one file as they were, proved by their SHA-256; None: only the source can tell them."""
    for data in _candidates(folder, manifest, name, sha256):
        if hashlib.sha256(data).hexdigest() == sha256:
            return data
    return None


def derived(manifest: Manifest, name: str) -> bytes | None:
    """The bytes of a file that says what the manifest says; None: it is none of these."""
    if name == INFO_NAME:
        return info_text(manifest.splits).encode("ascii")
    return classes_text(manifest.classes).encode("utf-8") if name == CLASSES_NAME else None


def _candidates(folder: Path, manifest: Manifest, name: str, sha256: str) -> Iterator[bytes]:
    if name == SUMS_NAME:
        # Of early builds the other files are asked, of which there were fewer at first.
        there = [name for name in (*_OF_THE_FIRST, INFO_NAME, CLASSES_NAME) if (folder / name).is_file()]
        for names in (_OF_THE_FIRST, there):
            files = manifest.files or {name: file_entry(_read(folder / name)) for name in names}
            yield sums_text(manifest.splits, files).encode("ascii")
    elif (data := derived(manifest, name)) is not None:
        yield data
    elif name.endswith(".idx"):
        try:
            with open_regular(folder / str(ShardName.parse(name.removesuffix(".idx") + ".tar"))) as file:
                yield index_text(read_members(file)[0]).encode("ascii")
        except OSError:
            return
    elif name in manifest.files:
        entry, path = manifest.files[name], folder / name
        try:
            damage = file_damage(read_regular(path, entry.bytes), sha256, entry, path.stat().st_size)
        except OSError:
            return
        if damage is not None and damage.mended is not None:
            yield damage.mended


def _read(path: Path) -> bytes:
    """The bytes of a file; none where it is not there."""
    try:
        return read_regular(path)
    except OSError:
        return b""
