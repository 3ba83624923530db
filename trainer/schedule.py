"""Which segment of the recipe's schedule a step belongs to.

Boundaries are steps: round(fraction × total steps), fractions by `Recipe.schedule_epochs` (93 for `original`, 90
for `paper`), total steps those of all epochs. A run ended early by `max_steps` walks the beginning of this
schedule. Source: fidelity.md §0; architecture.md D9.
"""

from __future__ import annotations

from bisect import bisect_right
from dataclasses import dataclass

from .recipe import Recipe, Segment


@dataclass(frozen=True, slots=True)
class Schedule:
    """The segments of a run and the step at which each begins; steps count from 0 over the whole run."""

    segments: tuple[Segment, ...]
    starts: tuple[int, ...]
    total_steps: int

    @classmethod
    def of(cls, recipe: Recipe, steps_per_epoch: int) -> Schedule:
        """The schedule of `recipe` for a set that gives `steps_per_epoch` batches."""
        total = recipe.epochs * steps_per_epoch
        fractions = [segment.after_epochs / recipe.schedule_epochs for segment in recipe.schedule]
        return cls(recipe.schedule, tuple(round(fraction * total) for fraction in fractions), total)

    def at(self, step: int) -> Segment:
        """The segment that update number `step` uses."""
        return self.segments[bisect_right(self.starts, step) - 1]

    @property
    def jitter_steps(self) -> int | None:
        """How many steps have the colour jitter; None: all of them."""
        ends = [start for start, segment in zip(self.starts, self.segments, strict=True) if not segment.jitter]
        return min(ends, default=None)
