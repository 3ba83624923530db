"""What all ranks must find alike before a run begins or goes on: a folder of their own, and one state in it."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import ExitStack
from typing import TypeVar

from ..shards import AlexshardError, WrongCall
from .beginning import weights_digest
from .checkpoint import Checkpoint
from .machine import Machine
from .ranks import Ranks
from .run_folder import RunFolder

T = TypeVar("T")


def together(ranks: Ranks, act: Callable[[], T]) -> T:
    """What `act` gives on this rank, once it has given something on all; what one rank refuses all do."""
    refusal: AlexshardError | None = None
    found: T | None = None
    try:
        found = act()
    except AlexshardError as error:
        refusal = error
    for each in ranks.gathered(refusal):
        if each is not None:
            raise each
    return found  # type: ignore[return-value]  # it may well give None


def alone(folder: RunFolder, machine: Machine, stack: ExitStack) -> str | None:
    """The first rank looks at the folder and locks it; what it finds is refused on all."""

    def lock() -> str | None:
        if not machine.ranks.first:
            return None
        folder.check()
        return stack.enter_context(folder.lock())

    return together(machine.ranks, lock)


def same_on_all(folder: RunFolder, machine: Machine, resume: Checkpoint | None) -> None:
    """See that all ranks go on from the same state, or all begin."""
    if machine.ranks.count == 1:
        return  # the digest of a whole network takes a while
    mine = None if resume is None else (resume.step, weights_digest(resume.network))
    for rank, theirs in enumerate(machine.ranks.gathered(mine)):
        if theirs != mine:
            there, here = (f"step {each[0]:,}" if each else "no state" for each in (theirs, mine))
            raise WrongCall(
                f"rank {rank} finds {there} in {folder.path}, and rank {machine.ranks.rank} finds {here}",
                why="they would train two networks and average them",
                remedy="give all ranks one folder by --out, on a disk that all machines share",
            )
