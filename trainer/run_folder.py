"""A run's folder: what it was asked, what it measured, what it needs to go on. It is all that the run needs.

config.json      the recipe resolved, schedule in steps, shard set, classes, machine, loader, versions
metrics.jsonl    one `Record` a line
checkpoints/     step-000000120.pt: the newest few states (checkpoint.py); best.pt: that with the best validation
tensorboard/     the figures of metrics.jsonl and more, where TensorBoard is installed
end.json         how the last part of the run ended; of a killed one there is none
lock             held by the process that trains
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import Any

from ..shards import (
    LOCK_NAME,
    PART_SUFFIX,
    Holder,
    WrongCall,
    appearing_whole,
    locked,
    parse_json,
    sync_folder,
)
from .checkpoint import Checkpoint
from .checkpoint_file import BadCheckpoint, NoCheckpoint, asking_the_disk, no_checkpoint
from .recipe import Recipe
from .records import DamagedRun, Record, read_records

CHECKPOINTS = "checkpoints"
BEST = "best.pt"
DAMAGED = ".damaged"
LOOKS = 5  # at a folder whose states go away while they are read


class RunFolder:
    """The files of one run."""

    def __init__(self, path: Path) -> None:
        self.path = path

    @property
    def metrics(self) -> Path:
        """The figures, one JSON object a line."""
        return self.path / "metrics.jsonl"

    @property
    def config(self) -> Path:
        """What the run was asked."""
        return self.path / "config.json"

    @property
    def end(self) -> Path:
        """How the last part of the run ended."""
        return self.path / "end.json"

    @property
    def best(self) -> Path:
        """The state whose validation error is the best so far."""
        return self.path / CHECKPOINTS / BEST

    def checkpoint_of(self, step: int) -> Path:
        """The state after `step` updates."""
        return self.path / CHECKPOINTS / f"step-{step:09d}.pt"

    def checkpoints(self) -> list[Path]:
        """The states that are kept by their age, newest first."""
        try:
            # Not by glob: it makes an empty folder of one that may not be read.
            return sorted(filter(_is_state, (self.path / CHECKPOINTS).iterdir()), reverse=True)
        except (FileNotFoundError, NotADirectoryError):
            return []

    @property
    def newest(self) -> Path:
        """The newest state; of a run without one, where its first would be."""
        return next(iter(self.checkpoints()), self.checkpoint_of(0))

    @property
    def newest_words(self) -> str:
        """For a message: the state that `load` would try first."""
        try:
            return next((str(path) for path in self._states()), "none")
        except OSError:
            return self._hidden

    def good_before(self, step: int) -> str:
        """For a message: the newest state from before `step`, whose network is known to be bad."""
        try:
            older = [path for path in self.checkpoints() if path < self.checkpoint_of(step)]
            return str(older[0]) if older else f"{self.best}, if it answers" if self.best.is_file() else "none"
        except OSError:
            return self._hidden

    @property
    def _hidden(self) -> str:
        return f"in {self.best.parent}, which cannot be looked into now"

    def _states(self) -> list[Path]:
        """All that `load` may take, in its order."""
        return [path for path in (*self.checkpoints(), self.best) if path.is_file()]

    @property
    def holds_run(self) -> bool:
        """Whether there is a state to go on from.

        Raises:
            CannotReadNow: the operating system does not let the folder be looked into.
        """
        with asking_the_disk(self.path, "the run's folder"):
            return bool(self._states())

    def load(self, *, best: bool = False, say: Callable[[str], object] = lambda _: None) -> Checkpoint:
        """The newest state that is sound, or the best.

        `say` is told which ones are damaged and passed over. Only what is damaged is: a state that cannot be read
        now may be sound, and an older one in its place would cost the steps since.

        Raises:
            NoCheckpoint: there is none.
            BadCheckpoint: all are damaged; the message is about the newest.
            CannotReadNow: the operating system does not give the bytes of one.
            LaterFormat: a later alexshard wrote one.
        """
        with asking_the_disk(self.path, "the run's folder"):
            if not self.path.is_dir():
                raise WrongCall(
                    f"no run {self.path}",
                    why="there is no such folder",
                    remedy="name the folder of a run, or a checkpoint",
                )
        if best:
            return Checkpoint.load(self.best)
        for _ in range(LOOKS):
            with asking_the_disk(self.path, "the run's folder"):
                states = self._states()
            if not states:
                break
            with suppress(NoCheckpoint):  # a process that trains here has just removed it: there are newer ones
                return _first_sound(states, say)
        raise no_checkpoint(self.checkpoint_of(0))

    @contextmanager
    def lock(self) -> Iterator[str | None]:
        """Within the block this process alone trains here; gives a remark where that cannot be ensured.

        Raises:
            WrongCall: another process is at work, or the folder cannot be made.
        """

        def busy(holder: Holder | None) -> WrongCall:
            return WrongCall(
                f"another process trains in {self.path}",
                where=str(holder) if holder else "",
                why="two would overwrite each other's network and mix their figures",
                remedy=f"alextrain watch {self.path} shows how it goes; for another run give another --out",
            )

        remark = f"the disk of {self.path} knows no locks: see to it that no other machine trains there"
        with ExitStack() as stack:
            try:
                said = stack.enter_context(locked(self.path, busy=busy, no_locks=remark))
            except OSError as error:
                raise self._unwritable(error) from error
            yield said

    def check(self) -> None:
        """See that a run finds itself or a free place here, before anything is spent on it.

        Raises:
            WrongCall: other files are here.
        """
        ours = {CHECKPOINTS, "tensorboard", "export", LOCK_NAME}
        ours |= {self.config.name, self.metrics.name, self.end.name}
        if not self.path.exists() or self.holds_run:
            return
        if not self.path.is_dir() or {_bare(file.name) for file in self.path.iterdir()} - ours:
            raise WrongCall(
                f"{self.path} holds other files",
                why="a run has a folder of its own",
                remedy="name another by --out",
            )
        if self.metrics.is_file() and self.metrics.stat().st_size:
            raise WrongCall(
                f"{self.path} holds the figures of a run, and none of its states",
                why="a run that began anew here would write over them",
                remedy=f"put its {CHECKPOINTS}/ back, or name another folder by --out",
            )

    def open(self, *, step: int, evaluated_step: int) -> None:
        """Make the folder, or drop what is from after the state that the run goes on from: it is made again.

        Figures are cut off. States of later steps, which could not be read, are set aside under another name.

        Raises:
            WrongCall: the folder cannot be made.
            DamagedRun: metrics.jsonl cannot be read.
        """
        try:
            (self.path / CHECKPOINTS).mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise self._unwritable(error) from error
        try:
            self.end.unlink(missing_ok=True)
            for part in (self.path / CHECKPOINTS).glob(f"*{PART_SUFFIX}"):
                part.unlink(missing_ok=True)  # of a process that was killed while it wrote
            for path in self.checkpoints():
                if path > self.checkpoint_of(step):
                    path.replace(path.with_name(path.name + DAMAGED))
            last = {"train": step, "val": evaluated_step}
            kept = [record for record in self.records() if record.step <= last[record.kind]] if step else []
            with appearing_whole(self.metrics) as file:
                file.writelines(record.line().encode() for record in kept)
        except OSError as error:
            raise self._unwritable(error) from error

    def mark_best(self, path: Path) -> None:
        """Let `path`, a state, be the best: a second name where the disk knows links, else a copy."""
        if self.best.exists() and self.best.samefile(path):
            return  # renaming one name of a file to another does nothing, and would leave both
        part = self.best.with_name(BEST + PART_SUFFIX)
        part.unlink(missing_ok=True)
        try:
            os.link(path, part)
        except OSError:
            shutil.copyfile(path, part)
            with part.open("rb") as file:
                os.fsync(file.fileno())
        part.replace(self.best)
        sync_folder(self.best.parent)

    def prune(self, keep: int) -> int:
        """Remove all but the newest `keep` states; says how many went."""
        old = self.checkpoints()[keep:]
        for path in old:
            path.unlink(missing_ok=True)
        return len(old)

    def write_config(self, config: dict[str, Any]) -> None:
        """Write config.json, whole."""
        with appearing_whole(self.config) as file:
            file.write(json.dumps(config, indent=2, ensure_ascii=False).encode() + b"\n")

    def write_end(
        self,
        state: str,
        step: int,
        *,
        number: str | None = None,
        what: str | None = None,
        remedy: str | None = None,
    ) -> None:
        """Say how the process ended that trained here: `done`, `stopped` by a signal, or `failed`, and why.

        Where that cannot be written nothing is: the message on stderr says it too.
        """
        if not self.config.is_file():
            return  # nothing began here
        words = {"schema": 1, "state": state, "step": step, "signal": number, "what": what, "remedy": remedy}
        with suppress(OSError), appearing_whole(self.end) as file:
            file.write(json.dumps(words, ensure_ascii=False).encode() + b"\n")

    def configuration(self) -> dict[str, Any]:
        """What config.json holds; empty where there is none.

        Raises:
            DamagedRun: it cannot be read.
        """
        if not self.config.is_file():
            return {}
        try:
            config = parse_json(self.config.read_bytes())
            if not isinstance(config, dict):
                raise TypeError("it is no object")
            return config
        except (ValueError, TypeError) as error:
            raise self._bad_config(error) from error

    def shard_set(self) -> str | None:
        """Where config.json says that the shard set is, a folder or an address; None without config.json.

        Raises:
            DamagedRun: it cannot be read.
        """
        config = self.configuration()
        try:
            where = config["shard_set"]["path"] if config else None
            if not isinstance(where, str | None):
                raise TypeError(f"the path of its shard set is {where!r}")
            return where
        except (KeyError, TypeError) as error:
            raise self._bad_config(error) from error

    def recipe(self, say: Callable[[str], object] = lambda _: None) -> Recipe:
        """The recipe that the run began with.

        Raises:
            WrongCall: there is no run here.
            BadCheckpoint, CannotReadNow, LaterFormat: config.json does not have it, and neither does a state.
        """
        if not self.path.is_dir():
            raise WrongCall(f"no run {self.path}", remedy="alextrain run --resume RUN names a run's folder")
        try:
            recipe = self.configuration().get("recipe")
        except DamagedRun:
            recipe = None  # every state has it too
        return self.load(say=say).recipe if not isinstance(recipe, dict) else Recipe.from_json(recipe)

    def records(self) -> list[Record]:
        """The lines of metrics.jsonl; a last line that a killed process left half-written is passed over.

        Raises:
            DamagedRun: another line is no record.
        """
        return read_records(self.metrics)

    def _unwritable(self, error: OSError) -> WrongCall:
        words = error.strerror or str(error)
        if self.path.is_dir():
            return WrongCall(
                f"{self.path} cannot be written to: {words}", remedy="make room there, or let it be written"
            )
        return WrongCall(f"{self.path} cannot be made: {words}", remedy="name another by --out")

    def _bad_config(self, error: Exception) -> DamagedRun:
        line = getattr(error, "lineno", 1)
        return DamagedRun(self.config, line, error, "name the run's shard set by --shards")


def load_checkpoint(
    path: Path, *, best: bool = False, say: Callable[[str], object] = lambda _: None
) -> Checkpoint:
    """The state of a run by its folder (`RunFolder.load`), or of one file.

    Raises:
        WrongCall: there is none.
        BadCheckpoint: it is damaged.
        CannotReadNow: the operating system does not give its bytes, or there is no memory for them.
        LaterFormat: a later alexshard wrote it.
    """
    with asking_the_disk(path):
        is_file = path.is_file()
    return Checkpoint.load(path) if is_file else RunFolder(path).load(best=best, say=say)


def _first_sound(states: Iterable[Path], say: Callable[[str], object]) -> Checkpoint:
    damaged: list[BadCheckpoint] = []
    for path in states:
        try:
            checkpoint = Checkpoint.load(path)
        except BadCheckpoint as error:
            damaged.append(error)
            continue
        for one in damaged:
            say(f"{one.where}: {one.what}; passed over")
        if damaged:
            say(f"the state before it is taken: {path}, after step {checkpoint.step:,}")
        return checkpoint
    raise damaged[0]


def _is_state(path: Path) -> bool:
    return path.name.startswith("step-") and path.suffix == ".pt"


def _bare(name: str) -> str:
    return name.removesuffix(PART_SUFFIX)
