"""The members of a flat archive far away, looked for from many places at once: one chain of requests is too slow.

A header tells where the next one lies, so a tar is a chain. Chains are begun all over the archive, each at the
first block that looks like a header, and believed only where the chain before them arrives at one of their
members: what comes out is what one chain from the start would give.
"""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass

from ..tar import BLOCK, BadArchive, Member, after, is_header, members
from .archive import Archive

WINDOW_BYTES = 1 << 18  # read at a time to find a header; a photograph has half of it
SEARCHED_BYTES = 1 << 24  # without a header: the chain before goes on alone
PART_BYTES = 1 << 24  # smaller archives are one part


@dataclass(slots=True)
class _Chain:
    """What was found from one place on, up to where the next part begins."""

    members: list[Member]
    places: dict[int, int]  # where the headers of a member begin, to its number; after the last: their count
    ended: bool = False  # at the end of the archive
    shared: bool = False  # a header for all members that follow: the chains after it would not know


def members_in_parts(archive: Archive, where: str) -> Iterator[Member]:
    """What `members` gives, in the same order, with the same error at the same member."""
    parts = min(archive.at_once, archive.size // PART_BYTES)
    if parts > 1:
        bounds = [archive.size * number // parts // BLOCK * BLOCK for number in range(parts)] + [archive.size]
        with ThreadPoolExecutor(parts, "parts") as pool:
            chains = list(pool.map(lambda n: _chain(archive, where, bounds[n], bounds[n + 1]), range(parts)))
        if not any(chain.shared for chain in chains):
            yield from _joined(archive, where, bounds, chains)
            return
    yield from members(archive.read_at, where=where, end=archive.size)


def _chain(archive: Archive, where: str, start: int, end: int) -> _Chain:
    chain = _Chain([], {})
    position = _first_header(archive, start, end) if start else 0
    if position is None:
        return chain

    def read_at(offset: int, size: int) -> bytes:
        block = archive.read_at(offset, size)
        chain.shared |= size == BLOCK and block[156:157] == b"g"
        return block

    chain.places[position] = 0
    with suppress(BadArchive):  # if the chain is right, whoever goes on from its last member meets it again
        for member in members(read_at, where=where, start=position, end=archive.size):
            chain.members.append(member)
            chain.places[after(member)] = len(chain.members)
            if after(member) >= end:
                return chain
        chain.ended = True
    return chain


def _joined(archive: Archive, where: str, bounds: list[int], chains: list[_Chain]) -> Iterator[Member]:
    position = 0
    for chain, end in zip(chains, bounds[1:], strict=True):
        while position not in chain.places and position < end:
            member = next(members(archive.read_at, where=where, start=position, end=archive.size), None)
            if member is None:
                return
            yield member
            position = after(member)
        if position in chain.places:
            known = chain.members[chain.places[position] :]
            yield from known
            position = after(known[-1]) if known else position
            if chain.ended:
                return
    yield from members(archive.read_at, where=where, start=position, end=archive.size)


def _first_header(archive: Archive, start: int, end: int) -> int | None:
    for window in range(start, min(end, start + SEARCHED_BYTES), WINDOW_BYTES):
        data = archive.read_at(window, min(WINDOW_BYTES, end - window))
        for offset in range(0, len(data) - BLOCK + 1, BLOCK):
            if is_header(data[offset : offset + BLOCK]):
                return window + offset
    return None
