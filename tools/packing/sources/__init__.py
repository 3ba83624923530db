"""Sources: what is in a folder that somebody calls ImageNet, or any other folder of images."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import cast

from ....shards import ClassEntry, Split, WrongCall, folder_at, is_address, masked
from .archive import Archive
from .cache import hangs_on, load_listing, save_listing, settings_of, still_holds
from .folders import find_parts, list_folders
from .ilsvrc import list_ilsvrc
from .images import Images, Names
from .layout import find_layout
from .listing import BadSource, Container, Listing, Refusal

__all__ = [
    "Archive",
    "BadSource",
    "Container",
    "Images",
    "Listing",
    "Names",
    "Refusal",
    "cached_listing",
    "list_source",
    "save_listing",
    "source_at",
]


def source_at(text: str, on_folders: Callable[[int], object] = int) -> Path:
    """The source that a person names: a folder, or the address of one (s3://…, https://…).

    Args:
        on_folders: called now and then with the number of folders of a store that were looked at since.

    Raises:
        WrongCall: it holds credentials, there is no such store, a library or the permission is missing.
        AlexshardError: the store cannot be reached.
    """
    if not is_address(text):
        return folder_at(text)
    if masked(text) != text:
        raise WrongCall(
            f"{masked(text)} holds credentials or a query",
            why="addresses end up in logs, in plans and in the history of a shell",
            remedy="leave them to the environment (AWS_ACCESS_KEY_ID, GOOGLE_APPLICATION_CREDENTIALS, ...)",
        )
    # Imported late: most sources lie on a disk, and the stores' libraries take a while.
    from .remote import remote_source

    return cast(Path, remote_source(text, on_folders))  # answers all that is asked of a source's path


LOOKED_FOR = (
    "ILSVRC2010_images_{train,val,test}.tar, ILSVRC2012_img_{train,val,test}.tar, the same "
    "extracted (train/, val/, test/, n01440764/, n01440764.tar, ILSVRC2012_val_00000001.JPEG), "
    "or a folder of images per class, with or without train/ val/ test/ above"
)


def list_source(
    source: Path,
    *,
    splits: Sequence[Split] | None = None,
    unlabelled: bool = False,
    classes: tuple[ClassEntry, ...] | None = None,
    on_found: Callable[[int], object] = int,
) -> Listing:
    """Look at a folder, tell what it is, and list its images; nothing is decoded or written.

    Args:
        splits: those to take; None: all that are there.
        unlabelled: take val or test without labels where nothing tells them.
        classes: those of the shard set that statistics come from; needed where train is not taken.
        on_found: called now and then with the number of images found since the last call.

    Raises:
        WrongCall: the folder does not exist, holds none of what is looked for, or lacks a chosen split.
        BadSource, BadArchive: it is recognised but cannot make a right set, or something in it cannot be read.
    """
    try:
        return _list_source(source, splits, unlabelled, classes, on_found)
    except ConnectionError:
        raise  # of on_found: nobody listens any more
    except OSError as error:
        raise BadSource(
            f"the source cannot be read: {error.strerror or error}",
            where=str(error.filename or source),
            why="what lies there would be missing in the set",
            remedy="make it readable, check its disk, or take it out of the source",
        ) from None


def cached_listing(
    source: Path,
    cache: Path,
    *,
    splits: Sequence[Split] | None = None,
    unlabelled: bool = False,
    classes: tuple[ClassEntry, ...] | None = None,
    on_found: Callable[[int], object] = int,
) -> Listing:
    """What `list_source` gives, from a file of `save_listing` if the source is still as it was then.

    Nothing is written: whoever owns the folder of `cache` saves the listing there.
    """
    settings = settings_of(source, splits, unlabelled, classes)
    kept = load_listing(cache, source)
    if kept is not None and still_holds(kept, source, settings):
        kept.from_cache = True
        on_found(sum(map(kept.found, kept.splits)))
        return kept
    try:
        known = hangs_on(source, settings)
    except OSError:
        known = {}  # what cannot be read is told by the listing itself
    listing = list_source(source, splits=splits, unlabelled=unlabelled, classes=classes, on_found=on_found)
    listing.hangs_on = known
    return listing


def _list_source(
    source: Path,
    splits: Sequence[Split] | None,
    unlabelled: bool,
    classes: tuple[ClassEntry, ...] | None,
    on_found: Callable[[int], object],
) -> Listing:
    if not source.is_dir():
        what = "is no folder" if source.exists() else "does not exist"
        raise WrongCall(f"SOURCE {source} {what}", remedy="give the folder that holds the archives or images")
    layout = find_layout(source)
    parts = layout.parts if layout is not None else find_parts(source)
    if not parts:
        raise WrongCall(
            f"{source} holds nothing that is known here",
            where=f"looked for {LOOKED_FOR}",
            remedy="give the folder that holds the archives or images",
        )
    there = [split for split in Split if split in parts]
    chosen = tuple(there if splits is None else [split for split in Split if split in splits])
    if lacking := [split for split in chosen if split not in parts]:
        raise WrongCall(
            f"{source} has no {' and no '.join(lacking)}",
            where=f"it has {', '.join(there)}",
            remedy=f"--splits {','.join(split for split in chosen if split in parts) or there[0]}",
        )
    if Split.TRAIN not in chosen and classes is None:
        raise WrongCall(
            "a set without train has no classes and no mean of its own",
            why="labels must agree with the network that will be tested, and so must the mean",
            remedy="--statistics-from SHARDSET, the set that the network is trained on",
        )
    if layout is not None:
        return list_ilsvrc(source, layout, chosen, unlabelled=unlabelled, classes=classes, on_found=on_found)
    return list_folders(source, parts, chosen, unlabelled=unlabelled, classes=classes, on_found=on_found)
