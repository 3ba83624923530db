"""The inner loops of loading: read and check, cut, finish.

_kernels.c has them where a compiler was there at set-up: below Python's lock, many times as fast, with the same
bytes as the NumPy here. Without it `AVAILABLE` is False, and DALI is the faster way to cut and finish.

legend  stored images are (H, W, 3), crops (S, S, 3) or, as planes, (3, S, S); places (y, x) from the top left
"""

from __future__ import annotations

import errno
import os
import zlib
from typing import Any

import numpy as np
from numpy.typing import NDArray

try:
    from . import _kernels
except ImportError:
    _compiled = None
else:
    _compiled = _kernels

AVAILABLE = _compiled is not None


def batch_memory(size: int) -> NDArray[np.uint8]:
    """Fresh memory for a batch, which begins at a cache line: then whole lines are written, past the caches."""
    return _beginning_at(0, size)


def scratch_memory(size: int) -> NDArray[np.uint8]:
    """Fresh memory for an image that is decoded and read again at once, by the same thread.

    libjpeg-turbo writes rows that begin at a multiple of 32 past the caches, and reading them again then costs as
    much as all that is done with them. So this begins 16 bytes behind one.
    """
    return _beginning_at(16, size)


def _beginning_at(behind: int, size: int) -> NDArray[np.uint8]:
    block = np.empty(size + 64 + behind, np.uint8)
    start = (behind - block.ctypes.data) % 64
    return block[start : start + size]


def read(fd: int, offset: int, into: NDArray[np.uint8]) -> tuple[int, int]:
    """Fill `into` with the bytes of a file from `offset` on: how many were read, and the CRC-32 of these.

    They are fewer only where the file ends.

    Raises:
        OSError: they cannot be read.
    """
    if offset < 0:  # which preadv would take for the place reached so far
        raise OSError(errno.EINVAL, os.strerror(errno.EINVAL))
    size = 0
    while size < len(into):
        got = os.preadv(fd, [into.data[size:]], offset + size)
        if got == 0:
            break
        size += got
    return size, zlib.crc32(into.data[:size])


def crc32(data: bytes | bytearray | memoryview | NDArray[np.uint8]) -> int:
    """As zlib.crc32, of bytes that lie in one piece."""
    return zlib.crc32(data.data if isinstance(data, np.ndarray) else data)


def cut(pixels: NDArray[np.uint8], out: NDArray[np.uint8], *, y: int, x: int, mirror: bool) -> None:
    """Crop uint8 (H, W, 3) at (y, x) to the size of `out`, uint8 (S, S, 3), and mirror it.

    Raises:
        ValueError: the crop is not inside, the arrays are of other kinds, not in one piece, or overlap.
    """
    _check("cut", out, (np.uint8,), out.shape[2:], [(pixels, np.uint8, 3)], [(pixels, y, x)])
    out[...] = _crop(pixels, out.shape[:2], y, x, mirror)


def finish(
    pixels: NDArray[np.uint8],
    out: NDArray[Any],
    *,
    y: int,
    x: int,
    mirror: bool,
    mean: NDArray[np.float32] | None,
    mean_y: int,
    mean_x: int,
    mean_mirror: bool,
    add: NDArray[np.float32],
    scale: float,
    channels_last: bool,
) -> None:
    """Crop, mirror, and (pixel − mean + add) · scale, in float32 and in this order.

    pixels: uint8 (H, W, 3); mean: float32 (3, H', W') on the same scale, or None, cropped at (mean_y, mean_x) and
    mirrored for itself; add: float32 (3,). out: (3, S, S), with `channels_last` (S, S, 3); float32, float16, or
    bfloat16 as uint16, which are rounded to the nearest, ties to even.

    Raises:
        ValueError: a crop is not inside, the arrays are of other kinds, not in one piece, or overlap.
    """
    size, channels = (out.shape[:2], out.shape[2:]) if channels_last else (out.shape[1:], out.shape[:1])
    arrays: list[tuple[NDArray[Any], type, int]] = [(pixels, np.uint8, 3), (add, np.float32, 1)]
    crops: list[tuple[NDArray[Any], int, int]] = [(pixels, y, x)]
    if mean is not None:
        arrays.append((mean, np.float32, 3))
        crops.append((mean.transpose(1, 2, 0), mean_y, mean_x))
    _check("finish", out, (np.float32, np.float16, np.uint16), channels, arrays, crops, size)
    values = _crop(pixels, size, y, x, mirror).astype(np.float32)
    if mean is not None:
        values -= _crop(crops[1][0], size, mean_y, mean_x, mean_mirror)
    values = (values + add) * np.float32(scale)
    rounded = _bfloat16(values) if out.dtype == np.uint16 else values
    with np.errstate(over="ignore"):  # beyond 65,504 a float16 is infinite
        out[...] = rounded if channels_last else rounded.transpose(2, 0, 1)


def _crop(image: NDArray[Any], size: tuple[int, ...], y: int, x: int, mirror: bool) -> NDArray[Any]:
    crop = image[y : y + size[0], x : x + size[1]]
    return crop[:, ::-1] if mirror else crop


def _check(
    name: str,
    out: NDArray[Any],
    kinds: tuple[type, ...],
    channels: tuple[int, ...],
    arrays: list[tuple[NDArray[Any], type, int]],
    crops: list[tuple[NDArray[Any], int, int]],
    size: tuple[int, ...] | None = None,
) -> None:
    """Refuse what the compiled form refuses; arrays: each with type and number of axes; crops: with (y, x)."""
    height, width = size or out.shape[:2]
    whole = out.flags.c_contiguous and out.dtype in kinds and channels == (3,)
    for array, kind, axes in arrays:
        whole &= array.dtype == kind and array.ndim == axes and array.flags.c_contiguous and 3 in array.shape
        whole &= not np.may_share_memory(array, out)
    for image, y, x in crops:
        whole &= 0 <= y <= image.shape[0] - height and 0 <= x <= image.shape[1] - width and image.shape[2] == 3
    if not whole:
        raise ValueError(f"{name}: sizes and places do not fit together, or the arrays overlap")


def _bfloat16(values: NDArray[np.float32]) -> NDArray[np.uint16]:
    """The upper halves of float32, rounded to the nearest, ties to even."""
    bits = values.view(np.uint32)
    return ((bits + 0x7FFF + (bits >> 16 & 1)) >> 16).astype(np.uint16)


if _compiled is not None:
    read, crc32, cut, finish = _compiled.read, _compiled.crc32, _compiled.cut, _compiled.finish
