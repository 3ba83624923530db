"""The inner loops of loading, in C; kernels.py states them in NumPy."""

from typing import Any

import numpy as np
from numpy.typing import NDArray

def read(fd: int, offset: int, into: NDArray[np.uint8], /) -> tuple[int, int]: ...
def crc32(data: bytes | bytearray | memoryview | NDArray[np.uint8], /) -> int: ...
def cut(pixels: NDArray[np.uint8], out: NDArray[np.uint8], *, y: int, x: int, mirror: bool) -> None: ...
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
) -> None: ...
