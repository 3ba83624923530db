"""A whole build: look, plan, pack, add up, and only then call it a shard set."""

from __future__ import annotations

import os
import resource
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

from ... import __version__
from ...shards import AlexshardError, ImageFormat, Manifest, ShardName, ShardSet, Split, WrongCall
from .decode import decoder_versions, decoding
from .finish import finish
from .identity import Identity, differences_to_set, identity_of
from .output import WORK_NAME, Output, check_apart, check_finished, check_output, check_space, locked_output
from .plan import SplitPlan, plan_splits, sample_bytes
from .prefix import MARK_NAME, check_prefix, published
from .publish import UPLOADS, Publisher, publishing
from .quarantine import MaxBad
from .resume import HalfBuilt, Kept, continue_build, half_built, names_of, planned_images, take_over
from .shard import SPOOL_BYTES
from .sources import BadSource, Listing, Refusal, cached_listing, save_listing
from .stores import Store
from .workers import HUNG_AFTER_S, Executor, Job, default_workers, pack_shards

_SPACE_MARGIN = 1.25  # of the estimate: pictures differ in how well they compress
_SUMS_MARGIN = 32  # bytes per pixel and training shard for its sums, kept until the end


@dataclass(frozen=True, slots=True, kw_only=True)
class BuildSettings:
    """Everything that decides a build. What decides its bytes is written in the manifest."""

    source: Path
    out: Path
    store: Store | None = None  # where the set goes; `out` then is the folder in which the work is done
    image: ImageFormat
    splits: tuple[Split, ...] | None = None  # None: all that the source has
    samples_per_shard: int | None = None  # None: see plan.default_samples_per_shard
    seed: int = 0
    max_bad: MaxBad
    unlabelled: bool = False
    exact: bool = False  # decode all pixels of large JPEGs too
    statistics_from: Path | None = None  # the set whose classes, mean and components a set without train takes

    @property
    def destination(self) -> str:
        """Where the finished set lies, as messages show it."""
        return self.store.shown if self.store else str(self.out)


@dataclass(frozen=True, slots=True)
class BuildPlan:
    """What a build will do; nothing is written yet."""

    settings: BuildSettings
    listing: Listing
    splits: dict[Split, SplitPlan]
    reference: ShardSet | None  # opened from settings.statistics_from
    facts: dict[str, Any]  # what the manifest will say of the build
    identity: Identity

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
        if self.settings.store is not None:
            # What is packed, waits and is being sent at a time; the rest is in the store.
            images = min(images, 2 * (workers + UPLOADS) * shard_bytes)
        spools = min(workers, self.num_shards) * shard_bytes if shard_bytes > SPOOL_BYTES else 0
        return round((images + spools) * _SPACE_MARGIN) + sums

    def differences(self, manifest: Manifest) -> list[str]:
        """What a finished set is about and this build is not."""
        return differences_to_set(manifest, self.identity, self.listing.classes)

    @property
    def num_shards(self) -> int:
        return sum(split.num_shards for split in self.splits.values())


@dataclass(frozen=True, slots=True)
class Usage:
    """What a build has taken of the machine, by this process and its workers."""

    wall_s: float = 0.0
    cpu_s: float = 0.0
    peak_bytes: int = 0  # memory of the largest process

    @classmethod
    def now(cls) -> Usage:
        own, workers = map(resource.getrusage, (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN))
        cpu_s = own.ru_utime + own.ru_stime + workers.ru_utime + workers.ru_stime
        unit = 1 if sys.platform == "darwin" else 1024
        return cls(time.monotonic(), cpu_s, max(own.ru_maxrss, workers.ru_maxrss) * unit)

    def __sub__(self, began: Usage) -> Usage:
        return Usage(self.wall_s - began.wall_s, self.cpu_s - began.cpu_s, self.peak_bytes)

    def beside(self, others: Usage) -> Usage:
        """With what others have taken meanwhile."""
        return Usage(self.wall_s, self.cpu_s + others.cpu_s, max(self.peak_bytes, others.peak_bytes))


@dataclass(slots=True)
class BuildReport:
    """What a build has done."""

    manifest: Manifest
    refusals: list[Refusal] = field(default_factory=list)
    remarks: list[str] = field(default_factory=list)
    was_complete: bool = False  # it was finished before, and nothing was done
    shards_kept: int = 0  # of an earlier run
    images_kept: int = 0  # that were looked at for them
    usage: Usage = field(default_factory=Usage)


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
    if settings.store is not None:
        if settings.store.folder is not None:
            check_apart(settings.store.folder, settings.source)
        check_prefix(settings.store)
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
    # Of a folder that is not there the listing tells; is_dir() raises where one may not look.
    if not isinstance(settings.source, Path) or os.path.isdir(settings.source):  # noqa: PTH112
        check_output(settings.out, settings.source)
    listing = cached_listing(
        settings.source,
        Output(settings.out).listing,
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
    splits = plan_splits(
        listing,
        settings.image,
        seed=settings.seed,
        samples_per_shard=settings.samples_per_shard,
        exact=settings.exact,
    )
    if empty := [split for split in splits if not len(listing.splits[split])]:
        refused = [refusal for refusal in listing.refusals if refusal.split in empty]
        raise AlexshardError(
            f"{' and '.join(empty)} of {settings.source} holds no image",
            why=f"{len(refused):,} were refused, first {refused[0]}" if refused else "",
            remedy="mend the source, or choose other splits with --splits",
        )
    facts = build_facts(settings, listing, splits)
    identity = identity_of(listing, settings.image, facts, reference.digest if reference else None)
    plan = BuildPlan(settings, listing, splits, reference, facts, identity)
    is_complete(plan)
    return plan


def is_complete(plan: BuildPlan) -> bool:
    """Whether the finished set of this plan is where its build would put it.

    Raises:
        WrongCall: the finished set of another plan is there.
    """
    if plan.settings.store is not None:
        return published(plan.settings.store, plan.identity.digest, plan.differences) is not None
    return check_finished(plan.settings.out, plan.identity.digest, plan.differences)


def build(
    plan: BuildPlan,
    *,
    workers: int,
    on_progress: Callable[[int, int], object],
    restart: bool = False,
    hung_after_s: float = HUNG_AFTER_S,
    executor: Executor | None = None,
    on_kept: Callable[[int], object] | None = None,
) -> BuildReport:
    """Pack the planned set, or what an earlier run of the same build has left to do.

    Args:
        on_progress: called with images looked at since the last call, and all that were refused so far.
        restart: discard what an unfinished build has left.
        hung_after_s: a worker that tells nothing for so long is killed, and the build ends.
        executor: who packs the shards, where it is not `workers` processes of this machine.
        on_kept: called, in the place of `on_progress`, with images whose shards are taken over.

    Raises:
        TooManyBad: more images are bad than settings.max_bad allows.
        WrongCall: the output holds something else, or another build is at work on it.
        AlexshardError: the disk is too small or fails, the source fails, a worker dies or hangs.
        Whatever is raised, nothing looks like a shard set, and the same call continues.
    """
    settings, began = plan.settings, Usage.now()
    if is_complete(plan) and not (settings.out / WORK_NAME).exists():
        return _complete_already(plan, began)
    workers = min(workers, plan.num_shards)
    if not restart:
        check_space(settings.out, plan.needed_bytes(workers))
    with locked_output(settings.out, settings.source) as output:
        if is_complete(plan):
            output.complete = True
            return _complete_already(plan, began)
        continue_build(output, plan.identity, restart=restart)
        if restart:
            check_space(settings.out, plan.needed_bytes(workers))  # only now is what was there gone
        if plan.listing.hangs_on and not (plan.listing.from_cache and output.listing.exists()):
            save_listing(plan.listing, output.listing)

        with (
            publishing(settings.store, output.work, plan=plan.identity.digest, restart=restart) as publisher,
            _listed_again_if_changed(output.listing),
        ):
            report = _pack(
                plan,
                output,
                publisher,
                workers=workers,
                on_progress=on_progress,
                hung_after_s=hung_after_s,
                executor=executor,
                on_kept=on_kept,
            )
        output.complete = True
    if settings.store is not None:
        with suppress(OSError):  # somebody else uses it too
            settings.out.rmdir()
    report.usage = Usage.now() - began
    return report


@contextmanager
def _listed_again_if_changed(listing: Path) -> Iterator[None]:
    """Drop the kept listing where the source is not as it says: the bytes of a file change no folder's time."""
    try:
        yield
    except BadSource:
        listing.unlink(missing_ok=True)
        raise


def _pack(
    plan: BuildPlan,
    output: Output,
    publisher: Publisher | None,
    *,
    workers: int,
    on_progress: Callable[[int, int], object],
    hung_after_s: float,
    executor: Executor | None,
    on_kept: Callable[[int], object] | None,
) -> BuildReport:
    """Take over what is there, pack what is missing, and finish the set; see `build`."""

    def keep(shard: Kept) -> None:
        if on_kept is not None:
            on_kept(shard.images)
        count(0 if on_kept else shard.images, shard.refusals)

    def count(images: int, refusals: Sequence[Refusal]) -> None:
        if publisher is not None:
            publisher.check()
        if refusals:
            output.refusals.extend(refusals)
            plan.settings.max_bad.check(output.refusals, plan.found, str(output.quarantine))
        on_progress(images, len(output.refusals))

    count(len(plan.listing.refusals), plan.listing.refusals)
    kept = take_over(
        output,
        plan.splits,
        threads=default_workers(),
        on_kept=keep,
        **({"in_store": publisher.holds} if publisher else {}),
    )
    if publisher is not None:
        publisher.take_over(sorted(kept))
    job = Job(plan.listing.containers, plan.settings.image, output.work, hung_after_s)
    missing = [name for name in names_of(plan.splits) if name not in kept]
    shards = (plan.splits[name.split].shard(name.number) for name in missing)
    pack = executor or partial(pack_shards, workers=min(workers, len(missing)))
    pack(shards, job, on_progress=count, on_shard=publisher.offer if publisher else lambda _: None)
    if publisher is not None:
        publisher.drain()
    facts = plan.facts | {"plan": plan.identity.digest}
    manifest, refusals, remarks = finish(plan, output, facts, publisher)
    return BuildReport(
        manifest,
        refusals,
        [*output.remarks, *remarks],
        shards_kept=len(kept),
        images_kept=sum(planned_images(plan.splits, name) for name in kept),
    )


def _complete_already(plan: BuildPlan, began: Usage) -> BuildReport:
    """The report of a set that is finished.

    Raises:
        AlexshardError: files of it are missing or of other sizes.
    """
    if plan.settings.store is not None:
        manifest = published(plan.settings.store, plan.identity.digest, plan.differences)
        assert manifest is not None
        plan.settings.store.remove(MARK_NAME)  # of a build that ended between its manifest and this
        return BuildReport(manifest, was_complete=True, usage=Usage.now() - began)
    out = plan.settings.out
    manifest = Manifest.load(out)
    sizes = {name: entry.bytes for name, entry in manifest.files.items()}
    sizes |= {shard.name: shard.bytes for split in manifest.splits.values() for shard in split.shards}
    for name, size in sizes.items():
        path = out / name
        if not path.is_file() or path.stat().st_size != size:
            raise AlexshardError(
                f"{out} is a finished shard set, but {name} is not as it was written",
                where=str(path),
                why="training would read wrong pixels or labels, or stop",
                remedy=f"alexshard verify {out} names all that is wrong, and --repair mends it",
            )
    return BuildReport(manifest, was_complete=True, usage=Usage.now() - began)


def half_built_state(plan: BuildPlan) -> HalfBuilt | None:
    """What the output holds of an unfinished build, if it holds one; nothing is changed."""
    return half_built(Output(plan.settings.out), plan.splits, plan.identity)


def finished_shards(plan: BuildPlan) -> tuple[ShardName, ...]:
    """What a build of this plan would take over, by the look of it."""
    there = half_built_state(plan)
    return there.finished if there and not there.differences else ()


def build_facts(settings: BuildSettings, listing: Listing, splits: dict[Split, SplitPlan]) -> dict[str, Any]:
    """What decides the bytes of the set; neither time, host, path nor number of workers."""
    return {
        "alexshard": __version__,
        "source": listing.kind,
        "seed": settings.seed,
        "samples_per_shard": {split.value: split_plan.samples_per_shard for split, split_plan in splits.items()},
        "grid": "shorter side to the stored side, the other rounded, then the central square",
        "exif_orientation": "ignored",
        "statistics_of": "pixels as packed, before JPEG encoding",
        "decoding": decoding(exact=settings.exact),
        **decoder_versions(),
    }
