"""The processes of one run: those that torchrun started, on any number of machines, or this one alone.

Every rank takes the same steps at the same time, so what decides about steps must be the same on all: a request to
stop is agreed on (`agreed`), and whatever the clock decides is decided by the first rank alone.
"""

from __future__ import annotations

import gc
import os
from dataclasses import dataclass
from datetime import timedelta
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor

from ..shards import WrongCall

T = TypeVar("T")

WORDS = ("RANK", "LOCAL_RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")  # what torchrun puts in the environment
LONGEST = timedelta(minutes=60)  # that one rank waits for the others: the first one may be evaluating or saving


@dataclass(frozen=True, slots=True)
class Ranks:
    """This process among those of the run; one of one where nothing says otherwise."""

    rank: int = 0
    count: int = 1
    local: int = 0  # among those on this machine

    @classmethod
    def here(cls, command: str) -> Ranks:
        """As torchrun says in the environment; joins the others. `command` is what the message names.

        Raises:
            WrongCall: the environment names ranks, but not how to reach them.
        """
        if os.environ.get("WORLD_SIZE") in (None, "", "1"):
            return cls()
        if missing := [name for name in WORDS if not os.environ.get(name)]:
            raise WrongCall(
                f"WORLD_SIZE is {os.environ['WORLD_SIZE']}, but {', '.join(missing)} is not set",
                why="the ranks work at the same time, so they must find each other",
                remedy=f"torchrun --nproc-per-node 2 {command} …",
            )
        # Without a name: gloo for tensors on the cores, and NCCL for those on cards where torch has it.
        dist.init_process_group(timeout=LONGEST)
        return cls(dist.get_rank(), dist.get_world_size(), int(os.environ["LOCAL_RANK"]))

    @property
    def here_too(self) -> int:
        """How many of the ranks are on this machine."""
        return int(os.environ.get("LOCAL_WORLD_SIZE") or self.count)

    @property
    def first(self) -> bool:
        """Whether this is the one that writes and speaks."""
        return self.rank == 0

    def wait(self) -> None:
        """Until all ranks are here."""
        if self.count > 1:
            self.sum(torch.zeros(1))

    def gathered(self, mine: T) -> list[T]:
        """What every rank has, on every rank, in order."""
        if self.count == 1:
            return [mine]
        everyone: list[Any] = [None] * self.count
        dist.all_gather_object(everyone, mine)
        return everyone

    def sum(self, mine: Tensor) -> Tensor:
        """The sum of the ranks' tensors, in place; on a card it is queued, not waited for."""
        if self.count > 1:
            dist.all_reduce(mine)
        return mine

    def leave(self) -> None:
        """Part from the other ranks."""
        if self.count > 1:
            # What averages gradients holds the group, and lies in cycles. Else the group's threads outlive it, and
            # one that lets go of a tensor while Python ends takes the process down: in 1 of 16 runs of 4 ranks
            # so, in none of 30 like this.
            gc.collect()
            dist.destroy_process_group()


def under_torchrun() -> bool:
    """Whether torchrun started this process, be it as the only one."""
    return "TORCHELASTIC_RUN_ID" in os.environ


class Agreement:
    """Whether any rank wants to stop, or has a state to write, known to all ranks at the same step.

    The answer of each step is that of the question before it: it travels while the step is computed, so that
    nobody waits for it.
    """

    def __init__(self, ranks: Ranks) -> None:
        self._ranks = ranks
        self._travelling: tuple[Any, Tensor] | None = None
        self._asked_before = False  # the question on its way is from before the last state
        self.answer, self.due = 0, 0

    def ask(self, stop: int, due: int = 0) -> int:
        """The largest number that any rank gave for `stop` at its last call, and so for `due`; alone: these."""
        if self._ranks.count == 1:
            self.answer, self.due = stop, due
            return stop
        self.settle()
        wishes = torch.tensor([stop, due])
        self._travelling = dist.all_reduce(wishes, op=dist.ReduceOp.MAX, async_op=True), wishes
        return self.answer

    def settle(self) -> int:
        """The answer to the last question, waited for."""
        if self._travelling is not None:
            work, wishes = self._travelling
            work.wait()
            self.answer, due = wishes.tolist()
            self.due = 0 if self._asked_before else due
            self._travelling, self._asked_before = None, False
        return self.answer

    def saved(self) -> None:
        """All ranks have written the state now: who asked for that before has it."""
        self.due, self._asked_before = 0, self._travelling is not None
