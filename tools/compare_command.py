"""`alextrain compare RUN…`: wiring."""

from __future__ import annotations

from pathlib import Path
from typing import Literal, get_args

import click

from .report import json_on_failure, print_json

Against = Literal["epoch", "step", "hours", "images"]
PATH = click.Path(path_type=Path)


@click.command("compare")
@click.argument("runs", nargs=-1, required=True, type=PATH, metavar="RUN…")
@click.option("--out", type=PATH, metavar="FILE.png", help="Draw loss and error of up to eight runs.")
@click.option(
    "--against",
    type=click.Choice(get_args(Against)),
    help="Axis of the picture: completed epochs or steps, hours of training, images.  [default: epoch]",
)
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
def compare(runs: tuple[Path, ...], out: Path | None, against: Against | None, as_json: bool) -> None:
    """Put RUNs side by side: how far they are, their errors and speed, and in what they differ.

    Reads the runs' folders alone. With --out also as a picture: training loss and validation error.
    """
    from .compare import check_picture, in_words, side_by_side, write_picture
    from .compared import read_runs

    with json_on_failure(as_json):
        check_picture(out, against)
        read = read_runs(runs)
        report = side_by_side(read)
        if out is not None:
            write_picture(out, read, report, against or "epoch")
        if as_json:
            print_json({**report, "picture": None if out is None else str(out)})
        else:
            click.echo(in_words(report))
            if out is not None:
                click.echo(f"\npicture  {click.format_filename(out)}")
