"""From stored bytes to pixels: one image at a time for whoever is on the cores, and batches for the graph.

form    what the graph gets                              who decodes
cores   pixels in a reused buffer (N, H, H, 3)           a crew of threads, by libjpeg-turbo
card    the JPEG files, read into a reused buffer        the graph, on its device
raw     the pixels as they lie in the shards, likewise   nobody
"""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import partial

import numpy as np
import simplejpeg
from numpy.typing import NDArray

from . import kernels
from .buffers import BufferRing
from .bytes import StoredImages
from .crew import Crew, Task
from .trace import span

_PIECE = 16  # images: pieces of 8 to 32 take the same time within 2 %, single images a twelfth more

Images = NDArray[np.uint8] | list[NDArray[np.uint8]]  # (N, side, side, 3), or N arrays


class Scratch:
    """What each thread keeps: room for one stored file and for the pixels in it."""

    def __init__(self, stored: StoredImages) -> None:
        shape = (stored.side, stored.side, 3)
        self.file = np.empty(stored.largest, np.uint8)
        self.pixels = kernels.scratch_memory(math.prod(shape)).reshape(shape)


def pixels_of(stored: StoredImages, sample: int, encoded: bool, scratch: Scratch) -> NDArray[np.uint8]:
    """The pixels of a sample, uint8 (side, side, 3), in `scratch`, where they stay until the next one.

    Raises:
        UndecodableSample: damaged, or of another size.
        CorruptShardSet: its shard went away or ends early.
    """
    if encoded:
        decode_into(stored, sample, scratch.pixels, scratch.file)
        return scratch.pixels
    return stored.pixels_of(sample, stored.read(sample, scratch.file))


def decode_into(stored: StoredImages, sample: int, pixels: NDArray[np.uint8], scratch: NDArray[np.uint8]) -> None:
    """Decode one JPEG into `pixels`, uint8 (side, side, 3), contiguous; its file is read into `scratch`.

    Raises:
        UndecodableSample: damaged, or of another size.
        CorruptShardSet: its shard went away or ends early.
    """
    file = stored.read(sample, scratch)
    try:
        decoded = simplejpeg.decode_jpeg(file, colorspace="RGB", buffer=pixels)
    except ValueError as error:
        raise stored.undecodable(sample, str(error)) from None
    if decoded.shape != pixels.shape:
        raise stored.undecodable(sample, f"it has {decoded.shape[1]}x{decoded.shape[0]} pixels")


def _check_header(stored: StoredImages, sample: int, file: NDArray[np.uint8]) -> None:
    """Whether a file is a JPEG of the set's size: the graph's own words would not name the sample.

    Raises:
        UndecodableSample: it is not.
    """
    try:
        height, width = simplejpeg.decode_jpeg_header(file)[:2]
    except ValueError as error:
        raise stored.undecodable(sample, str(error)) from None
    if (height, width) != (stored.side, stored.side):
        raise stored.undecodable(sample, f"it has {width}x{height} pixels")


def piece_size(images: int, threads: int) -> int:
    """Images that a thread takes at a time: few enough that the threads end a batch together."""
    return max(1, min(_PIECE, images // (2 * threads)))


class Loading:
    """A batch's images on their way."""

    def __init__(self, task: Task[Scratch], images: Callable[[], Images]) -> None:
        self._task, self._images = task, images
        self.cancel = task.cancel

    def wait(self) -> Images:
        """The images of N samples: (N, side, side, 3), or N arrays.

        Raises:
            UndecodableSample, CorruptShardSet: name shard, key and offset.
            Abandoned: cancelled meanwhile.
        """
        self._task.wait()
        return self._images()


class ImageSource:
    """Loads batches in the form in which the graph takes them.

    Args:
        crew: does the work; its threads' `Scratch` belong to `stored`.
        encoded: stored images are JPEG files.
        decode: and are to be decoded here. Else their bytes alone are read, and held against their check sums:
            DALI's decoder (2.4.0) can end the process on a damaged file instead of raising, so it sees none.
    """

    def __init__(self, stored: StoredImages, crew: Crew[Scratch], *, encoded: bool, decode: bool) -> None:
        self._stored, self._crew = stored, crew
        self._encoded, self._decode = encoded, decode and encoded
        self._buffers = BufferRing()

    def begin(self, samples: NDArray[np.int64]) -> Loading:
        """Start on the images of N samples; memory is used again when what is loaded is no longer held."""
        side, numbers = self._stored.side, samples.tolist()
        if self._decode:
            pixels = self._buffers.take((len(samples), side, side, 3))
            return Loading(self._pieces(numbers, pixels, self._decoded), lambda: pixels)
        files = self._buffers.take((len(samples), self._stored.largest))
        images: list[NDArray[np.uint8]] = [files[0]] * len(samples)
        return Loading(self._pieces(numbers, files, partial(self._read, images)), lambda: images)

    def _pieces(self, numbers: list[int], rows: NDArray[np.uint8], do: Callable[..., None]) -> Task[Scratch]:
        size = piece_size(len(numbers), len(self._crew))
        return self._crew.begin(
            [
                partial(do, first, numbers[first : first + size], rows[first : first + size])
                for first in range(0, len(numbers), size)
            ]
        )

    def _decoded(self, _first: int, samples: list[int], pixels: NDArray[np.uint8], scratch: Scratch) -> None:
        with span("decode", images=len(samples)):
            for sample, into in zip(samples, pixels, strict=True):
                decode_into(self._stored, sample, into, scratch.file)

    def _read(
        self, images: list[NDArray[np.uint8]], first: int, samples: list[int], files: NDArray[np.uint8], _: Scratch
    ) -> None:
        stored = self._stored
        with span("bytes", images=len(samples)):
            for place, (sample, into) in enumerate(zip(samples, files, strict=True), first):
                file = stored.read(sample, into)
                if self._encoded:
                    _check_header(stored, sample, file)
                images[place] = file if self._encoded else stored.pixels_of(sample, file)
