"""What all ranks must find alike before a run begins or goes on: a folder of their own, and one state in it."""

from __future__ import annotations

from contextlib import ExitStack

from ..shards import WrongCall
from .beginning import weights_digest
from .checkpoint import Checkpoint
from .machine import Machine
from .run_folder import RunFolder


def alone(folder: RunFolder, machine: Machine, stack: ExitStack) -> str | None:
    """The first rank looks at the folder and locks it; what it finds is refused on all."""
    refusal, remark = None, None
    if machine.ranks.first:
        try:
            folder.check()
            remark = stack.enter_context(folder.lock())
        except WrongCall as error:
            refusal = error
    for each in machine.ranks.gathered(refusal):
        if each is not None:
            raise each
    return remark


def same_on_all(folder: RunFolder, machine: Machine, resume: Checkpoint | None) -> None:
    """See that all ranks go on from the same state, or all begin."""
    mine = None if resume is None else (resume.step, weights_digest(resume.network))
    for rank, theirs in enumerate(machine.ranks.gathered(mine)):
        if theirs != mine:
            there, here = (f"step {each[0]:,}" if each else "no state" for each in (theirs, mine))
            raise WrongCall(
                f"rank {rank} finds {there} in {folder.path}, and rank {machine.ranks.rank} finds {here}",
                why="they would train two networks and average them",
                remedy="give all ranks one folder by --out, on a disk that all machines share",
            )
