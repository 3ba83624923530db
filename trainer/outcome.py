"""What a run tells while it goes, and the ways in which it ends."""

from __future__ import annotations

import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch.distributed as dist

from ..shards import AlexshardError
from .evaluate import Evaluation
from .ranks import Ranks
from .recipe import PRESETS, Recipe
from .records import Record


class Reporter:
    """Where a run tells how it goes; this one says its lines on stdout. Override what is of interest."""

    def say(self, line: str) -> None:
        """A line for a person."""
        print(line, flush=True)

    def warn(self, line: str) -> None:
        """What a person should know of, though the run goes on; this one says it on stderr."""
        print(f"warning: {line}", file=sys.stderr, flush=True)

    def begin(self, folder: Path, config: dict[str, Any], step: int) -> None:
        """Once, before the first step: the run's folder, what its config.json holds, the steps done before."""

    def evaluating(self, split: str, samples: int) -> None:
        """An evaluation begins; `record` with it ends it, or nothing where the run is stopped meanwhile."""

    def saved(self, step: int) -> None:
        """The state after `step` updates is on the disk."""

    def record(self, record: Record, evaluation: Evaluation | None = None) -> None:
        """Figures as written to metrics.jsonl; with the evaluation they come from, where kind is val."""

    def rate(self, images_per_s: float, waiting: float, images_left: int) -> None:
        """Measured over the first steps: speed, share of the time spent waiting for batches, what is left."""


@dataclass(frozen=True, slots=True)
class Outcome:
    """How a run, or this part of it, ended."""

    folder: Path
    step: int
    total_steps: int
    stopped_by: signal.Signals | None
    evaluation: Evaluation | None  # the last of this part


class NotSaved(AlexshardError):
    """The state in which a run ended could not be written."""

    def __init__(self, step: int, error: OSError, folder: Path, newest: str) -> None:
        super().__init__(
            f"the state after step {step:,} could not be written: {error.strerror or error}",
            where=f"the last one on the disk is {newest}",
            why="the run goes on from there, and takes the steps since then again",
            remedy=f"make room there, then alextrain run --resume {folder}",
        )


class OutOfMemory(AlexshardError):
    """A batch needs more memory than there is."""

    def __init__(self, batch: int, ranks: int, fits: int | None, device: str, newest: str) -> None:
        what = f"out of memory on {device} with a batch of {batch:,}"
        if fits is None:
            remedy = "a smaller --width or another device: not even one image fits"
        else:
            each = f" ({fits:,} on each rank)" if ranks > 1 else ""
            remedy = (
                f"-b {fits * ranks}{each} fits, as was tried just now; a batch decides the result, so with "
                f"another --out. The same batch may fit with --precision bf16, on two devices or on more ranks"
            )
        super().__init__(
            what,
            where=f"the last good checkpoint is {newest}",
            why="no step can be taken",
            remedy=remedy,
        )


class RanksParted(AlexshardError):
    """Another rank of the run is gone."""


class Diverged(AlexshardError):
    """Losses or weights are no longer finite numbers; `what` says which, and since which step."""

    def __init__(self, what: str, recipe: Recipe, checkpoint: str) -> None:
        preset_rate = PRESETS[recipe.preset]().learning_rate
        rate = recipe.learning_rate
        if rate > preset_rate:
            cause, remedy = f"a rate of {rate:g}, where the preset has {preset_rate:g}", f"--lr {preset_rate:g}"
        else:
            cause = f"a rate of {rate:g} is too high for this network and data, or images have wild values"
            remedy = f"--lr {rate / 2:g}, and alexshard verify --deep on the shard set"
        super().__init__(
            what,
            where=f"the last good checkpoint is {checkpoint}",
            why=f"the weights are lost from here on; likely cause: {cause}",
            remedy=f"a new run, with another --out and {remedy}",
        )


@contextmanager
def others_there(ranks: Ranks) -> Iterator[None]:
    """Within the block, tell in words that another rank ended in the middle of something done together."""
    try:
        yield
    except RuntimeError as error:
        parted = isinstance(error, dist.DistError) or any(word in str(error) for word in ("gloo", "NCCL"))
        if ranks.count == 1 or not parted:
            raise
        raise RanksParted(
            f"rank {ranks.rank} of {ranks.count} lost the others",
            where=str(error).partition("\n")[0],
            why="a step is the work of all ranks, and one of them has ended",
            remedy="what that rank printed says why; alextrain run --resume goes on from the last checkpoint",
        ) from error
