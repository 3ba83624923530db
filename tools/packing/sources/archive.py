"""An archive of the source, open for reading at any place."""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from ..tar import Member, ReadAt, members


@dataclass(frozen=True, slots=True)
class Archive:
    """An open archive."""

    read_at: ReadAt
    size: int
    at_once: int = 1  # reads that may be on their way together; more than one where each waits for an answer


def in_memory(data: bytes) -> Archive:
    return Archive(lambda offset, size: data[offset : offset + size], len(data))


@contextmanager
def opened(path: Path) -> Iterator[Archive]:
    """Open an archive; for headers alone, so the system is told not to read what lies between them."""
    if not isinstance(path, Path):  # of a store, see remote.py
        yield path.store.archive(path.inner)
        return
    with path.open("rb", buffering=0) as file:
        descriptor = file.fileno()
        if hasattr(os, "posix_fadvise"):
            os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_RANDOM)
        yield Archive(lambda offset, size: os.pread(descriptor, size, offset), os.fstat(descriptor).st_size)


def with_inner(
    archive: Archive, outer: Iterable[Member], label_of: Callable[[Member], str | None]
) -> Iterator[tuple[Member, Iterable[Member]]]:
    """Every member of an outer tar, with what is in it where it is a tar itself; in the archive's order.

    Where every header costs the wait for an answer, many inner tars are looked through at once.

    Args:
        label_of: what to call an inner tar in messages; None: the member is none.
    """

    def inside(member: Member) -> Iterator[Member]:
        where = label_of(member)
        if where is None:
            return iter(())
        return members(archive.read_at, where=where, start=member.offset, end=member.offset + member.size)

    if archive.at_once == 1:
        yield from ((member, inside(member)) for member in outer)
        return
    pool = ThreadPoolExecutor(archive.at_once, "inner tars")
    window: deque[tuple[Member, Future[list[Member]]]] = deque()
    try:
        for member in outer:
            window.append((member, pool.submit(list, inside(member))))
            if len(window) > archive.at_once:
                done, found = window.popleft()
                yield done, found.result()
        while window:
            done, found = window.popleft()
            yield done, found.result()
    finally:
        pool.shutdown(cancel_futures=True)
