"""One sample, and the raw form of its image: PPM (P6), which any tool reads and nothing needs to decode."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

JPEG_EXTENSION = "jpg"
RAW_EXTENSION = "ppm"
LABEL_EXTENSION = "cls"
NO_LABEL = -1

_PPM_HEADER = re.compile(rb"P6\n(\d{1,9}) (\d{1,9})\n255\n")


@dataclass(frozen=True, slots=True)
class Sample:
    """One image with its label; in a tar, the members that share `key`."""

    key: str
    label: int | None  # None: the sample has no `.cls` member
    image: bytes  # a JPEG file or a PPM file
    extension: str  # of the image member: "jpg" or "ppm"


def ppm_bytes(pixels_HWC: NDArray[np.uint8]) -> bytes:
    """A PPM file of RGB pixels, shape (H, W, 3)."""
    height, width, channels = pixels_HWC.shape
    if channels != 3 or pixels_HWC.dtype != np.uint8:
        raise ValueError(f"expected uint8 (H, W, 3), got {pixels_HWC.dtype} {pixels_HWC.shape}")
    return b"P6\n%d %d\n255\n" % (width, height) + pixels_HWC.tobytes()


def ppm_pixels(data: Any) -> NDArray[np.uint8]:
    """The pixels of a PPM file as written by `ppm_bytes`, shape (H, W, 3): a view of `data`, no copy.

    Raises:
        ValueError: `data` is no such file, or not as long as its header says.
    """
    view = memoryview(data)
    header = _PPM_HEADER.match(view[:32])
    if header is None:
        raise ValueError("no PPM file as this project writes it (P6, maximum 255)")
    width, height = int(header[1]), int(header[2])
    start = header.end()
    if len(view) != start + height * width * 3:
        raise ValueError(f"a {width}x{height} PPM has {start + height * width * 3} bytes, this one {len(view)}")
    return np.frombuffer(view, np.uint8, offset=start).reshape(height, width, 3)
