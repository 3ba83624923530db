"""`alexshard info`: what a shard set says of itself, as one object and as text."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import numpy as np

from ..shards import ClassEntry, ShardSet, byte_size
from .terminal import facts, table

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
        }
        for name, split in manifest.splits.items()
    }
    return {
        "path": str(shard_set.path),
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
            {"label": label, "synset": entry.synset, "words": entry.words, "devkit_id": entry.devkit_id}
            for label, entry in enumerate(manifest.classes)
        ],
    }


def text(shard_set: ShardSet, *, all_classes: bool = False) -> str:
    """The same for people; of many classes only the first and last, unless all are asked for."""
    manifest, about = shard_set.manifest, report(shard_set)
    image, statistics = manifest.image, manifest.statistics
    encoding = (
        f"JPEG, quality {image.quality}, {image.subsampling}" if image.encoding == "jpeg" else "raw pixels (PPM)"
    )
    origin = "the training pixels" if statistics.source == "train" else f"shard set {statistics.source}"
    parts = [
        facts(
            {
                "shard set": shard_set.path,
                "digest": shard_set.digest,
                "images": f"{image.side}×{image.side} RGB, {encoding}",
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
                )
                for name, split in manifest.splits.items()
            ],
            header=("split", "samples", "shards", "size", "found", "patched", "quarantined", "labels"),
        ),
        facts({"build": "", **{f"  {name}": _plain(value) for name, value in manifest.build.items()}}),
        f"statistics of {origin}, {statistics.pixels:,} pixels, RGB on 0..255\n"
        + facts(
            {
                "  channel mean": _numbers(statistics.channel_mean),
                "  standard deviation": _numbers(np.sqrt(np.diagonal(statistics.covariance))),
                **{
                    f"  eigenvalue {i + 1}": f"{value:10.3f}  of eigenvector "
                    + _numbers((row[i] for row in statistics.eigenvectors), digits=4)
                    for i, value in enumerate(statistics.eigenvalues)
                },
            }
        ),
        _class_table(manifest.classes, all_classes),
    ]
    return "\n\n".join(parts)


def _class_table(classes: tuple[ClassEntry, ...], all_classes: bool) -> str:
    rows = [
        # The id is text here: a column of numbers and blanks has no side to be aligned to.
        (label, entry.synset, "" if entry.devkit_id is None else str(entry.devkit_id), entry.words)
        for label, entry in enumerate(classes)
    ]
    left_out = len(rows) - 2 * CLASSES_SHOWN
    lines = table(rows, header=("label", "synset", "devkit id", "words")).splitlines()
    if not all_classes and left_out > 0:
        told = f"  … {left_out:,} more: alexshard info DIR --classes"
        lines[1 + CLASSES_SHOWN : -CLASSES_SHOWN] = [told]
    return "\n".join(lines)


def _plain(value: Any) -> str:
    if isinstance(value, dict):
        return ", ".join(f"{name} {_plain(inner)}" for name, inner in value.items())
    if isinstance(value, list | tuple):
        return ", ".join(map(_plain, value))
    return "none" if value is None else str(value)


def _numbers(values: Iterable[float], digits: int = 3) -> str:
    return "  ".join(f"{value:9.{digits}f}" for value in values)
