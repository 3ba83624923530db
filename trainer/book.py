"""What is written and said of a run while it goes: metrics.jsonl, TensorBoard, lines for a person."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from ..pipeline import Arrivals, RemoteShelf
from ..shards import byte_size
from .evaluate import Evaluation
from .filters import filters_picture
from .outcome import Reporter
from .plan import Plan
from .plateau import plateau_message
from .records import Figures, Record, TensorBoard
from .run_folder import RunFolder
from .towers import Crossed, crossing_bytes


class Book:
    """The records of one run; on other ranks than the first every call does nothing."""

    def __init__(self, plan: Plan, folder: RunFolder, reporter: Reporter) -> None:
        self._plan, self._folder, self._reporter = plan, folder, reporter
        self._first = plan.machine.ranks.first
        self._figures = Figures(folder.metrics)
        self._board: TensorBoard | None = None
        self._next_plateau = 0  # step from which a loss at ln(classes) is told again
        self._arrived = Arrivals()

    def open(self, step: int) -> None:
        """Go on after `step`."""
        if self._first:
            self._board = TensorBoard(self._folder.path, from_step=step + 1)

    def say(self, line: str) -> None:
        """A line for a person."""
        if self._first:
            self._reporter.say(line)

    def say_what_is_missing(self) -> None:
        """Where TensorBoard is not installed."""
        if self._board is not None and not self._board.installed:
            self.say("TensorBoard is not installed (extra: tensorboard): figures in metrics.jsonl alone")

    def add(self, record: Record, evaluation: Evaluation | None = None) -> None:
        """Write figures everywhere, and say what is to be said of them."""
        if self._board is None:
            return
        was_held = self._figures.held
        if (error := self._figures.add(record)) is not None and not was_held:
            self._reporter.warn(
                f"figures could not be written to {self._folder.metrics}: {error.strerror}. Training goes on; "
                "they are held back until there is room"
            )
        self._board.add(record, chance_loss=math.log(self._plan.num_classes))
        self._reporter.record(record, evaluation)
        if record.kind == "train":
            self._watch_loss(record.step, record.loss)

    def draw_filters(self, pieces: Sequence[Tensor], step: int) -> None:
        """Conv1's weights, which may lie in pieces, as a picture for TensorBoard."""
        if self._board is not None:
            filters = torch.cat([piece.detach().cpu() for piece in pieces])
            self._board.picture("conv1/filters", filters_picture(filters, scale=4), step)

    def say_arrivals(self) -> None:
        """Of a set in a store: what came over the network since this was said last."""
        shelf = self._plan.shard_set.shelf
        if not isinstance(shelf, RemoteShelf):
            return
        now, before = shelf.statistics(), self._arrived
        if now.shards > before.shards:
            self.say(
                f"{now.shards - before.shards:,} shards ({byte_size(now.bytes - before.bytes)}) came from "
                f"{shelf.shown}; {now.stalled_s - before.stalled_s:.1f} s were spent waiting for them"
            )
        self._arrived = now

    def say_crossed(self, step: Crossed) -> None:
        """What crossed between the two towers in a step, beside what should have."""
        recipe = self._plan.recipe
        expected = crossing_bytes(recipe, self._plan.side, recipe.batch_size)
        self.say(
            f"crossed between the towers in this step: {step.forward_bytes:,} bytes of activations, "
            f"{step.backward_bytes:,} of gradients, {step.forward_bytes + step.backward_bytes:,} counted; "
            f"{expected:,} as the towers of 2012 exchange. Images, handed to both: {step.image_bytes:,}"
        )

    def sync(self) -> None:
        """So that no state is on the disk without the figures before it."""
        if self._first:
            self._figures.flush()
            self._figures.sync()

    def close(self) -> None:
        """Finish the files; says which figures found no room."""
        if self._board is not None:
            self._board.close()
        if self._figures.flush() is not None:
            self._reporter.warn(f"{self._figures.held:,} lines of {self._folder.metrics} could not be written")

    def _watch_loss(self, step: int, loss: float) -> None:
        if step < self._next_plateau:
            return
        message = plateau_message(
            self._plan.recipe,
            num_classes=self._plan.num_classes,
            steps_per_epoch=self._plan.steps_per_epoch,
            step=step,
            loss=loss,
        )
        if message is not None:
            self.say(message)
            self._next_plateau = 2 * step
