"""A run's folder: what it was asked, what it measured, what it needs to go on.

config.json      the recipe resolved, schedule in steps, shard set, classes, machine, loader, versions
metrics.jsonl    one object a line: kind train | val, epoch, step, loss, top1_error, top5_error, lr, images_per_s,
                 wait_s
checkpoint.pt    the newest state (checkpoint.py)
tensorboard/     the figures of metrics.jsonl, where TensorBoard is installed
"""

from __future__ import annotations

import dataclasses
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..shards import PART_SUFFIX, AlexshardError, WrongCall, appearing_whole

_FIGURES = ("train", "val")


@dataclass(frozen=True, slots=True)
class Record:
    """One line of metrics.jsonl. Train figures: means since the line before, of each batch before its update."""

    kind: str  # train | val
    epoch: float  # completed epochs
    step: int  # completed steps
    loss: float
    top1_error: float
    top5_error: float
    lr: float  # of the weights of all layers but conv1
    images_per_s: float
    wait_s: float  # spent waiting for batches


class DamagedRun(AlexshardError):
    """A file of a run's folder is not what a run writes."""

    def __init__(self, path: Path, line: int, error: Exception, remedy: str) -> None:
        super().__init__(
            f"{path.name} of the run cannot be read: {error}",
            where=f"{path}, line {line}",
            why="nothing is known of a run from a file that is not as it was written",
            remedy=remedy,
        )


class RunFolder:
    """The files of one run."""

    def __init__(self, path: Path) -> None:
        self.path = path

    @property
    def checkpoint(self) -> Path:
        """The newest state."""
        return self.path / "checkpoint.pt"

    @property
    def metrics(self) -> Path:
        """The figures, one JSON object a line."""
        return self.path / "metrics.jsonl"

    @property
    def config(self) -> Path:
        """What the run was asked."""
        return self.path / "config.json"

    def check(self, *, resumed: bool) -> None:
        """See that a new run finds a free place, before anything is spent on it.

        A folder that a run left before its first checkpoint is free.

        Raises:
            WrongCall: something is there already, or (resumed) nothing is.
        """
        if resumed and not self.path.is_dir():
            raise WrongCall(f"no run {self.path}", remedy="alextrain run --resume RUN names a run's folder")
        if resumed or not self.path.exists():
            return
        if self.checkpoint.exists():
            raise WrongCall(
                f"{self.path} holds a run already",
                why="a second run would mix its figures with those of the first, or overwrite its network",
                remedy=f"alextrain run --resume {self.path} to go on with it, or another --out",
            )
        ours = {file.name for file in (self.checkpoint, self.metrics, self.config)} | {"tensorboard"}
        if not self.path.is_dir() or {file.name.removesuffix(PART_SUFFIX) for file in self.path.iterdir()} - ours:
            raise WrongCall(
                f"{self.path} holds other files",
                why="a run has a folder of its own",
                remedy="name another by --out",
            )

    def open(self, *, step: int, evaluated_step: int) -> None:
        """Make the folder, or drop figures from after the state that the run goes on from: it writes them again.

        Raises:
            WrongCall: the folder cannot be made.
            DamagedRun: metrics.jsonl cannot be read.
        """
        try:
            self.path.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise WrongCall(
                f"{self.path} cannot be made: {error.strerror}", remedy="name another by --out"
            ) from error
        last = {"train": step, "val": evaluated_step}
        kept = [record for record in self.records() if record.step <= last[record.kind]] if step else []
        with appearing_whole(self.metrics) as file:
            file.writelines(_line(record).encode() for record in kept)

    def write_config(self, config: dict[str, Any]) -> None:
        """Write config.json, whole."""
        with appearing_whole(self.config) as file:
            file.write(json.dumps(config, indent=2, ensure_ascii=False).encode() + b"\n")

    def shard_set(self) -> str | None:
        """Where config.json says that the shard set is, a folder or an address; None without config.json.

        Raises:
            DamagedRun: it cannot be read.
        """
        if not self.config.is_file():
            return None
        try:
            where = json.loads(self.config.read_bytes())["shard_set"]["path"]
            if not isinstance(where, str):
                raise TypeError(f"the path of its shard set is {where!r}")
            return where
        except (ValueError, KeyError, TypeError) as error:
            line = getattr(error, "lineno", 1)
            raise DamagedRun(self.config, line, error, "name the run's shard set by --shards") from error

    def append(self, record: Record) -> None:
        """Add a line to metrics.jsonl."""
        with self.metrics.open("a", encoding="utf-8") as file:
            file.write(_line(record))

    def records(self) -> list[Record]:
        """The lines of metrics.jsonl; a last line that a killed process left half-written is passed over.

        Raises:
            DamagedRun: another line is no record.
        """
        if not self.metrics.is_file():
            return []
        records = []
        for number, line in enumerate(self.metrics.read_bytes().split(b"\n")[:-1], start=1):
            try:
                records.append(record := Record(**json.loads(line)))
                if record.kind not in _FIGURES or not isinstance(record.step, int):
                    raise ValueError(f"kind {record.kind!r}, step {record.step!r}")
            except (ValueError, TypeError) as error:
                raise DamagedRun(self.metrics, number, error, "mend the line, or remove it") from error
        return records


class TensorBoard:
    """The same figures for TensorBoard; does nothing where it is not installed."""

    def __init__(self, folder: Path, *, from_step: int) -> None:
        try:
            from torch.utils.tensorboard import SummaryWriter
        except ImportError:
            self._writer: Any = None
        else:
            self._writer = SummaryWriter(str(folder / "tensorboard"), purge_step=from_step)

    @property
    def installed(self) -> bool:
        """Whether files are written."""
        return self._writer is not None

    def add(self, record: Record) -> None:
        """Add one record's figures at its step."""
        if self._writer is None:
            return
        for name in ("loss", "top1_error", "top5_error", "lr", "images_per_s", "wait_s"):
            self._writer.add_scalar(f"{record.kind}/{name}", getattr(record, name), record.step)

    def close(self) -> None:
        """Finish the files."""
        if self._writer is not None:
            self._writer.close()


def _line(record: Record) -> str:
    return json.dumps(dataclasses.asdict(record)) + "\n"
