"""Bytes of listed images, straight out of archives or folders, read ahead; a source that has changed is noticed.

While one image is decoded, those that follow are on their way: the system is told what of an archive will be read,
and files of a folder are read by a few threads. What is on its way is bounded.
"""

from __future__ import annotations

import os
from collections import OrderedDict, deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from types import TracebackType

from .decode import STORED_LIMIT, BadImage
from .plan import PlannedSample
from .sources import BadSource, Container

AHEAD_IMAGES = 32
AHEAD_BYTES = 32_000_000
READERS = 8  # threads: files of a folder cost an answer of the server or a seek each
MOST_OPEN = 2 * AHEAD_IMAGES  # archives; more than those that the images on their way lie in

Take = Callable[[], bytes]  # gives the bytes of one image, or raises as `SourceReader.read`


class SourceReader:
    """Reads images in any order; quick where those of one archive follow each other."""

    def __init__(self, containers: list[Container]) -> None:
        self._containers = containers
        self._open: OrderedDict[Path, int] = OrderedDict()  # archives to file descriptors, the latest last
        self._pool = ThreadPoolExecutor(READERS, "read ahead")  # its threads begin when they are needed

    def __enter__(self) -> SourceReader:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._pool.shutdown(cancel_futures=True)
        for descriptor in self._open.values():
            os.close(descriptor)
        self._open.clear()

    def read_all(self, samples: Iterable[PlannedSample]) -> Iterator[tuple[PlannedSample, Take]]:
        """Every sample in the order given, with a function that gives its bytes; the next ones are read meanwhile.

        What goes wrong with an image is raised by its own function, so errors come at the right image.
        """
        window: deque[tuple[PlannedSample, Take]] = deque()
        held = 0
        for sample in samples:
            window.append((sample, self._begin(sample)))
            held += sample.size
            while len(window) > AHEAD_IMAGES or held > AHEAD_BYTES:
                held -= window[0][0].size
                yield window.popleft()
        while window:
            yield window.popleft()

    def _begin(self, sample: PlannedSample) -> Take:
        """Begin to read an image."""
        container = self._containers[sample.container]
        if container.is_folder:
            return self._pool.submit(self.read, sample).result
        if sample.size <= STORED_LIMIT and hasattr(os, "posix_fadvise"):
            with suppress(OSError):  # `read` will meet it at this very image
                os.posix_fadvise(self._descriptor(container), sample.offset, sample.size, os.POSIX_FADV_WILLNEED)
        return lambda: self.read(sample)

    def read(self, sample: PlannedSample) -> bytes:
        """The bytes of one image.

        Raises:
            BadImage: they are more than any image has, or this one file may not be read.
            BadSource: the source is gone, changed or fails.
        """
        if sample.size > STORED_LIMIT:
            raise BadImage(f"{sample.size:,} bytes; an image has up to {STORED_LIMIT:,}")
        container = self._containers[sample.container]
        try:
            if container.is_folder:
                with (container.path / sample.name).open("rb", buffering=0) as file:
                    data = _exactly(file.fileno(), sample.size + 1, 0)  # one more: it may have grown
            else:
                data = _exactly(self._descriptor(container), sample.size, sample.offset)
        except PermissionError as error:
            if container.is_folder:
                raise BadImage(f"cannot be read: {error.strerror}") from None
            raise _failed(container, sample, str(error)) from None
        except OSError as error:
            raise _failed(container, sample, error.strerror or str(error)) from None
        if len(data) != sample.size:
            there = f"{len(data):,}" if len(data) < sample.size else "more"
            raise _failed(container, sample, f"{sample.size:,} bytes were listed, {there} are there")
        return data

    def _descriptor(self, container: Container) -> int:
        if (descriptor := self._open.get(container.path)) is not None:
            self._open.move_to_end(container.path)
            return descriptor
        descriptor = os.open(container.path, os.O_RDONLY)
        try:
            if Container.state_of(container.path) != container.state:
                raise OSError("the file was changed after it was listed")
            if hasattr(os, "posix_fadvise"):
                # What is read is told exactly; without this the system would add what it guesses.
                os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_RANDOM)
        except BaseException:
            os.close(descriptor)
            raise
        self._open[container.path] = descriptor
        if len(self._open) > MOST_OPEN:
            os.close(self._open.popitem(last=False)[1])
        return descriptor


def _exactly(descriptor: int, size: int, offset: int) -> bytes:
    """Up to `size` bytes, fewer only at the end of the file."""
    data = os.pread(descriptor, size, offset)
    while data and len(data) < size and (more := os.pread(descriptor, size - len(data), offset + len(data))):
        data += more
    return data


def _failed(container: Container, sample: PlannedSample, what: str) -> BadSource:
    return BadSource(
        f"the source changed or fails while it is packed: {what}",
        where=f"{container.path}, image {sample.name}, byte {sample.offset:,}",
        why="a set of half one source and half another is of no use",
        remedy="let the source rest, check its disk, and build again",
    )
