"""Bytes of listed images, straight out of archives or folders; a source that has changed is noticed."""

from __future__ import annotations

import os
from pathlib import Path
from types import TracebackType

from .decode import STORED_LIMIT, BadImage
from .plan import PlannedSample
from .sources import BadSource, Container


class SourceReader:
    """Reads images; keeps open the archive that was read last, so callers take one after the other."""

    def __init__(self, containers: list[Container]) -> None:
        self._containers = containers
        self._open: tuple[Path, int] | None = None  # archive and file descriptor

    def __enter__(self) -> SourceReader:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._close()

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
                data = (container.path / sample.name).read_bytes()
            else:
                data = os.pread(self._descriptor(container), sample.size, sample.offset)
        except PermissionError as error:
            if container.is_folder:
                raise BadImage(f"cannot be read: {error.strerror}") from None
            raise _failed(container, sample, str(error)) from None
        except OSError as error:
            raise _failed(container, sample, error.strerror or str(error)) from None
        if len(data) != sample.size:
            raise _failed(container, sample, f"{sample.size:,} bytes were listed, {len(data):,} are there")
        return data

    def _descriptor(self, container: Container) -> int:
        if self._open is None or self._open[0] != container.path:
            self._close()
            self._open = container.path, os.open(container.path, os.O_RDONLY)
            if Container.state_of(container.path) != container.state:
                raise OSError("the file was changed after it was listed")
        return self._open[1]

    def _close(self) -> None:
        if self._open is not None:
            os.close(self._open[1])
            self._open = None


def _failed(container: Container, sample: PlannedSample, what: str) -> BadSource:
    return BadSource(
        f"the source changed or fails while it is packed: {what}",
        where=f"{container.path}, image {sample.name}, byte {sample.offset:,}",
        why="a set of half one source and half another is of no use",
        remedy="let the source rest, check its disk, and build again",
    )
