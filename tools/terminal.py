"""What both commands share towards the terminal: errors to exit codes, signals, progress, tables.

stdout carries a command's result and nothing else; progress and warnings go to stderr.
"""

from __future__ import annotations

import os
import signal
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from io import TextIOWrapper
from types import FrameType, TracebackType
from typing import Any, TextIO

import click

from ..shards import AlexshardError, printable

PLAIN_LINE_EVERY_S = 5.0


class Cli(click.Group):
    """The one place where a library error or a signal becomes a message and an exit code.

    0 done, 1 the work failed, 2 a wrong call, 128+n stopped by signal n.
    """

    def invoke(self, ctx: click.Context) -> Any:
        with exit_codes(ctx):
            return super().invoke(ctx)


class CliCommand(click.Command):
    """The same for a program of one command."""

    def invoke(self, ctx: click.Context) -> Any:
        with exit_codes(ctx):
            return super().invoke(ctx)


@contextmanager
def exit_codes(ctx: click.Context) -> Iterator[None]:
    """Turn what leaves the block into a message on stderr and the exit code it stands for."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")  # names in archives need not be valid UTF-8
    try:
        yield
    except AlexshardError as error:
        _tell(f"{_rank()}error: {error}")
        ctx.exit(error.exit_code)
    except StoppedBySignal as stop:
        click.echo(f"stopped by {stop.signal.name}", err=True)
        ctx.exit(stop.exit_code)
    except KeyboardInterrupt:
        click.echo("stopped by SIGINT", err=True)
        ctx.exit(128 + signal.SIGINT)
    except BrokenPipeError:
        # The reader of stdout went away (`| head`): nothing more can be told to it, not even at exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        ctx.exit(128 + signal.SIGPIPE)
    except OSError as error:
        # What no caller could put into better words: a disk that filled, a file that was taken away.
        where = f"\n  where: {error.filename}" if error.filename else ""
        _tell(f"{_rank()}error: {error.strerror or error}{where}")
        ctx.exit(1)


def _rank() -> str:
    """Which of the processes that torchrun started says this; the first one says it as one alone would."""
    rank = os.environ.get("RANK", "0")
    return f"rank {rank}: " if rank.isdecimal() and int(rank) > 0 else ""


def _tell(message: str) -> None:
    """A message of several lines on stderr; names in it cannot act on the terminal."""
    click.echo("\n".join(map(printable, message.split("\n"))), err=True)


class StoppedBySignal(BaseException):
    """Raised in the main thread by a signal under `signals_raise`; like KeyboardInterrupt, not an Exception."""

    def __init__(self, signal_number: int) -> None:
        super().__init__(signal_number)
        self.signal = signal.Signals(signal_number)

    @property
    def exit_code(self) -> int:
        return 128 + self.signal


@contextmanager
def signals_raise(*signals: signal.Signals) -> Iterator[None]:
    """Within the block each of `signals` raises StoppedBySignal in the main thread, so that `finally` runs."""

    def stop(number: int, _frame: FrameType | None) -> None:
        raise StoppedBySignal(number)

    before = {number: signal.signal(number, stop) for number in signals}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


class Progress:
    """How far a job is, its rate and the time left: a bar on a terminal, a plain line every few seconds elsewhere.

    >>> with Progress("build train", total=2, unit="images", stream=sys.stdout, every_s=0) as progress:
    ...     progress.advance(2)  # doctest: +ELLIPSIS
    build train 2/2 images, ...
    """

    def __init__(
        self,
        title: str,
        total: int | None,
        unit: str,
        *,
        stream: TextIO | None = None,
        every_s: float = PLAIN_LINE_EVERY_S,
    ) -> None:
        self.title, self.total, self.unit = title, total, unit
        self.stream = sys.stderr if stream is None else stream
        self.every_s = every_s
        self.done = 0
        self.skipped = 0
        self.note = ""
        self._told = 0  # of `done`, in the last plain line
        self._bar: Any = None
        self._task: Any = None

    def __enter__(self) -> Progress:
        self.started = self._printed = time.monotonic()
        if self.stream.isatty():
            self._bar = self._make_bar()
            self._bar.start()
            self._task = self._bar.add_task(self.title, total=self.total, note="")
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._bar is not None:
            self._bar.stop()
        elif kind is None and self.done and self._told != self.done:
            self._print_line()

    def advance(self, number: int = 1, *, note: str = "") -> None:
        """Count `number` more units as done; `note` is shown behind the figures."""
        self.done += number
        self.note = note
        if self._bar is not None:
            self._bar.update(self._task, advance=number, note=note)
        elif time.monotonic() - self._printed >= self.every_s > 0:
            self._print_line()
            self._printed = time.monotonic()

    def skip(self, number: int) -> None:
        """Count `number` units as done before: they say nothing of the time that the others will take."""
        self.skipped += number
        self.started = time.monotonic()
        self.advance(number, note=self.note)

    def _print_line(self) -> None:
        elapsed = max(time.monotonic() - self.started, 1e-9)
        rate = (self.done - self.skipped) / elapsed
        of = "" if self.total is None else f"/{self.total:,}"
        self._told = self.done
        pace = f"{duration(1 / rate)} each" if 0 < rate < 1 else f"{rate:,.0f} {self.unit}/s"
        line = f"{self.title} {self.done:,}{of} {self.unit}, {pace}"
        if self.total is not None and self.done < self.total:
            line += f", {duration((self.total - self.done) / max(rate, 1e-9))} left"
        elif self.total is not None:
            line += f", {duration(elapsed)}"
        print(line + (f", {self.note}" if self.note else ""), file=self.stream, flush=True)

    def _make_bar(self) -> Any:
        from rich.console import Console
        from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeRemainingColumn
        from rich.progress import Progress as RichProgress

        unit = self.unit

        class Rate(TextColumn):
            def render(self, task: Any) -> Any:
                from rich.text import Text

                return Text(f"{task.speed or 0:,.0f} {unit}/s")

        return RichProgress(
            TextColumn("{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            Rate(""),
            TimeRemainingColumn(),
            TextColumn("{task.fields[note]}"),
            console=Console(file=self.stream),
        )


def duration(seconds: float) -> str:
    """Seconds as a person reads them.

    >>> [duration(s) for s in (0.31, 42, 192, 7380, 190_000)]
    ['0.3 s', '42 s', '3 min 12 s', '2 h 3 min', '2 d 4 h']
    """
    if seconds < 10:
        return f"{seconds:.1f} s"
    whole = round(seconds)
    for size, unit, small_size, small_unit in (
        (86400, "d", 3600, "h"),
        (3600, "h", 60, "min"),
        (60, "min", 1, "s"),
    ):
        if whole >= size:
            return f"{whole // size} {unit} {whole % size // small_size} {small_unit}"
    return f"{whole} s"


class Coloured(str):
    """Text whose escapes are our own; in a table or among facts every other cannot act on the terminal."""

    __slots__ = ()


def table(rows: Sequence[Sequence[object]], *, header: Sequence[str] | None = None) -> str:
    """Rows as aligned plain text: numbers to the right, the rest to the left, by the cells that a terminal needs.

    >>> print(table([("train", 2000), ("犬", 200)], header=("split", "samples")))
    split  samples
    train    2,000
    犬         200
    """
    from rich.cells import cell_len

    lines = [[_cell(value) for value in row] for row in rows]
    if header is not None:
        lines.insert(0, [_cell(name) for name in header])
    columns = range(max((len(line) for line in lines), default=0))
    widths = [max((cell_len(line[i]) for line in lines if i < len(line)), default=0) for i in columns]
    right = [bool(rows) and all(isinstance(row[i], int | float) for row in rows if i < len(row)) for i in columns]

    def aligned(i: int, cell: str) -> str:
        blanks = " " * (widths[i] - cell_len(cell))
        return blanks + cell if right[i] else cell + blanks

    return "\n".join("  ".join(aligned(i, cell) for i, cell in enumerate(line)).rstrip() for line in lines)


def facts(items: Mapping[str, object]) -> str:
    """Names and values, one pair a line, values aligned."""
    lines = [(_cell(name), _cell(value)) for name, value in items.items()]
    width = max((len(name) for name, _ in lines), default=0)
    return "\n".join(f"{name.ljust(width)}  {value}".rstrip() for name, value in lines)


def _cell(value: object) -> str:
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, Coloured):
        return value
    return f"{value:,}" if isinstance(value, int) else printable(str(value))
