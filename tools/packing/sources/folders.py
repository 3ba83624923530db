"""A folder of images per class, with or without `train/ val/ test/` above.

The classes are the folders of train, by code point after Unicode's NFC; deeper folders belong to their class.
An image is called CLASS/FILE. A val or test folder without class folders holds unlabelled images.
"""

from __future__ import annotations

import shlex
import unicodedata
from collections.abc import Callable
from pathlib import Path

from ....shards import ClassEntry, Split, WrongCall
from .layout import is_archive
from .listing import (
    BadSource,
    Listing,
    Refusal,
    add_files,
    holds_image,
    images_outside,
    label_of_path,
    no_images,
    scan,
)


def find_parts(source: Path) -> dict[Split, Path]:
    """The folder of each split; a source without any of them is train as a whole."""
    parts = {split: source / split for split in Split if (source / split).is_dir()}
    if not parts and any(_is_class(path) for path in source.iterdir()):
        parts = {Split.TRAIN: source}
    return parts


def list_folders(
    source: Path,
    parts: dict[Split, Path],
    splits: tuple[Split, ...],
    *,
    unlabelled: bool,
    classes: tuple[ClassEntry, ...] | None,
    on_found: Callable[[int], object],
) -> Listing:
    """List the images of class folders.

    Args:
        classes: of the shard set that statistics come from, where train is not packed; None: from train
        itself.

    Raises:
        WrongCall: the folders are no classes but sources.
        BadSource: train has no class, or another split has one that train lacks.
    """
    listing = Listing("folder per class")
    if source in parts.values():
        _look_for_sources(source)
    else:
        _look_beside(listing, source, parts)
    for split in splits:
        folders = _class_folders(parts[split])
        listing.start_split(split)
        container = listing.add_container(parts[split], label_of_path(source, parts[split]), is_folder=True)
        if split is Split.TRAIN:
            listing.classes = tuple(ClassEntry(name, name, None) for name in sorted(folders))
        elif classes is not None and Split.TRAIN not in splits:
            listing.classes = classes
        labels = {entry.synset: label for label, entry in enumerate(listing.classes)}
        if split is not Split.TRAIN and not folders:
            _list_unlabelled(listing, split, container, parts[split], unlabelled)
            continue
        if unknown := sorted(set(folders) - set(labels)):
            raise BadSource(
                f"{split} has {len(unknown)} classes that train lacks, first {unknown[0]!r}",
                where=str(parts[split]),
                why="the network has no output for them",
                remedy="add their training images, or leave the split out with --splits",
            )
        for name in sorted(folders):
            folder = folders[name]
            found = add_files(listing, split, container, folder, label=labels[name], within=f"{folder.name}/")
            on_found(found)
            if not found:
                raise no_images(str(folder))
        for name in images_outside(parts[split], folders, deep=False):
            label = listing.containers[container].label
            listing.refusals.append(Refusal(split.value, label, name, "in no class folder"))
    return listing


def _look_for_sources(source: Path) -> None:
    """Whether somebody pointed one folder too high: editions side by side would be taken for classes."""
    if inner := [path for path in sorted(source.iterdir()) if _is_class(path) and _is_source(path)]:
        raise WrongCall(
            f"{source} holds {len(inner)} source{'s' if len(inner) > 1 else ''}",
            why="each is packed into a set of its own",
            remedy=f"say which: {', '.join(shlex.quote(str(path)) for path in inner)}",
        )


def _is_source(folder: Path) -> bool:
    names = {entry.name for entry in scan(folder)}
    return len(names & set(Split)) > 1 or any(map(is_archive, names))


def _look_beside(listing: Listing, source: Path, parts: dict[Split, Path]) -> None:
    """What lies beside train/ val/ test/: a class that is called train would hide all others."""
    others = [path for path in sorted(source.iterdir()) if _is_class(path) and path not in parts.values()]
    if beside := [path.name for path in others if holds_image(path)]:
        here = " ".join(f"{split}/" for split in parts)
        raise BadSource(
            f"{source} holds {here}, and folders of images beside: {', '.join(beside[:5])}",
            why=f"if {here} are the splits, those images belong to none; if they are classes, so are the others",
            remedy="move the others away, or put all classes below a folder train/",
        )
    if loose := list(images_outside(source, (), deep=False)):
        listing.remarks.append(f"left alone, being in no split: {len(loose):,} images in SOURCE, first {loose[0]}")


def _is_class(path: Path) -> bool:
    return path.is_dir() and not path.name.startswith(".")


def _class_folders(part: Path) -> dict[str, Path]:
    """Class name (NFC) to folder."""
    folders: dict[str, Path] = {}
    for path in sorted(part.iterdir()):
        if not _is_class(path):
            continue
        name = unicodedata.normalize("NFC", path.name)
        if not name.isprintable():  # control characters, or bytes that are not UTF-8
            raise BadSource(f"the folder name {path.name!r} is no readable text", remedy="rename the class")
        if name in folders:
            raise BadSource(
                f"two folders are called {name!r}, in two Unicode forms",
                where=f"{folders[name]!s} and {path!s}",
                why="they look the same and would be two classes",
                remedy="merge the two folders",
            )
        folders[name] = path
    return folders


def _list_unlabelled(listing: Listing, split: Split, container: int, folder: Path, unlabelled: bool) -> None:
    if not unlabelled:
        raise BadSource(
            f"{folder} has no class folders",
            why=f"without them nothing says what the images of {split} show",
            remedy=f"sort the images into class folders, leave {split} out with --splits, or take it --unlabelled",
        )
    listing.splits[split].labelled = False
    add_files(listing, split, container, folder)
