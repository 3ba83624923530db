"""`alextrain watch RUN`: wiring."""

from __future__ import annotations

import signal
from pathlib import Path

import click

from .report import json_on_failure
from .terminal import StoppedBySignal, signals_raise


@click.command("watch")
@click.argument("run", type=click.Path(path_type=Path))
@click.option("--once", is_flag=True, help="Show how it stands, and end.")
@click.option("--json", "as_json", is_flag=True, help="One JSON object a line; with --once one in all.")
@click.option(
    "--every",
    type=click.FloatRange(min=0.01),
    default=1.0,
    show_default=True,
    metavar="SECONDS",
    help="Between two looks at its folder.",
)
def watch(run: Path, once: bool, as_json: bool, every: float) -> None:
    """Show how a RUN goes, of another process or a finished one, until nobody is at work on it.

    It reads the run's folder alone, so any machine that sees it will do. Ctrl-C ends the watching, not the run.
    """
    from .watch import follow, show_once

    with json_on_failure(as_json, lines=not once), signals_raise(signal.SIGTERM):
        if once:
            show_once(run, as_json=as_json)
        else:
            try:
                follow(run, as_json=as_json, every_s=every)
            except (KeyboardInterrupt, StoppedBySignal):
                click.echo("no longer watched; the run is as it was", err=True)
                raise
