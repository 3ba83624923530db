"""An archive of the source, open for reading at any place."""

from __future__ import annotations

import os
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from ..tar import BLOCK, Member, ReadAt, members

DISK_AT_ONCE = 16  # inner tars
TRIED_HEADERS = 100  # of an inner tar, to know what one costs
MEMORY_S = 30e-6  # what a header takes that need not be read from a disk, thrice over
PROBES = 64


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

    Many inner tars are looked through at once where that pays: where every header costs the wait for an answer,
    and on a disk that the first inner tar has shown to be one.

    Args:
        label_of: what to call an inner tar in messages; None: the member is none.
    """

    def inside(member: Member) -> Iterator[Member]:
        where = label_of(member)
        if where is None:
            return iter(())
        return members(archive.read_at, where=where, start=member.offset, end=member.offset + member.size)

    at_once, tried = archive.at_once, archive.at_once > 1
    pool = ThreadPoolExecutor(max(at_once, DISK_AT_ONCE), "inner tars")  # its threads begin when they are needed
    window: deque[tuple[Member, Future[list[Member]]]] = deque()
    try:
        for member in outer:
            if at_once > 1:
                window.append((member, pool.submit(list, inside(member))))
                if len(window) > at_once:
                    done, listed = window.popleft()
                    yield done, listed.result()
            elif tried:
                yield member, inside(member)
            else:
                began = time.perf_counter()
                found = list(inside(member))
                header_s = (time.perf_counter() - began) / max(len(found), 1)
                yield member, found
                if tried := len(found) >= TRIED_HEADERS:
                    at_once = DISK_AT_ONCE if _many_pay(archive, header_s, pool) else 1
        while window:
            done, listed = window.popleft()
            yield done, listed.result()
    finally:
        pool.shutdown(cancel_futures=True)


def _many_pay(archive: Archive, header_s: float, pool: ThreadPoolExecutor) -> bool:
    """Whether many reads at once, all over the archive, take less time each than those of one tar in its order.

    They do on flash and over a network. A spinning disk would leave the track for every header.
    """
    if header_s < MEMORY_S:
        return False
    places = [archive.size // PROBES * number // BLOCK * BLOCK for number in range(PROBES)]
    began = time.perf_counter()
    list(pool.map(lambda place: archive.read_at(place, BLOCK), places))
    return 2 * (time.perf_counter() - began) / PROBES < header_s
