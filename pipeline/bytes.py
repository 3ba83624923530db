"""The images of a split as stored: read into the caller's buffers and checked, with their place for messages."""

from __future__ import annotations

import os
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from ..shards import CorruptShardSet, ShardFiles, Shelf, SplitIndex, mending, ppm_pixels
from . import kernels
from .errors import UndecodableSample
from .wanted import wanted_at_a_time


class StoredImages:
    """JPEG or PPM bytes of a split's samples; threads may share one.

    A sample is its place in the order on disk, 0..n−1. Every image is held against the CRC-32 of when it was
    packed, so what is handed out is what was built, whatever became of the shard since.

    Args:
        index: of the split.
        shelf: where its shards are opened.
        side: of the images, in pixels.
    """

    def __init__(self, index: SplitIndex, shelf: Shelf, side: int) -> None:
        self.index = index
        self.shelf = shelf
        self.side = side
        self.largest = int(index.size.max(initial=0))  # bytes of the largest stored file
        self._files = ShardFiles(index, shelf)

    def read(self, sample: int, into: NDArray[np.uint8]) -> NDArray[np.uint8]:
        """The stored file's bytes.

        Args:
            sample: its place in the order on disk.
            into: contiguous, at least `largest` long; may be used again once what is returned is.

        Returns:
            uint8 (size,), a view of `into`.

        Raises:
            UndecodableSample: the bytes are not those that were packed.
            CorruptShardSet: the shard went away, cannot be read, or ends too early.
        """
        try:
            return self._read(sample, into)
        except (UndecodableSample, CorruptShardSet) as error:
            if not self._files.again(int(self.index.shard[sample])):
                raise
            try:
                return self._read(sample, into)
            except CorruptShardSet as later:
                raise error from later  # the first names the sample, the other may only say that its shard is gone

    def _read(self, sample: int, into: NDArray[np.uint8]) -> NDArray[np.uint8]:
        index = self.index
        offset, size = int(index.offset[sample]), int(index.size[sample])
        stored = into[:size]
        opened = self._files.lease(int(index.shard[sample]))
        try:
            got, found = kernels.read(opened.fd, offset, stored)
        except OSError as error:
            raise self._files.unreadable(sample, f"cannot be read: {error.strerror}") from error
        if got != size:
            raise self._files.unreadable(sample, f"ends at byte {os.fstat(opened.fd).st_size:,}")
        packed = int(index.crc32[sample])
        if found != packed:
            raise self.undecodable(
                sample, f"its bytes have CRC-32 {found:08x}, those that were packed had {packed:08x}"
            )
        return stored

    def pixels_of(self, sample: int, stored: NDArray[np.uint8]) -> NDArray[np.uint8]:
        """The pixels of a sample of a raw set, uint8 (side, side, 3), RGB: a view of its bytes.

        Raises:
            UndecodableSample: the bytes are no such PPM file.
        """
        try:
            pixels = ppm_pixels(stored)
        except ValueError as error:
            raise self.undecodable(sample, str(error)) from None
        if pixels.shape != (self.side, self.side, 3):
            raise self.undecodable(sample, f"it has {pixels.shape[1]}x{pixels.shape[0]} pixels")
        return pixels

    def undecodable(self, sample: int, found: str) -> UndecodableSample:
        """The error that names a sample's shard, key and offset."""
        return UndecodableSample(
            f"sample {self.index.keys[sample]} is no {self.side}x{self.side} RGB image: {found}",
            where=self._files.place_of(sample),
            why="training would go on without it, or on wrong pixels",
            remedy=mending(self.shelf.shown),
        )

    def will_need(self, shards: Sequence[int]) -> None:
        """These shards, by their place in the index, are wanted now and next, in this order, and no others."""
        self._files.keep_only(shards)
        self.shelf.ahead([self.index.shards[shard] for shard in shards], by=self)

    def check_fits(self, order: str, window: int | None) -> None:
        """Whether what an order needs at a time fits where shards are kept, beside what others read of the set.

        Raises:
            WrongCall: it does not.
        """
        self.shelf.check_fits(*wanted_at_a_time(self.index.shards, order, window), by=self)

    def close(self) -> None:
        """Let go of the shards; the shelf stays open for others."""
        self._files.close()
        self.shelf.ahead([], by=self)
