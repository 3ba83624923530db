"""A run of another process, or a finished one, as its folder shows it.

    config.json, metrics.jsonl, end.json, lock, names in checkpoints/ ─► Watched ─► the live view, lines, or JSON

The files are read here and not through the trainer, which brings torch along: some seconds and hundreds of
megabytes to show ten figures, on a machine that is busy training. Nothing is written or kept locked.

A line of metrics.jsonl that is no record is passed over with a warning, where going on with a run or comparing it
refuses the file: who watches wants to see the run that goes on, and no result is made from what is shown.
"""

from __future__ import annotations

import os
import shutil
import sys
import time
from collections.abc import Callable, Mapping
from contextlib import ExitStack, closing
from itertools import takewhile
from pathlib import Path
from typing import Any

import click

from ..shards import AlexshardError, Holder, WrongCall, holder_of, printable
from .report import print_json
from .run_files import Metrics, News, Record, newest_checkpoint, parse_config, read_end
from .shown import Evaluating, Shown, finite, json_line, percent, record_line, time_left, waiting_share

LINES_OF_THE_PAST = 10


class Watched:
    """What is known of the run in a folder; `look` again for what is new.

    Raises:
        WrongCall: the folder holds no run (at construction).
        AlexshardError: its config.json cannot be read.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._config_stamp: tuple[int, int] | None = None
        self._metrics = Metrics(folder)
        self.holder: Holder | None = holder_of(folder)
        if self.holder is None and not (folder / "config.json").is_file():
            found = "there is no such folder" if not folder.is_dir() else "it has no config.json"
            raise WrongCall(
                f"{folder} is no run: {found}",
                why="a run is known by what its folder holds",
                remedy="name the folder that alextrain run made or was given by --out, such as runs/SET-PRESET-s0",
            )
        self.shown = Shown(folder)
        self.records: list[Record] = []
        self.look()

    def look(self) -> News:
        """Take in what came since, and who is at work."""
        # Before the files: what a process wrote before it let go of the lock is then seen.
        self.holder = holder_of(self.folder)
        config = self._changed_config()
        news = self._metrics.read()
        shown, before = self.shown, self.records
        if news.again:
            shown, self.records = Shown(self.folder, shown.config), []
            pairs = zip(before, news.records, strict=False)
            news.known = sum(1 for _ in takewhile(lambda pair: repr(pair[0]) == repr(pair[1]), pairs))
        if config is not None:
            shown.config = config
        self.records = [*self.records, *news.records] if news.records else self.records
        for record in news.records:
            shown.add(record)
        shown.heard = self._written_at()
        shown.saved = newest_checkpoint(self.folder)
        shown.going = self.holder is not None
        # One that is at work removes it, soon if not yet.
        shown.end = read_end(self.folder) if self.holder is None else None
        evaluates = shown.going and shown.evaluates_now()
        shown.evaluating = Evaluating(shown.heard) if evaluates and shown.heard else None
        bad = self._metrics.unreadable
        no_records = "1 line of {} is no record" if bad == 1 else f"{bad:,} lines of {{}} are no records"
        shown.warnings = (no_records.format("metrics.jsonl"),) if bad else ()
        self.shown = shown
        shown.state = self.state()
        return news

    def close(self) -> None:
        """Let go of the files."""
        self._metrics.close()

    def state(self) -> str:
        """Who is at work on the run, or how it was left, in words."""
        shown, end = self.shown, self.shown.end
        if self.holder is not None:
            who = f"process {self.holder.pid} on {self.holder.host}" if self.holder.pid else "somebody"
            return f"{who} is at work on it, since {self.holder.since}"
        of = f" of {shown.last_step:,}" if shown.last_step else ""
        if shown.done:
            step = end["step"] if end else shown.step
            return f"done after step {step:,}{of}" if step < shown.last_step else f"done: all {step:,} steps"
        if end is not None:
            how = f"{end['state']} by {end['signal']}" if end["signal"] else end["state"]
            why = end["what"] if end["what"] else "nobody is at work on it"
            return f"{how} after step {end['step']:,}{of}: {why}"
        if self._lost:
            return f"nobody is at work on it: figures up to step {shown.step:,}{of}; {self._goes_on}"
        step = max(shown.step, shown.saved[0] if shown.saved else 0)
        return f"stopped after step {step:,}{of}: nobody is at work on it"

    @property
    def _lost(self) -> bool:
        """Whether steps must be taken again: the process was killed after its last checkpoint."""
        return self.shown.end is None and self.shown.saved is not None and self.shown.saved[0] < self.shown.step

    @property
    def _goes_on(self) -> str:
        return f"goes on from checkpoint {self.shown.saved[0]:,}" if self.shown.saved else "goes on"

    def verdict(self) -> str:
        """How the run ended, and the way on."""
        shown, resume = self.shown, f"alextrain run --resume {click.format_filename(self.folder)}"
        if shown.failed and shown.end and shown.end["remedy"]:
            return f"{self.state()}; what to do: {shown.end['remedy']}"
        if self._lost and not shown.done:
            return f"{self.state()} by {resume}"
        if not shown.done:
            return f"{self.state()}; {resume} goes on"
        best = f"; best top-1 error {percent(shown.best['top1_error'])}" if shown.best else ""
        return f"{self.state()}{best}"

    def report(self) -> dict[str, Any]:
        """All that is known, for programs: units in the names, None where something is not known."""
        shown, now = self.shown, time.time()
        kind = "at work" if self.holder else "failed" if shown.failed else "done" if shown.done else "stopped"
        speed, waiting = shown.images_per_s, shown.waiting
        return {
            **shown.plan(),
            "state": kind,
            "holder": None if self.holder is None else _holder(self.holder),
            "ended": shown.end,
            "evaluating": shown.evaluating is not None,
            "step": shown.step,
            **shown.derived(now),
            "images_per_s": speed,
            "waiting_share": waiting,
            "checkpoint_step": shown.saved[0] if shown.saved else None,
            "checkpoint_age_s": now - shown.saved[1] if shown.saved else None,
            "train": shown.train,
            "val": shown.val,
            "best": shown.best,
        }

    def _changed_config(self) -> Mapping[str, Any] | None:
        """What config.json holds, where it is not the one read before."""
        path = self.folder / "config.json"
        try:
            stamp = path.stat()
            if self._config_stamp == (stamp.st_ino, stamp.st_mtime_ns):
                return None
            config = parse_config(path.read_bytes())
        except FileNotFoundError:
            return None  # the run is just being made
        except ValueError as error:
            raise AlexshardError(
                f"config.json of the run cannot be read: {error}",
                where=f"{path}, line {getattr(error, 'lineno', 1)}",
                why="how many steps and classes the run has is known from there alone",
                remedy="bring the file back as the run wrote it",
            ) from error
        self._config_stamp = stamp.st_ino, stamp.st_mtime_ns
        return config

    def _written_at(self) -> float | None:
        try:
            return (self.folder / "metrics.jsonl").stat().st_mtime
        except FileNotFoundError:
            return None


def _holder(holder: Holder) -> dict[str, Any]:
    return {"host": holder.host, "pid": holder.pid or None, "since": holder.since}


def show_once(folder: Path, *, as_json: bool) -> None:
    """Print the state of the run on stdout."""
    watched = Watched(folder)
    watched.close()
    if as_json:
        print_json(finite(watched.report()))
        return
    from .live_region import coded
    from .live_view import picture

    terminal = sys.stdout.isatty()
    width = shutil.get_terminal_size().columns if terminal else 80
    for line in picture(watched.shown, width=width - 1, now=time.time()):
        click.echo(coded(line, sys.stdout, coloured=terminal))


def follow(folder: Path, *, as_json: bool, every_s: float) -> None:
    """Show the run until nobody is at work on it: a live view on a terminal, else lines or JSON, all on stdout."""
    with ExitStack() as stack:
        watched = stack.enter_context(closing(Watched(folder)))
        tell: Callable[[str, News], None]
        if as_json:
            tell = _Json(watched).tell
        elif sys.stdout.isatty() and os.environ.get("TERM") not in ("dumb", "unknown"):
            tell = stack.enter_context(_View(watched)).tell
        else:
            tell = _Text(watched).tell
        holder = watched.holder
        while watched.holder is not None:
            time.sleep(every_s)  # a signal's handler raises, which ends it
            news, holder, before = watched.look(), watched.holder, holder
            what = ""
            if holder is not None and before is not None and holder.pid != before.pid:
                what = f"{holder}, goes on with the run"
            elif news.again:
                what = f"metrics.jsonl was written anew: figures up to step {watched.shown.step:,}"
            tell(what, news)
    if as_json:
        click.echo(json_line("end", **watched.report()))
    else:
        click.echo(printable(watched.verdict()))


class _Text:
    """The past's last few lines, then each as it comes."""

    def __init__(self, watched: Watched) -> None:
        self._watched = watched
        click.echo(f"{printable(str(watched.folder))}: {printable(watched.state())}")
        for record in watched.records[-LINES_OF_THE_PAST:]:
            click.echo(record_line(record))

    def tell(self, what: str, news: News) -> None:
        """What is new."""
        if what:
            click.echo(printable(what))
        shown = self._watched.shown
        for record in news.records[news.known :]:
            click.echo(record_line(record, time_left(shown) if record is shown.train else ""))


class _View(ExitStack):
    """The live view; a line above it says what happened."""

    def __init__(self, watched: Watched) -> None:
        from .live_region import Region
        from .live_view import picture

        super().__init__()
        self._region = Region(
            sys.stdout, lambda width: picture(watched.shown, width=width, now=time.time()), every_s=0.5
        )
        self.enter_context(self._region)

    def tell(self, what: str, _news: News) -> None:
        """What happened; the figures are in the view."""
        from rich.text import Text

        self._region.print([Text(printable(what))] if what else [])


class _Json:
    """Every line of metrics.jsonl, those of the past too, as JsonLines of a run has them.

    `begin` is as there, with state and holder; `again` says that another file is there, and its lines follow from
    the first; `end` has the state, and what `--once --json` has.
    """

    def __init__(self, watched: Watched) -> None:
        self._watched, self._begun = watched, False
        self.tell("", News(watched.records))

    def tell(self, what: str, news: News) -> None:
        """What is new."""
        shown, holder = self._watched.shown, self._watched.holder
        if shown.config and not self._begun:
            self._begun = True
            who = None if holder is None else _holder(holder)
            click.echo(json_line("begin", **shown.plan(), step=shown.step, holder=who))
        if what:
            click.echo(json_line("again" if news.again else "say", line=what, step=shown.step))
        for record in news.records:
            fields = {name: value for name, value in record.items() if name != "kind"}
            about = {"waiting_share": waiting_share(record), "chance_loss": shown.chance_loss}
            click.echo(json_line(record["kind"], **fields, **about))
