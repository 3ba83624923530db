"""What reading and decoding will cost: a few planned images are read and packed, and timed.

The images lie in one shard, as far from each other as its images do, and are read one after the other in source
order, as the build will; what the system holds of them in memory is forgotten first.
"""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass
from statistics import fmean, median

from ...shards import ImageFormat, Split
from .decode import BadImage, decode
from .image import central_square, encoded
from .plan import PlannedSample, SplitPlan
from .reading import SourceReader
from .shard import source_order
from .sources import Container

PROBES = 32
WORTH_TELLING = 5_000  # images of a build; fewer are packed in seconds


@dataclass(frozen=True, slots=True)
class Forecast:
    """Times are of one image."""

    images: int
    bytes: int  # of all of them in the source
    probed: int
    read_s: float  # mean: a seek here and a pause there are part of it
    pack_s: float  # median, on one core: decode, resize, encode

    @property
    def reading_s(self) -> float:
        """Of all images, one after the other."""
        return self.images * self.read_s

    def packing_s(self, workers: int) -> float:
        return self.images * self.pack_s / workers


def forecast(
    containers: list[Container], splits: Mapping[Split, SplitPlan], image_format: ImageFormat
) -> Forecast | None:
    """Read and pack a few images of the largest split; None where none of them is an image.

    Raises:
        AlexshardError: the source is not as it was listed, or cannot be read.
    """
    largest = max(splits.values(), key=lambda split: len(split.order))
    plan = largest.shard(largest.num_shards // 2)
    reads, packs = [], []
    with SourceReader(containers) as source:
        for sample in probed(source_order(plan.samples)):
            source.forget(sample)
            try:
                began = time.perf_counter()
                data = source.read(sample)
                read = time.perf_counter()
                _pack(data, image_format, exact=plan.exact)
            except BadImage:
                continue
            reads.append(read - began)
            packs.append(time.perf_counter() - read)
    if not reads:
        return None
    return Forecast(
        images=sum(len(split.order) for split in splits.values()),
        bytes=sum(sum(split.images.size) for split in splits.values()),
        probed=len(reads),
        read_s=fmean(reads),
        pack_s=median(packs),
    )


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
