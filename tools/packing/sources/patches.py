"""patch_images.tar: sound images for the spoiled originals of ILSVRC2010, told by name alone.

Some spoiled originals decode well (a blank page, a banner), so every image that a patch is named after is
replaced. The split is the last folder above the name.
"""

from __future__ import annotations

from pathlib import Path

from ....shards import Split
from ..tar import Kind, members
from .archive import opened
from .images import change_of
from .listing import Listing, bare_name

Place = tuple[int, int, int, int]  # container, offset, size, change


def apply_patches(listing: Listing, path: Path, label: str) -> None:
    """Take the bytes of spoiled images from the patch archive or its extracted folder."""
    patches = _in_archive(listing, path, label) if path.is_file() else _in_folders(listing, path, label)
    for split, images in listing.splits.items():
        for position, name in enumerate(images.names):
            if (place := patches.pop((split.value, name), None)) is not None:
                images.replace(position, *place)
    not_packed = {split.value for split in Split} - {split.value for split in listing.splits}
    unused = sorted(f"{split}/{name}" for split, name in patches if split not in not_packed)
    if unused:
        listing.remarks.append(
            f"{len(unused):,} of the patches in {label} replace nothing: no image has the name, first {unused[0]}"
        )


def _in_archive(listing: Listing, path: Path, label: str) -> dict[tuple[str, str], Place]:
    container = listing.add_container(path, label)
    patches = {}
    with opened(path) as archive:
        for member in members(archive.read_at, where=label, end=archive.size):
            folder, _, name = member.name.rpartition("/")
            if member.kind is Kind.FILE and bare_name(member.name) is not None:
                patches[folder.rpartition("/")[2], name] = (container, member.offset, member.size, 0)
    return patches


def _in_folders(listing: Listing, path: Path, label: str) -> dict[tuple[str, str], Place]:
    patches = {}
    for split in Split:
        folder = path / split
        if folder.is_dir():
            container = listing.add_container(folder, f"{label}/{split}", is_folder=True)
            for file in sorted(folder.iterdir()):
                if file.is_file():
                    status = file.stat()
                    patches[split.value, file.name] = (container, 0, status.st_size, change_of(status))
    return patches
