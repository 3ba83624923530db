"""`alextrain recipes`: the presets and schedules that there are, what they cost here, and what was published."""

from __future__ import annotations

import signal

import click

from .report import json_on_failure, print_json
from .terminal import signals_raise


@click.command("recipes")
@click.argument("preset", required=False)
@click.option(
    "--shards", metavar="SET", help="Count the images of this set.  [default: ILSVRC's, of the year of the preset]"
)
@click.option("--width", type=float, default=1.0, show_default=True, help="Of the networks that are measured.")
@click.option("--device", help="auto, cpu, cuda or cuda:N.  [default: auto]")
@click.option(
    "--measure/--no-measure", default=True, help="How fast this machine trains them.  [default: measure]"
)
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
def recipes_command(
    preset: str | None, shards: str | None, width: float, device: str | None, measure: bool, as_json: bool
) -> None:
    """List the presets: what they are, images and hours on this machine, the published error; and the schedules.

    With the name of a PRESET, print all its fields with their sources, as --config takes them.
    """
    with json_on_failure(as_json), signals_raise(signal.SIGTERM):
        from .recipes import as_toml, listed, recipe_named, text

        if preset is not None:
            recipe = recipe_named(preset)
            print_json({"preset": preset, "recipe": recipe.to_json()}) if as_json else click.echo(as_toml(recipe))
            return
        found = listed(shards, width=width, device=device, measure=measure)
        print_json(found) if as_json else click.echo(text(found))
