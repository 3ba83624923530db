"""A whole build: look, plan, pack, add up, and only then call it a shard set."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ... import __version__
from ...shards import (
    AlexshardError,
    ImageFormat,
    Manifest,
    SampleRow,
    ShardEntry,
    ShardName,
    ShardSet,
    Split,
    SplitEntry,
    Statistics,
    WrongCall,
    finish_shard_set,
    sync_folder,
)
from .decode import decoder_versions
from .output import Output, check_output, check_space, locked_output
from .plan import SplitPlan, plan_splits, sample_bytes
from .quarantine import MaxBad
from .shard import SPOOL_BYTES, ShardRecord, sums_path
from .sources import Listing, Refusal, list_source
from .statistics import PixelSums
from .workers import Job, pack_shards

_SPACE_MARGIN = 1.25  # of the estimate: pictures differ in how well they compress
_SUMS_MARGIN = 32  # bytes per pixel and training shard for its sums, kept until the end


@dataclass(frozen=True, slots=True, kw_only=True)
class BuildSettings:
    """Everything that decides a build. What decides its bytes is written in the manifest."""

    source: Path
    out: Path
    image: ImageFormat
    splits: tuple[Split, ...] | None = None  # None: all that the source has
    samples_per_shard: int | None = None  # None: see plan.default_samples_per_shard
    seed: int = 0
    max_bad: MaxBad
    unlabelled: bool = False
    statistics_from: Path | None = None  # the set whose classes, mean and components a set without train takes


@dataclass(frozen=True, slots=True)
class BuildPlan:
    """What a build will do; nothing is written yet."""

    settings: BuildSettings
    listing: Listing
    splits: dict[Split, SplitPlan]
    reference: ShardSet | None  # opened from settings.statistics_from

    @property
    def num_classes(self) -> int:
        return len(self.listing.classes)

    @property
    def found(self) -> int:
        return sum(map(self.listing.found, self.splits))

    def split_bytes(self, split: Split) -> int:
        """About what a split will take on disk."""
        return len(self.splits[split].order) * sample_bytes(self.settings.image)

    def needed_bytes(self, workers: int) -> int:
        """Disk space to ask for before the start."""
        images = sum(map(self.split_bytes, self.splits))
        train = self.splits.get(Split.TRAIN)
        sums = train.num_shards * self.settings.image.side**2 * _SUMS_MARGIN if train else 0
        # Workers keep a large shard on the disk until all of it can be written in order.
        shard = max(min(len(split.order), split.samples_per_shard) for split in self.splits.values())
        shard_bytes = shard * sample_bytes(self.settings.image)
        spools = min(workers, self.num_shards) * shard_bytes if shard_bytes > SPOOL_BYTES else 0
        return round((images + spools) * _SPACE_MARGIN) + sums

    @property
    def num_shards(self) -> int:
        return sum(split.num_shards for split in self.splits.values())


@dataclass(slots=True)
class BuildReport:
    """What a build has done."""

    manifest: Manifest
    refusals: list[Refusal] = field(default_factory=list)
    remarks: list[str] = field(default_factory=list)


def parse_splits(text: str | None) -> tuple[Split, ...] | None:
    """Splits from a text such as "train,val"; None: all.

    Raises:
        WrongCall: one of them is none.
    """
    if text is None:
        return None
    names = [name.strip() for name in text.split(",")]
    if unknown := [name for name in names if name not in set(Split)]:
        raise WrongCall(f"--splits: {unknown[0]!r} is none of {', '.join(Split)}", remedy="--splits train,val")
    return tuple(split for split in Split if split in names)


def plan_build(settings: BuildSettings, *, on_found: Callable[[int], object] = int) -> BuildPlan:
    """Look at the source and plan every shard.

    Raises:
        AlexshardError: whatever can be known to go wrong before the work starts.
    """
    reference = None
    if settings.statistics_from is not None:
        reference = ShardSet.open(settings.statistics_from)
        if reference.manifest.image.side != settings.image.side:
            raise WrongCall(
                f"{reference.path} holds images of side {reference.manifest.image.side}, this build makes "
                f"{settings.image.side}",
                why="its mean image would not fit",
                remedy=f"--size {reference.manifest.image.side}",
            )
    if os.path.isdir(settings.source):  # noqa: PTH112 (is_dir() raises where one may not look)
        check_output(settings.out, settings.source)
    listing = list_source(
        settings.source,
        splits=settings.splits,
        unlabelled=settings.unlabelled,
        classes=reference.manifest.classes if reference else None,
        on_found=on_found,
    )
    if reference and Split.TRAIN in listing.splits:
        raise WrongCall(
            "--statistics-from is for sets without train, and this one has it",
            why="the mean of a set is that of its own training images",
            remedy="leave the option out, or train with --splits",
        )
    splits = plan_splits(listing, settings.image, seed=settings.seed, samples_per_shard=settings.samples_per_shard)
    if empty := [split for split in splits if not len(listing.splits[split])]:
        raise AlexshardError(
            f"{' and '.join(empty)} of {settings.source} holds no image",
            remedy="mend the source, or choose other splits with --splits",
        )
    return BuildPlan(settings, listing, splits, reference)


def build(plan: BuildPlan, *, workers: int, on_progress: Callable[[int, int], object]) -> BuildReport:
    """Pack the planned set.

    Args:
        on_progress: called with images looked at since the last call, and all that were refused so far.

    Raises:
        TooManyBad: more images are bad than settings.max_bad allows.
        AlexshardError: the output cannot be taken, the disk is too small, the source fails, a worker dies.
        Whatever is raised, nothing that looks like a shard set remains.
    """
    settings, found = plan.settings, plan.found
    workers = min(workers, plan.num_shards)
    check_space(settings.out, plan.needed_bytes(workers))
    with locked_output(settings.out, settings.source) as output:

        def count(images: int, refusals: Sequence[Refusal]) -> None:
            if refusals:
                output.refusals.extend(refusals)
                settings.max_bad.check(output.refusals, found, str(output.quarantine))
            on_progress(images, len(output.refusals))

        count(len(plan.listing.refusals), plan.listing.refusals)
        job = Job(plan.listing.containers, settings.image, output.work)
        shards = (split.shard(number) for split in plan.splits.values() for number in range(split.num_shards))
        pack_shards(shards, job, workers=workers, on_progress=count, on_shard=lambda _: None)
        return _finish(plan, output)


@dataclass(slots=True)
class _Tally:
    """What the records of all shards add up to."""

    names: dict[ShardName, ShardName] = field(default_factory=dict)  # planned to final
    splits: dict[str, SplitEntry] = field(default_factory=dict)
    refusals: list[Refusal] = field(default_factory=list)  # in an order that no worker decides
    labels: Counter[int] = field(default_factory=Counter)  # training samples by label


def _finish(plan: BuildPlan, output: Output) -> BuildReport:
    """Add up what the shards recorded, give them their places, and write the manifest."""
    tally = _Tally(refusals=list(plan.listing.refusals))
    for split in plan.splits:
        _add_up(tally, plan, split, output.work)
    statistics, mean_image = _statistics(plan, output.work)
    for planned, name in tally.names.items():
        (output.work / str(planned)).rename(output.folder / str(name))
        (output.work / planned.index_name).rename(output.folder / name.index_name)
    sync_folder(output.folder)
    manifest = finish_shard_set(
        output.folder,
        image=plan.settings.image,
        splits=tally.splits,
        classes=plan.listing.classes,
        statistics=statistics,
        mean_image=mean_image,
        build=_build_facts(plan),
        rows=_rows(plan, output.work, tally.names),
        quarantine=map(asdict, tally.refusals),
    )
    remarks = list(plan.listing.remarks)
    empty = [entry.synset for label, entry in enumerate(manifest.classes) if not tally.labels[label]]
    if empty and Split.TRAIN in plan.splits:
        remarks.append(f"no training sample is left of {len(empty):,} of the classes, first {empty[0]}")
    return BuildReport(manifest, tally.refusals, remarks)


def _records(plan: BuildPlan, split: Split, work: Path) -> Iterator[ShardRecord]:
    """The records of a split in plan order; one is in memory at a time."""
    for number in range(plan.splits[split].num_shards):
        yield ShardRecord.load(work, ShardName(split, number))


def _add_up(tally: _Tally, plan: BuildPlan, split: Split, work: Path) -> None:
    entries: list[ShardEntry] = []
    patched = refused = 0
    for record in _records(plan, split, work):
        tally.refusals.extend(record.refusals)
        refused += len(record.refusals)
        if record.entry is not None:
            # Numbers have no gaps, also where all images of a shard were bad.
            name = ShardName(split, len(entries))
            tally.names[record.name] = name
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


def _build_facts(plan: BuildPlan) -> dict[str, Any]:
    """What decides the bytes of the set; neither time, host, path nor number of workers."""
    return {
        "alexshard": __version__,
        "source": plan.listing.kind,
        "seed": plan.settings.seed,
        "samples_per_shard": {
            split.value: split_plan.samples_per_shard for split, split_plan in plan.splits.items()
        },
        "grid": "shorter side to the stored side, the other rounded, then the central square",
        "exif_orientation": "ignored",
        "statistics_of": "pixels as packed, before JPEG encoding",
        **decoder_versions(),
    }
