"""The stored image: the central square of a source image at one size, encoded.

Shorter side to `side`, the other side rounded, then the central `side` × `side`, as the paper says; the whole
of it is one antialiased bicubic resampling of the kept square, on the grid that those two steps would have
(fidelity.md §3.1). Smaller images are enlarged.

in   pixels_HWC  uint8, RGB, any size
out  pixels_HWC  uint8, RGB, (side, side, 3)
source  Krizhevsky, Sutskever, Hinton 2012, section 2; the author's later make-data.py for rounding and crop start
"""

from __future__ import annotations

import numpy as np
import simplejpeg
from numpy.typing import NDArray
from PIL import Image

from ...shards import ImageFormat, ppm_bytes


def kept_box(width: int, height: int, side: int) -> tuple[float, float, float, float]:
    """Left, top, right, bottom of the kept square in the coordinates of the source image.

    >>> kept_box(500, 375, 256)
    (61.58357771260997, 0.0, 436.95014662756597, 375.0)
    """

    def interval(length: int, shorter: int) -> tuple[float, float]:
        resized = (2 * length * side + shorter) // (2 * shorter)  # length·side/shorter, rounded, halves up
        start = (resized - side) // 2
        return start * length / resized, min((start + side) * length / resized, float(length))

    shorter = min(width, height)
    left, right = interval(width, shorter)
    top, bottom = interval(height, shorter)
    return left, top, right, bottom


def central_square(pixels_HWC: NDArray[np.uint8], side: int) -> NDArray[np.uint8]:
    """The kept square at the stored size, shape (side, side, 3)."""
    height, width = pixels_HWC.shape[:2]
    box = kept_box(width, height, side)
    square = Image.fromarray(pixels_HWC).resize((side, side), Image.Resampling.BICUBIC, box=box)
    return np.asarray(square)


def encoded(pixels_HWC: NDArray[np.uint8], image_format: ImageFormat) -> bytes:
    """The bytes that a shard holds: a JPEG, or a PPM in a raw set."""
    if image_format.encoding == "raw":
        return ppm_bytes(pixels_HWC)
    data: bytes = simplejpeg.encode_jpeg(
        np.ascontiguousarray(pixels_HWC),
        quality=image_format.quality,
        colorspace="RGB",
        colorsubsampling=str(image_format.subsampling).replace(":", ""),
    )
    return data
