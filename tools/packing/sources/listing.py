"""What a source holds, before anything is packed: one lean row for every image, one refusal for what is none.

legend  for every split: found = images + refusals; an image is where its bytes lie, its label and its name
"""

from __future__ import annotations

import os
import stat
from collections.abc import Collection, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ....shards import NO_LABEL, AlexshardError, ClassEntry, Split
from .images import Images, change_of

_SHOWN_NAME = 160  # characters of a name in a line for a person
IMAGE_ENDINGS = (".jpeg", ".jpg", ".png", ".bmp", ".webp")


class BadSource(AlexshardError):
    """The source is recognised, and something in it makes a right set impossible."""


@dataclass(frozen=True, slots=True)
class Refusal:
    """One image of the source that is not packed; a line of quarantine.jsonl."""

    split: str
    source: str  # file or folder it came from, relative to SOURCE; "OUTER.tar/INNER.tar" for nested ones
    name: str  # as the source has it
    reason: str

    def __str__(self) -> str:
        # A name may have thousands of bytes; quarantine.jsonl has all of it.
        name = self.name if len(self.name) <= _SHOWN_NAME else f"{self.name[:_SHOWN_NAME]}…"
        return f"{self.split}: {self.source}: {name}: {self.reason}"


@dataclass(frozen=True, slots=True)
class Container:
    """A file that holds images one after the other, or a folder that holds them as files."""

    path: Path
    label: str  # what to call it: relative to SOURCE
    is_folder: bool = False
    state: tuple[int, int] = (0, 0)  # of a file: bytes and time of change (ns), to notice that it is another one

    @staticmethod
    def state_of(path: Path) -> tuple[int, int]:
        """As it is now."""
        if not isinstance(path, Path):  # of a store, see remote.py
            return path.store.state(path.inner)
        status = path.stat()
        return status.st_size, status.st_mtime_ns


@dataclass(slots=True)
class Listing:
    """Everything that a source holds."""

    kind: str  # "ILSVRC2012 archives", "folder per class", …
    classes: tuple[ClassEntry, ...] = ()
    containers: list[Container] = field(default_factory=list)
    splits: dict[Split, Images] = field(default_factory=dict)
    refusals: list[Refusal] = field(default_factory=list)
    remarks: list[str] = field(default_factory=list)  # what a person should know, one sentence each
    hangs_on: dict[str, Any] = field(default_factory=dict)  # see cache.py; empty: not to be kept
    from_cache: bool = field(default=False, compare=False)  # a file told it, the source was not looked through

    def found(self, split: Split) -> int:
        """Images of a split that the source holds, refused ones included."""
        return len(self.splits[split]) + sum(refusal.split == split for refusal in self.refusals)

    def start_split(self, split: Split) -> Images:
        self.splits[split] = Images()
        return self.splits[split]

    def add_container(self, path: Path, label: str, *, is_folder: bool = False) -> int:
        # A thousand inner tars lie in one archive, which is looked at once: it must stay as it was.
        same = bool(self.containers) and self.containers[-1].path == path
        state = (0, 0) if is_folder else self.containers[-1].state if same else Container.state_of(path)
        self.containers.append(Container(path, label, is_folder, state))
        return len(self.containers) - 1


def bare_name(name: str) -> str | None:
    """The last component of a member's name; None where the name reaches outside of its archive.

    >>> bare_name("val/ILSVRC2010_val_00000001.JPEG"), bare_name("../x.JPEG"), bare_name("/x.JPEG")
    ('ILSVRC2010_val_00000001.JPEG', None, None)
    """
    parts = name.split("/")
    if name.startswith("/") or ".." in parts or "\0" in name or parts[-1] in ("", "."):
        return None
    return parts[-1]


def label_of_path(source: Path, path: Path) -> str:
    """What to call a file or folder of the source: its path in there, "SOURCE" for all of it."""
    return "SOURCE" if path == source else path.relative_to(source).as_posix()


def is_image_name(name: str) -> bool:
    return name.lower().endswith(IMAGE_ENDINGS)


def holds_image(folder: Path) -> bool:
    """Whether anything below a folder ends like an image."""
    waiting = [folder]  # no recursion: folders may lie deeper in each other than Python's stack
    while waiting:
        above = waiting.pop()
        for entry in scan(above):
            if entry.is_dir(follow_symlinks=False):
                waiting.append(above / entry.name)
            elif is_image_name(entry.name):
                return True
    return False


def images_outside(folder: Path, classes: Collection[str], *, deep: bool) -> Iterator[str]:
    """What ends like an image in a folder but not below one of its class folders; `deep`: below the others too."""
    for entry in _visible(folder):
        if not entry.is_dir():
            if is_image_name(entry.name):
                yield entry.name
        elif deep and entry.name not in classes:
            below = (f"{entry.name}/{name}" for name, _ in _files_below(folder / entry.name))
            yield from filter(is_image_name, below)


def no_images(where: str) -> BadSource:
    return BadSource(
        f"the class {where} holds no image",
        where=f"looked for {', '.join(IMAGE_ENDINGS)}",
        why="a class without images cannot be learnt, and may be none",
        remedy="put its images there, or move it out of the source",
    )


def add_files(
    listing: Listing, split: Split, container: int, folder: Path, *, label: int = NO_LABEL, within: str = ""
) -> int:
    """Add the image files below a folder, by sorted name; returns how many were found, refused ones included.

    Args:
        within: path of `folder` inside the container, with its slash; names begin with it.
    """
    images, held = listing.splits[split], listing.containers[container]
    found = passed_over = 0
    for below, entry in _files_below(folder):
        if not is_image_name(entry.name):
            passed_over += 1
            continue
        found += 1
        name = within + below
        try:
            status = entry.stat()
        except OSError as error:
            listing.refusals.append(Refusal(split, held.label, name, f"cannot be read: {error.strerror}"))
            continue
        if not stat.S_ISREG(status.st_mode):
            listing.refusals.append(Refusal(split, held.label, name, "no regular file"))
            continue
        images.add(name, container, 0, status.st_size, label, change_of(status))
    if passed_over:
        where = f"{held.label}/{within}"
        listing.remarks.append(f"passed over, having no image's ending: {passed_over:,} below {where}")
    return found


def _files_below(folder: Path, within: str = "", depth: int = 8) -> Iterator[tuple[str, os.DirEntry[str]]]:
    """Everything below a folder that is no folder, with its path in there, by sorted name; no hidden names.

    A link to a folder is not followed, so a loop of links ends; the folder itself may be one.
    """
    for entry in _visible(folder):
        if not entry.is_dir(follow_symlinks=False):
            yield within + entry.name, entry
        elif depth:
            yield from _files_below(folder / entry.name, f"{within}{entry.name}/", depth - 1)
        else:
            raise BadSource(f"{entry.path}: folders are nested too deeply", why="a class is a folder of images")


def _visible(folder: Path) -> list[os.DirEntry[str]]:
    """What lies in a folder, by sorted name; hidden names are left out."""
    shown = (entry for entry in scan(folder) if not entry.name.startswith("."))
    return sorted(shown, key=lambda entry: entry.name)


def scan(folder: Path) -> list[os.DirEntry[str]]:
    """Everything in a folder of the disk or of a store."""
    if not isinstance(folder, Path):  # of a store, see remote.py
        return folder.scan()
    with os.scandir(folder) as entries:
        return list(entries)
