"""Bytes of listed images, straight out of archives or folders, read ahead; a source that has changed is noticed.

While one image is decoded, those that follow are on their way: the system is told what of an archive will be read;
files of a folder, and whatever lies in a store, are read by a few threads. What is on its way is bounded.
An archive must be as it was listed whenever it is opened, and after a shard's last image where it still is open;
`finish.py` looks at all of them again at the end. A file of a folder must be so when it has been read.
"""

from __future__ import annotations

import os
from collections import OrderedDict, deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from threading import Lock
from types import TracebackType
from typing import Any

from .decode import STORED_LIMIT, BadImage
from .plan import PlannedSample
from .sources import Archive, BadSource, Container
from .sources.images import change_of

AHEAD_IMAGES = 32
AHEAD_BYTES = 32_000_000
PAGE = 4096
HINT_BYTES = 32 * PAGE  # Linux cuts a longer hint to the device's read-ahead, 128 KiB by default
READERS = 16  # threads: a file of a folder costs a seek, a range of a store the time of an answer
MOST_OPEN = 2 * AHEAD_IMAGES  # archives; more than those that the images on their way lie in
_CHANGED = "the file was changed after it was listed"

Take = Callable[[], bytes]  # gives the bytes of one image, or raises as `SourceReader.read`


class SourceReader:
    """Reads images in any order; quick where those of one archive follow each other."""

    def __init__(self, containers: list[Container]) -> None:
        self._containers = containers
        self._open: OrderedDict[Path, int] = OrderedDict()  # archives to file descriptors, the latest last
        self._remote: dict[Path, Archive] = {}  # archives of a store that were as listed
        self._opening = Lock()
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
        self._check_unchanged()

    def _begin(self, sample: PlannedSample) -> Take:
        """Begin to read an image."""
        container = self._containers[sample.container]
        if container.is_folder or _is_remote(container):
            return self._pool.submit(self.read, sample).result
        if 0 < sample.size <= STORED_LIMIT and hasattr(os, "posix_fadvise"):  # 0 would mean: to the end
            with suppress(OSError):  # `read` will meet it at this very image
                end = sample.offset + sample.size
                for offset in range(sample.offset // PAGE * PAGE, end, HINT_BYTES):
                    size = min(HINT_BYTES, end - offset)
                    os.posix_fadvise(self._descriptor(container), offset, size, os.POSIX_FADV_WILLNEED)
        return lambda: self.read(sample)

    def read(self, sample: PlannedSample) -> bytes:
        """The bytes of one image.

        Raises:
            BadImage: they are more than any image has, or this one file may not be read.
            BadSource: the source is gone, changed or fails.
        """
        if sample.size > STORED_LIMIT:
            raise BadImage(f"{sample.size:,} bytes; an image has up to {STORED_LIMIT:,}")
        container, changed = self._containers[sample.container], sample.changed
        try:
            if _is_remote(container):
                data = self._read_remote(container, sample)
            elif container.is_folder:
                with open(container.path / sample.name, "rb", buffering=0, opener=_at_once) as file:
                    data = _exactly(file.fileno(), sample.size + 1, 0)  # one more: it may have grown
                    changed = change_of(os.fstat(file.fileno()))
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
        if changed != sample.changed:
            raise _failed(container, sample, _CHANGED)
        return data

    def forget(self, sample: PlannedSample) -> None:
        """Let the system drop what it holds of an image, so that the next read is one of the disk."""
        container = self._containers[sample.container]
        if _is_remote(container) or not hasattr(os, "posix_fadvise"):
            return
        with suppress(OSError):  # `read` will meet it
            if container.is_folder:
                with (container.path / sample.name).open("rb", buffering=0) as file:
                    os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
            else:
                start = sample.offset // PAGE * PAGE
                size = -(-(sample.offset + sample.size - start) // PAGE) * PAGE
                os.posix_fadvise(self._descriptor(container), start, size, os.POSIX_FADV_DONTNEED)

    def _read_remote(self, container: Container, sample: PlannedSample) -> bytes:
        place: Any = container.path
        if container.is_folder:
            file = place / sample.name
            return bytes(file.store.read_range(file.inner, 0, sample.size + 1))
        with self._opening:
            archive = self._remote.get(container.path)
            if archive is None:
                self._check(container)
                archive = self._remote[container.path] = place.store.archive(place.inner)
        return archive.read_at(sample.offset, sample.size)

    def _check_unchanged(self) -> None:
        """Whether the archives that were read are still those that were listed."""
        read = {*self._open, *self._remote}
        for container in self._containers:
            if container.path in read and not container.is_folder:
                read.remove(container.path)
                try:
                    self._check(container)
                except OSError as error:
                    raise _failed(container, None, error.strerror or str(error)) from None

    @staticmethod
    def _check(container: Container) -> None:
        if Container.state_of(container.path) != container.state:
            raise OSError(_CHANGED)

    def _descriptor(self, container: Container) -> int:
        if (descriptor := self._open.get(container.path)) is not None:
            self._open.move_to_end(container.path)
            return descriptor
        descriptor = os.open(container.path, os.O_RDONLY)
        try:
            self._check(container)
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


def _at_once(path: str, flags: int) -> int:
    """Open without waiting: what was a file when it was listed may be a pipe by now."""
    return os.open(path, flags | os.O_NONBLOCK)


def _exactly(descriptor: int, size: int, offset: int) -> bytes:
    """Up to `size` bytes, fewer only at the end of the file."""
    data = os.pread(descriptor, size, offset)
    while data and len(data) < size and (more := os.pread(descriptor, size - len(data), offset + len(data))):
        data += more
    return data


def _is_remote(container: Container) -> bool:
    return not isinstance(container.path, Path)


def _failed(container: Container, sample: PlannedSample | None, what: str) -> BadSource:
    return BadSource(
        f"the source changed or fails while it is packed: {what}",
        where=f"{container.path}" + (f", image {sample.name}, byte {sample.offset:,}" if sample else ""),
        why="a set of half one source and half another is of no use",
        remedy="let the source rest, check its disk, and build again",
    )
