"""Archives of the real shape that take next to no disk: every header is written, the images are holes."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

import numpy as np

BLOCK = 512


def train_archive(path: Path, images_of: Sequence[int], *, mean_bytes: int = 109_000, seed: int = 0) -> int:
    """An archive of ILSVRC2012's train: an inner tar for every number of images; returns the images' bytes.

    Names, sizes (log-normal about the real mean) and the layout are those of a download; the pixels are zeros that
    were never written, so 140 GB take a block of the disk for every image.
    """
    drawn = np.random.default_rng(seed)
    total, position = 0, 0
    with path.open("wb", buffering=0) as file:
        for place, count in enumerate(images_of):
            wnid = f"n{1440764 + 977 * place:08d}"
            sizes = np.clip(
                drawn.lognormal(np.log(mean_bytes) - 0.18, 0.6, count).astype(np.int64), 2_000, 15_000_000
            )
            inner = [(f"{wnid}_{number * 7 + place % 7}.JPEG", int(size)) for number, size in enumerate(sizes)]
            inner_bytes = _padded(sum(BLOCK + _padded(size) for _, size in inner) + 2 * BLOCK, 20 * BLOCK)
            os.pwrite(file.fileno(), header(f"{wnid}.tar", inner_bytes), position)
            at = position + BLOCK
            for name, size in inner:
                os.pwrite(file.fileno(), header(name, size), at)
                at += BLOCK + _padded(size)
            position += BLOCK + inner_bytes
            total += int(sizes.sum())
        file.truncate(position + 20 * BLOCK)
    return total


def header(name: str, size: int) -> bytes:
    """A header as GNU tar writes it."""
    numbers = b"\0".join((b"0000644", b"0001750", b"0001750", b"%011o" % size, b"%011o" % 1_300_000_000, b""))
    block = name.encode().ljust(100, b"\0") + numbers + b" " * 8 + b"0"
    block = (block.ljust(257, b"\0") + b"ustar  \0root").ljust(BLOCK, b"\0")
    return block[:148] + b"%06o\0 " % sum(block) + block[156:]


def _padded(size: int, unit: int = BLOCK) -> int:
    return -(-size // unit) * unit
