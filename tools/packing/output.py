"""The output folder: taken only if it is ours to take, complete or clearly not.

While a build is unfinished, everything lies in `OUT/.build/`; shards get their place in OUT when all of them are
done, the manifest comes last. A build that fails, is stopped or killed leaves `.build/` to the same command, which
continues (see resume.py).
"""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from ...shards import (
    CLASSES_NAME,
    INFO_NAME,
    LOCK_NAME,
    MANIFEST_NAME,
    MEAN_IMAGE_NAME,
    PART_SUFFIX,
    QUARANTINE_NAME,
    SAMPLES_NAME,
    SUMS_NAME,
    AlexshardError,
    Manifest,
    WrongCall,
    byte_size,
    sync_folder,
)
from .disk import writing
from .lock import locked
from .signals import signals_ignored
from .sources import Refusal

WORK_NAME = ".build"
PLAN_NAME = "plan.json"
LISTING_NAME = "listing.npz"
REPAIR_NAME = "repair"  # a folder in which a repair works
_SHARD = r"(train|val|test)-\d{6}"
_PART = rf"{re.escape(PART_SUFFIX)}[A-Za-z0-9_-]*"
_SET_FILES = re.compile(
    rf"({_SHARD}\.(tar|idx)|{SAMPLES_NAME}|{MEAN_IMAGE_NAME}|{QUARANTINE_NAME}|{SUMS_NAME}|"
    rf"{MANIFEST_NAME}|{INFO_NAME}|{CLASSES_NAME})({_PART})?"
)
_WORK_FILES = re.compile(
    rf"({LOCK_NAME}|{PLAN_NAME}|listing\.[a-z]+|{QUARANTINE_NAME}|{_SHARD}\.(tar|idx|json|npz|sent))({_PART})?|"
    rf"[a-z]+\.part-[A-Za-z0-9_-]+|cluster-[0-9a-f]+|set|{REPAIR_NAME}"
)
_NOBODYS = re.compile(r"\.nfs[0-9a-f]+")  # a network disk's own, of a file that was removed while it was open


def is_work_file(name: str) -> bool:
    """Whether a build makes files of this name in its work folder."""
    return _WORK_FILES.fullmatch(name) is not None


def check_output(out: Path, source: Path) -> None:
    """Whether a build may write to `out`: it is absent, empty, an unfinished build of ours, or finished.

    A finished one must be of the same plan, see `check_finished`.

    Raises:
        WrongCall: it holds other files, or is part of the source.
        AlexshardError: one may not even look at it.
    """
    with writing(str(out), out):
        _check_output(out, source)


def check_apart(out: Path, source: Path) -> None:
    """Whether an output lies outside of the source, if that is on a disk of this machine.

    Raises:
        WrongCall: it does not.
    """
    folder = source if isinstance(source, Path) else source.store.folder  # of a store, see sources/remote.py
    if folder is not None and folder.resolve() in (out.resolve(), *out.resolve().parents):
        raise WrongCall(
            f"the output {out} lies inside the source",
            why="the next look at the source would find the shards in it",
            remedy="choose another folder with --out",
        )


def _check_output(out: Path, source: Path) -> None:
    check_apart(out, source)
    if not out.exists():
        return
    if not out.is_dir():
        raise WrongCall(f"the output {out} is no folder", remedy="choose another name with --out")
    if finished_plan(out) == "":
        raise already_a_set(out)
    names = {path.name for path in out.iterdir()}
    if MANIFEST_NAME in names:
        return
    foreign = {name for name in names - {WORK_NAME} if not _SET_FILES.fullmatch(name)}
    if WORK_NAME in names:
        work = {path.name for path in (out / WORK_NAME).iterdir()}
        strange = {name for name in work if not is_work_file(name) and not _NOBODYS.fullmatch(name)}
        foreign |= {f"{WORK_NAME}/{name}" for name in strange}
        if LOCK_NAME not in work and (work or names != {WORK_NAME}):
            foreign |= names  # the lock says that the folder is ours, and goes last: an empty one alone may be
    elif names:
        foreign = names
    if SUMS_NAME in foreign and all(name == WORK_NAME or _SET_FILES.fullmatch(name) for name in foreign):
        raise WrongCall(
            f"{out} holds the files of a set without its manifest: {', '.join(sorted(foreign - {WORK_NAME})[:5])}",
            why="nothing says that they may go",
            remedy="restore the manifest from where the set came from, choose another folder with --out, or "
            "remove these files",
        )
    if foreign:
        raise WrongCall(
            f"{out} holds other things: {', '.join(sorted(foreign)[:5])}",
            why="a shard set has a folder of its own",
            remedy="choose an empty or new folder with --out",
        )


def finished_plan(out: Path) -> str | None:
    """Digest of the plan of the finished set in a folder; None: there is no manifest; empty: it tells none."""
    if not (out / MANIFEST_NAME).exists():
        return None
    try:
        return str(Manifest.load(out).build.get("plan", ""))
    except AlexshardError:
        return ""


def check_finished(out: Path, plan: str, differences: Callable[[Manifest], Sequence[str]]) -> bool:
    """Whether a folder holds the finished set of a plan.

    Args:
        differences: of another set to the plan, for the message.

    Raises:
        WrongCall: it holds the finished set of another one.
    """
    finished = finished_plan(out)
    if finished == "":
        raise already_a_set(out)
    if finished not in (None, plan):
        raise already_a_set(out, differences(Manifest.load(out)))
    return finished is not None


def already_a_set(out: Path, differences: Sequence[str] = ()) -> WrongCall:
    what = f"{out} is a shard set already, made by another command"
    return WrongCall(
        "\n    ".join((f"{what} (set -> now):", *differences)) if differences else what,
        why="a set is never overwritten: checkpoints may refer to it",
        remedy=f"use it (alexshard info {out}), remove it, or choose another folder with --out",
    )


@dataclass(slots=True)
class Output:
    """The output folder while a build works on it."""

    folder: Path
    refusals: list[Refusal] = field(default_factory=list)  # kept if the build fails, so that one can look at them
    remarks: list[str] = field(default_factory=list)
    complete: bool = False

    @property
    def work(self) -> Path:
        return self.folder / WORK_NAME

    @property
    def plan(self) -> Path:
        return self.work / PLAN_NAME

    @property
    def listing(self) -> Path:
        return self.work / LISTING_NAME

    @property
    def set_files(self) -> Path:
        """Where a set that goes to a store has what is no shard; never a set by itself."""
        return self.work / "set"

    @property
    def quarantine(self) -> Path:
        """Where the list of refused images lies if the build fails."""
        return self.work / QUARANTINE_NAME

    def discard(self) -> None:
        """Remove everything that an unfinished build has left; its lock stays, which is held."""
        self.discard_files(lambda name: name != LOCK_NAME)
        self.discard_set_files()

    def discard_set_files(self) -> None:
        """Remove what of a set lies outside of the work folder; there is no manifest, so it is no set."""
        assert not (self.folder / MANIFEST_NAME).exists()
        for path in self.folder.iterdir():
            if _SET_FILES.fullmatch(path.name):
                path.unlink()

    def discard_files(self, chosen: Callable[[str], bool]) -> None:
        """Remove files of ours from the work folder, by name."""
        for path in self.work.iterdir():
            if is_work_file(path.name) and chosen(path.name):
                shutil.rmtree(path) if path.is_dir() else path.unlink(missing_ok=True)

    def discard_parts(self) -> None:
        """Remove what somebody was writing who is no longer there."""
        self.discard_files(lambda name: PART_SUFFIX in name or name.startswith("cluster-"))


@contextmanager
def locked_output(folder: Path, source: Path) -> Iterator[Output]:
    """The output folder, locked. However the block ends, what is finished stays; what is complete is tidied.

    Raises:
        WrongCall: it may not be taken (`check_output`), or another build is at work on it.
        AlexshardError: it cannot be written to.
    """
    check_output(folder, source)
    output = Output(folder)
    made: list[Path] = []
    try:
        with writing(str(folder), folder):
            _make(folder, made)
            with locked(output.work, folder) as remark:
                output.remarks += [remark] if remark else []
                check_output(folder, source)  # until now another build may have been at work
                _keep_names(output, made)
                try:
                    yield output
                finally:
                    # From here on a signal has nothing to stop.
                    with signals_ignored(signal.SIGINT, signal.SIGTERM):
                        tidy(output)
    finally:
        for path in reversed(made):
            with suppress(OSError):  # not empty
                path.rmdir()


def tidy(output: Output) -> None:
    """Put the work folder in order: away with it if nobody will need it, else without what is half-written."""
    with suppress(OSError):  # of a disk that is full or gone, perhaps the very reason why the build failed
        if output.complete or not output.plan.exists():
            output.discard_files(lambda name: name != LOCK_NAME)
            sync_folder(output.work)
            (output.work / LOCK_NAME).unlink(missing_ok=True)  # last: it says that the folder is ours
            output.work.rmdir()
        else:
            output.discard_parts()
            if output.refusals:
                write_lines(output.quarantine, map(asdict, output.refusals))


def _make(folder: Path, made: list[Path]) -> None:
    """Make the output folder and those above it, adding them to `made`."""
    missing = [path for path in (folder, *folder.parents) if not path.exists()]
    for path in reversed(missing):
        path.mkdir(exist_ok=True)
        made.append(path)


def _keep_names(output: Output, made: Iterable[Path]) -> None:
    """Bring the names of work folder, lock and what is above them to the disk.

    What is finished later would else be lost with them in a power cut, or lie in a work folder without the lock
    that says whose it is.
    """
    for path in (output.work, output.folder):
        sync_folder(path)
    for path in {output.folder.parent, *(path.parent for path in made)}:
        with suppress(OSError):  # one may enter some folders and not read them, or the disk is another one
            sync_folder(path)


def free_bytes(out: Path) -> int:
    """What the disk has room for."""
    place = next(folder for folder in (out.resolve(), *out.resolve().parents) if folder.exists())
    return shutil.disk_usage(place).free


def held_bytes(out: Path) -> int:
    """What an unfinished build takes on the disk already."""
    return sum(
        os.path.getsize(path)  # noqa: PTH202 (a file that has just gone is none)
        for folder in (out, out / WORK_NAME)
        if folder.is_dir()
        for path in folder.iterdir()
        if path.is_file()
    )


def check_space(out: Path, needed: int) -> None:
    """Whether the disk has room for the set, what an unfinished build has of it counted as there.

    Raises:
        AlexshardError: it has not.
    """
    free, held = free_bytes(out), held_bytes(out)
    if free + held < needed:
        more = " more" if held else ""
        raise AlexshardError(
            f"the disk has {byte_size(free)} free, and the set needs about {byte_size(needed - held)}{more}",
            where=str(out),
            why="the build would end half-way with a full disk",
            remedy="make room, choose another disk with --out, or a smaller --quality or --size",
        )


def write_lines(path: Path, items: Iterable[dict[str, Any]]) -> None:
    """One JSON object a line."""
    with path.open("w", encoding="ascii") as file:
        file.writelines(json.dumps(item) + "\n" for item in items)
