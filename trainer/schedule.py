"""Which segment of the recipe's schedule a step belongs to.

Boundaries are steps: round(fraction × total steps), fractions by `Recipe.schedule_epochs` (93 for `original`, 90
for `paper`), total steps those of all epochs. A run ended early by `max_steps` walks the beginning of this
schedule. With `drop_on` plateau a boundary is where a drop was made (`Plateau`).
Source: fidelity.md §0, §6; architecture.md D9.
"""

from __future__ import annotations

from bisect import bisect_right
from dataclasses import dataclass, replace

from .recipe import Recipe
from .schedules import Segment


@dataclass(frozen=True, slots=True)
class Schedule:
    """The segments of a run and the step at which each begins; steps count from 0 over the whole run."""

    segments: tuple[Segment, ...]
    starts: tuple[int, ...]
    total_steps: int

    @classmethod
    def of(cls, recipe: Recipe, steps_per_epoch: int, drops: tuple[int, ...] = ()) -> Schedule:
        """The schedule of `recipe` for a set that gives `steps_per_epoch` batches.

        `drops` are the steps after which a plateau was noticed so far; without any in a schedule by epochs.
        """
        total = recipe.epochs * steps_per_epoch
        if recipe.drop_on == "plateau":
            return cls(recipe.schedule, (0, *drops), total)
        fractions = [segment.after / recipe.schedule_epochs for segment in recipe.schedule]
        return cls(recipe.schedule, tuple(round(fraction * total) for fraction in fractions), total)

    def at(self, step: int) -> Segment:
        """The segment that update number `step` uses."""
        return self.segments[bisect_right(self.starts, step) - 1]

    @property
    def jitter_steps(self) -> int | None:
        """How many steps have the colour jitter; None: all of them."""
        ends = [start for start, segment in zip(self.starts, self.segments, strict=False) if not segment.jitter]
        return min(ends, default=None)


@dataclass(frozen=True, slots=True)
class Plateau:
    """When validation stopped improving: the best error so far, and the drops that were made.

    Once per epoch: a drop when the best value is more than `patience` epochs old, counted from the last drop
    where that is later; after the last drop and another `patience` epochs without a new best the run stops.
    Source: fidelity.md §6, a choice: the paper gives no rule.
    """

    best_error: float | None = None  # top-1, one view
    best_step: int = 0
    drops: tuple[int, ...] = ()  # the steps after which the next segment began
    stopped: bool = False

    def seen(self, step: int, error: float) -> Plateau:
        """The same with this error, of the network after `step` updates, where it is the best so far."""
        better = self.best_error is None or error < self.best_error
        return replace(self, best_error=error, best_step=step) if better else self

    def after(self, step: int, error: float, *, recipe: Recipe, steps_per_epoch: int) -> Plateau:
        """What follows from the validation error after `step` updates, the end of an epoch."""
        if (better := self.seen(step, error)) is not self:
            return better
        epochs = (step - max(self.best_step, *self.drops, 0)) / steps_per_epoch
        drops_left = len(recipe.schedule) - 1 - len(self.drops)
        if drops_left and epochs > recipe.patience:
            return replace(self, drops=(*self.drops, step))
        return replace(self, stopped=not drops_left and epochs >= recipe.patience)
