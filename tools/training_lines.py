"""How a run of `alextrain` tells how it goes: a live view on a terminal, lines, JSON lines, or warnings alone."""

from __future__ import annotations

import dataclasses
import errno
import math
import os
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TextIO

import click

from ..shards import printable
from ..trainer import Evaluation, Record, Reporter
from .run_files import Metrics, newest_checkpoint
from .shown import Evaluating, Shown, json_line, pace, record_line, time_left, waiting_share
from .terminal import PLAIN_LINE_EVERY_S, duration

__all__ = ["JsonLines", "Lines", "Live", "Quiet", "json_line", "reporter_for", "tell"]


@contextmanager
def reporter_for(*, quiet: bool, as_json: bool) -> Iterator[Reporter]:
    """The reporter that was asked for, to be used within the block; on a terminal the live view, else lines."""
    # A terminal that cannot move its cursor (of an editor, say) is told lines; of ranks the first one has it.
    live = sys.stderr.isatty() and os.environ.get("TERM") not in ("dumb", "unknown")
    try:
        if as_json:
            yield JsonLines()
        elif quiet:
            yield Quiet()
        elif live and os.environ.get("RANK", "0") == "0":
            with Live() as reporter:
                yield reporter
        else:
            yield Lines()
    finally:
        for stream in (sys.stdout, sys.stderr):
            _flush(stream)  # else what a full disk left in it would change the exit code


def tell(text: str, *, err: bool = False) -> None:
    """Print a line at once. A reader that went away (`| head`, a pipe of ssh) or a full disk does not end the run.

    To a reader that went away nothing more is told; lines for a full disk are tried again with the next one.
    """
    try:
        click.echo(text, err=err)
    except OSError as error:
        if error.errno not in (errno.ENOSPC, errno.EDQUOT):
            _let_go(sys.stderr if err else sys.stdout)


def _plain(text: str) -> str:
    """Lines in which no name acts on the terminal."""
    return "\n".join(map(printable, text.split("\n")))


def _flush(stream: TextIO) -> None:
    try:
        stream.flush()
    except OSError:
        _let_go(stream)


def _let_go(stream: TextIO) -> None:
    from .live_region import let_go

    let_go(stream)


class _Knowing(Reporter):
    """A reporter that keeps what is known of the run, and of its parts before this one."""

    def __init__(self) -> None:
        self.shown: Shown | None = None

    def begin(self, folder: Path, config: dict[str, Any], step: int) -> None:
        """Before the first step; what the folder holds of earlier parts is read."""
        shown = Shown(folder, config)
        with Metrics(folder) as metrics:
            for record in metrics.read().records:
                shown.add(record)
        shown.recent = ()  # the machine may be another now
        shown.step, shown.began, shown.worked_before_s = step, time.time(), shown.worked_s
        shown.saved = newest_checkpoint(folder)
        self.shown = shown

    def rate(self, images_per_s: float, waiting: float, _images_left: int) -> None:
        if self.shown is not None:
            self.shown.early, self.shown.heard = (images_per_s, waiting), time.time()

    def record(self, record: Record, _evaluation: Evaluation | None = None) -> None:
        if self.shown is not None:
            self.shown.add(dataclasses.asdict(record), time.time())

    def evaluating(self, split: str, samples: int) -> None:
        if self.shown is not None:
            self.shown.evaluating = Evaluating(time.time(), split, samples)

    def saved(self, step: int) -> None:
        if self.shown is not None:
            self.shown.saved = step, time.time()


class Lines(_Knowing):
    """Figures of training every few seconds, of evaluation always; on stderr."""

    printed = -math.inf

    def say(self, line: str) -> None:
        tell(_plain(line), err=True)

    def warn(self, line: str) -> None:
        self.say(f"warning: {line}")

    def begin(self, folder: Path, config: dict[str, Any], step: int) -> None:
        super().begin(folder, config, step)
        if self.shown is not None and (chance := self.shown.chance_loss) is not None:
            self.say(f"loss of a constant answer: ln({self.shown.num_classes:,}) = {chance:.4f}")

    def rate(self, images_per_s: float, waiting: float, images_left: int) -> None:
        super().rate(images_per_s, waiting, images_left)
        self.say(
            f"measured: {images_per_s:,.1f} images/s, {100 * waiting:.0f} % of the time waiting for batches "
            f"(the {pace(waiting)} sets the pace); {duration(images_left / images_per_s)} of training left"
        )

    def evaluating(self, split: str, samples: int) -> None:
        """Says so where that may be long, as the lines stand still meanwhile."""
        super().evaluating(split, samples)
        shown = self.shown
        if shown is not None and (not shown.evaluations or shown.evaluations[-1][1] >= PLAIN_LINE_EVERY_S):
            self.say(str(shown.evaluating))

    def record(self, record: Record, evaluation: Evaluation | None = None) -> None:
        super().record(record, evaluation)
        if evaluation is None and time.monotonic() - self.printed < PLAIN_LINE_EVERY_S:
            return
        left = ""
        if evaluation is None:
            self.printed = time.monotonic()
            left = time_left(self.shown) if self.shown is not None else ""
        self.say(record_line(dataclasses.asdict(record), left))


class Quiet(Lines):
    """Warnings alone, on stderr."""

    def say(self, line: str) -> None:
        pass

    def warn(self, line: str) -> None:
        tell(_plain(f"warning: {line}"), err=True)


class Live(_Knowing):
    """All that is known of the run at the bottom of the terminal on stderr; what is said goes above it and stays.

    A context manager. However the block is left, the last state stays printed and the cursor is below it.
    """

    def __init__(self) -> None:
        from .live_region import Region

        super().__init__()
        self._region = Region(sys.stderr, self._picture)

    def __enter__(self) -> Live:
        self._region.__enter__()
        return self

    def __exit__(self, *about: object) -> None:
        if self.shown is not None:
            self.shown.going = False
        self._region.__exit__(*about)

    def _picture(self, width: int) -> list[Any]:
        from .live_view import picture

        return [] if self.shown is None else picture(self.shown, width=width, now=time.time())

    def say(self, line: str) -> None:
        self._print(line)

    def warn(self, line: str) -> None:
        """Above as all lines, and in the view, where it stays in sight."""
        if self.shown is not None:
            self.shown.warn(line)
        self._print(f"warning: {line}", "red")

    def _print(self, text: str, style: str = "") -> None:
        from rich.text import Text

        self._region.print([Text(line, style) for line in _plain(text).split("\n")])

    def begin(self, folder: Path, config: dict[str, Any], step: int) -> None:
        super().begin(folder, config, step)
        self._region.redraw()

    def rate(self, images_per_s: float, waiting: float, images_left: int) -> None:
        super().rate(images_per_s, waiting, images_left)
        self._region.redraw()

    def record(self, record: Record, evaluation: Evaluation | None = None) -> None:
        super().record(record, evaluation)
        self._region.redraw()

    def evaluating(self, split: str, samples: int) -> None:
        super().evaluating(split, samples)
        self._region.redraw()

    def saved(self, step: int) -> None:
        super().saved(step)
        self._region.redraw()


class JsonLines(_Knowing):
    """One JSON object a line on stdout, at once: {"schema": 1, "event": …, …}; a figure that is not known is null.

    begin    folder, step (completed before), preset, width, seed, precision, devices, ranks, batch_size, epochs,
             steps_per_epoch, total_steps, last_step, classes, chance_loss
    say      line
    warning  line
    rate     measured over the first steps: images_per_s, waiting_share (0..1), pace (loader | network),
             images_left, seconds_left
    train    all fields of the line in metrics.jsonl (errors 0..1; rates by group, null: frozen; memory_bytes;
             seconds, wait_s), waiting_share, last_step, chance_loss, images_left, seconds_so_far, seconds_left
    evaluating  split, samples: an evaluation begins
    val      the same as train, with split, views and samples
    saved    step, epoch of a checkpoint that is on the disk
    end      from the command: how the run ended
    """

    def say(self, line: str) -> None:
        _print_json("say", line=line)

    def warn(self, line: str) -> None:
        _print_json("warning", line=line)

    def begin(self, folder: Path, config: dict[str, Any], step: int) -> None:
        super().begin(folder, config, step)
        assert self.shown is not None
        _print_json("begin", **self.shown.plan(), step=step)

    def rate(self, images_per_s: float, waiting: float, images_left: int) -> None:
        super().rate(images_per_s, waiting, images_left)
        _print_json(
            "rate",
            images_per_s=images_per_s,
            waiting_share=waiting,
            pace=pace(waiting),
            images_left=images_left,
            seconds_left=images_left / images_per_s if images_per_s > 0 else None,
        )

    def record(self, record: Record, evaluation: Evaluation | None = None) -> None:
        super().record(record, evaluation)
        fields = dataclasses.asdict(record)
        about = {"waiting_share": waiting_share(fields)}
        if self.shown is not None:
            about |= self.shown.derived(time.time())
        if evaluation is not None:
            of = dataclasses.asdict(evaluation)
            about |= {name: of[name] for name in ("split", "views", "samples") if name in of}
        _print_json(fields.pop("kind"), **fields, **about)

    def evaluating(self, split: str, samples: int) -> None:
        super().evaluating(split, samples)
        _print_json("evaluating", split=split, samples=samples)

    def saved(self, step: int) -> None:
        super().saved(step)
        steps_per_epoch = self.shown.config.get("steps_per_epoch") if self.shown else None
        _print_json("saved", step=step, epoch=step / steps_per_epoch if steps_per_epoch else None)


def _print_json(event: str, **fields: Any) -> None:
    tell(json_line(event, **fields))
