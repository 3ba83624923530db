"""Shards go to a store as they are finished, while packing goes on; the manifest goes last.

The build works in a folder of this machine. Some threads upload finished shards, index first; what the store then
says of them is kept in `NAME.sent` and the local tar is dropped. A bounded queue holds the build up when the store
is slower than packing, so that the disk does not fill.

`.build/lock` below the prefix says whose it is: the plan, and the host and process at work, with a time that is
renewed. It goes when the manifest is there.
"""

from __future__ import annotations

import json
import os
import queue
import re
import socket
import threading
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass, replace
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
    ShardName,
    WrongCall,
    appearing_whole,
)
from .patience import is_address
from .stores import Store, Stored, local_name

MARK_NAME = ".build/lock"
UPLOADS = 3  # at a time; one stream alone seldom fills a line
BEAT_S = 30
DEAD_S = 300  # a holder on another host that has not renewed its mark for so long is taken for dead
_PARTING_S = 2.0
_SIDE_FILES = (SAMPLES_NAME, MEAN_IMAGE_NAME, QUARANTINE_NAME, INFO_NAME, CLASSES_NAME, SUMS_NAME, MANIFEST_NAME)
_OURS = re.compile(
    rf"((train|val|test)-\d{{6}}\.(tar|idx)|{'|'.join(map(re.escape, _SIDE_FILES))}|{re.escape(MARK_NAME)})"
    r"(\.part-[0-9a-f]{16})?"
)


def destination(out: str, work: Path | None) -> tuple[Path, Store | None]:
    """The folder that a build works in, and the store that the set goes to if `out` is an address.

    Raises:
        WrongCall: the address is none, or a work folder is given for a set that needs none.
    """
    if is_address(out):
        return work or _work_folder(out), Store(out)
    if work is not None:
        raise WrongCall(
            "--work is for a set that goes to a store", remedy="leave it out, or give --out an address"
        )
    return Path(out), None


def _work_folder(address: str) -> Path:
    cache = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(cache) / "alexshard" / "builds" / local_name(address)


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


def published(store: Store, plan: str) -> Manifest | None:
    """The manifest of the finished set of a plan, if that is what lies below the prefix.

    Raises:
        WrongCall: the finished set of another plan lies there, or other things.
        AlexshardError: it is the one, and objects of it are missing or of other sizes.
    """
    manifest = check_prefix(store)
    if manifest is None:
        return None
    if manifest.build.get("plan") != plan:
        raise WrongCall(
            f"{store.shown} is a shard set already, made by another command",
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
            remedy="remove its manifest.json and the same command builds the set again",
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

    @classmethod
    def mine(cls, plan: str) -> Mark:
        now = _now()
        return cls(plan, socket.gethostname(), os.getpid(), now, now)

    def data(self) -> bytes:
        return json.dumps(asdict(self)).encode("ascii")

    @classmethod
    def parse(cls, data: bytes) -> Mark | None:
        """None: it is none of ours, or damaged."""
        try:
            fields = json.loads(data)
            mark = cls(**fields)
            datetime.fromisoformat(mark.beat)
        except (TypeError, ValueError):
            return None
        return mark if isinstance(mark.pid, int) else None

    def is_held(self) -> bool:
        """Whether its holder is at work, as far as one can tell from here."""
        if not self.pid:
            return False
        if self.host == socket.gethostname():
            # This very process holds it only in a mark of an earlier life: in containers numbers come again.
            return self.pid != os.getpid() and Path(f"/proc/{self.pid}").exists()
        return (datetime.now(UTC) - datetime.fromisoformat(self.beat)).total_seconds() < DEAD_S

    def same_holder(self, other: Mark | None) -> bool:
        return other is not None and (self.host, self.pid, self.since) == (other.host, other.pid, other.since)


@contextmanager
def publishing(store: Store | None, work: Path, *, plan: str, restart: bool) -> Iterator[Publisher | None]:
    """The prefix, taken for a build that works in `work`; left to the next one when it ends, however it ends.

    Without a store there is nothing to publish.

    Raises:
        WrongCall: another build is at work on it, or another plan's shards lie there.
        AlexshardError: the store fails.
    """
    if store is None:
        yield None
        return
    publisher = Publisher(store, work)
    mark = _taken(store, Mark.mine(plan), restart=restart)
    try:
        publisher.start(mark)
        yield publisher
    finally:
        publisher.stop()


def _taken(store: Store, mine: Mark, *, restart: bool) -> Mark:
    if store.put_bytes(MARK_NAME, mine.data(), new=True):
        return mine
    old = Mark.parse(store.read(MARK_NAME) or b"")
    # On this host one sees that the holder lives; of another one --restart is the user's word that it does not.
    if old is not None and old.is_held() and not (restart and old.host != mine.host):
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


@dataclass(frozen=True, slots=True)
class Sent:
    """What the store said of a shard and its index when they were there."""

    name: str  # in the store, train-000000.tar: as planned, and at the end as it is in the set
    shard: Stored
    index: Stored

    def save(self, path: Path) -> None:
        with appearing_whole(path) as file:
            file.write(json.dumps(asdict(self)).encode("ascii"))

    @classmethod
    def load(cls, path: Path) -> Sent | None:
        try:
            fields = json.loads(path.read_bytes())
            return cls(fields["name"], Stored(**fields["shard"]), Stored(**fields["index"]))
        except (OSError, ValueError, KeyError, TypeError):
            return None


def sent_path(work: Path, name: ShardName) -> Path:
    return work / str(name).replace(".tar", ".sent")


class Publisher:
    """Uploads of one build; see the head of this page."""

    def __init__(self, store: Store, work: Path) -> None:
        self.store = store
        self._work = work
        self._mark: Mark | None = None
        self._queue: queue.Queue[ShardName | None] = queue.Queue(UPLOADS)
        self._threads: list[threading.Thread] = []
        self._failure: BaseException | None = None
        self._ended = threading.Event()
        self._there: dict[str, Stored] = {}  # below the prefix, when the build began

    def start(self, mark: Mark) -> None:
        self._mark = mark
        self.store.abort_uploads(is_ours)
        self._there = self.store.listing()
        if MANIFEST_NAME in self._there:
            raise WrongCall(f"{self.store.shown} has become a shard set meanwhile", remedy="use it")
        uploads = UPLOADS if self.store.parallel else 1
        self._threads = [threading.Thread(target=self._upload, daemon=True) for _ in range(uploads)]
        for thread in (*self._threads, threading.Thread(target=self._beat, daemon=True)):
            thread.start()

    def holds(self, name: ShardName) -> bool:
        """Whether the store had this shard, as it was sent, when the build began."""
        sent = Sent.load(sent_path(self._work, name))
        if sent is None:
            return False
        stored = ShardName.parse(sent.name)
        return self._there.get(str(stored)) == sent.shard and self._there.get(stored.index_name) == sent.index

    def take_over(self, names: Iterable[ShardName]) -> None:
        """Have those shards of an earlier run uploaded that are not in the store."""
        for name in names:
            if self.holds(name):
                (self._work / str(name)).unlink(missing_ok=True)
            else:
                self.offer(name)

    def offer(self, name: ShardName) -> None:
        """Have a finished shard uploaded; waits while several others wait.

        Raises:
            AlexshardError: an upload has failed, of this shard or another.
        """
        sent_path(self._work, name).unlink(missing_ok=True)
        if not (self._work / str(name)).exists():
            return  # all its images were bad
        while True:
            self.check()
            with suppress(queue.Full):
                self._queue.put(name, timeout=0.2)
                return

    def check(self) -> None:
        """Raise what a thread has met."""
        if self._failure is not None:
            raise self._failure

    def drain(self) -> None:
        """Wait until everything that was offered is in the store."""
        for _ in self._threads:
            while True:
                self.check()
                with suppress(queue.Full):
                    self._queue.put(None, timeout=0.2)
                    break
        for thread in self._threads:
            while thread.is_alive():
                self.check()
                thread.join(0.2)
        self.check()

    def finish(self, folder: Path, names: Mapping[ShardName, ShardName]) -> None:
        """Give the shards their final names, add what lies in `folder` beside them, and the manifest last.

        Args:
            names: planned name to final name.

        Raises:
            AlexshardError: the store fails, or does not have what it was sent; nothing there looks complete.
        """
        wanted: dict[str, Stored] = {}
        for planned, final in names.items():
            sent = self._placed(planned, final)
            wanted |= {str(final): sent.shard, final.index_name: sent.index}
        for path in sorted(folder.iterdir()):
            if path.is_file() and path.name in _SIDE_FILES and path.name != MANIFEST_NAME:
                wanted[path.name] = self.store.put(path, path.name)
        there = self.store.listing()
        for name in set(there) - set(wanted) - {MARK_NAME}:
            if is_ours(name):
                self.store.remove(name)  # of a shard that has another name now
        if lost := sorted(name for name, stored in wanted.items() if there.get(name) != stored):
            raise AlexshardError(
                f"{self.store.shown} no longer has what it was sent: {', '.join(lost[:5])}",
                why="somebody else writes there, and the set would be incomplete",
                remedy="find out who; then the same command packs again what is missing",
            )
        self._still_ours()
        self.store.put(folder / MANIFEST_NAME, MANIFEST_NAME)
        self._ended.set()
        self.store.remove(MARK_NAME)
        self._mark = None

    def stop(self) -> None:
        """End the threads, and leave the prefix to the next build."""
        self._ended.set()
        self.store.stop()
        with suppress(queue.Empty):
            while True:
                self._queue.get_nowait()
        for _ in self._threads:
            with suppress(queue.Full):
                self._queue.put_nowait(None)
        for thread in self._threads:
            thread.join(_PARTING_S / UPLOADS)  # what is still being sent then is not finished in the store either
        if self._mark is None:
            return
        with suppress(Exception):  # perhaps the store's failure is why it ends; then the mark is found dead
            self.store.abort_uploads(is_ours)
            if self._mark.same_holder(Mark.parse(self.store.read(MARK_NAME) or b"")):
                self.store.put_bytes(MARK_NAME, replace(self._mark, pid=0).data())

    def _placed(self, planned: ShardName, final: ShardName) -> Sent:
        path = sent_path(self._work, planned)
        sent = Sent.load(path)
        if sent is None:
            raise AlexshardError(
                f"{planned} was not uploaded", where=str(path), remedy="run the same command again"
            )
        if sent.name == str(final):
            return sent
        old = ShardName.parse(sent.name)
        index = self.store.move(old.index_name, final.index_name)
        sent = Sent(str(final), self.store.move(str(old), str(final)), index)
        sent.save(path)
        return sent

    def _upload(self) -> None:
        try:
            while (name := self._queue.get()) is not None:
                index = self.store.put(self._work / name.index_name, name.index_name)
                Sent(str(name), self.store.put(self._work / str(name), str(name)), index).save(
                    sent_path(self._work, name)
                )
                (self._work / str(name)).unlink()
        except BaseException as error:
            if not self._ended.is_set():
                self._failure = self._failure or error

    def _beat(self) -> None:
        try:
            while not self._ended.wait(BEAT_S):
                assert self._mark is not None
                self._still_ours()
                with suppress(AlexshardError):
                    self.store.put_bytes(MARK_NAME, replace(self._mark, beat=_now()).data())
        except BaseException as error:
            if not self._ended.is_set():
                self._failure = self._failure or error

    def _still_ours(self) -> None:
        assert self._mark is not None
        try:
            found = Mark.parse(self.store.read(MARK_NAME) or b"")
        except AlexshardError:
            return  # the uploads will tell
        if not self._mark.same_holder(found):
            by = f"process {found.pid} on {found.host}" if found else "somebody who removed its lock"
            raise AlexshardError(
                f"{self.store.shown} was taken over by {by}",
                why=f"this build gave no sign of life for {DEAD_S // 60} minutes, or was given up with --restart",
                remedy="leave it to the other one",
            )


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")
