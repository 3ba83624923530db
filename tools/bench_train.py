"""`tools/bench_train`: where the time of a step goes, beside stock modules and the device's own peak."""

from __future__ import annotations

import math
import os
import signal
from pathlib import Path
from typing import Any

import click

from .. import __version__
from ..shards import WrongCall
from .report import json_on_failure, print_json
from .show import check_out
from .terminal import CliCommand, signals_raise

# As `alextrain` does, before torch is imported: else these are not its times.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")


@click.command(cls=CliCommand)
@click.option("--shards", metavar="SET", help="Train on its images, and fed by the loader too.  [default: drawn]")
@click.option("--device", default="auto", show_default=True, help="auto, cpu, cuda or cuda:N.")
@click.option("--devices", metavar="A,B", help="Two towers on two devices, such as cuda:0,cuda:1 or cpu,cpu.")
@click.option("-b", "--batch-size", type=click.IntRange(min=1), default=128, show_default=True)
@click.option("--width", type=float, default=1.0, show_default=True, help="Factor on every layer's width.")
@click.option("--side", type=click.IntRange(min=1), help="Of the images.  [default: 224, or the set's crops]")
@click.option("--classes", type=click.IntRange(1, 1_000_000), help="[default: 1000, or the set's]")
@click.option("--preset", type=click.Choice(["original", "paper"]), default="original", show_default=True)
@click.option("--precision", metavar="NAME,…", help="Of fp32, tf32, bf16.  [default: all that the device has]")
@click.option("--compile", "compiled", is_flag=True, help="Compile our network with torch.compile.")
@click.option("--graphs/--no-graphs", default=None, help="Our step as a CUDA graph.  [default: on a single card]")
@click.option("--threads", type=click.IntRange(1, 1024), help="Torch's and the loader's.")
@click.option("--repeats", type=click.IntRange(1, 1000), default=5, show_default=True, help="Rounds.")
@click.option("--steps", type=click.IntRange(1, 1_000_000), help="Of one run.  [default: as many as --seconds]")
@click.option(
    "--seconds", type=click.FloatRange(0, 3600, min_open=True), help="Of one run, one step at least.  [default: 1]"
)
@click.option(
    "--against",
    metavar="NAME,…|all|none",
    default="all",
    show_default=True,
    help="Of bare (ours without normalisers), stock (torch's modules), torchvision.",
)
@click.option("--parts/--no-parts", default=True, help="Whether to take steps apart too.")
@click.option(
    "--profile", type=click.Path(path_type=Path), help="Write a trace that ui.perfetto.dev opens, .json."
)
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
@click.version_option(__version__, prog_name="bench_train")
def main(
    as_json: bool, devices: str | None, precision: str | None, against: str, seconds: float | None, **options: Any
) -> None:
    """Say how fast a step of training is, which part of it takes how long, and what limits it.

    Networks run in turns, so that a machine that grows slower does so for all; figures are the median and, in
    brackets, the least and the most of the rounds.
    """
    with json_on_failure(as_json), signals_raise(signal.SIGTERM):
        if options["profile"] is not None:
            check_out("--profile", options["profile"], ".json", why="viewers know a trace by its name")
        if seconds is not None and options["steps"] is not None:
            raise WrongCall("--steps and --seconds both say how long a run is", remedy="leave one of them out")
        if seconds is not None and math.isnan(seconds):  # within every limit, since it compares with none
            raise WrongCall("--seconds is nan, and no number", remedy="--seconds 1")
        if devices is not None and options["device"] != "auto":
            raise WrongCall(
                f"--device {options['device']} and --devices {devices} at once",
                why="the network is on one device or on two",
                remedy="leave one of them out",
            )
        # Late, so that a wrong call is told at once: this imports torch.
        from .train_asked import Asked
        from .train_bench import bench
        from .train_networks import AGAINST
        from .train_report import to_text

        report = bench(
            Asked(
                devices=_names(devices),
                precisions=_names(precision),
                against={"all": AGAINST, "none": ()}.get(against, _names(against)),
                seconds=1.0 if seconds is None else seconds,
                **options,
            ),
            quiet=False,
        )
        print_json(report) if as_json else click.echo(to_text(report))


def _names(text: str | None) -> tuple[str, ...]:
    return tuple(name.strip() for name in text.split(",")) if text is not None else ()


if __name__ == "__main__":
    main()
