"""What `alextrain recipes` prints: presets with their cost on this machine, schedules, all fields of one preset.

The cost is that of training steps alone, measured on images that lie ready: the loader may set another pace
(tools/bench_loader).
"""

from __future__ import annotations

import dataclasses
import json
import statistics
import textwrap
import time
from typing import Any

import click
import torch

from ..pipeline import crop_side, open_shard_set
from ..shards import Split, WrongCall
from ..trainer import (
    PRESETS,
    SCHEDULES,
    Machine,
    Recipe,
    Schedule,
    Stepper,
    build_network,
    description,
    nearest,
)
from .terminal import duration, table

ABOUT = {
    "original": ("what produced the paper's numbers (145-2010)", "2010"),
    "paper": ("what the text says; stalls near ln(classes)", "2010"),
    "dexp": ("original with the author's rates of 2013 (170)", "2012"),
    "cnn-star": ("1 CNN*: six convolutions, fine-tuned (146-2012-2011)", "2012"),
}
PUBLISHED = {  # fidelity.md §7.4, §6: top-1 and top-5 error, mean of ten views
    "original": (0.375, 0.170, "ILSVRC-2010 test"),
    "paper": (0.375, 0.170, "ILSVRC-2010 test"),
    "dexp": (0.40528, 0.18048, "ILSVRC-2012 val"),
    "cnn-star": (0.390, 0.166, "ILSVRC-2012 val"),
}
ABOUT_COLUMNS, RATES_COLUMNS, COLUMNS = 27, 75, 100  # of what a preset and a schedule is; of all
IMAGES = {"2010": 1_261_406, "2012": 1_281_167}  # of ILSVRC's training splits
BATCH = {"cpu": 32, "cuda": 128}  # speed on the cores is that of 128 within a few percent
WARM_STEPS, STEPS = {"cpu": 1, "cuda": 10}, {"cpu": 3, "cuda": 30}


def recipe_named(name: str) -> Recipe:
    """The recipe of a preset.

    Raises:
        WrongCall: there is none of that name; the message has the nearest.
    """
    if name not in PRESETS:
        raise WrongCall(f"no preset {name!r}", remedy=f"did you mean {nearest(name, PRESETS)}?")
    return PRESETS[name]()


def listed(shards: str | None, *, width: float, device: str | None, measure: bool) -> dict[str, Any]:
    """Everything that the command prints, as JSON."""
    machine = Machine.choose(device, parallel="single")
    machine.prepare()
    shard_set = None if shards is None else open_shard_set(shards)
    side, classes, images = 224, 1000, None
    if shard_set is not None:
        manifest = shard_set.manifest
        side, classes = crop_side(manifest.image.side), max(1, manifest.num_classes)
        images = manifest.splits[Split.TRAIN].samples if Split.TRAIN in manifest.splits else 0
    presets, speeds = [], {}
    for name, make in PRESETS.items():
        recipe = dataclasses.replace(make(), width=width)
        each = IMAGES[ABOUT[name][1]] if images is None else images
        top1, top5, of = PUBLISHED[name]
        if measure and (kind := (recipe.conv6, recipe.layer1_order, recipe.same_map_a)) not in speeds:
            click.echo(f"measuring steps of {name} on {machine.device}", err=True)
            speeds[kind] = _speed(recipe, machine, side, classes)
        found = speeds.get((recipe.conv6, recipe.layer1_order, recipe.same_map_a))
        total = each * recipe.epochs
        presets.append(
            {
                "preset": name,
                "about": ABOUT[name][0],
                "epochs": recipe.epochs,
                "training_images": each,
                "images": total,
                "images_per_s": found,
                "hours": None if found is None else total / found["median"] / 3600,
                "published": {"top1_error": top1, "top5_error": top5, "views": 10, "of": of},
            }
        )
    schedules = [
        {"schedule": name, "epochs": each.fields["epochs"], "about": each.about}
        for name, each in SCHEDULES.items()
    ]
    schedules.append({"schedule": "constant", "epochs": None, "about": "the first rates of the preset throughout"})
    return {
        "machine": machine.describe(),
        "width": width,
        "side": side,
        "shard_set": None if shard_set is None else shard_set.shown,
        "presets": presets,
        "schedules": schedules,
    }


def text(found: dict[str, Any]) -> str:
    """The same for people."""
    rows: list[tuple[str, ...]] = []
    for each in found["presets"]:
        published = each["published"]
        about, *more = textwrap.wrap(each["about"], ABOUT_COLUMNS)
        rows.append(
            (
                each["preset"],
                about,
                str(each["epochs"]),
                f"{each['images'] / 1e6:,.1f} M",
                "not measured" if each["hours"] is None else duration(3600 * each["hours"]),
                f"{100 * published['top1_error']:.1f} / {100 * published['top5_error']:.1f} %",
                published["of"],
            )
        )
        rows += [("", line) for line in more]
    head = ("preset", "what it is", "epochs", "images", "time here", "published", "on")
    measured = [each["images_per_s"] for each in found["presets"] if each["images_per_s"]]
    name = found["machine"]["names"][0]
    how = "Time here: not measured."
    if measured:
        least, most = min(one["least"] for one in measured), max(one["most"] for one in measured)
        how = (
            f"Time here: training steps at width {found['width']:g}, {found['side']}×{found['side']}, on {name}, "
            f"images ready in memory: {least:,.1f} to {most:,.1f} images/s."
        )
    names: list[tuple[str, ...]] = []
    for each in found["schedules"]:
        about, *more = textwrap.wrap(each["about"], RATES_COLUMNS)
        names += [(each["schedule"], str(each["epochs"] or "any"), about), *(("", "", line) for line in more)]
    return "\n".join(
        (
            table(rows, header=head),
            "",
            textwrap.fill(f"{how} Published: top-1 / top-5 error, ten views.", COLUMNS),
            "",
            table(names, header=("--schedule", "epochs", "rates of")),
            "",
            "alextrain recipes PRESET prints all its fields with their sources; --set and --config change any.",
        )
    )


def as_toml(recipe: Recipe) -> str:
    """All fields with what they are and where they come from; `--config` takes it as it is."""
    lines, fields = [f"# {ABOUT[recipe.preset][0]}; in brackets where it is from"], recipe.to_json()
    for field in dataclasses.fields(recipe):
        about, source = description(field)
        comment = " ".join(part for part in (about, f"[{source}]" if source else "") if part)
        if field.name != "layer_rates":
            lines.append(f"{field.name} = {_toml(fields[field.name])}" + (f"  # {comment}" if comment else ""))
            continue
        tables = [f"# {comment}", "[layer_rates]"]
        tables += [f'"{name}" = {_toml(rates)}' for name, rates in fields["layer_rates"].items()]
    return "\n".join([*lines, "", *tables])


def _toml(value: Any) -> str:
    """TOML has no word for nothing: `none` for a value, 0 for a rate."""
    if isinstance(value, list):
        return "[" + ", ".join("0" if item is None else _toml(item) for item in value) + "]"
    return '"none"' if value is None else json.dumps(value)


def _speed(recipe: Recipe, machine: Machine, side: int, classes: int) -> dict[str, Any]:
    """Images a second of training steps on one batch: median, least, most, n."""
    kind = machine.device.type
    recipe = dataclasses.replace(recipe.with_learning_rate(1e-6), batch_size=BATCH[kind], init_from=None)
    generator = torch.Generator().manual_seed(0)
    images = torch.randn(recipe.batch_size, 3, side, side, generator=generator).mul_(50).to(machine.device)
    labels = torch.randint(classes, (recipe.batch_size,), generator=generator).to(machine.device)
    network = build_network(recipe, classes, side, machine.devices)
    stepper = Stepper(network, recipe, Schedule.of(recipe, 1000), graphs=machine.graphs)
    rates = []
    for step in range(WARM_STEPS[kind] + STEPS[kind]):
        machine.synchronize()
        began = time.perf_counter()
        stepper.step(step, images, labels)
        machine.synchronize()
        rates.append(recipe.batch_size / (time.perf_counter() - began))
    rates = rates[WARM_STEPS[kind] :]
    return {"median": statistics.median(rates), "least": min(rates), "most": max(rates), "n": len(rates)}
