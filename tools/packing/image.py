"""The stored image: the central square of a source image at one size, encoded.

Shorter side to `side`, the other side rounded, then the central `side` × `side`, as the paper says; the whole
of it is one antialiased bicubic resampling of the kept square, on the grid that those two steps would have
(fidelity.md §3.1). Smaller images are enlarged.

in      pixels_HWC  uint8, RGB, any size
out     square_HWX  uint8, RGBX, (side, side, 4): the fourth byte is zero, so that a pixel is one word
source  Krizhevsky, Sutskever, Hinton 2012, section 2; the author's later make-data.py for rounding and crop start;
        weights: Keys 1981, "Cubic convolution interpolation for digital image processing", a = −1/2, widened by
        the reduction, in fixed point

The resampling is done by _square.c where a compiler was there at set-up, else by Pillow; pillow-simd and _square.c
give the same bytes (a test compares them).
"""

from __future__ import annotations

import threading
from functools import lru_cache
from typing import NamedTuple

import numpy as np
import PIL
import simplejpeg
from numpy.typing import NDArray
from PIL import Image

from ...shards import ImageFormat, ppm_bytes

try:
    from . import _square
except ImportError:  # no compiler was there
    _square = None  # type: ignore[assignment]

_SUPPORT = 2.0  # of the filter, in pixels of the coarser grid
_LARGEST_WEIGHT = 1 << 15
_ROWS_KEPT = 64  # 128 KiB at 256: they stay in the cache
_MOST_BITS = 22  # so that a weighted sum of bytes fits into 32 bits


def resampler() -> str:
    """Name and version of what resamples; others may differ by a level."""
    if _square is not None:
        return "alexshard 1, antialiased bicubic"
    return f"{pillow_flavour()}, antialiased bicubic"


def pillow_flavour() -> str:
    """Which Pillow is installed, with its version."""
    return f"{'pillow-simd' if 'post' in PIL.__version__ else 'pillow'} {PIL.__version__}"


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


def central_square(
    pixels_HWC: NDArray[np.uint8], side: int, *, size: tuple[int, int] | None = None, reduction: int = 1
) -> NDArray[np.uint8]:
    """The kept square at the stored size, shape (side, side, 4).

    Args:
        size: width and height of the source image, where the decoder has reduced it; else those of the pixels.
        reduction: by how much; pixels then cover `reduction` × `reduction` of the source.
    """
    height, width = pixels_HWC.shape[:2]
    source_width, source_height = size or (width, height)
    box = kept_box(source_width, source_height, side)
    left, top = box[0] / reduction, box[1] / reduction
    right, bottom = min(box[2] / reduction, width), min(box[3] / reduction, height)
    if _square is None:
        box = (left, top, right, bottom)
        resized = Image.fromarray(pixels_HWC).resize((side, side), Image.Resampling.BICUBIC, box=box)
        padded = np.zeros((side, side, 4), np.uint8)
        padded[..., :3] = np.asarray(resized)
        return padded
    across = _across(width, left, right, side)
    down = _down(height, top, bottom, side)
    if (lacking := across.weights.shape[1] - width) > 0:
        # A filter wider than the image reads blank pixels, which weigh nothing.
        pixels_HWC = np.pad(pixels_HWC, ((0, 0), (0, lacking), (0, 0)))
        width += lacking
    square = np.empty((side, side, 4), np.uint8)
    _square.resample(
        np.ascontiguousarray(pixels_HWC),
        width,
        side,
        (across.starts, across.weights, across.bits),
        (down.starts, down.weights, down.bits),
        down.rows,
        _scratch.of(8 * side * max(_ROWS_KEPT, down.weights.shape[1] + 12) + 3 * width + 16),
        square,
    )
    return square


class _Filter(NamedTuple):
    """What each output pixel of one direction reads, and how it weighs it."""

    starts: NDArray[np.int32]  # (side,): the first pixel
    weights: NDArray[np.int16]  # (side, taps): of that and the following ones
    bits: int  # a weight of 1 is 1 << bits
    rows: tuple[int, int]  # first and number of the pixels that are read at all


@lru_cache(maxsize=512)
def _across(length: int, start: float, stop: float, side: int) -> _Filter:
    centres, first, last, widening = _reach(length, start, stop, side)
    taps = _even(int((last - first).max()))
    starts = np.minimum(first, max(length - taps, 0))
    weights, bits = _weights(starts, taps, centres, first, last, widening)
    return _Filter(starts.astype(np.int32), weights, bits, (0, length))


@lru_cache(maxsize=512)
def _down(length: int, start: float, stop: float, side: int) -> _Filter:
    """The same from row to row: rows are kept in pairs, so taps begin an even number of them behind the first."""
    centres, first, last, widening = _reach(length, start, stop, side)
    top = int(first.min())
    number = int(last.max()) - top
    room = -(-number // 4) * 4
    taps = min(_even(int((last - first).max()) + 1), room)
    starts = top + np.minimum((first - top) // 2 * 2, room - taps)
    weights, bits = _weights(starts, taps, centres, first, last, widening)
    return _Filter(starts.astype(np.int32), weights, bits, (top, number))


def _reach(
    length: int, start: float, stop: float, side: int
) -> tuple[NDArray[np.float64], NDArray[np.int64], NDArray[np.int64], float]:
    """Of each output pixel the centre, the first source pixel, one beyond the last; the widening."""
    # Pillow takes a box in single precision: kept, so that both give the same bytes.
    begin, end = np.float32(start), np.float32(stop)
    scale = float(end - begin) / side
    widening = max(scale, 1.0)
    centres = float(begin) + (np.arange(side, dtype=np.float64) + 0.5) * scale
    first: NDArray[np.int64] = np.maximum((centres - _SUPPORT * widening + 0.5).astype(np.int64), 0)
    last: NDArray[np.int64] = np.minimum((centres + _SUPPORT * widening + 0.5).astype(np.int64), length)
    return centres, first, last, widening


def _weights(
    starts: NDArray[np.int64],
    taps: int,
    centres: NDArray[np.float64],
    first: NDArray[np.int64],
    last: NDArray[np.int64],
    widening: float,
) -> tuple[NDArray[np.int16], int]:
    """Weights in fixed point, and their bits: as many as the largest of them leaves room for."""
    pixels = starts[:, None] + np.arange(taps)
    inside = (pixels >= first[:, None]) & (pixels < last[:, None])
    x = np.abs((pixels - centres[:, None] + 0.5) / widening)
    near = (1.5 * x - 2.5) * x * x + 1.0
    far = ((x - 5.0) * x + 8.0) * x * -0.5 + 2.0
    weights = np.where(inside, np.where(x < 1.0, near, np.where(x < _SUPPORT, far, 0.0)), 0.0)
    weights /= weights.sum(axis=1, keepdims=True)
    largest = float(weights.max())
    bits = 0
    while bits < _MOST_BITS and int(0.5 + largest * (1 << (bits + 1))) < _LARGEST_WEIGHT:
        bits += 1
    fixed = np.trunc(weights * (1 << bits) + np.where(weights < 0, -0.5, 0.5))
    return fixed.astype(np.int16), bits


def _even(number: int) -> int:
    return number + number % 2


class _Scratch(threading.local):
    """Memory that a thread keeps from image to image: fresh memory would cost a page fault every 4 KiB."""

    rows = bytearray()

    def of(self, size: int) -> bytearray:
        if len(self.rows) < size:
            self.rows = bytearray(size)
        return self.rows


_scratch = _Scratch()


def encoded(square_HWX: NDArray[np.uint8], image_format: ImageFormat) -> bytes:
    """The bytes that a shard holds: a JPEG, or a PPM in a raw set."""
    if image_format.encoding == "raw":
        return ppm_bytes(np.ascontiguousarray(square_HWX[..., :3]))
    data: bytes = simplejpeg.encode_jpeg(
        square_HWX,
        quality=image_format.quality,
        colorspace="RGBX",
        colorsubsampling=str(image_format.subsampling).replace(":", ""),
    )
    return data
