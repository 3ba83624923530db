"""A folder of images per class, with or without `train/ val/ test/` above.

The classes are the folders of train, by code point after Unicode's NFC; deeper folders belong to their class.
An image is called CLASS/FILE. A val or test folder without class folders holds unlabelled images.
"""

from __future__ import annotations

import unicodedata
from collections.abc import Callable
from pathlib import Path

from ....shards import ClassEntry, Split
from .listing import IMAGE_ENDINGS, BadSource, Listing, add_files


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
        BadSource: train has no class, or another split has one that train lacks.
    """
    listing = Listing("folder per class")
    for split in splits:
        folders = _class_folders(parts[split])
        listing.start_split(split)
        where = "" if parts[split] == source else split.value
        container = listing.add_container(parts[split], where or ".", is_folder=True)
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
                raise BadSource(
                    f"the class folder {folder} holds no image ({', '.join(IMAGE_ENDINGS)})",
                    why="a class without images cannot be learnt, and may be a folder that is no class",
                    remedy="fill it or remove it",
                )
    return listing


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
