"""What an earlier run of the same build has finished, and whether it is as that run left it.

A shard is finished when its record is there, which is written last. It is taken over only if its tar, index and
sums have the sizes and digests that the record promises, and the record the digest that it carries itself;
anything else is removed and packed again.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

from ...shards import LOCK_NAME, AlexshardError, ShardName, Split, WrongCall, sync_folder
from .identity import Identity
from .output import LISTING_NAME, PLAN_NAME, Output
from .plan import SplitPlan
from .publish import sent_path
from .shard import ShardRecord, file_sha256, record_path, sums_path
from .sources import Refusal

_SHOWN = 40  # differences in a message: all settings, and of a thousand archives the first
_DAMAGED = (AlexshardError, ValueError, KeyError, TypeError, OSError)  # what a record that is not sound raises


@dataclass(frozen=True, slots=True)
class Kept:
    """A shard that an earlier run has finished."""

    name: ShardName
    images: int  # looked at for it
    refusals: tuple[Refusal, ...]  # those of them that were refused


@dataclass(frozen=True, slots=True)
class HalfBuilt:
    """What an output holds of an unfinished build, by the look of it: nothing is read through."""

    finished: tuple[ShardName, ...]  # shards with a record
    images: int
    differences: tuple[str, ...]  # to the build that is asked for; empty: it would continue

    @property
    def shards(self) -> int:
        return len(self.finished)


def names_of(splits: dict[Split, SplitPlan]) -> Iterator[ShardName]:
    """The planned shards, in order."""
    return (ShardName(split, number) for split, plan in splits.items() for number in range(plan.num_shards))


def planned_images(splits: dict[Split, SplitPlan], name: ShardName) -> int:
    """How many images are to be looked at for a shard."""
    plan = splits[name.split]
    return min(plan.samples_per_shard, len(plan.order) - name.number * plan.samples_per_shard)


def half_built(output: Output, splits: dict[Split, SplitPlan], identity: Identity) -> HalfBuilt | None:
    """Look at an output without changing anything; None: it holds no unfinished build."""
    if not output.plan.exists():
        return None
    differences = identity.differences(Identity.load(output.plan))
    finished = tuple(name for name in names_of(splits) if record_path(output.work, name).exists())
    images = sum(planned_images(splits, name) for name in finished)
    return HalfBuilt(finished, images, tuple(differences))


def continue_build(output: Output, identity: Identity, *, restart: bool) -> None:
    """Make sure that what the output holds is of this build: the same identity, or nothing.

    Raises:
        WrongCall: it is of another build.
    """
    if restart:
        output.discard()
    if output.plan.exists():
        if differences := identity.differences(Identity.load(output.plan)):
            raise _another_build(output, differences)
        return
    output.discard_files(lambda name: name not in (LOCK_NAME, LISTING_NAME))
    output.discard_set_files()
    identity.save(output.plan)


def _another_build(output: Output, differences: Sequence[str]) -> WrongCall:
    more = [f"and {len(differences) - _SHOWN:,} more"] if len(differences) > _SHOWN else []
    return WrongCall(
        "\n    ".join(
            (
                f"{output.folder} holds an unfinished build that differs (before -> now):",
                *differences[:_SHOWN],
                *more,
            )
        ),
        where=str(output.plan),
        why="a set of half one build and half another is of no use",
        remedy="repeat the command with what it had before, or discard what it has with --restart",
    )


def take_over(
    output: Output,
    splits: dict[Split, SplitPlan],
    *,
    threads: int,
    on_kept: Callable[[Kept], object],
    in_store: Callable[[ShardName], bool] = lambda _: False,
) -> set[ShardName]:
    """Names of the finished shards that are as they were left; of anything else nothing remains.

    Args:
        on_kept: called for each of them, in order.
        in_store: whether a shard whose tar is not here lies in a store as it was sent.
    """
    output.discard_parts()
    _move_back(output, splits)
    finished = [name for name in names_of(splits) if record_path(output.work, name).exists()]
    sound: set[ShardName] = set()
    unsound: list[str] = []
    with ThreadPoolExecutor(threads) as pool:
        looks = pool.map(lambda name: _look(output.work, name, planned_images(splits, name), in_store), finished)
        for name, found in zip(finished, looks, strict=True):
            if isinstance(found, Kept):
                sound.add(name)
                on_kept(found)
            else:
                unsound.append(f"{name}: {found}")
                record_path(output.work, name).unlink()  # first, so that it is not finished
    if unsound:
        output.remarks.append(
            f"{len(unsound):,} of {len(finished):,} finished shards were not as they were left and are packed "
            f"again, first {unsound[0]}"
        )
    wanted = {file for name in sound for file in files_of_shard(name)} | {LOCK_NAME, PLAN_NAME, LISTING_NAME}
    output.discard_files(lambda name: name not in wanted)
    return sound


def files_of_shard(name: ShardName) -> tuple[str, ...]:
    """Names of a finished shard's files in the work folder, the record last."""
    paths = (sent_path(Path(), name), sums_path(Path(), name), record_path(Path(), name))
    return str(name), name.index_name, *(path.name for path in paths)


def _look(work: Path, name: ShardName, images: int, in_store: Callable[[ShardName], bool]) -> Kept | str:
    """A finished shard if it is sound, else what is wrong with it."""
    try:
        record = ShardRecord.load(work, name)
    except _DAMAGED:
        return "its record is damaged"
    if len(record.rows) + len(record.refusals) != images:
        return f"its record is of {len(record.rows) + len(record.refusals):,} images, not of {images:,}"
    if len(record.rows) != (record.entry.samples if record.entry else 0):
        return "its record does not add up"
    try:
        if record.entry is not None:
            tar = work / str(name)
            if tar.exists() or not in_store(name):
                size = tar.stat().st_size
                if size != record.entry.bytes:
                    return f"{size:,} bytes, not {record.entry.bytes:,}"
                if file_sha256(tar) != record.entry.sha256:
                    return "other bytes than were written"
            if file_sha256(work / name.index_name) != record.entry.index_sha256:
                return "its index has other bytes than were written"
        if record.sums_sha256 != (file_sha256(sums_path(work, name)) if name.split is Split.TRAIN else None):
            return "its sums have other bytes than were written"
    except OSError as error:
        return f"{Path(str(error.filename)).name}: {error.strerror}"
    return Kept(name, images, record.refusals)


def final_names(work: Path, splits: dict[Split, SplitPlan]) -> Iterator[tuple[ShardName, ShardName]]:
    """Planned and final name of every shard that has samples; numbers have no gaps, whatever was refused."""
    for split, plan in splits.items():
        number = 0
        for planned in range(plan.num_shards):
            if ShardRecord.load(work, ShardName(split, planned)).entry is not None:
                yield ShardName(split, planned), ShardName(split, number)
                number += 1


def _move_back(output: Output, splits: dict[Split, SplitPlan]) -> None:
    """Undo the last stage of a build that ended in it, when some shards had their final places already."""
    if any(output.folder.glob("*.idx")) or any(output.folder.glob("*.tar")):
        for split, plan in splits.items():
            number = lost = 0
            for planned in (ShardName(split, place) for place in range(plan.num_shards)):
                try:
                    entry = ShardRecord.load(output.work, planned).entry
                except _DAMAGED:
                    lost += 1  # it may have had a number or none: those that follow are known by their bytes
                    continue
                if entry is not None:
                    finals = [ShardName(split, each) for each in range(number, number + lost + 1)]
                    _bring_back(output, str(planned), [str(name) for name in finals], entry.sha256)
                    indexes = [name.index_name for name in finals]
                    _bring_back(output, planned.index_name, indexes, entry.index_sha256)
                    number += 1
        sync_folder(output.work)
    output.discard_set_files()


def _bring_back(output: Output, name: str, finals: Sequence[str], sha256: str) -> None:
    """Move a file back from its final name; where that may be one of several, its bytes tell which."""
    for final in finals:
        moved, place = output.folder / final, output.work / name
        if moved.exists() and not place.exists() and (len(finals) == 1 or file_sha256(moved) == sha256):
            moved.rename(place)


def give_places(output: Output, names: dict[ShardName, tuple[ShardName, int]]) -> None:
    """Move finished shards to their final names.

    Args:
        names: planned name to final name and bytes of the tar.

    Raises:
        AlexshardError: one is not as it was when it was finished.
    """
    for planned, (name, size) in names.items():
        tar = output.work / str(planned)
        if tar.stat().st_size != size:
            raise AlexshardError(
                f"{tar} has {tar.stat().st_size:,} bytes, and {size:,} were written",
                why="something else writes to this folder",
                remedy="look for it; the same command checks every shard and continues",
            )
        (output.work / planned.index_name).rename(output.folder / name.index_name)
        tar.rename(output.folder / str(name))
    sync_folder(output.folder)
    sync_folder(output.work)
