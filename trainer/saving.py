"""When a run's state is written, and what is said of it."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch

from ..shards import Split
from .checkpoint import Checkpoint
from .keeper import Keeper
from .outcome import NotSaved, Reporter
from .plan import Plan
from .run_folder import RunFolder
from .schedule import Plateau
from .step import Stepper

LINE_S = 60.0  # that a state waits for a line of figures to be written with
OVERDUE = 2


@dataclass(frozen=True, slots=True)
class SaveEvery:
    """How often the state is written: after every so many steps, or when so many seconds have passed."""

    steps: int | None = None
    seconds: float = 300.0


@dataclass(frozen=True, slots=True)
class Progress:
    """What a state is besides weights and momentum."""

    step: int
    evaluated_step: int = -1
    evaluation: dict[str, Any] | None = None
    plateau: Plateau = Plateau()  # noqa: RUF009  it is frozen

    @property
    def is_best(self) -> bool:
        """Whether the network as it is has the best validation error so far."""
        return self.plateau.best_error is not None and self.plateau.best_step == self.evaluated_step == self.step


class Saver:
    """Writes the state of one run; of several ranks the first does."""

    def __init__(self, plan: Plan, folder: RunFolder, every: SaveEvery, keep: int, reporter: Reporter) -> None:
        self._plan, self._folder, self._every, self._reporter = plan, folder, every, reporter
        self._first = plan.machine.ranks.first
        self._keeper = Keeper(folder, keep)
        self._mean = torch.from_numpy(plan.shard_set.mean_image())
        self._last: Progress | None = None
        self._at = time.perf_counter()
        self._newest: Checkpoint | None = None  # given to the keeper last
        self._owed: Checkpoint | None = None  # the best one, where it could not be written

    def begin(self, progress: Progress) -> None:
        """This state is on the disk, the run goes on from it."""
        self._last = progress
        path = self._folder.checkpoint_of(progress.step)
        if self._first and progress.is_best and path.is_file():
            self._folder.mark_best(path)  # the process may have been killed before it could

    def due_by_steps(self, step: int) -> bool:
        """Whether a state is asked for after this step."""
        return self._every.steps is not None and step % self._every.steps == 0

    def due_by_time(self) -> int:
        """Whether one is asked for by the clock, and none is being written; the first rank alone says so.

        0: no. 1: with the next line of figures. `OVERDUE`: for so long that it should not wait for one.
        """
        late_s = time.perf_counter() - self._at - self._every.seconds
        if not self._first or self._every.steps is not None or late_s < 0 or self._keeper.busy:
            return 0
        return OVERDUE if late_s > LINE_S else 1

    def save(self, progress: Progress, stepper: Stepper, loader: Callable[[], dict[str, Any]]) -> None:
        """Begin to write the state; nothing happens where it is that of the last time."""
        if progress == self._last:
            return
        if self._first:
            self._keeper.wait()
            self.tell()
            self._pay()
            copies = self._keeper.copies
            self._newest = checkpoint = Checkpoint(
                recipe=self._plan.recipe,
                side=self._plan.side,
                stored_side=self._plan.shard_set.manifest.image.side,
                classes=tuple((entry.synset, entry.words) for entry in self._plan.shard_set.manifest.classes),
                mean_image=self._mean,
                channel_mean=tuple(self._plan.shard_set.manifest.statistics.channel_mean),
                shard_set=self._plan.shard_set.digest,
                set_name=self._plan.shard_set.name,
                training_images=self._plan.shard_set.manifest.splits[Split.TRAIN].samples,
                steps_per_epoch=self._plan.steps_per_epoch,
                step=progress.step,
                evaluated_step=progress.evaluated_step,
                evaluation=progress.evaluation,
                plateau=progress.plateau,
                loader=loader(),
                network=copies.take_all(stepper.network.pieces(), ""),
                optimiser={
                    "momentum": copies.take_all(stepper.sgd.momentum_pieces(), "momentum of "),
                    "rates": stepper.sgd.rates,
                },
            )
            copies.queued(self._plan.machine.devices)
            self._keeper.save(checkpoint, best=progress.is_best)
        self._last, self._at = progress, time.perf_counter()

    def _pay(self) -> None:
        """Try once more to write the best state, which is still in the memory that the next copy is made in."""
        if (owed := self._owed) is None:
            return
        self._owed = None
        self._keeper.save(owed, best=True)
        self._keeper.wait()
        if self._keeper.outcome()[1] is not None:
            self._reporter.warn(
                f"the best state so far, after step {owed.step:,}, is lost: there was no room for it. "
                f"{self._folder.best} is that of an earlier evaluation, or none"
            )

    def tell(self) -> None:
        """Say what was written, and what could not be, since the last time."""
        written, error = self._keeper.outcome()
        if written is not None:
            self._reporter.saved(written)
        if error is not None:
            if self._last is not None and self._last.is_best:
                self._owed = self._newest
            self._last = None  # so that it is tried again, be there no step more
            self._reporter.warn(
                f"a checkpoint could not be written: {error.strerror or error}. Training goes on; the last "
                f"one is {self._folder.newest_words}, and the next is tried when it is due"
            )

    def wait(self) -> None:
        """Until nothing is being written."""
        self._keeper.wait()

    def finish(self) -> None:
        """Wait until the last state is on the disk.

        Raises:
            NotSaved: it is not.
        """
        self.wait()
        written, error = self._keeper.outcome()
        if written is not None:
            self._reporter.saved(written)
        if error is not None:
            step = self._last.step if self._last is not None else 0
            raise NotSaved(step, error, self._folder.path, self._folder.newest_words)
