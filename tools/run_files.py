"""What the folder of a run holds, as `alextrain watch` and `alextrain compare` take it.

    config.json ─► parse_config    metrics.jsonl ─► parse_record, Metrics
    end.json ─► read_end           checkpoints/ ─► newest_checkpoint

Knows neither the trainer nor torch. What is taken from a file has the type that it is taken for, or the file is a
damaged one; what is not there (a run of an earlier version) is not known.
"""

from __future__ import annotations

import errno
import json
import math
import os
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, BinaryIO

from ..shards import parse_json

Record = Mapping[str, Any]

_WHOLE = "a whole number from 0"
_HOLDS: Mapping[str, tuple[str, ...]] = {  # the objects first: the others are in them
    "an object": ("recipe", "machine", "shard_set", "versions"),
    "a list": ("classes",),
    "a list of names": ("machine.devices", "machine.names"),
    "a list of whole numbers": ("schedule_steps",),
    _WHOLE: (
        *("steps_per_epoch", "total_steps", "last_step", "machine.ranks"),
        *("recipe.seed", "recipe.batch_size", "recipe.max_steps"),
    ),
    "a number": ("recipe.width", "recipe.epochs"),
    "a name": (
        *("recipe.preset", "recipe.precision", "machine.parallel"),
        *("shard_set.name", "shard_set.path", "shard_set.digest"),
    ),
}
_DEEPEST = 100  # of what is nested; a run's own files have five levels at the most
_CHECKPOINT = re.compile(r"step-(\d+)\.pt")


def parse_record(line: bytes) -> Record:
    """A line of metrics.jsonl.

    Raises:
        ValueError: it is no record.
    """
    record = _parsed(line)
    if not isinstance(record, dict):
        raise ValueError("it is no object")
    kind, rates = record.get("kind"), record.get("rates", {})
    if kind not in ("train", "val"):
        raise ValueError(f"its kind is {_shortened(kind)}, not train or val")
    for name, value in (("step", record.get("step")), ("memory_bytes", record.get("memory_bytes", 0))):
        if not _is(_WHOLE, value):
            raise ValueError(f"its {name} is {_shortened(value)}, not {_WHOLE}")
    if not _is("a number", epoch := record.get("epoch")):
        raise ValueError(f"its epoch is {_shortened(epoch)}, not a number")
    if not isinstance(rates, dict) or not all(rate is None or _is("a number", rate) for rate in rates.values()):
        raise ValueError(f"its rates are {_shortened(rates)}, not numbers by name")
    return record


def parse_config(text: bytes) -> dict[str, Any]:
    """A config.json; the fields that are used have the types that they are used as, or are missing, or null.

    Raises:
        ValueError: it is none, or they have not.
    """
    config = _parsed(text)
    if not isinstance(config, dict):
        raise ValueError(f"it holds {type(config).__name__}, not an object")
    for what, names in _HOLDS.items():
        for name in names:
            part, _, of = name.rpartition(".")
            value = (config.get(part) or {} if part else config).get(of)
            if value is not None and not _is(what, value):
                raise ValueError(f"{name} is {_shortened(value)}, not {what}")
    return config


def _parsed(text: bytes) -> Any:
    """The value of a text, which is nested so little that whatever goes through it comes to its end."""
    found = parse_json(text)
    if text.count(b"[") + text.count(b"{") > _DEEPEST and _deeper(found, _DEEPEST):
        raise ValueError("nested too deeply")
    return found


def _deeper(value: object, levels: int) -> bool:
    parts = value.values() if isinstance(value, dict) else value if isinstance(value, list) else ()
    return bool(parts) and (levels == 0 or any(_deeper(part, levels - 1) for part in parts))


def _is(what: str, value: object) -> bool:
    if what == _WHOLE:
        return type(value) is int and 0 <= value < 2**53
    if what == "a number":
        return number(value) is not None
    if what == "a list of names":
        return isinstance(value, list) and all(isinstance(one, str) for one in value)
    if what == "a list of whole numbers":
        return isinstance(value, list) and all(_is(_WHOLE, one) for one in value)
    return isinstance(value, {"an object": dict, "a list": list, "a name": str}[what])


def _shortened(value: object) -> str:
    """A value of JSON, to print in a message."""
    text = json.dumps(value, ensure_ascii=False)
    return text if len(text) <= 40 else f"{text[:39]}…"


def read_end(folder: Path) -> dict[str, Any] | None:
    """What end.json says of how the last process ended that trained there.

    None: nothing did yet, one is at work, it was killed, or an earlier version wrote the run.
    """
    try:
        found = parse_json((folder / "end.json").read_bytes())
    except (FileNotFoundError, ValueError):
        return None
    if not isinstance(found, dict) or found.get("state") not in ("done", "stopped", "failed"):
        return None
    words = {name: found.get(name) for name in ("signal", "what", "remedy")}
    if not _is(_WHOLE, found.get("step")) or not all(isinstance(word, str | None) for word in words.values()):
        return None
    return {"state": found["state"], "step": found["step"], **words}


@dataclass
class News:
    """What a look at metrics.jsonl found."""

    records: list[Record] = field(default_factory=list)
    again: bool = False  # another file is there, and these are all its records
    known: int = 0  # of them were in the file before, at the same place


class Metrics:
    """The lines of a run's metrics.jsonl as they come: each `read` gives those since the one before.

    A line without its end is not yet one. A file that took the place of the one read before (a run that goes on
    drops what came after its checkpoint) is read from its start.
    """

    def __init__(self, folder: Path) -> None:
        self._path = folder / "metrics.jsonl"
        self._file: BinaryIO | None = None  # kept open, so that no other file gets its number
        self._rest = b""
        self._stale = False  # a file of another machine that is there no more
        self.unreadable = 0  # lines that are no records

    def read(self) -> News:
        """The records that came since."""
        news = News()
        try:
            if self._file is None or self._replaced(self._file):
                fresh = self._path.open("rb")
                news.again = self._file is not None
                self.close()
                self._file = fresh
            content = self._rest + self._file.read()
        except FileNotFoundError:
            return news  # not written yet, or between two names
        except OSError as error:
            if error.errno != errno.ESTALE:
                raise
            self._stale = True
            return news
        *lines, self._rest = content.split(b"\n")
        for line in lines:
            try:
                news.records.append(parse_record(line))
            except ValueError:
                self.unreadable += 1
        return news

    def close(self) -> None:
        """Let go of the file."""
        if self._file is not None:
            self._file.close()
        self._file, self._rest, self._stale, self.unreadable = None, b"", False, 0

    def __enter__(self) -> Metrics:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _replaced(self, file: BinaryIO) -> bool:
        if self._stale:
            return True
        there, ours = self._path.stat(), os.fstat(file.fileno())
        return (there.st_dev, there.st_ino) != (ours.st_dev, ours.st_ino) or there.st_size < file.tell()


def newest_checkpoint(folder: Path) -> tuple[int, float] | None:
    """Step of a run's newest checkpoint, and when it was written in seconds since 1970; None: there is none."""
    try:
        found = {path: _CHECKPOINT.fullmatch(path.name) for path in (folder / "checkpoints").iterdir()}
        step, newest = max((int(name[1]), path) for path, name in found.items() if name)
        return step, newest.stat().st_mtime
    except (ValueError, FileNotFoundError):
        return None  # none yet, or it was removed while we looked: the next look finds what is there then


def number(value: object) -> float | None:
    """A figure, where it is a finite number."""
    found = or_nan(value)
    return found if math.isfinite(found) else None


def or_nan(value: object) -> float:
    """A figure, to print."""
    try:
        return float(value) if isinstance(value, int | float) and not isinstance(value, bool) else math.nan
    except OverflowError:  # JSON knows whole numbers of any length
        return math.inf
