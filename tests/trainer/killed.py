"""`alextrain`, but this process kills itself by SIGKILL at a chosen point: not by the clock, so repeatably.

    python killed.py POINT STEP alextrain's words …

before   before update number STEP (from 0) is taken
after    after it, before its figures are written
line     in the middle of the line of figures of a step of at least STEP
write    in the middle of writing the checkpoint of a step of at least STEP
rename   when that file is written, and has not got its name
named    when it has, before older ones are removed
best     when it is to be marked as the best, which has a temporary name already
"""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any

from alexshard.tools.cli_alextrain import main
from alexshard.trainer import Checkpoint, RunFolder, Stepper, checkpoint, records

POINT, STEP, WORDS = sys.argv[1], int(sys.argv[2]), sys.argv[3:]


def die() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


class Cut:
    """A file that ends its process after so many bytes."""

    def __init__(self, file: IO[bytes], size: int) -> None:
        self._file, self._left = file, size

    def write(self, data: Any) -> int:
        self._left -= len(data)
        written = self._file.write(data)
        if self._left < 0:
            self._file.flush()
            die()
        return written

    def flush(self) -> None:
        self._file.flush()


def step_of(path: Path) -> int:
    return int(path.name.removeprefix("step-").partition(".")[0])


def prepare() -> None:
    step, prune, mark_best = Stepper.step, RunFolder.prune, RunFolder.mark_best
    whole, line = checkpoint.appearing_whole, records.Record.line

    def stepped(self: Stepper, number: int, *batch: Any) -> Any:
        if POINT == "before" and number >= STEP:
            die()
        sums = step(self, number, *batch)
        if POINT == "after" and number >= STEP:
            die()
        return sums

    @contextmanager
    def appearing(path: Path) -> Iterator[Any]:
        due = step_of(path) >= STEP
        with whole(path) as file:
            yield Cut(file, 500_000) if due and POINT == "write" else file
            if due and POINT == "rename":
                die()

    def pruned(self: RunFolder, keep: int) -> int:
        if POINT == "named" and step_of(self.newest) >= STEP:
            die()
        return prune(self, keep)

    def marked(self: RunFolder, path: Path) -> None:
        if POINT == "best" and step_of(path) >= STEP:
            self.best.with_name("best.pt.part").write_bytes(b"PK")
            die()
        mark_best(self, path)

    def cut_line(self: records.Record) -> str:
        text = line(self)
        if POINT == "line" and self.step >= STEP:
            with Path(RUN, "metrics.jsonl").open("a") as file:
                file.write(text[: len(text) // 2])
            die()
        return text

    Stepper.step = stepped  # type: ignore[method-assign]
    checkpoint.appearing_whole = appearing  # type: ignore[assignment]
    RunFolder.prune, RunFolder.mark_best = pruned, marked  # type: ignore[method-assign]
    records.Record.line = cut_line  # type: ignore[method-assign]


RUN = WORDS[WORDS.index("--out") + 1]
if __name__ == "__main__":
    assert Checkpoint is checkpoint.Checkpoint
    prepare()
    main(WORDS)
