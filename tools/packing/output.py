"""The output folder: taken only if it is ours to take, complete or clearly not.

While a build runs, everything lies in `OUT/.build/`; shards get their place in OUT when all of them are done,
the manifest comes last. A build that fails takes its shards with it and leaves nothing, or
`.build/quarantine.jsonl` alone.
"""

from __future__ import annotations

import fcntl
import json
import re
import shutil
from collections.abc import Iterable
from dataclasses import asdict
from pathlib import Path
from types import TracebackType
from typing import Any, TextIO

from ...shards import (
    MANIFEST_NAME,
    MEAN_IMAGE_NAME,
    PART_SUFFIX,
    QUARANTINE_NAME,
    SAMPLES_NAME,
    SUMS_NAME,
    AlexshardError,
    WrongCall,
)
from .sources import Refusal

WORK_NAME = ".build"
_MARK_NAME = "build.json"  # says that OUT is ours; written before anything else
_OURS = re.compile(
    rf"((train|val|test)-\d{{6}}\.(tar|idx)|{SAMPLES_NAME}|{MEAN_IMAGE_NAME}|{QUARANTINE_NAME}|{SUMS_NAME}|"
    rf"{MANIFEST_NAME})({re.escape(PART_SUFFIX)})?"
)


def check_output(out: Path, source: Path) -> None:
    """Whether a build may write to `out`: it is absent, empty, or a build of ours that did not finish.

    Raises:
        WrongCall: it is a shard set already, holds other files, or is part of the source.
    """
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


class OutputFolder:
    """The folder while a build works on it: locked, and put back in order when the build fails.

    An output that was left half-built is cleared and started afresh.
    """

    def __init__(self, out: Path, source: Path) -> None:
        check_output(out, source)
        self.out, self.work = out, out / WORK_NAME
        self.refusals: list[Refusal] = []  # kept where the build fails, so that one can look at them
        self._lock: TextIO | None = None
        self._made: list[Path] = []

    @property
    def quarantine(self) -> Path:
        """Where the list of refused images lies if the build fails."""
        return self.work / QUARANTINE_NAME

    def __enter__(self) -> OutputFolder:
        try:
            self._make()
            self._lock = (self.work / _MARK_NAME).open("a")
            try:
                fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                raise WrongCall(
                    f"another build is at work on {self.out}",
                    why="two builds would spoil each other's shards",
                    remedy="wait for it, or choose another folder with --out",
                ) from None
            self._clear()
        except OSError as error:
            raise AlexshardError(
                f"cannot write to {self.out}: {error.strerror or error}",
                where=str(error.filename or self.out),
                remedy="choose a folder that you may write to with --out",
            ) from None
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        assert self._lock is not None
        if kind is None:
            # The set is complete; should this fail, the leftover disturbs nobody.
            shutil.rmtree(self.work, ignore_errors=True)
        else:
            self._clear()
            if self.refusals:
                write_lines(self.quarantine, map(asdict, self.refusals))
            else:
                shutil.rmtree(self.work, ignore_errors=True)
                for folder in reversed(self._made):
                    folder.rmdir()
        self._lock.close()

    def _make(self) -> None:
        missing = [folder for folder in (self.out, *self.out.parents) if not folder.exists()]
        for folder in reversed(missing):
            folder.mkdir()
            self._made.append(folder)
        self.work.mkdir(exist_ok=True)

    def _clear(self) -> None:
        """Remove what this or an earlier build has left; the mark stays, since it holds the lock."""
        for path in (*self.out.iterdir(), *self.work.iterdir()):
            if path.name not in (WORK_NAME, _MARK_NAME):
                path.unlink()


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
            f"the disk has {free / 1e9:,.1f} GB free, and the set needs about {needed / 1e9:,.1f} GB",
            where=str(out),
            why="the build would end half-way with a full disk",
            remedy="make room, choose another disk with --out, or a smaller --quality or --size",
        )


def write_lines(path: Path, items: Iterable[dict[str, Any]]) -> None:
    """One JSON object a line."""
    with path.open("w", encoding="ascii") as file:
        file.writelines(json.dumps(item) + "\n" for item in items)
