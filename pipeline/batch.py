"""What iterating over a loader gives."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from .augment import Places
from .treatment import Treated


@dataclass(frozen=True, slots=True)
class Batch:
    """N samples, S×S pixels; with ten views every (N, …) of images, crop and mirror is (N, 10, …).

    float32 images are finished: (pixels − mean + offset) · scale. uint8 images are the cropped and mirrored
    pixels, that formula left to whoever takes them; `crop` and `mirror` say which part of a mean image belongs.
    All tensors are on one device; on a card they are ready for what is enqueued on the stream that was current.
    """

    images: torch.Tensor  # (N, 3, S, S), RGB; float32, or uint8 0..255 whose memory lies as (N, S, S, 3)
    labels: torch.Tensor  # int64 (N,), −1 where there is none
    keys: list[str]
    crop: torch.Tensor  # int64 (N, 2): y, x
    mirror: torch.Tensor  # bool (N,)
    offset: torch.Tensor  # float32 (N, 3): the jitter, the same for every pixel of an image
    scale: float  # 1, or 1/1.1 where `original` jitters

    def __len__(self) -> int:
        return len(self.keys)


def assemble(
    images: torch.Tensor, treated: Treated, views: Places, *, labels: NDArray[np.int64], keys: list[str]
) -> Batch:
    """The batch of `images`; everything that belongs to them goes to their device."""
    crop, mirror = np.stack([treated.y, treated.x], axis=-1), treated.mirror
    if views:
        places = np.array([(y, x) for y, x, _ in views])
        crop = np.broadcast_to(places, (len(keys), *places.shape))
        mirror = np.broadcast_to(np.array([mirrored for *_, mirrored in views]), crop.shape[:2])
    return Batch(
        images=images,
        labels=_on(images.device, labels),
        keys=keys,
        crop=_on(images.device, crop),
        mirror=_on(images.device, mirror),
        offset=_on(images.device, treated.jitter),
        scale=1.0 / treated.divisor,
    )


def _on(device: torch.device, array: NDArray[Any]) -> torch.Tensor:
    """A copy of the array. To a card it is enqueued, by way of pinned memory, and nobody waits for it."""
    tensor = torch.tensor(array)
    return tensor.pin_memory().to(device, non_blocking=True) if device.type == "cuda" else tensor
