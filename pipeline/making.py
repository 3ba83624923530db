"""How batches are made: what is asked for, as one plan, and the protocol of those who can do it.

backend     decodes                         crops, mirrors, subtracts, divides
threads     threads, by libjpeg-turbo       the same threads, in C, while the pixels lie in their cache
dali        threads, DALI, or both          one DALI graph, on the cores or on a card
reference   Pillow                          NumPy, as the text of the paper says it: slow
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import torch
from numpy.typing import NDArray

from .augment import Places
from .bytes import StoredImages
from .treatment import Treated

BACKENDS = ("threads", "dali", "reference")
DECODERS = ("cores", "card", "split")

DTYPES = {
    "float32": torch.float32,
    "float16": torch.float16,
    "bfloat16": torch.bfloat16,
    "uint8": torch.uint8,
}


@dataclass(frozen=True, slots=True, eq=False)
class Plan:
    """What a maker is made from."""

    backend: str
    decoder: str
    split_share: float  # of a batch that DALI decodes, where the decoder is "split"
    threads: int
    device: torch.device
    stored: StoredImages
    encoded: bool  # stored images are JPEG files, not pixels
    batch_size: int  # the most samples of one batch
    stored_side: int
    side: int  # of the crop
    output: str
    channels_last: bool  # how floats lie in memory; bytes always lie so
    views: Places = ()  # the same for every image; without them places come with the work
    own_mean: NDArray[np.float32] | None = None  # (stored_side, stored_side, 3): cropped with the image
    central_mean: NDArray[np.float32] | None = None  # (3, S, S): subtracted wherever the crop lies
    channel_mean: NDArray[np.float32] | None = None  # (3,)
    divisor: float = 1.0  # of the first batch

    @property
    def floats(self) -> bool:
        return self.output != "uint8"

    @property
    def shape(self) -> tuple[int, ...]:
        """Of one sample's images, as they lie in memory."""
        views = (len(self.views),) if self.views else ()
        planes = self.floats and not self.channels_last
        return (*views, *((3, self.side, self.side) if planes else (self.side, self.side, 3)))

    @property
    def batch_bytes(self) -> int:
        """Of a full batch's images."""
        return int(np.prod(self.shape)) * self.batch_size * DTYPES[self.output].itemsize

    def add(self, treated: Treated) -> NDArray[np.float32]:
        """What is added to every pixel of each image before the division, float32 (N, 3)."""
        return treated.jitter if self.channel_mean is None else treated.jitter - self.channel_mean

    def shown(self, images: torch.Tensor) -> torch.Tensor:
        """Images as they lie in memory, as (N, …, 3, S, S)."""
        return images if self.floats and not self.channels_last else images.movedim(-1, -3)


@dataclass(frozen=True, slots=True)
class Work:
    """One batch to be made, N samples (at least one)."""

    samples: NDArray[np.int64]  # (N,): places in the order on disk
    treated: Treated


Made = Callable[[], torch.Tensor]  # a finished batch's images; called once, in the thread of whoever takes them


class Maker(Protocol):
    """Makes batches, several at a time; used by one thread, but for `interrupt`.

    Errors of a batch (UndecodableSample, CorruptShardSet, …) are raised by the `collect` that would give it.
    """

    in_flight: int  # how many batches to begin before the first is collected

    def begin(self, work: Work) -> None:
        """Start on a batch."""

    def collect(self) -> Made:
        """The oldest batch begun, once it is finished."""

    def interrupt(self) -> None:
        """From another thread: nobody will collect what was begun, so stop; `collect` raises, not waits."""

    def abandon(self) -> None:
        """Forget what was begun; what begins then is not mixed with it."""

    def close(self) -> None:
        """Let go of threads and memory. Batches handed out stay as they are."""


def on_device(images: torch.Tensor, device: torch.device) -> Made:
    """Images in host memory, for a device: to a card they go by pinned memory, and nobody waits."""
    if device.type == "cpu":
        return lambda: images
    pinned = images.pin_memory()
    return lambda: pinned.to(device, non_blocking=True)
