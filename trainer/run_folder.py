"""A run's folder: what it was asked, what it measured, what it needs to go on.

config.json      the recipe resolved, schedule in steps, shard set, classes, machine, versions
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

from ..shards import WrongCall, appearing_whole


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

    def check(self, *, resumed: bool) -> None:
        """See that a new run finds a free place, before anything is spent on it.

        Raises:
            WrongCall: something is there already, or (resumed) nothing is.
        """
        if resumed and not self.path.is_dir():
            raise WrongCall(f"no run {self.path}", remedy="alextrain run --resume RUN names a run's folder")
        if not resumed and self.path.exists() and (not self.path.is_dir() or any(self.path.iterdir())):
            raise WrongCall(
                f"{self.path} holds a run already",
                why="a second run would mix its figures with those of the first, or overwrite its network",
                remedy=f"alextrain run --resume {self.path} to go on with it, or another --out",
            )

    def open(self, *, step: int, evaluated_step: int) -> None:
        """Make the folder, or drop figures from after the state that the run goes on from: it writes them again.

        Raises:
            WrongCall: the folder cannot be made.
        """
        try:
            self.path.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise WrongCall(
                f"{self.path} cannot be made: {error.strerror}", remedy="name another by --out"
            ) from error
        last = {"train": step, "val": evaluated_step}
        kept = [record for record in self.records() if record.step <= last[record.kind]]
        with appearing_whole(self.metrics) as file:
            file.writelines(_line(record).encode() for record in kept)

    def write_config(self, config: dict[str, Any]) -> None:
        """Write config.json, whole."""
        with appearing_whole(self.path / "config.json") as file:
            file.write(json.dumps(config, indent=2, ensure_ascii=False).encode() + b"\n")

    def append(self, record: Record) -> None:
        """Add a line to metrics.jsonl."""
        with self.metrics.open("a", encoding="utf-8") as file:
            file.write(_line(record))

    def records(self) -> list[Record]:
        """The lines of metrics.jsonl; a last line that a killed process left half-written is passed over."""
        if not self.metrics.is_file():
            return []
        lines = self.metrics.read_text(encoding="utf-8").split("\n")[:-1]
        return [Record(**json.loads(line)) for line in lines]


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
