"""`alextrain export`: a trained network in a form that others read."""

from __future__ import annotations

import signal
from pathlib import Path
from typing import TYPE_CHECKING

import click

from ..shards import byte_size, printable
from .report import json_on_failure, print_json
from .terminal import facts, signals_raise

if TYPE_CHECKING:
    from .export import Exported

PATH = click.Path(path_type=Path)
FORMATS = ("safetensors", "torch-export", "onnx", "torchvision")


@click.command("export")
@click.argument("run", type=PATH)
@click.option(
    "--to",
    type=click.Choice(FORMATS),
    required=True,
    help="Weights and a program of plain torch; torch.export's file; ONNX; why torchvision's alexnet is another.",
)
@click.option("--out", type=PATH, help="Folder; an earlier export is replaced.  [default: RUN/export/FORMAT]")
@click.option("--best", is_flag=True, help="The network of the best validation, not the newest.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
def export_command(run: Path, to: str, out: Path | None, best: bool, as_json: bool) -> None:
    """Write RUN's newest network to a folder that needs no alexshard, with a model card and an example program.

    RUN is a run's folder or one of its checkpoints. What was written is read again, and its answers to random
    images are compared with those of the network that was trained.
    """
    with json_on_failure(as_json), signals_raise(signal.SIGTERM):
        from .export import export

        done = export(run, to, out, best=best, say=lambda line: click.echo(printable(str(line)), err=True))
        print_json(done.to_json()) if as_json else click.echo(facts(_readable(run, done)))


def _readable(run: Path, done: Exported) -> dict[str, object]:
    return {
        "run": f"{run}, step {done.step:,}",
        "folder": done.folder,
        **{name: byte_size(size) for name, size in done.files.items()},
        "parameters": done.parameters,
        "checked": f"read again; logits of {done.images} random images differ by at most "
        f"{done.largest_difference:.2g} ({done.allowed:.2g} is allowed, the largest is {done.largest_logit:.3g})",
    }
