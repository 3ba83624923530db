"""`tools/bench_loader`: where the loader's time goes, what the trainer asks for, and what to turn."""

from __future__ import annotations

import math
import os
import signal
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import click

from .. import __version__
from ..shards import WrongCall, appearing_whole
from .report import json_on_failure, print_json
from .show import check_out
from .terminal import CliCommand, signals_raise

# As `alextrain` does, before torch is imported: else the demand measured here is not the trainer's.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

SCHEMA = 2  # of --json
OUTPUTS = ["float32", "float16", "bfloat16", "uint8"]


@click.command(cls=CliCommand)
@click.option(
    "--shards",
    multiple=True,
    default=["shards"],
    show_default=True,
    help="A folder or the address of a store; several times for --sweep format.",
)
@click.option("--split", type=click.Choice(["train", "val", "test"]), default="train", show_default=True)
@click.option(
    "-b", "--batch-size", type=click.IntRange(min=1), default=128, show_default=True, help="Of one rank."
)
@click.option("--device", default="auto", show_default=True, help="auto, cpu, cuda or cuda:N.")
@click.option(
    "--backend", type=click.Choice(["threads", "dali", "reference"]), help="[default: what the loader takes here]"
)
@click.option(
    "--decoder", type=click.Choice(["cores", "card", "split"]), help="[default: what the loader takes here]"
)
@click.option("--threads", type=click.IntRange(1, 1024), help="That decode.  [default: one a core]")
@click.option("--prefetch", type=click.IntRange(1, 64), help="Batches made ahead.  [default: by memory]")
@click.option("--order", type=click.Choice(["global", "windowed", "stored"]), help="[default: the preset's]")
@click.option("--window", type=click.IntRange(min=1), help="Shards read at a time where the order is windowed.")
@click.option("--mean", type=click.Choice(["image", "channel"]), default="image", show_default=True)
@click.option("--output", type=click.Choice(OUTPUTS), default="float32", show_default=True)
@click.option("--channels-last", is_flag=True, help="Floats lie in memory as (N, S, S, 3).")
@click.option("--preset", type=click.Choice(["original", "paper"]), default="original", show_default=True)
@click.option("--width", type=float, default=1.0, show_default=True, help="Of the trainer's network.")
@click.option("--repeats", type=click.IntRange(min=1), default=5, show_default=True, help="Runs of each stage.")
@click.option(
    "--seconds",
    type=click.FloatRange(0, 3600, min_open=True),
    default=1.0,
    show_default=True,
    help="Of one run.",
)
@click.option("--demand/--no-demand", default=True, help="Whether to measure the trainer too.")
@click.option(
    "--sweep",
    multiple=True,
    metavar="KNOB[=VALUE,…],…",
    help="Try threads, prefetch, batch-size, order, window, format: one knob at a time, the others as given. "
    "May be given several times.",
)
@click.option("--against", metavar="NAME,…|all", help="Run other loaders on the same images, in the same turns.")
@click.option("--cache", type=click.Path(path_type=Path), help="Where shards of a store are kept.")
@click.option("--cache-size", metavar="SIZE", help="What that may take, such as 100GB.")
@click.option("--html", type=click.Path(path_type=Path), help="Write a page with the figures and the picture.")
@click.option("--picture", type=click.Path(path_type=Path), help="Write the picture alone, .svg.")
@click.option(
    "--profile", type=click.Path(path_type=Path), help="Write a trace that ui.perfetto.dev opens, .json."
)
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
@click.version_option(__version__, prog_name="bench_loader")
def main(as_json: bool, html: Path | None, picture: Path | None, cache_size: str | None, **options: Any) -> None:
    """Say where the loader's time goes, and whether the trainer has to wait for it.

    Runs take turns, so that a machine that grows slower does so for all; figures are the median and, in brackets,
    the least and the most of the runs. Under torchrun all ranks measure at the same time, and the first reports.
    """
    with json_on_failure(as_json), signals_raise(signal.SIGTERM):
        _check_outputs(html, picture, options["profile"])
        if math.isnan(options["seconds"]):  # within every limit, since it compares with none
            raise WrongCall("--seconds is nan, and no number", remedy="--seconds 1")
        if options["window"] is not None and options["order"] != "windowed":
            raise WrongCall("--window is of --order windowed", remedy="--order windowed, or leave --window out")
        # Late, so that a wrong call is told at once: this imports torch.
        from ..trainer import Ranks
        from .loader_bench import Asked, Bench

        ranks = Ranks.here("tools/bench_loader")
        try:
            asked = Asked(cache_bytes=_bytes(cache_size), **options)
            report = {"schema": SCHEMA, **Bench(asked, ranks).measure()}
        finally:
            ranks.leave()
        if ranks.rank == 0:
            _tell(report, as_json=as_json, html=html, picture=picture)


def _check_outputs(html: Path | None, picture: Path | None, profile: Path | None) -> None:
    """What cannot be written is said before minutes are spent."""
    if html is not None:
        check_out("--html", html, ".html", why="browsers know a page by its name")
    if picture is not None:
        check_out("--picture", picture, ".svg", why="viewers know a picture by its name")
    if profile is not None:
        check_out("--profile", profile, ".json", why="viewers know a trace by its name")


def _bytes(size: str | None) -> int | None:
    from ..pipeline import parse_bytes

    return None if size is None else parse_bytes(size)


def _tell(report: dict[str, Any], *, as_json: bool, html: Path | None, picture: Path | None) -> None:
    from .loader_page import page, picture_of
    from .loader_report import to_text

    when = f"{datetime.now(UTC):%-d %B %Y}"
    if html is not None:
        _write(html, page(report, when))
    if picture is not None:
        _write(picture, picture_of(report, when))
    print_json(report) if as_json else click.echo(to_text(report))


def _write(path: Path, content: str) -> None:
    with appearing_whole(path) as file:
        file.write(content.encode("utf-8"))


if __name__ == "__main__":
    main()
