"""The options of `alextrain run` that decide a run's result, and the recipe that they come to.

In this order, each above the ones before: the preset, --config, --schedule, the other options, --set.
"""

from __future__ import annotations

import dataclasses
import tomllib
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from ..shards import WrongCall
from .trainer_options import network_of

if TYPE_CHECKING:
    from ..trainer import Checkpoint, Recipe

PRESETS = ("original", "paper", "dexp", "cnn-star")
OPTIONS = (
    click.option(
        "--preset",
        type=click.Choice(PRESETS),
        help="What produced the paper's numbers, what its text says, or others (alextrain recipes).  "
        "[default: original]",
    ),
    click.option(
        "--config",
        type=click.Path(path_type=Path),
        metavar="FILE.toml",
        help="Fields of the recipe, as alextrain recipes PRESET prints them.",
    ),
    click.option(
        "--set",
        "fields",
        multiple=True,
        metavar="FIELD=VALUE",
        help="Any field of the recipe, above all other options; may be repeated.",
    ),
    click.option(
        "--schedule", metavar="NAME", help="Rates as a run of 2012, constant, plateau, …: alextrain recipes."
    ),
    click.option(
        "--epochs", type=click.IntRange(min=1), help="The schedule scales to it.  [default: the preset's]"
    ),
    click.option(
        "--max-steps", type=click.IntRange(min=1), help="End early; the schedule stays that of all epochs."
    ),
    click.option(
        "-b", "--batch-size", type=click.IntRange(min=1), help="Of all devices together.  [default: 128]"
    ),
    click.option(
        "--width", type=float, help="Factor on every layer's width; 0.25 suits small machines.  [default: 1]"
    ),
    click.option("--lr", type=float, help="First rate of the weights; all rates scale with it.  [default: 0.01]"),
    click.option("--constant-rate", is_flag=True, default=None, help="As --schedule constant."),
    click.option("--mean", type=click.Choice(["image", "channel"]), help="What is subtracted.  [default: image]"),
    click.option("--augment", type=click.Choice(["original", "paper", "none"]), help="[default: as the preset]"),
    click.option(
        "--order",
        type=click.Choice(["global", "windowed", "stored"]),
        help="Of the samples: any, within windows of shards, as on disk.  [default: as the preset]",
    ),
    click.option("--window", type=click.IntRange(min=1), help="Shards in one of --order windowed."),
    click.option("--dropout/--no-dropout", default=None, help="[default: with]"),
    click.option("--init", type=click.Choice(["original", "paper"]), help="Weights as this preset begins."),
    click.option(
        "--init-from",
        type=click.Path(path_type=Path),
        metavar="RUN",
        help="Begin with the weights of another network, as far as they fit: fine-tuning.",
    ),
    click.option("--bias", type=float, help="Where biases of 1 begin instead; 0.1 leaves plateaus sooner."),
    click.option("--init-fan-in", is_flag=True, default=None, help="Larger first weights in narrow layers."),
    click.option(
        "--seed", type=click.IntRange(0, 2**32 - 1), help="Of weights, order, draws and dropout.  [default: 0]"
    ),
    click.option(
        "--precision",
        type=click.Choice(["fp32", "tf32", "bf16"]),
        help="Of convolutions and products; weights and velocity are fp32.  [default: fp32]",
    ),
)


def recipe_options(command: Any) -> Any:
    """Give a command all of them; it receives them as keywords."""
    for option in reversed(OPTIONS):
        command = option(command)
    return command


def recipe_of(
    begun: Recipe | None,
    *,
    preset: str | None,
    config: Path | None,
    fields: tuple[str, ...],
    schedule: str | None,
    lr: float | None,
    constant_rate: bool | None,
    augment: str | None,
    init: str | None,
    bias: float | None,
    **others: Any,
) -> Recipe:
    """A preset with what was asked for, or that of a run already begun, which `train` then lets change nothing.

    Raises:
        WrongCall: a field or a schedule is unknown, with the nearest name; a value is out of its range.
    """
    from ..trainer import PRESETS, SCHEDULES, nearest

    written = {} if config is None else _file(config)
    last = dict(map(_pair, fields))
    if "init_from" in last:
        raise WrongCall("--set init_from", why="it is the digest of a network", remedy="--init-from RUN")
    asked = last.pop("preset", None) or preset or written.get("preset")
    if asked is not None and asked not in PRESETS:
        raise WrongCall(
            f"no preset {asked!r}",
            where=str(config or "--set"),
            remedy=f"did you mean {nearest(str(asked), PRESETS)}?",
        )
    recipe = PRESETS[asked or "original"]() if begun is None or asked not in (None, begun.preset) else begun
    recipe = recipe.with_fields({name: value for name, value in written.items() if name != "preset"})
    if constant_rate or schedule == "constant":
        recipe = recipe.with_constant_rate()
    elif schedule is not None:
        if schedule not in SCHEDULES:
            raise WrongCall(
                f"no schedule {schedule!r}",
                remedy=f"did you mean {nearest(schedule, [*SCHEDULES, 'constant'])}? alextrain recipes lists them",
            )
        recipe = recipe.with_schedule(schedule)
    recipe = recipe.with_fields({name: value for name, value in others.items() if value is not None})
    if lr is not None:
        recipe = recipe.with_learning_rate(lr)
    if augment is not None:
        recipe = recipe.with_fields({"augment": None if augment == "none" else augment})
    if init is not None:
        recipe = dataclasses.replace(recipe, init_std=PRESETS[init]().init_std)
    if bias is not None:
        recipe = recipe.with_initial_bias(bias)
    return recipe.with_fields(last)


def beginning(recipe: Recipe, folder: Path, init_from: Path | None) -> tuple[Recipe, Checkpoint | None]:
    """The recipe with the network that the run in `folder` begins with, and that network where it begins now.

    A run that has begun goes on without it: it may be gone by now, or trained on.

    Raises:
        WrongCall: there is no such network, or none is named where there must be one.
        BadCheckpoint: it cannot be read.
    """
    from ..trainer import RunFolder, weights_digest

    if init_from is None:
        if recipe.preset == "cnn-star" and recipe.init_from is None:
            raise WrongCall(
                "the preset cnn-star without --init-from",
                why="its rates are for fine-tuning: from first weights of noise they would learn nothing",
                remedy="--init-from RUN, a run of a larger set; that one by --preset original --set conv6=true",
            )
        return recipe, None
    run = RunFolder(folder)
    if run.holds_run and (begun := run.recipe().init_from) is not None:
        return dataclasses.replace(recipe, init_from=begun), None
    source = network_of(init_from)
    return dataclasses.replace(recipe, init_from=weights_digest(source.network)), source


def _pair(text: str) -> tuple[str, Any]:
    """FIELD=VALUE, the value as TOML has it; a word needs no quotes, and none is nothing."""
    name, equals, value = text.partition("=")
    name, value = name.strip(), value.strip()
    if not (name and equals and value):
        raise WrongCall(f"--set {text}", remedy="--set FIELD=VALUE, such as --set jitter_epochs=60")
    if value == "none":
        return name, None
    try:
        read = _parsed(f"value = {value}")
    except ValueError:
        return name, value
    return name, read["value"] if len(read) == 1 else value


def _file(path: Path) -> dict[str, Any]:
    try:
        fields = _parsed(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise WrongCall(
            f"{path} cannot be read: {error.strerror}", remedy="name a TOML file by --config"
        ) from None
    except ValueError as error:
        raise WrongCall(
            f"{path} is no TOML: {error}", remedy="alextrain recipes original prints an example"
        ) from None
    return {name: None if value == "none" else value for name, value in fields.items()}


def _parsed(text: str) -> dict[str, Any]:
    """What a text of TOML holds.

    Raises:
        ValueError: it is none, or is nested deeper than Python follows.
    """
    try:
        found = tomllib.loads(text)
        repr(found)  # dotted names may nest deeper than brackets: whoever prints the value would fail
    except RecursionError:
        raise ValueError("nested too deeply") from None
    return found
