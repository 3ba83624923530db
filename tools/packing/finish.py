"""The end of a build: what the records of all shards add up to, the shards' places, and the manifest."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from ...shards import (
    AlexshardError,
    Manifest,
    SampleRow,
    ShardEntry,
    ShardName,
    Split,
    SplitEntry,
    Statistics,
    finish_shard_set,
)
from .identity import changed_since
from .output import Output
from .publish import Publisher
from .resume import give_places
from .shard import ShardRecord, sums_path
from .sources import BadSource, Refusal
from .statistics import PixelSums

if TYPE_CHECKING:
    from .build import BuildPlan


@dataclass(slots=True)
class Tally:
    """What the records of all shards add up to."""

    names: dict[ShardName, ShardName] = field(default_factory=dict)  # planned to final
    bytes: dict[ShardName, int] = field(default_factory=dict)  # planned name to size of the tar
    splits: dict[str, SplitEntry] = field(default_factory=dict)
    refusals: list[Refusal] = field(default_factory=list)  # in an order that no worker decides
    labels: Counter[int] = field(default_factory=Counter)  # training samples by label


def finish(
    plan: BuildPlan, output: Output, facts: Mapping[str, Any], publisher: Publisher | None
) -> tuple[Manifest, list[Refusal], list[str]]:
    """Add up what the shards recorded, give them their places, and write the manifest.

    May be ended anywhere and done again. Returns the manifest, all refusals, and remarks.

    Raises:
        AlexshardError: a split has no sample, the source is another one than at the start, the disk fails.
    """
    tally = Tally(refusals=list(plan.listing.refusals))
    for split in plan.splits:
        _add_up(tally, plan, split, output.work)
    _check_source(plan)
    statistics, mean_image = _statistics(plan, output.work)
    if publisher is None:
        give_places(output, {planned: (name, tally.bytes[planned]) for planned, name in tally.names.items()})
    else:
        output.set_files.mkdir(exist_ok=True)
    manifest = finish_shard_set(
        output.set_files if publisher else output.folder,
        image=plan.settings.image,
        splits=tally.splits,
        classes=plan.listing.classes,
        statistics=statistics,
        mean_image=mean_image,
        build=facts,
        rows=_rows(plan, output.work, tally.names),
        quarantine=map(asdict, tally.refusals),
    )
    if publisher is not None:
        publisher.finish(output.set_files, tally.names)
    remarks = list(plan.listing.remarks)
    empty = [entry.synset for label, entry in enumerate(manifest.classes) if not tally.labels[label]]
    if empty and Split.TRAIN in plan.splits:
        remarks.append(f"no training sample is left of {len(empty):,} of the classes, first {empty[0]}")
    return manifest, tally.refusals, remarks


def _records(plan: BuildPlan, split: Split, work: Path) -> Iterator[ShardRecord]:
    """The records of a split in plan order; one is in memory at a time."""
    for number in range(plan.splits[split].num_shards):
        yield ShardRecord.load(work, ShardName(split, number))


def _add_up(tally: Tally, plan: BuildPlan, split: Split, work: Path) -> None:
    entries: list[ShardEntry] = []
    patched = refused = 0
    for record in _records(plan, split, work):
        tally.refusals.extend(record.refusals)
        refused += len(record.refusals)
        if record.entry is not None:
            # Numbers have no gaps, also where all images of a shard were bad (as resume.final_names has it).
            name = ShardName(split, len(entries))
            tally.names[record.name] = name
            tally.bytes[record.name] = record.entry.bytes
            entries.append(replace(record.entry, name=str(name)))
        for row in record.rows:
            patched += "patched" in row.note.split(",")
            if split is Split.TRAIN:
                tally.labels[row.label] += 1
    samples, found = sum(entry.samples for entry in entries), plan.listing.found(split)
    if not samples:
        raise AlexshardError(
            f"all {found:,} images of {split} are bad",
            where=str(plan.settings.source),
            why="a split without samples can be neither trained on nor tested",
            remedy="mend the source, or leave the split out with --splits",
        )
    images = plan.listing.splits[split]
    assert samples + refused == len(images), f"{split}: an image is unaccounted for"
    tally.splits[split.value] = SplitEntry(
        samples=samples,
        labelled=images.labelled,
        patched=patched,
        quarantined=found - samples,
        found=found,
        shards=tuple(entries),
    )


def _check_source(plan: BuildPlan) -> None:
    """Whether the source still is as it was listed: an archive may have been exchanged while it was read."""
    if changed := changed_since(plan.listing):
        raise BadSource(
            "the source changed while it was packed",
            where=changed,
            why="a set of half one source and half another is of no use",
            remedy="put it back as it was and the same command continues; or begin again with --restart",
        )


def _rows(plan: BuildPlan, work: Path, names: dict[ShardName, ShardName]) -> Iterator[SampleRow]:
    for split in plan.splits:
        for record in _records(plan, split, work):
            for row in record.rows:
                yield replace(row, shard=str(names[record.name]))


def _statistics(plan: BuildPlan, work: Path) -> tuple[Statistics, NDArray[np.floating[Any]]]:
    train = plan.splits.get(Split.TRAIN)
    if train is None:
        assert plan.reference is not None
        statistics = replace(plan.reference.manifest.statistics, source=plan.reference.digest)
        return statistics, plan.reference.mean_image()
    total = PixelSums.zero(plan.settings.image.side)
    for number in range(train.num_shards):
        total.add(PixelSums.load(sums_path(work, ShardName(Split.TRAIN, number))))
    return total.statistics(), total.mean_image()
