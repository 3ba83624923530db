"""Errors that know their place and their remedy.

AlexshardError            the work failed                                exit code 1
├── CorruptShardSet       bytes on disk are not what the set promises
├── BadManifest           manifest.json is not one that this version reads
└── WrongCall             the call cannot be carried out as made         exit code 2
    ├── NoShardSet        no shard set where one was looked for
    └── NoSuchSplit       the set has no such split
"""

from __future__ import annotations

import shlex
from typing import Any


class AlexshardError(Exception):
    """A message of four parts: what is wrong, where, why it matters, what to do.

    Survives pickling, so that it crosses from worker processes whole.
    """

    exit_code = 1

    def __init__(self, what: str, *, where: str = "", why: str = "", remedy: str = "") -> None:
        super().__init__(what)
        self.what, self.where, self.why, self.remedy = what, where, why, remedy

    def __str__(self) -> str:
        parts = [self.what]
        for name, text in (("where", self.where), ("why it matters", self.why), ("what to do", self.remedy)):
            if text:
                parts.append(f"  {name}: {text}")
        return "\n".join(parts)

    def __reduce__(self) -> tuple[Any, ...]:
        return _rebuilt, (type(self), self.what, self.where, self.why, self.remedy)


def _rebuilt(kind: type[AlexshardError], what: str, where: str, why: str, remedy: str) -> AlexshardError:
    error = kind.__new__(kind)
    AlexshardError.__init__(error, what, where=where, why=why, remedy=remedy)
    return error


class WrongCall(AlexshardError):
    """The call cannot be carried out as made."""

    exit_code = 2


class CorruptShardSet(AlexshardError):
    """Bytes on disk are not what the shard set promises."""


class BadManifest(AlexshardError):
    """manifest.json is not one that this version reads."""


class NoShardSet(WrongCall):
    """No shard set where one was looked for."""


class NoSuchSplit(WrongCall):
    """The set has no such split."""


def mending(shown: str) -> str:
    """What to do about a damaged file of the set that messages call `shown`.

    >>> mending("/data/two words")
    "alexshard verify '/data/two words' --repair SOURCE makes what is wrong again; or fetch the damaged file again"
    """
    if "://" in shown:
        return "it was fetched anew and is still wrong, so put that file there again from where the set was built"
    verify = f"alexshard verify {shlex.quote(shown)} --repair SOURCE"
    return f"{verify} makes what is wrong again; or fetch the damaged file again"


def corrupt(shown: str, what: str, *, where: str = "") -> CorruptShardSet:
    """The error that says what is wrong with a set, and what to do about it."""
    return CorruptShardSet(
        what, where=where or shown, why="images or labels would be wrong or missing", remedy=mending(shown)
    )
