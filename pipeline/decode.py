"""From stored bytes to what the graph is fed: one choice, `image_source`, of three forms.

form    what the graph gets                       who decodes
cores   pixels in a reused buffer (N, H, H, 3)    threads here, by libjpeg-turbo, without Python's lock
card    the JPEG files as they lie in the shards  the graph, on its device
raw     pixels as they lie in the shards          nobody
"""

from __future__ import annotations

import weakref
from collections import deque
from concurrent.futures import ThreadPoolExecutor
from itertools import pairwise
from typing import Protocol

import numpy as np
import simplejpeg
from numpy.typing import NDArray

from ..shards import RAW_EXTENSION
from .bytes import StoredImages

DECODERS = ("cores", "card")

# More pieces than threads, so that one slow piece does not hold up the batch; few, so that handing out is cheap.
_PIECES_PER_THREAD = 4


class ImageSource(Protocol):
    """A batch's images in the form in which the graph takes them."""

    encoded: bool  # JPEG files, not pixels

    def load(self, samples: NDArray[np.int64]) -> NDArray[np.uint8] | list[NDArray[np.uint8]]:
        """The images of N samples: (N, side, side, 3), or N arrays.

        Raises:
            UndecodableSample: names shard, key and offset.
        """

    def close(self) -> None: ...


def image_source(stored: StoredImages, extension: str, decoder: str, threads: int) -> ImageSource:
    """The form for a set's images: `raw` where they are pixels already, else as `decoder` says."""
    if extension == RAW_EXTENSION:
        return RawImages(stored)
    return DecodedImages(stored, threads) if decoder == "cores" else EncodedImages(stored)


class RawImages:
    """Pixels of a raw set, as they lie in its shards."""

    encoded = False

    def __init__(self, stored: StoredImages) -> None:
        self._stored = stored

    def load(self, samples: NDArray[np.int64]) -> list[NDArray[np.uint8]]:
        stored = self._stored
        return [stored.pixels_of(int(sample), _read(stored, int(sample))) for sample in samples]

    def close(self) -> None:
        """Nothing to let go of."""


class EncodedImages:
    """JPEG files as they lie in the shards, for the graph to decode, once their check sums are right.

    DALI's decoder (2.4.0) can end the process on a damaged file instead of raising, so it must never see one.
    """

    encoded = True

    def __init__(self, stored: StoredImages) -> None:
        self._stored = stored

    def load(self, samples: NDArray[np.int64]) -> list[NDArray[np.uint8]]:
        return [_read(self._stored, int(sample)) for sample in samples]

    def close(self) -> None:
        """Nothing to let go of."""


class DecodedImages:
    """JPEGs decoded by threads into buffers that are used again and again."""

    encoded = False

    def __init__(self, stored: StoredImages, threads: int) -> None:
        self._stored = stored
        self._pieces = threads * _PIECES_PER_THREAD
        self._pool = ThreadPoolExecutor(threads, thread_name_prefix="alexshard-decode")
        self._buffers = BufferRing()

    def load(self, samples: NDArray[np.int64]) -> NDArray[np.uint8]:
        side = self._stored.side
        pixels = self._buffers.take((len(samples), side, side, 3))
        bounds = np.linspace(0, len(samples), self._pieces + 1).astype(int)
        pieces = [slice(a, b) for a, b in pairwise(bounds) if b > a]
        for _ in self._pool.map(lambda piece: self._decode(samples[piece], pixels[piece]), pieces):
            pass
        return pixels

    def _decode(self, samples: NDArray[np.int64], pixels: NDArray[np.uint8]) -> None:
        scratch = np.empty(self._stored.largest, np.uint8)
        for sample, into in zip(samples, pixels, strict=True):
            decode_into(self._stored, int(sample), into, scratch)

    def close(self) -> None:
        self._pool.shutdown(wait=True, cancel_futures=True)


def _read(stored: StoredImages, sample: int) -> NDArray[np.uint8]:
    return stored.read(sample, np.empty(int(stored.index.size[sample]), np.uint8))


def decode_into(stored: StoredImages, sample: int, pixels: NDArray[np.uint8], scratch: NDArray[np.uint8]) -> None:
    """Decode one JPEG into `pixels`, uint8 (side, side, 3), contiguous; its file is read into `scratch`.

    Raises:
        UndecodableSample: damaged, or of another size.
    """
    try:
        decoded = simplejpeg.decode_jpeg(stored.read(sample, scratch).data, colorspace="RGB", buffer=pixels)
    except ValueError as error:
        raise stored.undecodable(sample, str(error)) from None
    if decoded.shape != pixels.shape:
        raise stored.undecodable(sample, f"it has {decoded.shape[1]}x{decoded.shape[0]} pixels")


class BufferRing:
    """Arrays over memory that is used again once nothing refers to it any more.

    What `take` returns may be kept, sliced or handed to torch: its memory comes back only when the last view of it
    is gone, so nothing that somebody holds is ever overwritten. There are as many buffers as were held at once.
    """

    def __init__(self) -> None:
        self._free: deque[memoryview] = deque()  # appended to by finalizers, at any moment, in any thread

    def take(self, shape: tuple[int, ...]) -> NDArray[np.uint8]:
        """An array with undefined content."""
        size = int(np.prod(shape))
        memory = None
        while memory is None and self._free:
            candidate = self._free.popleft()
            memory = candidate if len(candidate) >= size else None
        if memory is None:
            memory = np.empty(size, np.uint8).data
        # NumPy lets a view refer to the array that owns the memory and forgets those between; over a memoryview
        # this array is the last in the chain, so it lives as long as any view of it.
        array = np.frombuffer(memory, np.uint8, count=size)
        weakref.finalize(array, self._free.append, memory).atexit = False
        return array.reshape(shape)
