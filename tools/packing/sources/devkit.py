"""The development kit of an ILSVRC edition: which synsets there are, and what the validation images show.

in      `data/meta.mat`, a MAT-file of version 5 whose struct array `synsets` has one row a synset, and lists of
        devkit ids, one a line, line N for image N; in an archive or extracted
source  readme.txt of the development kits of 2010 and 2012
"""

from __future__ import annotations

import re
import zlib
from collections.abc import Collection, Iterator
from dataclasses import dataclass, field
from pathlib import Path

from ....shards import ClassEntry, Split
from ..tar import Kind, members
from .archive import in_memory
from .listing import BadSource
from .matfile import Value, struct_array

DEVKIT_LIMIT = 256_000_000  # bytes of an inflated kit; the real ones have a few million
TRUTH_LIMIT = 4_000_000  # bytes of a list of ids; the longest real one, of 150,000 lines, has 700,000
_AGAIN = "download the development kit again"
_TRUTH_NAME = re.compile(r"ILSVRC(?P<year>\d{4})_(?P<split>validation|test)_ground_truth\.txt")
_SPLITS = {"validation": Split.VAL, "test": Split.TEST}


@dataclass(frozen=True, slots=True)
class Synset:
    """A row of the table of synsets."""

    wnid: str
    devkit_id: int
    words: str
    is_leaf: bool  # internal synsets have children and are no classes

    def class_entry(self) -> ClassEntry:
        return ClassEntry(self.wnid, self.words, self.devkit_id)


@dataclass(slots=True)
class Devkit:
    """What a source says about classes and labels; empty where it has no kit."""

    where: str = ""  # of the table of synsets; "": there is none
    synsets: dict[str, Synset] = field(default_factory=dict)  # by wnid
    ground_truth: dict[Split, list[int]] = field(default_factory=dict)  # devkit id of image N at N - 1
    passed_over: list[str] = field(default_factory=list)  # files of another edition

    def synset_of(self, devkit_id: int) -> Synset | None:
        if not self._by_id:
            self._by_id.update({synset.devkit_id: synset for synset in self.synsets.values()})
        return self._by_id.get(devkit_id)

    _by_id: dict[int, Synset] = field(default_factory=dict)


def read_devkit(source: Path, years: Collection[str]) -> Devkit:
    """Read table and ground truth of one edition from wherever the source has them.

    Looked at: archives `*devkit*.tar.gz` and `.tar`, folders `*devkit*`, `data/` and the source itself. A table
    tells its year by the field of ids, a ground truth by its name.

    Args:
        years: of the edition; empty where the images do not tell, and then the kits may be of one only.

    Raises:
        BadSource: a file that should be a table or a list of ids is none, or two of one kind differ.
        BadArchive: the kit's archive is damaged.
    """
    kit = Devkit()
    told: dict[str, tuple[str, object]] = {}  # by kind of file: the first that told, and what
    for where, name, data in (*_in_archives(source), *_lying_open(source)):
        truth = _TRUTH_NAME.fullmatch(name)
        year, content = (truth["year"], _ids(data, where)) if truth else _synsets(data, where)
        if years and year not in years:
            kit.passed_over.append(where)
            continue
        kind = f"ground truth of {truth['split']}" if truth else "table of synsets"
        first, told_first = told.setdefault(kind, (where, (year, content)))
        if (year, content) != told_first:
            raise BadSource(
                f"{first} and {where} differ, and each is the {kind}",
                where=str(source),
                why="labels would depend on which of them is read",
                remedy="keep the development kit that belongs to the images",
            )
        if isinstance(content, dict):
            kit.where, kit.synsets = first, content
        elif truth is not None:
            kit.ground_truth[_SPLITS[truth["split"]]] = content
    return kit


def is_devkit(name: str) -> bool:
    return "devkit" in name.lower()


def _wanted(name: str) -> bool:
    return name == "meta.mat" or _TRUTH_NAME.fullmatch(name) is not None


def _in_archives(source: Path) -> Iterator[tuple[str, str, bytes]]:
    """(where, file name, bytes) of the files of interest in every archived kit."""
    for path in sorted(source.iterdir()):
        if not (is_devkit(path.name) and path.name.endswith((".tar", ".tar.gz", ".tgz")) and path.is_file()):
            continue
        tar = _read(path, path.name)
        if tar.startswith(b"\x1f\x8b"):
            tar = _inflated(tar, path.name)
        archive = in_memory(tar)
        for member in members(archive.read_at, where=path.name, end=archive.size):
            name = member.name.rpartition("/")[2]
            if member.kind is Kind.FILE and _wanted(name):
                yield f"{path.name}/{member.name}", name, tar[member.offset : member.offset + member.size]


def _read(path: Path, where: str) -> bytes:
    if path.stat().st_size > DEVKIT_LIMIT:
        raise BadSource(f"{where} has more than the {DEVKIT_LIMIT:,} bytes of a development kit", remedy=_AGAIN)
    return path.read_bytes()


def _inflated(data: bytes, where: str) -> bytes:
    inflater = zlib.decompressobj(wbits=31)
    try:
        tar = inflater.decompress(data, DEVKIT_LIMIT)
    except zlib.error as error:
        raise BadSource(f"{where} is damaged: {error}", remedy=_AGAIN) from None
    if inflater.unconsumed_tail or not inflater.eof:
        what = "inflates to more than a development kit has" if inflater.unconsumed_tail else "is cut"
        raise BadSource(f"{where} {what}", remedy=_AGAIN)
    return tar


def _lying_open(source: Path) -> Iterator[tuple[str, str, bytes]]:
    """The same of every extracted kit and of the source folder itself."""
    kits = [path for path in sorted(source.iterdir()) if is_devkit(path.name) and path.is_dir()]
    folders = [folder for kit in kits for folder in (kit / "data", *sorted(kit.glob("*/data")))]
    for folder in (*folders, source / "data", source):
        if folder.is_dir():
            for path in sorted(folder.iterdir()):
                if _wanted(path.name) and path.is_file():
                    where = path.relative_to(source).as_posix()
                    yield where, path.name, _read(path, where)


def _synsets(data: bytes, where: str) -> tuple[str, dict[str, Synset]]:
    """The year of a table, and its synsets by wnid."""
    try:
        table = struct_array(data, "synsets")
        id_field = next((name for name in (table or [{}])[0] if re.fullmatch(r"ILSVRC\d{4}_ID", name)), None)
        if id_field is None:
            raise ValueError("it has no field of ids")
        return id_field[6:10], {
            str(row["WNID"]): Synset(
                wnid=str(row["WNID"]),
                devkit_id=_whole(row[id_field]),
                words=str(row["words"]),
                is_leaf=_whole(row["num_children"]) == 0,
            )
            for row in table
        }
    except Exception as error:  # whatever the parser stumbles on: the file is no table, which is all one can say
        raise BadSource(
            f"{where} is no table of synsets: {str(error) or type(error).__name__}",
            where=where,
            why="classes, their words and the ids of the ground truth are read from it",
            remedy="download the development kit of this edition again",
        ) from None


def _whole(value: Value) -> int:
    if not isinstance(value, float) or not value.is_integer():
        raise ValueError(f"{value!r:.40} is no whole number")
    return int(value)


def _ids(data: bytes, where: str) -> list[int]:
    try:
        if len(data) > TRUTH_LIMIT:
            raise ValueError(f"it has {len(data):,} bytes, and a list has up to {TRUTH_LIMIT:,}")
        return [int(line) for line in data.split()]
    except ValueError as error:
        raise BadSource(
            f"{where} is no list of devkit ids: {error!s:.200}",
            why="labels are read from it",
            remedy="take the file from the development kit again",
        ) from None
