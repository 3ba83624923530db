"""`alexshard info`: what a shard set says of itself, as one object and as text."""

from __future__ import annotations

import shlex
from collections.abc import Iterable
from typing import Any

import numpy as np

from ..shards import SAMPLES_NAME, ImageFormat, ShardSet, Statistics, braces, byte_size, count_labels, printable
from .swatches import blocks, mean_colour, ramp
from .terminal import Coloured, facts, table

CLASSES_SHOWN = 5  # at either end of the table of classes, unless all are asked for


def report(shard_set: ShardSet) -> dict[str, Any]:
    """Everything `info` tells; sizes in bytes, means and eigenvalues on [0, 255], eigenvectors in columns."""
    manifest = shard_set.manifest
    image, statistics = manifest.image, manifest.statistics
    splits = {
        name: {
            "samples": split.samples,
            "labelled": split.labelled,
            "shards": len(split.shards),
            "bytes": sum(shard.bytes for shard in split.shards),
            "found": split.found,
            "patched": split.patched,
            "quarantined": split.quarantined,
            "files": braces(split.shards),
        }
        for name, split in manifest.splits.items()
    }
    counts = count_labels(shard_set.path / SAMPLES_NAME, manifest.num_classes)
    return {
        "path": shard_set.shown,
        "digest": shard_set.digest,
        "samples": sum(split["samples"] for split in splits.values()),
        "bytes": sum(split["bytes"] for split in splits.values()),
        "splits": splits,
        "image": {
            "side": image.side,
            "encoding": image.encoding,
            "quality": image.quality,
            "subsampling": image.subsampling,
        },
        "statistics": {
            "source": statistics.source,
            "pixels": statistics.pixels,
            "channel_mean": statistics.channel_mean,
            "covariance": statistics.covariance,
            "eigenvalues": statistics.eigenvalues,
            "eigenvectors": statistics.eigenvectors,
        },
        "build": dict(manifest.build),
        "num_classes": manifest.num_classes,
        "classes": [
            {
                "label": label,
                "synset": entry.synset,
                "words": entry.words,
                "devkit_id": entry.devkit_id,
                "samples": {name: counts[name][label] for name in splits if name in counts},
            }
            for label, entry in enumerate(manifest.classes)
        ],
    }


def text(shard_set: ShardSet, *, all_classes: bool = False, colours: int = 0) -> str:
    """The same for people; of many classes only the first and last, unless all are asked for.

    With `colours` (`colours_shown`) the mean and the components are shown too.
    """
    manifest, about = shard_set.manifest, report(shard_set)
    statistics = manifest.statistics
    parts = [
        facts(
            {
                "shard set": shard_set.shown,
                "digest": shard_set.digest,
                "images": image_words(manifest.image),
                "samples": about["samples"],
                "size": byte_size(about["bytes"]),
                "classes": manifest.num_classes,
            }
        ),
        table(
            [
                (
                    name,
                    split.samples,
                    len(split.shards),
                    byte_size(about["splits"][name]["bytes"]),
                    split.found,
                    split.patched,
                    split.quarantined,
                    split.labelled,
                    about["splits"][name]["files"],
                )
                for name, split in manifest.splits.items()
            ],
            header=("split", "samples", "shards", "size", "found", "patched", "quarantined", "labels", "files"),
        ),
        facts({"build": "", **{f"  {name}": plain(value) for name, value in manifest.build.items()}}),
        f"statistics of {statistics_words(statistics)}, RGB on 0..255\n"
        + facts(
            {
                "  channel mean": Coloured(
                    _numbers(statistics.channel_mean)
                    + (f"  {blocks([mean_colour(statistics)] * 2, colours)}" if colours else "")
                ),
                "  standard deviation": _numbers(np.sqrt(np.diagonal(statistics.covariance))),
                **{
                    f"  eigenvalue {i + 1}": f"{value:10.3f}  of eigenvector "
                    + _numbers((row[i] for row in statistics.eigenvectors), digits=4)
                    for i, value in enumerate(statistics.eigenvalues)
                },
                **{
                    f"  along vector {i + 1}": Coloured(f"{blocks(ramp(statistics, i), colours)}  −2σ to +2σ")
                    for i in range(len(statistics.eigenvalues) if colours else 0)
                },
            }
        ),
        _class_table(about, all_classes),
    ]
    return "\n\n".join(parts)


def image_words(image: ImageFormat) -> str:
    """How images are stored, in words."""
    how = f"JPEG, quality {image.quality}, {image.subsampling}" if image.encoding == "jpeg" else "raw pixels (PPM)"
    return f"{image.side}×{image.side} RGB, {how}"


def statistics_words(statistics: Statistics) -> str:
    """Of what they are, in words."""
    if statistics.source == "train":
        return f"{statistics.pixels:,} training pixels"
    return f"{statistics.pixels:,} pixels of shard set {printable(statistics.source)}"


def _class_table(about: dict[str, Any], all_classes: bool) -> str:
    classes = about["classes"]
    # The id is text here: a column of numbers and blanks has no side to be aligned to.
    ids = ["" if entry["devkit_id"] is None else str(entry["devkit_id"]) for entry in classes]
    columns: dict[str, list[Any]] = {
        "label": [entry["label"] for entry in classes],
        "synset" if any(ids) else "class": [entry["synset"] for entry in classes],
        "devkit id": ids,
        **{
            name: [entry["samples"][name] for entry in classes]
            for name, split in about["splits"].items()
            if split["labelled"]
        },
        "words": [entry["words"] for entry in classes],
    }
    if not any(ids):
        del columns["devkit id"]
    if all(entry["words"] == entry["synset"] for entry in classes):
        del columns["words"]
    rows = list(zip(*columns.values(), strict=True))
    left_out = len(rows) - 2 * CLASSES_SHOWN
    lines = table(rows, header=list(columns)).splitlines()
    if not all_classes and left_out > 0:
        told = printable(f"  … {left_out:,} more: alexshard info {shlex.quote(about['path'])} --classes")
        lines[1 + CLASSES_SHOWN : -CLASSES_SHOWN] = [told]
    return "\n".join(lines)


def plain(value: Any) -> str:
    """A value of the build's facts in words."""
    if isinstance(value, dict):
        return ", ".join(f"{name} {plain(inner)}" for name, inner in value.items())
    if isinstance(value, list | tuple):
        return ", ".join(map(plain, value))
    return "none" if value is None else str(value)


def _numbers(values: Iterable[float], digits: int = 3) -> str:
    return "  ".join(f"{value:9.{digits}f}" for value in values)
