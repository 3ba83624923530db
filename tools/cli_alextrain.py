"""The command `alextrain`: shard sets to a trained AlexNet, what it is worth, and what becomes of it."""

from __future__ import annotations

import os
import warnings
from collections.abc import Iterator
from contextlib import contextmanager

import click

from .. import __version__
from .compare_command import compare
from .eval_command import eval_command
from .export_command import export_command
from .filters_command import filters_command
from .predict_command import predict_command
from .recipes_command import recipes_command
from .run_command import run_command
from .terminal import Cli
from .watch_command import watch

# Before torch is imported, which happens in the commands: OpenMP's threads then sleep at a barrier instead of
# spinning. Spinning takes the cores from the loader's threads and from whatever else runs: with other work on 2
# cores, a quarter-width network trained at 27 images/s so, and at 8 with torch's default.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")


@click.group(cls=Cli)
@click.version_option(__version__, prog_name="alextrain")
@click.pass_context
def main(ctx: click.Context) -> None:
    """Train AlexNet on a shard set as in 2012; watch it, evaluate it, use it and take it away."""
    ctx.with_resource(_warnings_in_a_line())


@contextmanager
def _warnings_in_a_line() -> Iterator[None]:
    """A warning is its sentence, once, without the place in the code that made it."""
    said = set()

    def say(message: Warning | str, *_: object, **__: object) -> None:
        if str(message) not in said:
            said.add(str(message))
            click.echo(f"warning: {message}", err=True)

    with warnings.catch_warnings():
        warnings.showwarning = say
        yield


for command in (
    run_command,
    eval_command,
    watch,
    compare,
    predict_command,
    filters_command,
    export_command,
    recipes_command,
):
    main.add_command(command)


if __name__ == "__main__":
    main()
