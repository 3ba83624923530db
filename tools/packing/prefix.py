"""Whose a prefix of a store is: nobody's, a finished set's, or that of a build, which a mark there names.

`.build/lock` says of what plan the shards are, and which process of which host is at work, with a time that it
renews. It goes when the manifest is there.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import secrets
import socket
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path

from ...shards import (
    CLASSES_NAME,
    INFO_NAME,
    MANIFEST_NAME,
    MEAN_IMAGE_NAME,
    QUARANTINE_NAME,
    SAMPLES_NAME,
    SUMS_NAME,
    AlexshardError,
    Manifest,
    WrongCall,
    is_another_running,
    parse_json,
)
from .stores import Store

MARK_NAME = ".build/lock"
BEAT_S = 30  # between two signs of life
DEAD_S = 300  # a holder on another host that has not renewed its mark for so long is taken for dead
SIDE_FILES = (SAMPLES_NAME, MEAN_IMAGE_NAME, QUARANTINE_NAME, INFO_NAME, CLASSES_NAME, SUMS_NAME, MANIFEST_NAME)
_OURS = re.compile(
    rf"((train|val|test)-\d{{6}}\.(tar|idx)|{'|'.join(map(re.escape, SIDE_FILES))}|{re.escape(MARK_NAME)})"
    r"(\.part-[0-9a-f]{16})?"
)


def is_ours(name: str) -> bool:
    """Whether a build may have put a file of this name below its prefix."""
    return _OURS.fullmatch(name) is not None


def check_prefix(store: Store) -> Manifest | None:
    """The manifest of the set below the prefix; None: it is empty, or a build of ours that did not finish.

    Raises:
        WrongCall: it holds other things.
    """
    names = set(store.listing())
    if MANIFEST_NAME in names:
        text = (store.read(MANIFEST_NAME) or b"").decode("utf-8", "replace")
        return Manifest.parse(text, Path(f"{store.shown}/{MANIFEST_NAME}"))
    foreign = {name for name in names if not is_ours(name)} if MARK_NAME in names else names
    if foreign:
        raise WrongCall(
            f"{store.shown} holds other things: {', '.join(sorted(foreign)[:5])}",
            why="a shard set has a prefix of its own",
            remedy="choose an empty or new prefix with --out",
        )
    return None


def published(store: Store, plan: str, differences: Callable[[Manifest], Sequence[str]]) -> Manifest | None:
    """The manifest of the finished set of a plan, if that is what lies below the prefix.

    Args:
        differences: of another set to the plan, for the message.

    Raises:
        WrongCall: the finished set of another plan lies there, or other things.
        AlexshardError: it is the one, and objects of it are missing or of other sizes.
    """
    manifest = check_prefix(store)
    if manifest is None:
        return None
    if manifest.build.get("plan") != plan:
        what = f"{store.shown} is a shard set already, made by another command (set -> now):"
        raise WrongCall(
            "\n    ".join((what, *differences(manifest))),
            why="a set is never overwritten: checkpoints may refer to it",
            remedy="use it, remove it, or choose another prefix with --out",
        )
    sizes = {name: entry.bytes for name, entry in manifest.files.items()}
    sizes |= {shard.name: shard.bytes for split in manifest.splits.values() for shard in split.shards}
    there = store.listing()
    if wrong := [name for name, size in sizes.items() if name not in there or there[name].bytes != size]:
        raise AlexshardError(
            f"{store.shown} is a finished shard set, but {wrong[0]} is not as it was sent",
            why="training would read wrong pixels or labels, or stop",
            remedy="put it back from a copy of the set; or remove all that lies below this prefix, and the same "
            "command builds the set again",
        )
    return manifest


@dataclass(frozen=True, slots=True)
class Mark:
    """Whose a half-built prefix is."""

    plan: str  # digest of the plan: what the shards are made of
    host: str
    pid: int  # 0: nobody is at work, the build was stopped
    since: str
    beat: str  # when the holder last said that it is alive
    place: str = ""  # where its number is that of a process; empty: nobody can tell
    token: str = ""  # drawn: numbers come again, also within a second

    @classmethod
    def mine(cls, plan: str) -> Mark:
        began = now()
        return cls(plan, socket.gethostname(), os.getpid(), began, began, _place(), secrets.token_hex(8))

    def data(self) -> bytes:
        return json.dumps(asdict(self)).encode("ascii")

    @classmethod
    def parse(cls, data: bytes) -> Mark | None:
        """None: it is none of ours, or damaged."""
        try:
            fields = parse_json(data)
            mark = cls(**fields)
            mark._silent_s()
        except (TypeError, ValueError):
            return None
        return mark if isinstance(mark.pid, int) and mark.pid >= 0 else None

    @property
    def is_of_here(self) -> bool:
        """Whether its process would be seen from here. Containers may share a name and not see each other."""
        return (self.host, self.place) == (socket.gethostname(), _place())

    def is_held(self) -> bool:
        """Whether its holder is at work, as far as one can tell from here."""
        if not self.pid:
            return False
        if not self.is_of_here:
            return self._silent_s() < DEAD_S
        # Without a place another machine may have the same name: then its silence must speak too.
        return is_another_running(self.pid) or (not self.place and self._silent_s() < 2 * BEAT_S)

    def _silent_s(self) -> float:
        return (datetime.now(UTC) - datetime.fromisoformat(self.beat)).total_seconds()

    def same_holder(self, other: Mark | None) -> bool:
        return other is not None and self._holder() == other._holder()

    def _holder(self) -> tuple[str, int, str, str, str]:
        return self.host, self.pid, self.since, self.place, self.token


def _place() -> str:
    """What tells one start of one machine, and within it one container, from others; empty where none is told."""
    try:
        start = Path("/proc/sys/kernel/random/boot_id").read_text(encoding="ascii")
        container = Path("/proc/self/ns/pid").readlink()
    except OSError:
        return ""
    return hashlib.sha256(f"{start}{container}".encode()).hexdigest()[:16]


def taken(store: Store, mine: Mark, *, restart: bool) -> Mark:
    """The prefix's mark once it is `mine`.

    Raises:
        WrongCall: another build is at work there, or shards of another plan lie there.
    """
    store.put_bytes(MARK_NAME, mine.data(), new=True)
    old = Mark.parse(store.read(MARK_NAME) or b"")
    if mine.same_holder(old):  # some stores write even where they were asked not to, so what is there decides
        return mine
    # Here one sees that the holder lives; of elsewhere --restart is the user's word that it does not.
    if old is not None and old.is_held() and not (restart and not old.is_of_here):
        raise WrongCall(
            f"another build is at work on {store.shown}: process {old.pid} on {old.host}, since {old.since}",
            why="two builds would spoil each other's shards",
            remedy="wait for it, or choose another prefix with --out; if it is dead and its host cannot be asked, "
            f"it gives way {DEAD_S // 60} minutes after its last sign of life, or to --restart",
        )
    if not restart and (old is None or old.plan != mine.plan):
        by = f" (by {old.host}, since {old.since})" if old else ""
        raise WrongCall(
            f"{store.shown} holds a half-built set of another source or other settings{by}",
            why="shards of two plans do not make a set",
            remedy="the settings it was begun with continue it; --restart discards it",
        )
    store.put_bytes(MARK_NAME, mine.data())
    if not mine.same_holder(Mark.parse(store.read(MARK_NAME) or b"")):
        raise WrongCall(f"another build has just begun on {store.shown}", remedy="wait for it")
    if restart:
        for name in store.listing():
            if is_ours(name) and name not in (MARK_NAME, MANIFEST_NAME):
                store.remove(name)
    return mine


def now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")
