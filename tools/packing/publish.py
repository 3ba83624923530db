"""Shards go to a store as they are finished, while packing goes on; the manifest goes last.

The build works in a folder of this machine. Some threads upload finished shards, index first; what the store then
says of them is kept in `NAME.sent` and the local tar is dropped. A bounded queue holds the build up when the store
is slower than packing, so that the disk does not fill.
"""

from __future__ import annotations

import json
import os
import queue
import threading
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass, replace
from pathlib import Path

from ...shards import (
    MANIFEST_NAME,
    AlexshardError,
    ShardName,
    WrongCall,
    appearing_whole,
    folder_at,
    is_address,
    local_name,
    parse_json,
)
from .prefix import BEAT_S, DEAD_S, MARK_NAME, SIDE_FILES, Mark, is_ours, now, taken
from .stores import Store, Stored

UPLOADS = 3  # at a time; one stream alone seldom fills a line
_PARTING_S = 2.0


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
    return folder_at(out), None


def _work_folder(address: str) -> Path:
    cache = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(cache) / "alexshard" / "builds" / local_name(address)


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
    mark = taken(store, Mark.mine(plan), restart=restart)
    try:
        publisher.start(mark)
        yield publisher
    finally:
        publisher.stop()


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
            fields = parse_json(path.read_bytes())
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
        self._beating = threading.Thread(target=self._beat, daemon=True)
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
        for thread in (*self._threads, self._beating):
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
            if path.is_file() and path.name in SIDE_FILES and path.name != MANIFEST_NAME:
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
        self._beating.join()  # or a sign of life on its way would bring the mark back
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
        for thread in (*self._threads, self._beating):
            if thread.ident is not None:  # it has begun
                thread.join(_PARTING_S / UPLOADS)  # what is still sent then is not finished in the store either
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
                    self.store.put_bytes(MARK_NAME, replace(self._mark, beat=now()).data())
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
