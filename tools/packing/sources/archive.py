"""An archive of the source, open for reading at any place."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from ..tar import ReadAt


@dataclass(frozen=True, slots=True)
class Archive:
    """An open archive."""

    read_at: ReadAt
    size: int


def in_memory(data: bytes) -> Archive:
    return Archive(lambda offset, size: data[offset : offset + size], len(data))


@contextmanager
def opened(path: Path) -> Iterator[Archive]:
    """Open an archive; for headers alone, so the system is told not to read what lies between them."""
    with path.open("rb", buffering=0) as file:
        descriptor = file.fileno()
        if hasattr(os, "posix_fadvise"):
            os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_RANDOM)
        yield Archive(lambda offset, size: os.pread(descriptor, size, offset), os.fstat(descriptor).st_size)
