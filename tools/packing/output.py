"""The output folder: taken only if it is ours to take, complete or clearly not.

While a build runs, everything lies in `OUT/.build/`; shards get their place in OUT when all of them are done,
the manifest comes last. A build that fails takes its shards with it and leaves nothing, or
`.build/quarantine.jsonl` alone.
"""

from __future__ import annotations

import fcntl
import json
import os
import re
import shutil
import signal
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, TextIO

from ...shards import (
    CLASSES_NAME,
    INFO_NAME,
    MANIFEST_NAME,
    MEAN_IMAGE_NAME,
    PART_SUFFIX,
    QUARANTINE_NAME,
    SAMPLES_NAME,
    SUMS_NAME,
    AlexshardError,
    WrongCall,
    byte_size,
)
from .disk import writing
from .signals import signals_ignored
from .sources import Refusal

WORK_NAME = ".build"
_MARK_NAME = "lock"  # says that OUT is ours and holds the lock; made before anything else
_OURS = re.compile(
    rf"((train|val|test)-\d{{6}}\.(tar|idx)|{SAMPLES_NAME}|{MEAN_IMAGE_NAME}|{QUARANTINE_NAME}|{SUMS_NAME}|"
    rf"{MANIFEST_NAME}|{INFO_NAME}|{CLASSES_NAME})({re.escape(PART_SUFFIX)}[A-Za-z0-9_-]*)?"
)


def check_output(out: Path, source: Path) -> None:
    """Whether a build may write to `out`: it is absent, empty, or a build of ours that did not finish.

    Raises:
        WrongCall: it is a shard set already, holds other files, or is part of the source.
        AlexshardError: one may not even look at it.
    """
    with writing(str(out), out):
        _check_output(out, source)


def _check_output(out: Path, source: Path) -> None:
    if source.resolve() in (out.resolve(), *out.resolve().parents):
        raise WrongCall(
            f"the output {out} lies inside the source",
            why="the next look at the source would find the shards in it",
            remedy="choose another folder with --out",
        )
    if not out.exists():
        return
    if not out.is_dir():
        raise WrongCall(f"the output {out} is no folder", remedy="choose another name with --out")
    names = {path.name for path in out.iterdir()}
    if MANIFEST_NAME in names:
        raise WrongCall(
            f"{out} is a shard set already",
            why="a set is never overwritten: checkpoints may refer to it",
            remedy=f"use it (alexshard info {out}), remove it, or choose another folder with --out",
        )
    foreign = {name for name in names - {WORK_NAME} if not _OURS.fullmatch(name)}
    if WORK_NAME in names:
        work = {path.name for path in (out / WORK_NAME).iterdir()}
        foreign |= {WORK_NAME} if work and _MARK_NAME not in work else set()
    elif names:
        foreign = names
    if foreign:
        raise WrongCall(
            f"{out} holds other things: {', '.join(sorted(foreign)[:5])}",
            why="a shard set has a folder of its own",
            remedy="choose an empty or new folder with --out",
        )


@dataclass(slots=True)
class Output:
    """The output folder while a build works on it."""

    folder: Path
    refusals: list[Refusal] = field(default_factory=list)  # kept if the build fails, so that one can look at them

    @property
    def work(self) -> Path:
        return self.folder / WORK_NAME

    @property
    def quarantine(self) -> Path:
        """Where the list of refused images lies if the build fails."""
        return self.work / QUARANTINE_NAME

    def clear(self) -> None:
        """Remove what this or an earlier build has left; the mark stays, since it holds the lock.

        The manifest goes first: without it nothing looks complete, wherever this ends.
        """
        (self.folder / MANIFEST_NAME).unlink(missing_ok=True)
        for path in (*self.folder.iterdir(), *self.work.iterdir()):
            if path.name not in (WORK_NAME, _MARK_NAME):
                path.unlink()


@contextmanager
def locked_output(folder: Path, source: Path) -> Iterator[Output]:
    """The output folder, locked, and put back in order when the build fails, whatever ends it.

    An output that was left half-built is cleared and started afresh.

    Raises:
        WrongCall: it may not be taken (`check_output`), or another build is at work on it.
        AlexshardError: it cannot be written to.
    """
    check_output(folder, source)
    output = Output(folder)
    made: list[Path] = []
    locked = complete = False
    try:
        with writing(str(folder), folder), _made(output, made) as mark:
            _lock(mark, output, source)
            locked = True
            output.clear()
            yield output
            complete = True
    finally:
        # From here on a signal has nothing to stop: what is complete stays, what is not is being removed.
        with signals_ignored(signal.SIGINT, signal.SIGTERM):
            if locked:
                _tidy(output, complete=complete)
            if not complete and not output.refusals:
                for path in reversed(made):
                    with suppress(OSError):  # not empty: somebody else uses it too
                        path.rmdir()


def _lock(mark: TextIO, output: Output, source: Path) -> None:
    """Lock the mark, and look again: until now another build may have been at work, and may have finished."""
    busy = WrongCall(
        f"another build is at work on {output.folder}",
        why="two builds would spoil each other's shards",
        remedy="wait for it, or choose another folder with --out",
    )
    try:
        fcntl.flock(mark, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        raise busy from None
    try:
        check_output(output.folder, source)
    except WrongCall:
        _tidy(output, complete=True)
        raise
    if not os.fstat(mark.fileno()).st_nlink:
        raise busy  # the other one has removed this mark, and a third may have made another


def _tidy(output: Output, *, complete: bool) -> None:
    if not complete:
        output.clear()
        if output.refusals:
            with suppress(OSError):  # of a full disk, perhaps the very reason why the build failed
                write_lines(output.quarantine, map(asdict, output.refusals))
            return
    shutil.rmtree(output.work, ignore_errors=True)


def _made(output: Output, made: list[Path]) -> TextIO:
    """Make the folders, adding them to `made`, and open the mark that says that they are ours."""
    missing = [folder for folder in (output.folder, *output.folder.parents) if not folder.exists()]
    for folder in reversed(missing):
        folder.mkdir()
        made.append(folder)
    output.work.mkdir(exist_ok=True)
    return (output.work / _MARK_NAME).open("a", encoding="utf-8")


def free_bytes(out: Path) -> int:
    """What the disk has room for."""
    place = next(folder for folder in (out.resolve(), *out.resolve().parents) if folder.exists())
    return shutil.disk_usage(place).free


def check_space(out: Path, needed: int) -> None:
    """Whether the disk has room for the set.

    Raises:
        AlexshardError: it has not.
    """
    free = free_bytes(out)
    if free < needed:
        raise AlexshardError(
            f"the disk has {byte_size(free)} free, and the set needs about {byte_size(needed)}",
            where=str(out),
            why="the build would end half-way with a full disk",
            remedy="make room, choose another disk with --out, or a smaller --quality or --size",
        )


def write_lines(path: Path, items: Iterable[dict[str, Any]]) -> None:
    """One JSON object a line."""
    with path.open("w", encoding="ascii") as file:
        file.writelines(json.dumps(item) + "\n" for item in items)
