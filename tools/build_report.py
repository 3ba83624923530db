"""What a person is told of a build: the plan before it, the summary after it."""

from __future__ import annotations

import shlex
from collections.abc import Sequence

from ..shards import Split, byte_size, printable
from .packing import BuildPlan, BuildReport, Refusal
from .terminal import duration, facts, table

SHOWN = 5  # remarks and reasons; the rest is counted


def plan_text(plan: BuildPlan, workers: int, free_bytes: int) -> str:
    """The plan of a build as text."""
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
                    "images": image_text(plan),
                    "bad images": f"up to {plan.settings.max_bad.allowed(plan.found):,} are left out "
                    f"(--max-bad {plan.settings.max_bad}); every image is decoded to tell",
                }
            ),
            *_listed(plan.listing.remarks, plan.listing.refusals),
        )
    )


def _output_text(plan: BuildPlan) -> str:
    if plan.settings.store is None:
        return str(plan.settings.out)
    return f"{plan.settings.destination}, by way of {plan.settings.out}"


def image_text(plan: BuildPlan) -> str:
    """How images are stored, in words."""
    image = plan.settings.image
    form = f"JPEG quality {image.quality}, {image.subsampling}" if image.encoding == "jpeg" else "raw (PPM)"
    return f"central {image.side}×{image.side} of the shorter side scaled to {image.side}, {form}, EXIF ignored"


def summary_text(plan: BuildPlan, report: BuildReport, seconds: float) -> str:
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
    rate = f"{plan.found / max(seconds, 1e-9):,.0f} images/s"
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
                    "shard set": out,
                    "source": f"{plan.listing.kind}, {manifest.num_classes:,} classes",
                    "images": image_text(plan),
                    "mean RGB": f"{mean} (of {manifest.statistics.source})",
                    "time": f"{duration(seconds)}, {rate}",
                    "digest": manifest.digest,
                }
            ),
            *_listed(report.remarks, report.refusals),
            f"next:\n  {following}",
        )
    )


def _listed(remarks: Sequence[str], refusals: Sequence[Refusal]) -> list[str]:
    parts = []
    for title, items in (("remarks", remarks), ("quarantined", refusals)):
        lines = [printable(str(item)) for item in items[:SHOWN]]
        if lines:
            more = [f"and {len(items) - SHOWN:,} more"] if len(items) > SHOWN else []
            parts.append("\n  ".join((f"{title}:", *lines, *more)))
    return parts
