"""The manifest: everything a later stage needs to know of a shard set, written last, digested by itself.

No manifest, no shard set. It holds no time and no host, so that equal builds have equal manifests. Its digest
(SHA-256 of its own bytes with the digest's 64 hexadecimal digits zeroed) is the identity of the set. Its CRC-32
(of its own bytes with both fields zeroed) tells which bit of it was flipped.
"""

from __future__ import annotations

import hashlib
import json
import re
import shlex
import zlib
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from types import NoneType
from typing import Any, TypeVar, get_args, get_type_hints

from .errors import BadManifest, NoShardSet
from .json_text import parse_json
from .naming import ShardName, Split
from .regular import read_regular
from .sample import JPEG_EXTENSION, RAW_EXTENSION

FORMAT = "alexshard"
VERSION = 1
MANIFEST_NAME = "manifest.json"
SUMS_NAME = "SHA256SUMS"
SAMPLES_NAME = "samples.tsv"
MEAN_IMAGE_NAME = "mean_image.npy"
QUARANTINE_NAME = "quarantine.jsonl"
INFO_NAME = "_info.json"  # where timm looks
CLASSES_NAME = "classes.txt"

_ZEROED = "0" * 64
_CRC_ZEROED = "0" * 8
_DIGEST = re.compile(r'"digest": "([0-9a-f]{64})"')

T = TypeVar("T")
Vector = tuple[float, float, float]
Matrix = tuple[Vector, Vector, Vector]


@dataclass(frozen=True, slots=True)
class ShardEntry:
    """One shard as finished."""

    name: str  # train-000000.tar
    samples: int
    bytes: int  # of the tar
    sha256: str  # of the tar
    index_sha256: str  # of the index beside it


@dataclass(frozen=True, slots=True)
class FileEntry:
    """One file that is neither shard nor index nor made from the manifest alone after it."""

    bytes: int
    sha256: str
    crc32: str  # 8 hexadecimal digits; which bit of it was flipped can be told by them


def file_entry(data: bytes) -> FileEntry:
    """The entry of a file of these bytes."""
    return FileEntry(len(data), hashlib.sha256(data).hexdigest(), f"{zlib.crc32(data):08x}")


@dataclass(frozen=True, slots=True)
class SplitEntry:
    """One split; found = samples + quarantined."""

    samples: int
    labelled: bool  # False: no sample has a `.cls` member
    patched: int  # samples whose image came from the patch archive
    quarantined: int  # source images that were refused
    found: int  # images that the source holds
    shards: tuple[ShardEntry, ...]


@dataclass(frozen=True, slots=True)
class ClassEntry:
    """One class; its label is its place in the manifest's list."""

    synset: str  # WordNet id, or the folder's name
    words: str
    devkit_id: int | None  # ILSVRC's own number, None for folders


@dataclass(frozen=True, slots=True)
class ImageFormat:
    """How images are stored: RGB, `side` × `side` pixels, one byte a channel."""

    side: int
    encoding: str  # "jpeg" or "raw" (PPM)
    quality: int | None = None  # of JPEG, 1..100
    subsampling: str | None = None  # of JPEG: "4:2:0"

    @property
    def extension(self) -> str:
        return RAW_EXTENSION if self.encoding == "raw" else JPEG_EXTENSION


@dataclass(frozen=True, slots=True)
class Statistics:
    """Of the training pixels as packed (before JPEG encoding), RGB on [0, 255].

    The covariance is the population's (divided by the number of pixels). Column i of `eigenvectors` belongs to
    eigenvalue i, eigenvalues descend, the largest component of each vector is positive.
    """

    pixels: int
    channel_mean: Vector
    covariance: Matrix
    eigenvalues: Vector
    eigenvectors: Matrix
    source: str = "train"  # or the digest of the shard set they were taken from


@dataclass(frozen=True, slots=True)
class Manifest:
    """What manifest.json says; see shards/README.md for the text form."""

    image: ImageFormat
    splits: Mapping[str, SplitEntry]
    classes: tuple[ClassEntry, ...]
    statistics: Statistics
    build: Mapping[str, Any]  # settings and versions that decide the bytes
    sums_sha256: str  # of SHA256SUMS
    files: Mapping[str, FileEntry] = field(default_factory=dict)  # by name; sets of early builds name none
    crc32: str = _CRC_ZEROED
    digest: str = _ZEROED

    @property
    def num_classes(self) -> int:
        return len(self.classes)

    def to_json(self) -> str:
        return (
            json.dumps({"format": FORMAT, "version": VERSION, **asdict(self)}, indent=1, ensure_ascii=False) + "\n"
        )

    def sealed(self) -> Manifest:
        """The same manifest with its CRC-32 and its digest filled in."""
        blank = replace(self, crc32=_CRC_ZEROED, digest=_ZEROED)
        summed = replace(blank, crc32=f"{zlib.crc32(blank.to_json().encode('utf-8')):08x}")
        return replace(summed, digest=hashlib.sha256(summed.to_json().encode("utf-8")).hexdigest())

    @classmethod
    def load(cls, folder: Path) -> Manifest:
        """Read the manifest of a shard set.

        Raises:
            NoShardSet: the folder has none.
            BadManifest: it is damaged, not ours, or of a later version.
        """
        path = folder / MANIFEST_NAME
        try:
            text = read_regular(path).decode("utf-8")
        except FileNotFoundError:
            raise NoShardSet(
                f"{folder} is no shard set: it has no {MANIFEST_NAME}",
                remedy=f"alexshard build SOURCE --out {folder}, or give the folder that holds the shards",
            ) from None
        except OSError as error:
            raise _bad(path, f"cannot be read: {error.strerror}") from error
        except UnicodeDecodeError as error:
            raise _bad(path, f"is not UTF-8 text: {error.reason} at byte {error.start}") from None
        return cls.parse(text, path)

    @classmethod
    def parse(cls, text: str, path: Path = Path(MANIFEST_NAME)) -> Manifest:
        """The manifest of a text, its digest checked."""
        try:
            fields = parse_json(text)
        except ValueError as error:
            raise _bad(path, f"is no JSON: {error}") from None
        if not isinstance(fields, dict) or fields.get("format") != FORMAT:
            raise _bad(path, f"is not one of {FORMAT}")
        if fields.get("version") != VERSION:
            raise BadManifest(
                f"{path} is of format version {fields.get('version')}, this alexshard reads version {VERSION}",
                why="a later version may mean other things by the same fields",
                remedy="take the alexshard that built it, or build the set again",
            )
        found = _DIGEST.findall(text)
        if len(found) != 1:
            raise _bad(path, "does not carry exactly one digest")
        actual = hashlib.sha256(text.replace(found[0], _ZEROED).encode("utf-8")).hexdigest()
        if actual != found[0]:
            raise _bad(path, f"was altered after it was written: its digest is {actual}, it says {found[0]}")
        try:
            return _from_fields(fields)
        except (AttributeError, KeyError, TypeError, ValueError) as error:
            raise _bad(path, f"lacks a field or has one of a wrong kind: {error!r}") from None


def sums_text(splits: Mapping[str, SplitEntry], files: Mapping[str, FileEntry]) -> str:
    """The text of SHA256SUMS: shards, indexes and `files` by name, as `sha256sum -c` reads it."""
    digests = {name: entry.sha256 for name, entry in files.items()}
    for split in splits.values():
        for shard in split.shards:
            digests[shard.name] = shard.sha256
            digests[ShardName.parse(shard.name).index_name] = shard.index_sha256
    return "".join(f"{digest}  {name}\n" for name, digest in sorted(digests.items()))


def _from_fields(fields: dict[str, Any]) -> Manifest:
    splits = {}
    for name, split in fields["splits"].items():
        shards = tuple(_entry(ShardEntry, shard) for shard in split.pop("shards"))
        for shard in shards:
            ShardName.parse(shard.name)
        splits[Split(name).value] = _entry(SplitEntry, {**split, "shards": shards})
    files = {name: _entry(FileEntry, entry) for name, entry in fields.get("files", {}).items()}
    if strange := [name for name in files if Path(name).name != name]:
        raise ValueError(f"{strange[0]!r} is no name of a file")
    numbers = dict(fields["statistics"])
    for key in ("channel_mean", "eigenvalues"):
        numbers[key] = tuple(map(float, numbers[key]))
    for key in ("covariance", "eigenvectors"):
        numbers[key] = tuple(tuple(map(float, row)) for row in numbers[key])
    return Manifest(
        image=_entry(ImageFormat, fields["image"]),
        splits=splits,
        classes=tuple(_entry(ClassEntry, entry) for entry in fields["classes"]),
        statistics=_entry(Statistics, numbers),
        build=fields["build"],
        sums_sha256=fields["sums_sha256"],
        files=files,
        crc32=fields.get("crc32", _CRC_ZEROED),
        digest=fields["digest"],
    )


def _entry(kind: type[T], fields: dict[str, Any]) -> T:
    """One entry, its numbers and words of the kinds that they are declared as."""
    for name, hint in get_type_hints(kind).items():
        kinds = [part for part in get_args(hint) or (hint,) if isinstance(part, type)]
        # In Python a bool is an int, in a manifest it is not.
        plain = kinds and set(kinds) <= {int, str, bool, NoneType}
        if plain and name in fields and type(fields[name]) not in kinds:
            raise TypeError(f"{name} is {fields[name]!r}")
    return kind(**fields)


def _bad(path: Path, what: str) -> BadManifest:
    # In a store nothing can be repaired.
    verify = f"alexshard verify {shlex.quote(str(path.parent))} --repair SOURCE" if path.is_file() else ""
    mend = f"{verify} turns a single flipped bit back; else " if verify else ""
    return BadManifest(
        f"the manifest {what}",
        where=str(path),
        why="shapes, labels, mean and digests are taken from it",
        remedy=f"{mend}restore it from where the set came from, or build the set again",
    )
