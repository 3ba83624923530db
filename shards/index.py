"""The index of a shard: where each member's bytes lie, in DALI's v1.2 text form.

First line `v1.2 SAMPLES`, then one line a sample, four words a member: extension, offset, size, name.

    v1.2 2
    jpg 512 23710 n01440764_10026.jpg cls 24576 1 n01440764_10026.cls
    jpg 25600 18412 n02102040_7.jpg cls 44544 1 n02102040_7.cls

Source: the index that `wds2idx` of DALI 2.4 writes; a test compares the two byte for byte.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from .errors import CorruptShardSet, mending
from .regular import read_regular
from .sample import LABEL_EXTENSION

VERSION = "v1.2"
WORDS_PER_MEMBER = 4


@dataclass(frozen=True, slots=True)
class IndexEntry:
    """Where one member's bytes lie: `size` bytes from byte `offset` of the shard."""

    key: str  # of the sample, unique in its split
    extension: str  # without the dot: "jpg", "cls"
    offset: int  # of the first payload byte, not of the tar header; a multiple of 512
    size: int  # payload bytes, without tar padding

    def __str__(self) -> str:
        return f"{self.extension} {self.offset} {self.size} {self.key}.{self.extension}"


def index_text(samples: list[list[IndexEntry]]) -> str:
    """The index file's text, from the members of each sample in the order of the tar."""
    lines = [f"{VERSION} {len(samples)}", *(" ".join(map(str, members)) for members in samples)]
    return "\n".join(lines) + "\n"


@dataclass(frozen=True, slots=True)
class ImageIndex:
    """The image members of one shard, in the order of the tar."""

    keys: list[str]
    offset: NDArray[np.int64]  # (N,), bytes
    size: NDArray[np.int64]  # (N,), bytes


def read_index(path: Path, *, extension: str, labelled: bool) -> ImageIndex:
    """Read an index of samples that each have an image with `extension` and, if `labelled`, a `.cls`.

    Raises:
        CorruptShardSet: the text is not such an index.
    """
    try:
        words = read_regular(path).split()
    except OSError as error:
        raise _corrupt(path, f"cannot be read: {error.strerror}") from error
    stride = WORDS_PER_MEMBER * (2 if labelled else 1)
    if len(words) < 2 or words[0] != VERSION.encode():
        raise _corrupt(path, f"does not begin with {VERSION!r} and a count")
    samples, members = words[1], words[2:]
    if len(members) % stride or samples != str(len(members) // stride).encode():
        said = samples[:20].decode("ascii", "replace")
        raise _corrupt(path, f"says {said} samples, holds {len(members) / stride:g}")
    wanted = [extension.encode()] + ([LABEL_EXTENSION.encode()] if labelled else [])
    for place, word in enumerate(wanted):
        if set(members[place * WORDS_PER_MEMBER :: stride]) - {word}:
            raise _corrupt(path, f"has a sample whose member {place} is not {word.decode()!r}")
    try:
        offset, size = (np.array(members[word::stride], dtype="S20").astype(np.int64) for word in (1, 2))
        names = [name.decode("ascii") for name in members[3::stride]]
    except (ValueError, OverflowError) as error:
        raise _corrupt(path, f"holds what is no number or no key: {error}") from error
    suffix = "." + extension
    return ImageIndex([name.removesuffix(suffix) for name in names], offset, size)


def _corrupt(path: Path, what: str) -> CorruptShardSet:
    return CorruptShardSet(
        f"the index {path.name} {what}",
        where=str(path),
        why="samples are found in a shard by its index alone",
        remedy=mending(str(path.parent)),
    )
