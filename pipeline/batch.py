"""What iterating over a loader gives."""

from __future__ import annotations

from dataclasses import dataclass

import torch


@dataclass(frozen=True, slots=True)
class Batch:
    """N samples, S×S pixels; with ten views every (N, …) of images, crop and mirror is (N, 10, …).

    float32 images are finished: (pixels − mean + offset) · scale. uint8 images are the cropped and mirrored
    pixels, that formula left to whoever takes them; `crop` and `mirror` say which part of a mean image belongs.
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
