"""What reading and decoding will cost: a few planned images are read and packed, and timed.

The images lie in one shard, as far from each other as its images do, and are read as the build will: in source
order, the next ones while one waits. What the system holds of them in memory is forgotten first.
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Collection
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from statistics import median

import numpy as np

from ...shards import ImageFormat, ShardName, Split
from .decode import BadImage, decode
from .image import central_square, encoded
from .plan import PlannedSample, SplitPlan
from .reading import AHEAD_BYTES, SourceReader
from .resume import names_of, planned_images
from .shard import source_order
from .sources import Container

PROBES = 32
WORTH_TELLING = 5_000  # images of a build; fewer are packed in seconds


@dataclass(frozen=True, slots=True)
class Forecast:
    """Times are of one image."""

    images: int  # that are still to be packed
    bytes: int  # of all of them in the source
    probed: int
    read_s: float  # mean, as one worker reads them: seeks, and answers that come while it waits for others
    pack_s: float  # median, on one core: decode, resize, encode
    readers: int = 1  # workers that do not wait for each other's reading

    @property
    def reading_s(self) -> float:
        """Of all images."""
        return self.images * self.read_s / self.readers

    def packing_s(self, workers: int) -> float:
        return self.images * self.pack_s / workers


def forecast(
    containers: list[Container],
    splits: dict[Split, SplitPlan],
    image_format: ImageFormat,
    *,
    workers: int = 1,
    finished: Collection[ShardName] = (),
) -> Forecast | None:
    """Read and pack a few images of one shard; None where nothing is left to do, or none of them is an image.

    Args:
        finished: shards that need not be packed any more.

    Raises:
        AlexshardError: the source is not as it was listed, or cannot be read.
    """
    finished = frozenset(finished)
    missing = [name for name in names_of(splits) if name not in finished]
    if not missing:
        return None
    images = Counter[Split]()
    for name in missing:
        images[name.split] += planned_images(splits, name)
    [(largest, _)] = images.most_common(1)
    of_largest = [name for name in missing if name.split == largest]
    plan = splits[largest].shard(of_largest[len(of_largest) // 2].number)
    reading_s, read = _read(containers, probed(source_order(plan.samples)))
    packs = []
    for data in read:
        began = time.perf_counter()
        with suppress(BadImage):
            _pack(data, image_format, exact=plan.exact)
            packs.append(time.perf_counter() - began)
    if not packs:
        return None
    return Forecast(
        images=images.total(),
        bytes=sum(_bytes(splits[name.split], name.number) for name in missing),
        probed=len(packs),
        read_s=reading_s,
        pack_s=median(packs),
        readers=1 if isinstance(containers[0].path, Path) else workers,  # an arm of a disk serves one at a time
    )


def _read(containers: list[Container], samples: list[PlannedSample]) -> tuple[float, list[bytes]]:
    """Seconds that reading one of them takes, and the bytes of the first ones, up to a limit."""
    read: list[bytes] = []
    held = 0
    with SourceReader(containers) as source:
        with suppress(BadImage):
            source.read(samples[0])  # once opened and asked for its state, an archive gives the rest quicker
        for sample in samples:
            source.forget(sample)
        began = last = time.perf_counter()
        for _, take in source.read_all(samples):
            with suppress(BadImage):
                data = take()
                if held < AHEAD_BYTES:
                    read.append(data)
                    held += len(data)
            last = time.perf_counter()
    return (last - began) / len(samples), read


def _bytes(plan: SplitPlan, number: int) -> int:
    """Of a shard's images in the source."""
    start = number * plan.samples_per_shard
    return int(np.asarray(plan.images.size)[plan.order[start : start + plan.samples_per_shard]].sum())


def probed(samples: list[PlannedSample]) -> list[PlannedSample]:
    """Some of them, evenly spread; all where there are few."""
    number = min(PROBES, len(samples))
    return [samples[i * len(samples) // number] for i in range(number)]


def _pack(data: bytes, image_format: ImageFormat, *, exact: bool) -> None:
    found = decode(data, side=None if exact else image_format.side)
    size = found.width, found.height
    encoded(
        central_square(found.pixels_HWC, image_format.side, size=size, reduction=found.reduction), image_format
    )
