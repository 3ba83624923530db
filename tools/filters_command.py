"""`alextrain filters`: the kernels of a trained network's first layer."""

from __future__ import annotations

import io
from pathlib import Path

import click

from ..shards import appearing_whole, printable
from .report import json_on_failure, print_json
from .terminal import facts

PATH = click.Path(path_type=Path)
YARDSTICK = "kernels of noise: 2/3, grey ones: 0"


@click.command("filters")
@click.argument("run", type=PATH)
@click.option("--out", type=PATH, required=True, metavar="FILE.png", help="The picture.")
@click.option("--best", is_flag=True, help="The network of the best validation, not the newest.")
@click.option("--per-kernel", is_flag=True, help="Stretch each kernel by itself, so that faint ones show.")
@click.option(
    "--scale", type=click.IntRange(1, 64), default=4, show_default=True, help="Pixels of the side of a weight."
)
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
def filters_command(run: Path, out: Path, best: bool, per_kernel: bool, scale: int, as_json: bool) -> None:
    """Draw the kernels of RUN's first layer as in figure 3 of the paper, and say how much of them is colour.

    RUN is a run's folder or one of its checkpoints. Tower A's kernels lie above tower B's.
    """
    from .show import check_out

    with json_on_failure(as_json):
        check_out("--out", out, ".png", why="the picture is a PNG, whose colours are exact")

        from PIL import Image

        from ..trainer import colourfulness, filters_picture, load_checkpoint

        def say(line: object) -> None:
            click.echo(printable(str(line)), err=True)

        checkpoint = load_checkpoint(run, best=best, say=say)
        weights = checkpoint.network["conv1.weight"]
        content = io.BytesIO()
        Image.fromarray(filters_picture(weights, per_kernel=per_kernel, scale=scale)).save(content, "png")
        with appearing_whole(out) as target:
            target.write(content.getvalue())
        kernels, side = weights.shape[0], weights.shape[2]
        first, second = colourfulness(weights)
        if as_json:
            about = {"run": str(run), "step": checkpoint.step, "kernels": kernels, "side": side}
            print_json({**about, "colour_share": [first, second], "picture": str(out)})
        else:
            shown = {
                "run": f"{run}, step {checkpoint.step:,}",
                "kernels": f"{kernels} of {side}×{side}, {kernels // 2} of each tower",
                "tower A": f"{first:.3f} of the variance is colour ({YARDSTICK})",
                "tower B": f"{second:.3f} of the variance is colour ({YARDSTICK})",
                "picture": out,
            }
            click.echo(facts(shown))
