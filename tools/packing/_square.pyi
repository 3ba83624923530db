"""The inner loops of packing, in C; see image.py and statistics.py."""

from typing import Any, TypeAlias

from numpy.typing import NDArray

Buffer: TypeAlias = NDArray[Any] | bytes | bytearray  # whatever has the buffer protocol and lies in one piece
Filter: TypeAlias = tuple[Buffer, Buffer, int]  # starts int32 (side,), weights int16 (side, taps), bits

def resample(
    source: Buffer,  # uint8 (height, width, 3)
    width: int,
    side: int,
    across: Filter,
    down: Filter,
    rows: tuple[int, int],  # first and number of the source rows that are read
    buffer: Buffer,  # side × 8 bytes for some rows, eight more than taps of `down`; then width × 3 + 16
    out: Buffer,  # uint8 (side, side, 4)
    /,
) -> None: ...
def add(
    pixels: Buffer,  # uint8 (N, 4)
    image: Buffer,  # uint32 (N, 4): each byte is added
    products: Buffer,  # int64 (6,): RR, RG, RB, GG, GB, BB of all pixels are added
    /,
) -> None: ...
