"""Repair: what is wrong with a shard set is made again, that and no more, to the same bytes.

The manifest says what every byte was. Index, SHA256SUMS, `_info.json` and the list of classes follow from it and
the shards; a single flipped bit of any small file is turned back; the rest is packed again from the source. All of
it is made in `.build/repair/` and held against its SHA-256 before the first file is replaced; so a repair that
fails or is killed has changed nothing for the worse.
"""

from __future__ import annotations

import shutil
import signal
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from pathlib import Path

from ...shards import (
    MANIFEST_NAME,
    MEAN_IMAGE_NAME,
    QUARANTINE_NAME,
    SAMPLES_NAME,
    AlexshardError,
    Manifest,
    Problem,
    ShardName,
    Split,
    WrongCall,
    appearing_whole,
    byte_size,
    load_mended,
    mean_image_file,
    promised_digests,
    quarantine_file,
    restored,
    samples_file,
    sync_folder,
)
from .build import BuildSettings, build_facts
from .decode import decoding
from .disk import writing
from .identity import differences_to_set, identity_of
from .lock import locked
from .output import REPAIR_NAME, Output, free_bytes, tidy
from .plan import SplitPlan, plan_splits
from .quarantine import MaxBad
from .resume import final_names, planned_images
from .shard import ShardRecord, file_sha256, sums_path
from .signals import signals_ignored
from .sources import Listing, list_source
from .statistics import PixelSums
from .workers import Job, pack_shards

_SHOWN = 5  # files in a message
_SIDE_FILES = (SAMPLES_NAME, MEAN_IMAGE_NAME, QUARANTINE_NAME)  # that a source can give


@dataclass(frozen=True, slots=True)
class FromSource:
    """What must be packed again."""

    listing: Listing
    splits: dict[Split, SplitPlan]
    files: frozenset[str]  # to be made from it
    shards: tuple[ShardName, ...]  # to pack for that, by their planned names

    @property
    def images(self) -> int:
        """How many images are to be looked at."""
        return sum(planned_images(self.splits, name) for name in self.shards)


@dataclass(frozen=True, slots=True)
class RepairPlan:
    """What a repair will do; nothing is written yet."""

    folder: Path
    manifest: Manifest
    digests: Mapping[str, str]  # SHA-256 of every file but the manifest
    known: Mapping[str, bytes]  # files whose bytes are certain without the source
    from_source: FromSource | None

    @property
    def images(self) -> int:
        return self.from_source.images if self.from_source else 0


def plan_repair(
    folder: Path, source: Path, problems: Iterable[Problem], *, on_found: Callable[[int], object] = int
) -> RepairPlan:
    """Find out what must be made again, and whether this source and this alexshard can.

    Args:
        problems: what verify_shard_set says of the set in `folder`.

    Raises:
        BadManifest: more than one bit of the manifest is wrong, so that nobody knows what the bytes were.
        WrongCall: source or versions are not those of the set; the message names the difference.
        BadSource, BadArchive: the source cannot be read.
    """
    manifest, damage = load_mended(folder)
    digests = promised_digests(folder, manifest)
    known: dict[str, bytes] = {}
    if damage is not None and damage.mended is not None:
        known[MANIFEST_NAME] = damage.mended
    lost = set()
    for name in dict.fromkeys(problem.file for problem in problems):
        if name in digests and not _is_sound(folder / name, digests[name]):
            data = restored(folder, manifest, name, digests[name])
            if data is not None:
                known[name] = data
            elif name in _SIDE_FILES or name.endswith((".tar", ".idx")):
                lost.add(name)
    if Split.TRAIN not in manifest.splits:
        lost.discard(MEAN_IMAGE_NAME)  # it came from another set, not from this source
    from_source = _from_source(folder, manifest, source, frozenset(lost), on_found) if lost else None
    return RepairPlan(folder, manifest, digests, known, from_source)


def repair(plan: RepairPlan, *, workers: int, on_progress: Callable[[int], None]) -> list[str]:
    """Make what is wrong again and put it in its place; returns the names of the files.

    Args:
        on_progress: called with images looked at since the last call.

    Raises:
        WrongCall: a build or another repair is at work on the set.
        AlexshardError: the source gives other bytes, or the disk or a worker fails. Nothing is replaced then.
    """
    with _work_folder(plan.folder) as work:
        names = _pack(plan, plan.from_source, work, workers, on_progress) if plan.from_source else []
        for name, data in plan.known.items():
            with appearing_whole(work / name) as file:
                file.write(data)
        names += plan.known
        for name in names:
            (work / name).replace(plan.folder / name)
        sync_folder(plan.folder)
    return sorted(names)


def discard_leftovers(folder: Path) -> None:
    """Remove the work folder of a finished set, if a repair or a build was killed before it could.

    Raises:
        WrongCall: a build or another repair is at work on the set.
    """
    if Output(folder).work.exists():
        with _work_folder(folder):
            pass


def _is_sound(path: Path, sha256: str) -> bool:
    try:
        return file_sha256(path) == sha256
    except OSError:
        return False


@contextmanager
def _work_folder(folder: Path) -> Iterator[Path]:
    """An empty folder on the disk of the set, while nobody else builds or repairs there."""
    output = Output(folder)
    work = output.work / REPAIR_NAME
    with writing(str(folder), folder), locked(output.work, folder):
        try:
            shutil.rmtree(work, ignore_errors=True)  # of a repair that was killed
            work.mkdir()
            yield work
        finally:
            # From here on a signal has nothing to stop.
            with signals_ignored(signal.SIGINT, signal.SIGTERM):
                output.complete = True
                tidy(output)


def _from_source(
    folder: Path, manifest: Manifest, source: Path, lost: frozenset[str], on_found: Callable[[int], object]
) -> FromSource:
    chosen = tuple(Split(name) for name in manifest.splits)
    facts = manifest.build
    # Where splits differ in it, nobody chose it.
    per_shard = set(dict(facts.get("samples_per_shard", {})).values())
    settings = BuildSettings(
        source=source,
        out=folder,
        image=manifest.image,
        splits=chosen,
        samples_per_shard=per_shard.pop() if len(per_shard) == 1 else None,
        seed=int(facts.get("seed", 0)),
        max_bad=MaxBad.parse("100%"),
        unlabelled=not all(split.labelled for split in manifest.splits.values()),
        exact=facts.get("decoding") == decoding(exact=True),
    )
    listing = list_source(
        source,
        splits=settings.splits,
        unlabelled=settings.unlabelled,
        classes=None if Split.TRAIN in chosen else manifest.classes,
        on_found=on_found,
    )
    splits = plan_splits(
        listing,
        settings.image,
        seed=settings.seed,
        samples_per_shard=settings.samples_per_shard,
        exact=settings.exact,
    )
    now = build_facts(settings, listing, splits)
    reference = None if manifest.statistics.source == Split.TRAIN else manifest.statistics.source
    identity = identity_of(listing, manifest.image, now, reference)
    if differences := differences_to_set(manifest, identity, listing.classes):
        raise WrongCall(
            "\n    ".join((f"{source} does not give the bytes of this set again (set -> now):", *differences)),
            where=f"needed for {', '.join(sorted(lost)[:_SHOWN])}",
            why="a shard made of other images, or by other code, has other bytes than the manifest promises",
            remedy="repair with the archives and versions the set was built with, or build it again elsewhere",
        )
    return FromSource(listing, splits, lost, tuple(_shards_for(manifest, splits, lost)))


def _shards_for(manifest: Manifest, splits: dict[Split, SplitPlan], lost: frozenset[str]) -> Iterator[ShardName]:
    """Planned names of the shards that must be packed to make the lost files."""
    for split, plan in splits.items():
        entries = manifest.splits[split].shards
        wanted = {
            ShardName.parse(entry.name)
            for entry in entries
            if lost & {entry.name, ShardName.parse(entry.name).index_name}
        }
        every = bool(lost & {SAMPLES_NAME, QUARANTINE_NAME}) or (split is Split.TRAIN and MEAN_IMAGE_NAME in lost)
        # Where all images of a planned shard were refused, those after it have other numbers than planned.
        every = every or (bool(wanted) and len(entries) != plan.num_shards)
        for number in range(plan.num_shards):
            if every or ShardName(split, number) in wanted:
                yield ShardName(split, number)


def _pack(
    plan: RepairPlan, todo: FromSource, work: Path, workers: int, on_progress: Callable[[int], None]
) -> list[str]:
    """Pack the shards and make the lost files in `work`, each as promised; returns their names.

    Raises:
        AlexshardError: one is not as promised.
    """
    entries = {shard.name: shard for split in plan.manifest.splits.values() for shard in split.shards}
    _check_space(plan, todo, workers)
    as_planned = {
        split
        for split, planned in todo.splits.items()
        if planned.num_shards == len(plan.manifest.splits[split].shards)
    }

    def settle(planned: ShardName, name: ShardName) -> None:
        record = ShardRecord.load(work, planned)
        for file, packed in ((str(name), str(planned)), (name.index_name, planned.index_name)):
            if file not in todo.files:
                (work / packed).unlink()
                continue
            if record.entry is None or record.entry.sha256 != entries[str(name)].sha256:
                raise _other_bytes(plan, str(name))
            (work / packed).replace(work / file)

    pack_shards(
        (todo.splits[name.split].shard(name.number) for name in todo.shards),
        Job(todo.listing.containers, plan.manifest.image, work),
        workers=min(workers, len(todo.shards)),
        on_progress=lambda images, _refusals: on_progress(images),
        on_shard=lambda name: settle(name, name) if name.split in as_planned else None,
    )
    names = {name: name for name in todo.shards if name.split in as_planned}
    for split in {name.split for name in todo.shards} - as_planned:
        for planned, name in final_names(work, {split: todo.splits[split]}):
            settle(planned, name)
            names[planned] = name
    for side_file, data in _side_files(plan, todo, work, names):
        with appearing_whole(work / side_file) as open_file:
            open_file.write(data)
    for lost in todo.files:
        if not _is_sound(work / lost, plan.digests[lost]):
            raise _other_bytes(plan, lost)
    return list(todo.files)


def _check_space(plan: RepairPlan, todo: FromSource, workers: int) -> None:
    """Whether the disk has room for what is made again, and for what workers have in hand meanwhile."""
    sizes = {shard.name: shard.bytes for split in plan.manifest.splits.values() for shard in split.shards}
    needed = sum(size for name, size in sizes.items() if name in todo.files) + workers * max(sizes.values())
    if (free := free_bytes(plan.folder)) < needed:
        raise AlexshardError(
            f"the disk has {byte_size(free)} free, and the repair needs {byte_size(needed)}",
            where=str(plan.folder),
            why="a file is replaced only when all that is made again is there and has been checked",
            remedy="make room on this disk",
        )


def _side_files(
    plan: RepairPlan, todo: FromSource, work: Path, names: Mapping[ShardName, ShardName]
) -> Iterator[tuple[str, bytes]]:
    """The lost files that add up what was packed."""

    def records() -> Iterator[ShardRecord]:
        return (ShardRecord.load(work, name) for name in todo.shards)

    if SAMPLES_NAME in todo.files:
        rows = (replace(row, shard=str(names[record.name])) for record in records() for row in record.rows)
        yield SAMPLES_NAME, samples_file(rows)
    if QUARANTINE_NAME in todo.files:
        refusals = [*todo.listing.refusals, *(refusal for record in records() for refusal in record.refusals)]
        yield QUARANTINE_NAME, quarantine_file(map(asdict, refusals))
    if MEAN_IMAGE_NAME in todo.files:
        total = PixelSums.zero(plan.manifest.image.side)
        for name in todo.shards:
            if name.split is Split.TRAIN:
                total.add(PixelSums.load(sums_path(work, name)))
        yield MEAN_IMAGE_NAME, mean_image_file(total.mean_image())


def _other_bytes(plan: RepairPlan, name: str) -> AlexshardError:
    return AlexshardError(
        f"{name} made again from the source has other bytes than were written",
        where=str(plan.folder),
        why="plan and versions are those of the set: an image in the source has changed, or this machine computes "
        "otherwise; nothing was replaced",
        remedy="compare the archives with their checksums; else build the set again in another folder",
    )
