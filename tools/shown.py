"""What is known of a run, from the lines of its metrics.jsonl: the figures and what follows from them.

Knows neither the trainer nor torch, so that `alextrain watch` is there at once; a record is a line of
metrics.jsonl as a mapping, and what is not in it (a run of an older version) is not known.
"""

from __future__ import annotations

import math
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path
from typing import Any

from .report import SCHEMA, json_text
from .run_files import Record, number, or_nan
from .terminal import duration

LOADER_SETS_THE_PACE = 0.1  # of the time spent waiting for batches; below it the network does
RECENT_LINES = 20  # that speed, waiting and time left are told from
RECENT_EVALUATIONS = 3  # that their distance is told from: the end that --max-steps set comes too early


@dataclass(frozen=True, slots=True)
class Evaluating:
    """An evaluation that goes on."""

    began: float  # seconds since 1970
    split: str = ""  # not known where this is another process's
    samples: int = 0

    def __str__(self) -> str:
        of = "" if self.samples == 1 else "s"
        return f"evaluating on {self.split}, {self.samples:,} image{of}" if self.split else "evaluating, it seems"


@dataclass(frozen=True, slots=True)
class Pace:
    """How fast a line of training was."""

    images_per_s: float
    seconds: float  # that it covers; 1 where that is not known
    waiting: float | None  # share of them, 0..1


@dataclass
class Shown:
    """What is known of a run; times are seconds since 1970. A thread may read while another one adds."""

    folder: Path
    config: Mapping[str, Any] = field(default_factory=dict)  # what config.json holds
    step: int = 0  # completed
    train: Record | None = None  # the last line
    val: Record | None = None  # the last evaluation
    best: Record | None = None  # the evaluation with the lowest top-1 error
    losses: list[tuple[int, float]] = field(default_factory=list)  # step, of training
    errors: list[tuple[int, float]] = field(default_factory=list)  # step, top-1 of evaluations
    early: tuple[float, float] | None = None  # images a second and waiting share, measured over the first steps
    recent: tuple[Pace, ...] = ()  # of the last lines of training
    worked_s: float = 0.0  # that the records cover
    evaluations: list[tuple[int, float]] = field(default_factory=list)  # step, seconds
    evaluating: Evaluating | None = None
    began: float | None = None  # this process began to train; None: it is another's run
    worked_before_s: float = 0.0  # by the processes before this one
    heard: float | None = None  # the last figures came
    saved: tuple[int, float] | None = None  # step of the last checkpoint, when
    going: bool = True  # somebody is at work on it
    state: str = ""  # who, in words
    end: Mapping[str, Any] | None = None  # how the last process ended, by its word (`read_end`)
    warnings: tuple[str, ...] = ()  # the last ones

    @property
    def recipe(self) -> Mapping[str, Any]:
        """The recipe resolved, as config.json has it."""
        return self.config.get("recipe") or {}

    @property
    def num_classes(self) -> int:
        """Classes of the shard set; 0: not known."""
        return len(self.config.get("classes") or ())

    @property
    def chance_loss(self) -> float | None:
        """The loss of an answer that is the same for all images."""
        return math.log(self.num_classes) if self.num_classes else None

    @property
    def last_step(self) -> int:
        """Steps that the run has when it is done; 0: not known."""
        return int(self.config.get("last_step") or self.config.get("total_steps") or 0)

    @property
    def done(self) -> bool:
        """Whether the run is: by its own word, else where all steps are and their state is kept."""
        if self.end is not None:
            return bool(self.end["state"] == "done")
        lost = not self.going and self.saved is not None and self.saved[0] < self.step
        return 0 < self.last_step <= self.step and not lost

    @property
    def failed(self) -> bool:
        """Whether the last process that trained said so."""
        return self.end is not None and self.end["state"] == "failed"

    @property
    def images_per_s(self) -> float | None:
        """Of the last lines; before there are any, as measured early. Means are over images, not over lines."""
        seconds = sum(line.seconds for line in self.recent)
        if seconds > 0:
            return sum(line.images_per_s * line.seconds for line in self.recent) / seconds or None
        return self.early[0] if self.early and self.early[0] > 0 else None

    @property
    def waiting(self) -> float | None:
        """Share of the time spent waiting for batches, 0..1; as the speed of the last lines, or measured early.

        Of one line alone it would leap: the first of an epoch waits for a loader that begins anew.
        """
        known = [(line.waiting, line.seconds) for line in self.recent if line.waiting is not None]
        total = sum(seconds for _, seconds in known)
        if total > 0:
            return sum(waiting * seconds for waiting, seconds in known) / total
        return self.early[1] if self.early else None

    @property
    def images_left(self) -> int:
        """Training images until the last step."""
        return max(0, self.last_step - self.step) * int(self.recipe.get("batch_size") or 0)

    def seconds_left(self, now: float) -> float | None:
        """Until all steps are done, with evaluations as often as so far and as long as the last one.

        None: not known yet. Before the first evaluation nothing is known of them, and it is the time of training
        alone (`left_of`).
        """
        speed = self.images_per_s
        if speed is None or not self.last_step:
            return None
        seconds = self.images_left / speed
        if self.evaluation_distance:
            seconds += self.evaluations_left * self.evaluations[-1][1]
        return max(0.0, seconds - (self._since_heard(now) if self.going else 0.0))

    @property
    def left_of(self) -> str:
        """What `seconds_left` is of, in words."""
        return "left" if self.evaluations else "of training left"

    @property
    def evaluation_distance(self) -> int:
        """Steps from one evaluation to the next, as seen so far; 0: none was."""
        steps = [0, *(step for step, _ in self.evaluations)]
        return max((b - a for a, b in pairwise(steps[-RECENT_EVALUATIONS - 1 :])), default=0)

    @property
    def evaluations_left(self) -> int:
        """Those to come, with one that goes on: at multiples of their distance, and after the last step."""
        distance, last = self.evaluation_distance, self.last_step
        before = max(self.evaluations[-1][0], self.step - 1) if self.evaluations else 0
        return max(0, last // distance - before // distance) + (last % distance > 0) if distance else 0

    def evaluates_now(self) -> bool:
        """Whether the lines look like it: the last one is at the end of an epoch that has an evaluation."""
        step = int(self.train["step"]) if self.train else 0
        per_epoch = int(self.config.get("steps_per_epoch") or 0)
        if not per_epoch or not step or (self.val is not None and self.val["step"] >= step):
            return False
        if self.evaluations:
            due = step - self.evaluations[-1][0] >= self.evaluation_distance
            return step == self.last_step or (step % per_epoch == 0 and due)
        return step == per_epoch  # where none came after the first epoch there may never be one

    def _since_heard(self, now: float) -> float:
        """Seconds of the work ahead that were done since the last figures came."""
        if self.evaluating is None:
            return now - self.heard if self.heard else 0.0
        began, usual = self.evaluating.began, self.evaluations[-1][1] if self.evaluations else 0.0
        # Training stands still, and an evaluation is counted as long as the one before took.
        return began - (self.heard or began) + min(now - began, usual)

    def seconds_so_far(self, now: float) -> float:
        """Of work on the run, by this process and those before."""
        if self.began is not None:
            return self.worked_before_s + now - self.began
        return self.worked_s + (max(0.0, now - self.heard) if self.heard and self.going else 0.0)

    def add(self, record: Record, now: float | None = None) -> None:
        """Take a line of metrics.jsonl, which came now."""
        seconds = number(record.get("seconds")) or 0.0
        step = int(record["step"])
        self.step = max(self.step, step)
        self.worked_s += seconds
        self.heard = now
        self.evaluating = None
        if record["kind"] == "train":
            self.train = record
            if (loss := number(record.get("loss"))) is not None:
                self.losses.append((step, loss))
            if speed := number(record.get("images_per_s")):
                self.recent = (*self.recent, Pace(speed, seconds or 1.0, waiting_share(record)))[-RECENT_LINES:]
            return
        self.val = record
        self.evaluations.append((step, seconds))
        if (error := number(record.get("top1_error"))) is not None:
            self.errors.append((step, error))
            if self.best is None or error < self.best["top1_error"]:
                self.best = record

    def warn(self, line: str) -> None:
        """Keep a warning in sight, with the last ones before it."""
        self.warnings = (*self.warnings, line)[-3:]

    def plan(self) -> dict[str, Any]:
        """What the run is, for programs; None where it is not known."""
        machine = self.config.get("machine") or {}
        return {
            "folder": str(self.folder),
            **{name: self.recipe.get(name) for name in ("preset", "width", "seed", "precision")},
            "devices": machine.get("devices"),
            "ranks": machine.get("ranks"),
            **{name: self.recipe.get(name) for name in ("batch_size", "epochs")},
            **{name: self.config.get(name) for name in ("steps_per_epoch", "total_steps")},
            "last_step": self.last_step or None,
            "classes": self.num_classes or None,
            "chance_loss": self.chance_loss,
        }

    def derived(self, now: float) -> dict[str, Any]:
        """What follows from the figures, units in the names; None where it is not known."""
        return {
            "last_step": self.last_step or None,
            "chance_loss": self.chance_loss,
            "images_left": self.images_left,
            "seconds_so_far": self.seconds_so_far(now),
            "seconds_left": self.seconds_left(now),
        }


def waiting_share(record: Record) -> float | None:
    """Share of the time that a record covers which was spent waiting for batches, 0..1; None: not known."""
    waited, seconds = number(record.get("wait_s")), number(record.get("seconds"))
    return None if waited is None or not seconds else min(1.0, waited / seconds)


def record_line(record: Record, left: str = "") -> str:
    """A record in one plain line; of training with the waiting share, and what is left where that is given."""
    waiting = waiting_share(record) if record["kind"] == "train" else None
    line = (
        f"{record['kind']:5}  epoch {record['epoch']:.2f}  step {record['step']:,}  "
        f"loss {or_nan(record.get('loss')):.4f}  top-1 {percent(record.get('top1_error'))}  "
        f"top-5 {percent(record.get('top5_error'))}  rate {or_nan(record.get('lr')):g}  "
        f"{or_nan(record.get('images_per_s')):,.1f} images/s"
    )
    told = [line, f"waiting {100 * waiting:.0f} %" if waiting is not None else "", left]
    return "  ".join(filter(None, told))


def time_left(shown: Shown, now: float | None = None) -> str:
    """Until the run is done, to print behind a line; nothing where it is not known, or all steps are done."""
    seconds = shown.seconds_left(time.time() if now is None else now)
    return "" if seconds is None or shown.step >= shown.last_step else f"{duration(seconds)} {shown.left_of}"


def json_line(event: str, **fields: Any) -> str:
    """One event as a line of JSON, without its end; what is not a finite number is null.

    >>> json_line("train", step=3, loss=float("nan"))
    '{"schema": 1, "event": "train", "step": 3, "loss": null}'
    """
    return json_text(finite({"schema": SCHEMA, "event": event, **fields}), default=str)


def finite(value: Any) -> Any:
    """The same with None for every number that JSON does not have."""
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, Mapping):
        return {str(name): finite(part) for name, part in value.items()}
    return [finite(part) for part in value] if isinstance(value, list | tuple) else value


def pace(waiting: float) -> str:
    """Who sets it, by the share of the time spent waiting for batches: loader or network."""
    return "loader" if waiting > LOADER_SETS_THE_PACE else "network"


def percent(share: object) -> str:
    """A share of 0..1, to print."""
    return f"{100 * or_nan(share):.1f} %"
