"""Every operation of the pipeline, stated in NumPy: slow, plain, and what the fast ways are checked against.

Written from fidelity.md §3 and §4, not from the graph; nothing here imports DALI or torch.
legend  N images, H×H stored, S×S cropped, pixels RGB on 0..255, places (y, x) from the top left
"""

from __future__ import annotations

import io
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from ..shards import ppm_pixels
from .augment import Augmentation, Places
from .draws import Draws


def decoded(image: bytes | memoryview, extension: str) -> NDArray[np.uint8]:
    """The pixels of a stored image, uint8 (H, H, 3); JPEG by Pillow, another decoder than the loader's."""
    if extension == "ppm":
        return ppm_pixels(image)
    with Image.open(io.BytesIO(image)) as picture:
        return np.asarray(picture.convert("RGB"))


def jitter_of(
    normals_N3: NDArray[np.float64],
    augmentation: Augmentation,
    eigenvalues: NDArray[np.float64],
    eigenvectors: NDArray[np.float64],
) -> NDArray[np.float64]:
    """What is added to every pixel of each image, (N, 3); eigenvectors in columns, of pixels on 0..255.

    `paper`: sum of p_i · alpha_i · lambda_i on [0, 1]; `original`: of p_i · 0.1 z_i · sqrt(lambda_i) on [0, 255].
    """
    jitter = np.zeros((len(normals_N3), 3))
    for image, normals in enumerate(normals_N3):
        for i in range(3):
            if augmentation.name == "paper":
                jitter[image] += 255 * eigenvectors[:, i] * (0.1 * normals[i]) * (eigenvalues[i] / 255**2)
            else:
                jitter[image] += 0.1 * eigenvectors[:, i] * normals[i] * np.sqrt(eigenvalues[i])
    return jitter


def training_images(
    pixels_NHWC: NDArray[np.uint8],
    draws: Draws,
    *,
    side: int,
    mean_HWC: NDArray[np.floating],
    jitter_N3: NDArray[np.float64],
    augmentation: Augmentation,
) -> NDArray[np.float64]:
    """The images of a batch as the preset makes them, (N, 3, S, S).

    `paper` subtracts the mean image before the crop. `original` crops, mirrors, subtracts the central crop of the
    mean image, adds the jitter, and divides by 1.1.
    """
    images = []
    for pixels, y, x, mirror, jitter in zip(pixels_NHWC, draws.y, draws.x, draws.mirror, jitter_N3, strict=True):
        if augmentation.name == "paper":
            image = finished(pixels, y, x, mirror, side=side, before=mean_HWC) + jitter
        else:
            image = (finished(pixels, y, x, mirror, side=side, after=_central(mean_HWC, side)) + jitter) / 1.1
        images.append(image.transpose(2, 0, 1))
    return np.stack(images)


def views_of(
    pixels_NHWC: NDArray[np.uint8], *, side: int, mean_HWC: NDArray[np.floating], mean_crop: str, views: Places
) -> NDArray[np.float64]:
    """Views of each image at test time, (N, V, 3, S, S): one, the centre, or the ten.

    With mean_crop "own" the mean image is subtracted before the crop, with "centre" its central crop after it.
    """
    mean = {"before": mean_HWC} if mean_crop == "own" else {"after": _central(mean_HWC, side)}
    batch = []
    for pixels in pixels_NHWC:
        row = [finished(pixels, y, x, mirror, side=side, **mean) for y, x, mirror in views]
        batch.append(np.stack([view.transpose(2, 0, 1) for view in row]))
    return np.stack(batch)


def finished(
    pixels_HWC: NDArray[np.uint8],
    y: int,
    x: int,
    mirror: bool,
    *,
    side: int,
    before: NDArray[np.floating] | float = 0.0,
    after: NDArray[np.floating] | float = 0.0,
) -> NDArray[np.float64]:
    """One crop, (S, S, 3), less a mean that is cropped and mirrored with it, or one that is not."""
    return cropped(pixels_HWC.astype(np.float64) - before, y, x, mirror, side=side) - after


def cropped(image_HWC: NDArray[Any], y: int, x: int, mirror: bool, *, side: int) -> NDArray[Any]:
    """One crop, (S, S, 3), mirrored or not."""
    crop = image_HWC[y : y + side, x : x + side]
    return crop[:, ::-1] if mirror else crop


def _central(image_HWC: NDArray[np.floating], side: int) -> NDArray[np.floating]:
    top = (len(image_HWC) - side) // 2
    return cropped(image_HWC, top, top, False, side=side)
