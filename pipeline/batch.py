"""What iterating over a loader gives."""

from __future__ import annotations

from dataclasses import dataclass, fields, replace
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from .augment import Places
from .treatment import Treated


@dataclass(frozen=True, slots=True)
class Batch:
    """N samples, S×S pixels; with ten views every (N, …) of images, crop and mirror is (N, 10, …).

    Images of floats are finished: (pixels − mean + offset) · scale. uint8 images are the cropped and mirrored
    pixels, that formula left to whoever takes them; `crop` and `mirror` say which part of a mean image belongs.
    All tensors are on one device; on a card they are ready for what is enqueued on the stream that was current.
    """

    images: torch.Tensor  # (N, 3, S, S), RGB; floats, or uint8 0..255 whose memory lies as (N, S, S, 3)
    labels: torch.Tensor  # int64 (N,), −1 where there is none
    keys: list[str]
    crop: torch.Tensor  # int64 (N, 2): y, x
    mirror: torch.Tensor  # bool (N,)
    offset: torch.Tensor  # float32 (N, 3): the jitter, the same for every pixel of an image
    scale: float  # 1, or 1/1.1 where `original` jitters
    valid: torch.Tensor  # bool (N,): False for what `pad_last` repeats to fill the last batch

    def __len__(self) -> int:
        return len(self.keys)

    def to(self, device: torch.device | str, non_blocking: bool = False) -> Batch:
        """This batch on a device: itself where it is there already."""
        if self.images.device == torch.device(device):
            return self
        moved: dict[str, Any] = {
            field.name: value.to(device, non_blocking=non_blocking)
            for field in fields(self)
            if isinstance(value := getattr(self, field.name), torch.Tensor)
        }
        return replace(self, **moved)


@dataclass(frozen=True, slots=True)
class Facts:
    """All of a batch but its images, in host memory; for a card in memory that it can fetch by itself."""

    labels: torch.Tensor
    keys: list[str]
    crop: torch.Tensor
    mirror: torch.Tensor
    offset: torch.Tensor
    scale: float
    valid: torch.Tensor

    @classmethod
    def of(
        cls,
        treated: Treated,
        views: Places,
        *,
        labels: NDArray[np.int64],
        keys: list[str],
        valid: NDArray[np.bool_],
        for_card: bool,
    ) -> Facts:
        crop, mirror = np.stack([treated.y, treated.x], axis=-1), treated.mirror
        if views:
            places = np.array([(y, x) for y, x, _ in views])
            crop = np.broadcast_to(places, (len(keys), *places.shape))
            mirror = np.broadcast_to(np.array([mirrored for *_, mirrored in views]), crop.shape[:2])

        def tensor(array: NDArray[Any]) -> torch.Tensor:
            copied = torch.tensor(array)
            return copied.pin_memory() if for_card else copied

        return cls(
            labels=tensor(labels),
            keys=keys,
            crop=tensor(crop),
            mirror=tensor(mirror),
            offset=tensor(treated.jitter),
            scale=1.0 / treated.divisor,
            valid=tensor(valid),
        )

    def with_images(self, images: torch.Tensor) -> Batch:
        """The batch; to a card the copies are enqueued on the current stream, and nobody waits for them."""

        def there(tensor: torch.Tensor) -> torch.Tensor:
            return tensor.to(images.device, non_blocking=True)

        return Batch(
            images=images,
            labels=there(self.labels),
            keys=self.keys,
            crop=there(self.crop),
            mirror=there(self.mirror),
            offset=there(self.offset),
            scale=self.scale,
            valid=there(self.valid),
        )
