"""What a person is told of a build: the plan before it, the summary after it."""

from __future__ import annotations

import shlex
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

import click
from click.core import ParameterSource

from ..shards import AlexshardError, Split, byte_size, is_address, masked, printable
from .packing import (
    BuildPlan,
    BuildReport,
    Forecast,
    HalfBuilt,
    Refusal,
    Usage,
    half_built_state,
    is_complete,
    source_at,
)
from .terminal import Progress, duration, facts, table

SHOWN = 5  # remarks and reasons; the rest is counted


def source_named(text: str) -> Path:
    """The source that a person names; the folders of a store are counted while it is asked for them."""
    if not is_address(text):
        return source_at(text)
    with Progress("look", None, "folders") as progress:
        return source_at(text, progress.advance)


def plan_text(
    plan: BuildPlan, workers: int, free_bytes: int, cost: Forecast | None = None, *, command: str
) -> str:
    """The plan of a build as text that ends with the `command` that carries it out, where it can be."""
    rows = []
    for split, split_plan in plan.splits.items():
        images = plan.listing.splits[split]
        found = plan.listing.found(split)
        rows.append(
            (
                split.value,
                found,
                found - len(images),
                len(images.patched),
                split_plan.num_shards,
                split_plan.samples_per_shard,
                byte_size(plan.split_bytes(split)),
            )
        )
    header = ("split", "found", "bad names", "patched", "shards", "samples per shard", "about")
    return "\n\n".join(
        (
            table(rows, header=header),
            facts(
                {
                    "source": f"{plan.settings.source}: {plan.listing.kind}, {plan.num_classes:,} classes",
                    "output": f"{_output_text(plan)}: needs {byte_size(plan.needed_bytes(workers))} "
                    f"with a margin, {byte_size(free_bytes)} are free",
                    **_there_text(plan),
                    **({"reading": reading_text(cost, workers)} if cost else {}),
                    "images": image_text(plan),
                    "bad images": f"at most {plan.settings.max_bad.allowed(plan.found):,} of {plan.found:,} "
                    f"may be left out (--max-bad {plan.settings.max_bad}); every image is decoded to tell",
                }
            ),
            *_listed(plan.listing.remarks, plan.listing.refusals),
            *([f"next:\n  {command}"] if _can_begin(plan) else []),
        )
    )


def _can_begin(plan: BuildPlan) -> bool:
    """Whether there is something to do, and nothing in its way."""
    there = half_built_state(plan)
    return not is_complete(plan) and not (there and there.differences)


def reading_text(cost: Forecast, workers: int) -> str:
    """What reading and packing will cost, in words."""
    reading, packing = cost.reading_s, cost.packing_s(workers)
    text = (
        f"{cost.images:,} images, {byte_size(cost.bytes)}; {cost.probed} probed at {1e3 * cost.read_s:.1f} ms "
        f"each: about {duration(reading)}, packing about {duration(packing)} with {workers} "
        f"worker{'' if workers == 1 else 's'} at the same time"
    )
    if reading > 2 * packing:
        text += "; the source is what costs: a copy of it on a faster disk may pay"
    return text


def image_text(plan: BuildPlan) -> str:
    """How images are stored, in words."""
    image = plan.settings.image
    form = f"JPEG quality {image.quality}, {image.subsampling}" if image.encoding == "jpeg" else "raw (PPM)"
    return f"central {image.side}×{image.side} of the shorter side scaled to {image.side}, {form}, EXIF ignored"


def _output_text(plan: BuildPlan) -> str:
    if plan.settings.store is None:
        return str(plan.settings.out)
    return f"{plan.settings.destination}, by way of {plan.settings.out}"


def _there_text(plan: BuildPlan) -> dict[str, str]:
    """What the output holds already."""
    if is_complete(plan):
        return {"there": "the finished set; there is nothing to do"}
    there = half_built_state(plan)
    if there is None:
        return {}
    if there.differences:
        return {"there": f"an unfinished build that differs, {there.differences[0]}: --restart would discard it"}
    return {"there": f"{_extent(plan, there)} of an unfinished build, which will be checked and continued"}


def _extent(plan: BuildPlan, there: HalfBuilt) -> str:
    images = sum(len(split.order) for split in plan.splits.values())
    return f"{there.shards:,} of {plan.num_shards:,} shards ({there.images:,} of {images:,} images)"


def stopped_text(plan: BuildPlan, command: str) -> str:
    """How far a build came that has ended early, and what continues it; empty if nothing of it is there."""
    with suppress(OSError, AlexshardError):
        if (there := half_built_state(plan)) is not None:
            extent = _extent(plan, there)
            return f"finished and kept: {extent}; the same command continues:\n  {command}"
    return ""


def typed_command(context: click.Context, *, but: Sequence[str]) -> str:
    """The command as it was typed, without some of its options."""
    words = context.command_path.split()
    for parameter in context.command.params:
        name = parameter.name or ""
        if name in but or context.get_parameter_source(name) is not ParameterSource.COMMANDLINE:
            continue
        value = context.params[name]
        if isinstance(parameter, click.Option):
            words.append(max(parameter.opts, key=len))
        if not getattr(parameter, "is_flag", False):
            text = f"{value:g}" if isinstance(value, float) else str(value)
            words.append(masked(text) if is_address(text) else text)
    return shlex.join(words)


def summary_text(plan: BuildPlan, report: BuildReport) -> str:
    """What was done, as text that ends with the next command."""
    manifest, out = report.manifest, plan.settings.destination
    rows = [
        (
            name,
            split.found,
            split.samples,
            split.patched,
            split.quarantined,
            len(split.shards),
            byte_size(sum(shard.bytes for shard in split.shards)),
        )
        for name, split in manifest.splits.items()
    ]
    header = ("split", "found", "packed", "patched", "quarantined", "shards", "size")
    has_train = Split.TRAIN.value in manifest.splits
    following = f"{'alextrain run --shards' if has_train else 'alexshard verify'} {shlex.quote(out)}"
    if plan.settings.store is not None:
        # Sets are read from folders.
        following = f"copy {out} to a folder DIR, and\n  {following.replace(shlex.quote(out), 'DIR')}"
    mean = ", ".join(f"{value:.1f}" for value in manifest.statistics.channel_mean)
    return "\n\n".join(
        (
            table(rows, header=header),
            facts(
                {
                    "shard set": f"{out}, complete already: nothing was done" if report.was_complete else out,
                    "source": f"{plan.listing.kind}, {manifest.num_classes:,} classes",
                    "images": image_text(plan),
                    "mean RGB": f"{mean} (of {manifest.statistics.source})",
                    **({} if report.was_complete else _effort(plan, report)),
                    "digest": manifest.digest,
                }
            ),
            *_listed(report.remarks, report.refusals),
            f"next:\n  {following}",
        )
    )


def _effort(plan: BuildPlan, report: BuildReport) -> dict[str, str]:
    """What the build has taken, of time and of the machine."""
    usage: Usage = report.usage
    seconds = max(usage.wall_s, 1e-9)
    size = sum(shard.bytes for split in report.manifest.splits.values() for shard in split.shards)
    effort = {
        "size": byte_size(size),
        "time": f"{duration(seconds)}, {(plan.found - report.images_kept) / seconds:,.0f} images/s",
        "CPU time": f"{duration(usage.cpu_s)}, {usage.cpu_s / seconds:.1f} cores busy",
        "peak memory": f"{byte_size(usage.peak_bytes)} in the largest process",
    }
    if report.shards_kept:
        kept = f"{report.shards_kept:,} of {plan.num_shards:,} shards ({report.images_kept:,} images)"
        effort["taken over"] = f"{kept} from an earlier run, checked"
    return effort


def _listed(remarks: Sequence[str], refusals: Sequence[Refusal]) -> list[str]:
    parts = []
    for title, items in (("remarks", remarks), ("quarantined", refusals)):
        lines = [printable(str(item)) for item in items[:SHOWN]]
        if lines:
            more = [f"and {len(items) - SHOWN:,} more"] if len(items) > SHOWN else []
            parts.append("\n  ".join((f"{title}:", *lines, *more)))
    return parts
