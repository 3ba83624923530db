"""What is known of a run, from the lines of its metrics.jsonl: the figures and what follows from them.

Knows neither the trainer nor torch, so that `alextrain watch` is there at once; a record is a line of
metrics.jsonl as a mapping, and what is not in it (a run of an older version) is not known.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from .report import SCHEMA

LOADER_SETS_THE_PACE = 0.1  # of the time spent waiting for batches; below it the network does
RECENT_LINES = 20  # that time left is told from

Record = Mapping[str, Any]


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
    recent: tuple[tuple[float, float], ...] = ()  # images/s and seconds of the last lines of training
    worked_s: float = 0.0  # that the records cover
    evaluated_s: float = 0.0  # of these, evaluations
    began: float | None = None  # this process began to train; None: it is another's run
    worked_before_s: float = 0.0  # by the processes before this one
    heard: float | None = None  # the last figures came
    saved: tuple[int, float] | None = None  # step of the last checkpoint, when
    going: bool = True  # somebody is at work on it
    state: str = ""  # who, in words
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
        """Whether all steps are."""
        return 0 < self.last_step <= self.step

    @property
    def images_per_s(self) -> float | None:
        """Of the last lines; before there are any, as measured early. Means are over images, not over lines."""
        seconds = sum(seconds for _, seconds in self.recent)
        if seconds > 0:
            return sum(speed * seconds for speed, seconds in self.recent) / seconds or None
        return self.early[0] if self.early and self.early[0] > 0 else None

    @property
    def waiting(self) -> float | None:
        """Share of the time spent waiting for batches, 0..1: of the last line, else as measured early."""
        share = waiting_share(self.train) if self.train else None
        return share if share is not None else (self.early[1] if self.early else None)

    @property
    def images_left(self) -> int:
        """Training images until the last step."""
        return max(0, self.last_step - self.step) * int(self.recipe.get("batch_size") or 0)

    def seconds_left(self, now: float) -> float | None:
        """Until all steps are done, with evaluations as often and long as so far; None: not known yet."""
        speed = self.images_per_s
        if speed is None or not self.last_step:
            return None
        seconds = self.images_left / speed
        if self.step:
            seconds += self.evaluated_s / self.step * max(0, self.last_step - self.step)
        return max(0.0, seconds - (now - self.heard if self.heard and self.going else 0.0))

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
        if record["kind"] == "train":
            self.train = record
            if (loss := number(record.get("loss"))) is not None:
                self.losses.append((step, loss))
            if speed := number(record.get("images_per_s")):
                self.recent = (*self.recent, (speed, seconds or 1.0))[-RECENT_LINES:]
            return
        self.val = record
        self.evaluated_s += seconds
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


def record_line(record: Record) -> str:
    """A record in one plain line."""
    return (
        f"{record['kind']:5}  epoch {record['epoch']:.2f}  step {record['step']:,}  "
        f"loss {or_nan(record.get('loss')):.4f}  top-1 {percent(record.get('top1_error'))}  "
        f"top-5 {percent(record.get('top5_error'))}  rate {or_nan(record.get('lr')):g}  "
        f"{or_nan(record.get('images_per_s')):,.1f} images/s"
    )


def json_line(event: str, **fields: Any) -> str:
    """One event as a line of JSON, without its end; what is not a finite number is null.

    >>> json_line("train", step=3, loss=float("nan"))
    '{"schema": 1, "event": "train", "step": 3, "loss": null}'
    """
    return json.dumps(finite({"schema": SCHEMA, "event": event, **fields}), ensure_ascii=False, default=str)


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


def number(value: object) -> float | None:
    """A figure, where it is a finite number."""
    return float(value) if isinstance(value, int | float) and math.isfinite(value) else None


def or_nan(value: object) -> float:
    """A figure, to print."""
    return float(value) if isinstance(value, int | float) else math.nan


def percent(share: object) -> str:
    """A share of 0..1, to print."""
    return f"{100 * or_nan(share):.1f} %"
