"""What the adapters of `loader_peers` share: what is asked of a peer, and the images it reads.

A peer is imported by name, when it is first looked for: none of them is a dependency.
"""

from __future__ import annotations

import importlib
import os
import threading
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from functools import cached_property
from importlib.metadata import PackageNotFoundError, version
from itertools import chain
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray

from ..pipeline import AUGMENTATIONS
from ..shards import ShardSet, WrongCall, ppm_pixels


@dataclass(frozen=True)
class Asked:
    """What every peer is asked for: batches of N random crops, mirrored or not, less the channel mean."""

    shard_set: ShardSet
    cache: Path  # a folder in which peers that want the images in a file of their own may write it
    split: str = "train"
    batch_size: int = 128
    threads: int = 2  # or processes, where a peer has those
    output: str = "float32"  # "float32": finished; "uint8": cropped and mirrored pixels
    side: int = 224  # of the crop
    augmented: bool = True  # False: the central crop, no mirror, no jitter
    seed: int = 0

    @property
    def raw(self) -> bool:
        return self.shard_set.manifest.image.encoding == "raw"

    @property
    def floats(self) -> bool:
        return self.output == "float32"

    @property
    def extension(self) -> str:
        return self.shard_set.manifest.image.extension

    @property
    def stored_side(self) -> int:
        return self.shard_set.manifest.image.side

    @property
    def slack(self) -> int:
        """How many pixels a crop may lie lower, or further to the right, than at 0."""
        return self.stored_side - self.side

    @cached_property
    def samples(self) -> int:
        return self.shard_set.manifest.splits[self.split].samples

    @cached_property
    def mean(self) -> NDArray[np.float32]:
        """float32 (3,), 0..255."""
        return np.array(self.shard_set.manifest.statistics.channel_mean, np.float32)

    @cached_property
    def jitter_matrix(self) -> NDArray[np.float32]:
        """float32 (3, 3): three standard normal draws times this are an image's jitter, as in preset `paper`."""
        statistics = self.shard_set.manifest.statistics
        return AUGMENTATIONS["paper"].jitter_matrix(statistics).astype(np.float32)

    @property
    def shards(self) -> list[Path]:
        """The split's tars.

        Raises:
            WrongCall: they are not in a folder of this machine.
        """
        entries = self.shard_set.manifest.splits[self.split].shards
        paths = [self.shard_set.path / entry.name for entry in entries]
        if missing := [path.name for path in paths if not path.is_file()]:
            raise WrongCall(
                f"{missing[0]} is not in a folder of this machine, and the peers read files",
                where=self.shard_set.shown,
                remedy="a copy of the set in a folder, or no --against",
            )
        return paths


class PeerBatch(NamedTuple):
    """N images of a peer. Some peers lend them: they hold until the next batch is asked for."""

    images: torch.Tensor  # (N, 3, S, S), float32 or uint8; how it lies in memory is the peer's choice
    labels: torch.Tensor  # int64 (N,)


_A_FEW = 6  # batches: what any peer keeps in queues of its own, whatever its threads

Open = Callable[[Asked], AbstractContextManager[Iterator[PeerBatch]]]


@dataclass(frozen=True, slots=True)
class Found:
    """Whether a peer is installed."""

    version: str | None
    why: str  # "" where it is


@dataclass(frozen=True, slots=True, kw_only=True)
class Peer:
    """Another loader, and how it is driven on the same images."""

    name: str
    about: str  # in a line, how it is driven
    lacks: str  # in a line, what of the work it does not do
    modules: tuple[str, ...]  # that must be there
    package: tuple[str, ...]  # whose version is told: the first that is installed
    run: Open
    probe: Callable[[], object] = dict  # raises where a library of the system is missing
    jitters: bool = True
    exact: bool = True  # every image once an epoch
    ahead_per_thread: int = 0  # batches that it makes ahead for each of its threads or processes, beside a few
    copies: bool = False  # writes the images into a file of its own first, which is not timed
    tolerance: float = 1.0  # grey levels, in the mean of a JPEG: decoders differ, most at hard edges of colour
    encodings: tuple[str, ...] = ("jpeg", "raw")

    def found(self) -> Found:
        """Its version, or why it cannot be used. Imports it."""
        try:
            for module in self.modules:
                importlib.import_module(module)
            self.probe()
        except (ImportError, OSError, RuntimeError) as error:  # a library of the system may be missing too
            line = next(iter(str(error).splitlines()), type(error).__name__)
            return Found(None, f"cannot be imported: {line}")
        for package in self.package:
            try:
                return Found(version(package), "")
            except PackageNotFoundError:
                continue
        return Found("unknown", "")

    def ahead(self, threads: int) -> int:
        """More batches than it has ready when its turn comes: those were made in the turns of others."""
        return _A_FEW + self.ahead_per_thread * threads

    def refuses(self, asked: Asked) -> str:
        """Why it cannot do what is asked; "" where it can."""
        encoding = asked.shard_set.manifest.image.encoding
        return "" if encoding in self.encodings else f"{self.name} does not read {encoding} sets"

    @contextmanager
    def open(self, asked: Asked) -> Iterator[Iterator[PeerBatch]]:
        """Its batches, epoch after epoch without end.

        Entering takes until the first batch is there, which may be long: some compile, some write a copy.

        Raises:
            WrongCall: it cannot do what is asked.
        """
        if refused := self.refuses(asked):
            raise WrongCall(refused)
        asked.cache.mkdir(parents=True, exist_ok=True)
        with self.run(asked) as batches:
            yield chain([next(batches)], batches)


class StoredFiles:
    """The stored files of a split by their place on disk, for any process or thread."""

    def __init__(self, asked: Asked) -> None:
        index = asked.shard_set.index(asked.split)
        self._paths = asked.shards
        self._shard, self._offset, self._size = index.shard, index.offset, index.size
        self.labels: NDArray[np.int64] = index.label
        self._opened: dict[tuple[int, int], int] = {}  # a forked process opens its own

    def __len__(self) -> int:
        return len(self.labels)

    def file(self, sample: int) -> bytes:
        """One image's JPEG or PPM file."""
        return os.pread(
            self._descriptor(int(self._shard[sample])), int(self._size[sample]), int(self._offset[sample])
        )

    def _descriptor(self, shard: int) -> int:
        place = os.getpid(), shard
        if place not in self._opened:
            self._opened[place] = os.open(self._paths[shard], os.O_RDONLY)
        return self._opened[place]

    def close(self) -> None:
        while self._opened:
            (process, _), descriptor = self._opened.popitem()
            if process == os.getpid():
                os.close(descriptor)


class Drawn(NamedTuple):
    """What is drawn for one image."""

    y: int
    x: int
    mirror: bool
    offset: NDArray[np.float32]  # (3,): the channel mean less the jitter


class Draws:
    """Draws image after image, in each thread and process its own."""

    def __init__(self, asked: Asked) -> None:
        self._asked, self._mean, self._matrix = asked, asked.mean, asked.jitter_matrix
        self._own: dict[tuple[int, int], np.random.Generator] = {}

    def __call__(self) -> Drawn:
        slack = self._asked.slack
        if not self._asked.augmented:
            return Drawn(slack // 2, slack // 2, False, self._mean)
        place = os.getpid(), threading.get_ident()
        generator = self._own.get(place)
        if generator is None:
            generator = self._own[place] = np.random.default_rng([self._asked.seed, *place])
        y, x, mirror = generator.random(3)
        offset = self._mean - generator.standard_normal(3, np.float32) @ self._matrix
        return Drawn(int(y * (slack + 1)), int(x * (slack + 1)), mirror < 0.5, offset)


def pixels_of(file: bytes, *, raw: bool) -> NDArray[np.uint8]:
    """An image's pixels, (H, W, 3), by Pillow where it is a JPEG."""
    if raw:
        return ppm_pixels(memoryview(file))
    from io import BytesIO

    from PIL import Image

    return np.asarray(Image.open(BytesIO(file)))


def needed(module: str) -> Any:
    """A peer's module. Untyped, since it may not be there."""
    return importlib.import_module(module)


def nchw(images: torch.Tensor) -> torch.Tensor:
    """(N, H, W, 3) as (N, 3, H, W), without a copy."""
    return images.movedim(-1, 1)
