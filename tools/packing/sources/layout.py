"""What of an ILSVRC edition lies where: the archives, the same extracted, or some of each.

    ILSVRC2010_images_train.tar, ILSVRC2012_img_train.tar    one inner tar a synset
    ILSVRC20NN_{images,img}_{val,test}.tar                   ILSVRC20NN_val_NNNNNNNN.JPEG, in a folder or not
    patch_images.tar                                         patch_images/{train,val,test}/NAME.JPEG, by name
    *devkit*                                                 see devkit.py

Extracted means a folder named as the archive (without `.tar`) or as the split, in which inner tars, folders
of synsets or the images themselves lie.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from pathlib import Path

from ....shards import Split
from .devkit import is_devkit
from .listing import holds_image

_ARCHIVE = re.compile(r"ILSVRC(?P<year>\d{4})_(?:images|img)_(?P<split>train|val|test)(?:_v\d+)?(?:\.tar)?")
EVAL_IMAGE = re.compile(r"ILSVRC(?P<year>\d{4})_(?P<split>val|test)_(?P<number>\d{8})\.JPEG")
WNID = re.compile(r"n\d{8}")
INNER_TAR = re.compile(r"(n\d{8})\.tar")


@dataclass(slots=True)
class Layout:
    """What of an edition lies where."""

    years: set[str] = field(default_factory=set)
    parts: dict[Split, Path] = field(default_factory=dict)  # an archive or a folder
    patches: Path | None = None


def find_layout(source: Path) -> Layout | None:
    """The parts of an ILSVRC edition in a folder, by their names; None where there is none of them."""
    layout = Layout()
    entries = sorted(source.iterdir(), key=lambda path: (path.is_dir(), path.name))  # archives before folders
    for path in entries:
        archive = _ARCHIVE.fullmatch(path.name)
        if archive is not None and path.is_dir() != path.name.endswith(".tar"):
            layout.years.add(archive["year"])
            layout.parts.setdefault(Split(archive["split"]), path)
        elif path.name in ("patch_images.tar", "patch_images"):
            layout.patches = layout.patches or path
    for split in Split:
        for folder in (source / split, source):
            if split not in layout.parts and folder.is_dir() and _holds_part(folder, split, layout.years):
                layout.parts[split] = folder
    named = bool(layout.years) or any("devkit" in path.name.lower() for path in entries)
    inner_tars = Split.TRAIN in layout.parts and any(layout.parts[Split.TRAIN].glob("n????????.tar"))
    return layout if layout.parts and (named or inner_tars) else None


def is_archive(name: str) -> bool:
    """Whether an archive of an ILSVRC edition is called so, or the folder that it was extracted to."""
    return _ARCHIVE.fullmatch(name) is not None


def _holds_part(folder: Path, split: Split, years: set[str]) -> bool:
    """Whether synsets (as folders or inner tars) or numbered images of the split lie in a folder."""
    for path in (*folder.iterdir(), *(folder / split).glob("ILSVRC*")):
        image = EVAL_IMAGE.fullmatch(path.name)
        if image is not None and image["split"] == split:
            years.add(image["year"])
            return True
        if split is Split.TRAIN and INNER_TAR.fullmatch(path.name):
            return True
        # Folders of synsets right in the source are train; val sorted into classes has a folder of its own.
        if (folder.name == split or split is Split.TRAIN) and WNID.fullmatch(path.name) and path.is_dir():
            return True
    return False


def beside(source: Path, layout: Layout) -> list[str]:
    """Folders of images that are neither part nor class nor patch."""
    known = {*layout.parts.values(), layout.patches}
    return [
        path.name
        for path in sorted(source.iterdir())
        if path not in known and path.is_dir() and not path.name.startswith(".")
        if not (source in known and WNID.fullmatch(path.name)) and not is_devkit(path.name) and holds_image(path)
    ]
