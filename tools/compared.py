"""Runs as their folders tell of them: what `alextrain compare` puts side by side.

Reads config.json, metrics.jsonl and end.json alone, so that neither torch nor the shard sets are needed. What a
run of an earlier version did not write is not known of it.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import accumulate, pairwise
from pathlib import Path
from typing import Any, Literal

import numpy as np

from ..shards import AlexshardError, WrongCall
from .run_files import Record, number, parse_config, parse_record, read_end

Against = Literal["epoch", "step", "hours", "images"]
_FIGURES = ("loss", "top1_error", "top5_error", "images_per_s", "wait_s", "seconds")


@dataclass(frozen=True, slots=True)
class Line:
    """One line of metrics.jsonl; figures that it has not, or that are not finite, are None."""

    kind: Literal["train", "val"]
    epoch: float  # completed
    step: int  # completed
    rates: Mapping[str, Any]  # by rate group, or that of the weights alone
    loss: float | None
    top1_error: float | None
    top5_error: float | None
    images_per_s: float | None
    wait_s: float | None
    seconds: float | None

    @classmethod
    def of(cls, record: Record) -> Line:
        """Those that are compared; a run of an earlier version tells the rate of the weights alone."""
        rates = record.get("rates", {"weights": record.get("lr")})
        figures = {name: number(record.get(name)) for name in _FIGURES}
        return cls(record["kind"], float(record["epoch"]), record["step"], rates, **figures)


@dataclass(frozen=True)
class Run:
    """One run, as its folder has it."""

    path: Path
    name: str
    config: Mapping[str, Any]  # with a recipe
    lines: Sequence[Line]
    end: Mapping[str, Any] | None = None  # how the last process ended, by its word (`read_end`)

    def part(self, name: str) -> Mapping[str, Any]:
        """An object in the configuration; an empty one where it has none."""
        return self.config.get(name) or {}

    @property
    def recipe(self) -> Mapping[str, Any]:
        return self.part("recipe")

    @property
    def classes(self) -> int | None:
        """How many."""
        told = self.config.get("classes")
        return None if told is None else len(told)

    @property
    def shard_set(self) -> dict[str, str | None]:
        """Name, path and digest."""
        told = self.part("shard_set")
        path = told.get("path")
        name = told.get("name") or (path.rstrip("/").rpartition("/")[2] if path else None)
        return {"name": name, "path": path, "digest": told.get("digest")}

    @property
    def step(self) -> int:
        """Steps so far."""
        return max((line.step for line in self.lines), default=0)

    @property
    def last_step(self) -> int | None:
        """Steps that were planned."""
        ends = [self.config.get("last_step"), self.config.get("total_steps"), self.recipe.get("max_steps")]
        return min((end for end in ends if end is not None), default=None)

    @property
    def done(self) -> bool:
        """Whether no step is to come: by the run's own word, which a rule may end early, or since all are told."""
        told = self.end is not None and self.end["state"] == "done"
        return told or (self.last_step is not None and self.last_step <= self.step)

    @cached_property
    def train(self) -> list[Line]:
        return [line for line in self.lines if line.kind == "train"]

    @cached_property
    def val(self) -> list[Line]:
        return [line for line in self.lines if line.kind == "val" and line.top1_error is not None]

    def places(self, lines: Sequence[Line], against: Against) -> list[float]:
        """Where on the axis each of these lines is.

        Raises:
            WrongCall: the run does not say.
        """
        if against == "epoch":
            return [line.epoch for line in lines]
        if against == "step":
            return [line.step for line in lines]
        if against == "images":
            batch = self.recipe.get("batch_size")
            if batch is None:
                raise _cannot(self, against, "its config.json has no batch_size")
            return [line.step * batch for line in lines]
        seconds = [line.seconds for line in self.train if line.seconds is not None]
        if len(seconds) < len(self.train):
            raise _cannot(self, against, "an earlier version wrote it, which kept no seconds")
        # Of training: an evaluation is where the training before it ended.
        ends = [0, *(line.step for line in self.train)]
        return _between([line.step for line in lines], ends, [s / 3600 for s in accumulate([0.0, *seconds])])

    def rate_changes(self, against: Against) -> list[float]:
        """Where on the axis the rates changed, as far as the run has come."""
        starts = self.config.get("schedule_steps") or []
        steps, places = [line.step for line in self.train], self.places(self.train, against)
        changes = []
        for before, after in pairwise(self.train):
            if before.rates != after.rates:
                # A line has the rates of its last step; drops on a plateau are in no schedule.
                planned = [step for step in starts if before.step <= step < after.step]
                changes.append(planned[0] if planned else before.step)
        return _between(changes, steps, places)


def read_runs(paths: Iterable[Path]) -> list[Run]:
    """The runs of these folders, each once, by names that tell them apart.

    Raises:
        WrongCall: one is no run.
        AlexshardError: a file of one cannot be read.
    """
    folders: dict[Path, Path] = {}
    for path in paths:
        folders.setdefault(path.resolve(), path)
    return [
        Run(path, name, _read_config(path), _read_lines(path / "metrics.jsonl"), read_end(path))
        for path, name in zip(folders.values(), _names(list(folders)), strict=True)
    ]


def figures_of(run: Run) -> dict[str, Any]:
    """What a run came to: units in the names, errors and shares in 0..1; None for what it does not tell."""
    last = run.lines[-1] if run.lines else None
    train = run.train[-1] if run.train else None
    best = min(run.val, key=lambda line: line.top1_error or 0.0, default=None)  # the first of equal ones
    speeds = [line.images_per_s for line in run.train if line.images_per_s is not None]
    timed = [line for line in run.train if line.seconds is not None and line.wait_s is not None]
    seconds, waited = sum(line.seconds or 0 for line in timed), sum(line.wait_s or 0 for line in timed)
    return {
        "name": run.name,
        "path": str(run.path),
        "preset": run.recipe.get("preset"),
        "shard_set": run.shard_set,
        "classes": run.classes,
        "chance_loss": math.log(run.classes) if run.classes else None,
        "step": run.step,
        "last_step": run.last_step,
        "done": run.done,
        "epoch": last.epoch if last else 0.0,
        "train": _line(train),
        "best": _line(best),
        "last": _line(run.val[-1] if run.val else None),
        "images_per_s": statistics.median(speeds) if speeds else None,
        "waiting_share": min(1.0, waited / seconds) if seconds else None,
        "training_hours": _hours(run.train),
        "evaluation_hours": _hours(run.val),
    }


def _line(line: Line | None) -> dict[str, Any] | None:
    if line is None:
        return None
    names = ("step", "epoch", "loss", "top1_error", "top5_error")
    return {name: getattr(line, name) for name in names}


def _hours(lines: Sequence[Line]) -> float | None:
    """Of these lines together; None where any has no seconds: a part of them would look like all."""
    seconds = [line.seconds for line in lines]
    return sum(each or 0.0 for each in seconds) / 3600 if seconds and None not in seconds else None


def _between(at: Sequence[float], known: Sequence[float], values: Sequence[float]) -> list[float]:
    """The values at `at`, on straight lines between those that are known; the nearest one outside."""
    return [float(value) for value in np.interp(at, known, values)] if at else []


def _names(folders: Sequence[Path]) -> list[str]:
    """Each folder's own name, with so many of those above it that no two are alike."""
    names = []
    for folder in folders:
        others = [other for other in folders if other != folder]
        parts = 1
        while any(other.parts[-parts:] == folder.parts[-parts:] for other in others):
            parts += 1
        names.append("/".join(folder.parts[-parts:]))
    return names


def _read_config(path: Path) -> Mapping[str, Any]:
    file = path / "config.json"
    if not file.is_file():
        raise WrongCall(
            f"{path} is no run",
            where=f"there is no {file}",
            remedy="name folders that alextrain run made, such as runs/*",
        )
    try:
        config = parse_config(file.read_bytes())
        if config.get("recipe") is None:
            raise ValueError("it is no configuration with a recipe")
    except ValueError as error:
        raise _damaged(file, getattr(error, "lineno", 1), error) from None
    return config


def _read_lines(file: Path) -> list[Line]:
    """All whole lines: what stands behind the last line's end is still being written, or never was."""
    lines = []
    content = file.read_bytes() if file.is_file() else b""
    for at, text in enumerate(content.split(b"\n")[:-1], start=1):
        try:
            lines.append(Line.of(parse_record(text)))
        except ValueError as error:
            raise _damaged(file, at, error) from None
    return lines


def _damaged(file: Path, line: int, error: Exception) -> AlexshardError:
    return AlexshardError(
        f"{file.name} of the run cannot be read: {error}",
        where=f"{file}, line {line}",
        why="figures would be missing or wrong beside those of the other runs",
        remedy="mend or remove the line, or leave the run out",
    )


def _cannot(run: Run, against: Against, why: str) -> WrongCall:
    return WrongCall(f"{run.name} cannot be drawn against {against}", why=why, remedy="--against epoch")
