"""The figures of a run, one JSON object a line of metrics.jsonl, and the same for TensorBoard."""

from __future__ import annotations

import dataclasses
import json
import math
import os
import threading
import warnings
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..shards import AlexshardError, parse_json

_KINDS = ("train", "val")
FIGURES = ("loss", "top1_error", "top5_error", "images_per_s", "wait_s")  # that both kinds have


@dataclass(frozen=True, slots=True)
class Record:
    """One line of metrics.jsonl. Train figures: means since the line before, of each batch before its update."""

    kind: str  # train | val
    epoch: float  # completed epochs
    step: int  # completed steps
    loss: float
    top1_error: float
    top5_error: float
    lr: float  # of the weights of all layers without rates of their own
    images_per_s: float
    wait_s: float  # spent waiting for batches
    seconds: float = 0.0  # of training since the line before; of the evaluation
    rates: Mapping[str, float | None] = field(default_factory=dict)  # by group; None: frozen
    memory_bytes: int = 0  # the most that was in use so far: of a card, or of the process on the cores
    updates: Mapping[str, float] = field(default_factory=dict)  # train: |Δw| / |w| of the last step, by layer

    def line(self) -> str:
        """As metrics.jsonl has it."""
        return json.dumps(dataclasses.asdict(self)) + "\n"


class DamagedRun(AlexshardError):
    """A file of a run's folder is not what a run writes."""

    def __init__(self, path: Path, line: int, error: Exception, remedy: str) -> None:
        super().__init__(
            f"{path.name} of the run cannot be read: {error}",
            where=f"{path}, line {line}",
            why="nothing is known of a run from a file that is not as it was written",
            remedy=remedy,
        )


def read_records(path: Path) -> list[Record]:
    """All lines; a last one that a killed process left half-written is passed over.

    Raises:
        DamagedRun: another line is no record.
    """
    if not path.is_file():
        return []
    records = []
    for number, line in enumerate(path.read_bytes().split(b"\n")[:-1], start=1):
        try:
            records.append(record := Record(**parse_json(line)))
            if record.kind not in _KINDS or not isinstance(record.step, int):
                raise ValueError(f"kind {record.kind!r}, step {record.step!r}")
        except (ValueError, TypeError) as error:
            raise DamagedRun(path, number, error, "mend the line, or remove it") from error
    return records


class Figures:
    """Appends lines to metrics.jsonl. Where the disk is full they are held back until it is not."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._held: list[str] = []

    def add(self, record: Record) -> OSError | None:
        """Write the line and those held back; says why that failed, where it did."""
        self._held.append(record.line())
        return self.flush()

    def flush(self) -> OSError | None:
        """Write what is held back."""
        if not self._held:
            return None
        try:
            # Unbuffered: what Python held back would be tried again when the file is cut, and fail again.
            with self._path.open("ab", buffering=0) as file:
                whole, rest = file.tell(), "".join(self._held).encode()
                try:
                    while rest:
                        rest = rest[file.write(rest) :]
                except OSError:
                    file.truncate(whole)  # no half of a line
                    raise
        except OSError as error:
            return error
        self._held = []
        return None

    def sync(self) -> None:
        """Have what is written be on the disk, if a machine goes away."""
        with suppress(OSError), self._path.open("rb") as file:
            os.fsync(file.fileno())

    @property
    def held(self) -> int:
        """Lines that are not written."""
        return len(self._held)


class TensorBoard:
    """The same figures for TensorBoard, and conv1's filters; does nothing where it is not installed."""

    def __init__(self, folder: Path, *, from_step: int) -> None:
        self._writer: Any = None
        self.installed = True
        try:
            from torch.utils.tensorboard import SummaryWriter
        except ImportError:
            self.installed = False
            return
        self._before = threading.excepthook
        threading.excepthook = self._of_a_thread
        try:
            self._writer = SummaryWriter(str(folder / "tensorboard"), purge_step=from_step)
        except OSError as error:
            self._give_up(error)

    def add(self, record: Record, *, chance_loss: float) -> None:
        """Add one record's figures at its step; `chance_loss`, of a constant answer, to see the loss beside."""
        figures = {name: getattr(record, name) for name in ("loss", "top1_error", "top5_error", "lr")}
        figures |= {name: getattr(record, name) for name in ("images_per_s", "wait_s", "memory_bytes")}
        figures |= {"epoch": record.epoch, "chance_loss": chance_loss}
        figures["waiting"] = record.wait_s / record.seconds if record.seconds else math.nan
        if record.kind == "train":
            figures |= {f"rate/{group}": rate or 0.0 for group, rate in record.rates.items()}
            figures |= {f"update_to_weight/{layer}": ratio for layer, ratio in record.updates.items()}
        for name, value in figures.items():
            self._try("add_scalar", f"{record.kind}/{name}", value, record.step)

    def picture(self, name: str, pixels_HWC: NDArray[np.uint8], step: int) -> None:
        """Add a picture."""
        self._try("add_image", name, pixels_HWC, step, dataformats="HWC")

    def close(self) -> None:
        """Finish the files."""
        self._try("close")
        if self.installed:
            threading.excepthook = self._before

    def _try(self, what: str, *arguments: Any, **named: Any) -> None:
        """A disk that is full takes these files, and not the run: metrics.jsonl has what matters."""
        if self._writer is None:
            return
        try:
            getattr(self._writer, what)(*arguments, **named)
        except OSError as error:
            self._give_up(error)

    def _give_up(self, error: OSError) -> None:
        self._writer = None
        warnings.warn(f"no more figures for TensorBoard: {error.strerror or error}", stacklevel=3)

    def _of_a_thread(self, args: threading.ExceptHookArgs) -> None:
        """Of what ended a thread: a full disk ends the one that writes these files, and the next call says so."""
        if not (isinstance(args.exc_value, OSError) and type(args.thread).__module__.startswith("tensorboard.")):
            self._before(args)
