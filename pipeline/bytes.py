"""The images of a split as stored: slices of memory maps, with their place for messages."""

from __future__ import annotations

import zlib

import numpy as np
from numpy.typing import NDArray

from ..shards import ShardBytes, SplitIndex, ppm_pixels
from .errors import UndecodableSample


class StoredImages:
    """JPEG or PPM bytes of a split's samples, never copied; threads may share one.

    A sample is its place in the order on disk, 0..n−1.
    """

    def __init__(self, index: SplitIndex, side: int) -> None:
        self.index = index
        self.side = side
        self._bytes = ShardBytes(index)

    def view(self, sample: int) -> memoryview:
        """The stored file's bytes."""
        return self._bytes.bytes_of(sample)

    def unaltered(self, sample: int) -> NDArray[np.uint8]:
        """The same as an array (size,), a view.

        Raises:
            UndecodableSample: the bytes are not those that were packed.
        """
        view = self.view(sample)
        found, packed = zlib.crc32(view), int(self.index.crc32[sample])
        if found != packed:
            raise self.undecodable(sample, f"its bytes have CRC-32 {found:08x}, those packed had {packed:08x}")
        return np.frombuffer(view, np.uint8)

    def pixels(self, sample: int) -> NDArray[np.uint8]:
        """The pixels of a sample of a raw set, uint8 (side, side, 3), RGB: a view.

        Raises:
            UndecodableSample: the bytes are no such PPM file.
        """
        try:
            pixels = ppm_pixels(self.view(sample))
        except ValueError as error:
            raise self.undecodable(sample, str(error)) from None
        if pixels.shape != (self.side, self.side, 3):
            raise self.undecodable(sample, f"it has {pixels.shape[1]}x{pixels.shape[0]} pixels")
        return pixels

    def undecodable(self, sample: int, found: str) -> UndecodableSample:
        """The error that names a sample's shard, key and offset."""
        index = self.index
        shard = index.shards[index.shard[sample]]
        return UndecodableSample(
            f"sample {index.keys[sample]} is no {self.side}x{self.side} RGB image: {found}",
            where=f"{shard}, at byte {index.offset[sample]:,} ({index.size[sample]:,} bytes)",
            why="training would go on without it, or on wrong pixels",
            remedy=f"alexshard verify {shard.parent}; then build the set again, or fetch {shard.name} again",
        )

    def close(self) -> None:
        self._bytes.close()
