"""What a disk may hold after the power was cut: a model that is as pessimistic as POSIX lets a disk be.

It is fed the file operations of a real command, as watched/sitecustomize.py recorded them. What a file holds is
certain once it was brought to the disk by fsync; until then the disk may hold none of it, zeros or a half. What
names a folder holds is certain once the folder was brought to the disk; until then each change since may have
arrived or not, whatever became of the others. (Journals keep most of that in order; not every disk has one.)
"""

from __future__ import annotations

import json
import random
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

State = dict[str, bytes | None]  # path to content; None: a folder


@dataclass(frozen=True, slots=True)
class Operation:
    """One file operation: open, sync, sync_folder, rename, remove, mkdir or rmdir, and its paths."""

    what: str
    paths: tuple[str, ...]
    content: bytes | None  # of the file that is synced or renamed

    def __str__(self) -> str:
        return " ".join((self.what, *self.paths))


def recorded(blobs: Path) -> list[Operation]:
    """The operations that a watched command left in its folder."""
    lines = map(json.loads, (blobs / "log").read_text(encoding="ascii").splitlines())
    return [
        Operation(
            line["what"],
            tuple(line["paths"]),
            (blobs / line["content"]).read_bytes() if line["content"] else None,
        )
        for line in lines
    ]


@dataclass(eq=False, slots=True)
class File:
    now: bytes = b""
    on_disk: bytes = b""


@dataclass(eq=False, slots=True)
class Folder:
    now: dict[str, File | Folder] = field(default_factory=dict)
    on_disk: dict[str, File | Folder] = field(default_factory=dict)


Choice = Callable[[str, bool, bool], bool]  # path that changed, is it there now, was this the last change


class Disk:
    """A folder on a disk: what programs see, and what would be left."""

    def __init__(self, start: State) -> None:
        """A disk that holds a state, all of it for certain."""
        self.root = Folder()
        self.last: tuple[str, ...] = ()
        for path, content in sorted(start.items()):
            folder, name = self._place(path)
            node = Folder() if content is None else File(content, content)
            folder.now[name] = folder.on_disk[name] = node

    def apply(self, operation: Operation) -> None:
        what, paths = operation.what, operation.paths
        folder, name = self._place(paths[0])
        if what == "open":
            file = folder.now.setdefault(name, File())
            assert isinstance(file, File)
            file.now = b""
        elif what == "sync":
            file = folder.now[name]
            assert isinstance(file, File)
            assert operation.content is not None
            file.now = file.on_disk = operation.content
        elif what == "sync_folder":
            synced = folder.now[name] if name else self.root
            assert isinstance(synced, Folder)
            synced.on_disk = dict(synced.now)
        elif what == "rename":
            moved = folder.now.pop(name)
            if isinstance(moved, File) and operation.content is not None:
                moved.now = operation.content
            folder, name = self._place(paths[1])
            folder.now[name] = moved
        elif what == "mkdir":
            folder.now.setdefault(name, Folder())
        elif what == "remove":
            folder.now.pop(name, None)
        elif what == "rmdir" and folder.now.get(name) and not folder.now[name].now:
            del folder.now[name]
        self.last = paths if not what.startswith("sync") else ()

    def _place(self, path: str) -> tuple[Folder, str]:
        *folders, name = path.split("/") if path != "." else [""]
        place = self.root
        for inner in folders:
            found = place.now[inner]
            assert isinstance(found, Folder)
            place = found
        return place, name

    def _is_last(self, path: str) -> bool:
        return any(last == path or last.startswith(f"{path}/") for last in self.last)

    def after_a_cut(self, arrived: Choice, unsynced: str) -> State:
        """What the disk holds if the power is cut now.

        Args:
            arrived: whether a change of a name since its folder was synced has reached the disk.
            unsynced: what a file holds that was not synced: "nothing", "zeros" or "half".
        """
        state: State = {}
        self._look(self.root, "", arrived, unsynced, state)
        return state

    def _look(self, folder: Folder, path: str, arrived: Choice, unsynced: str, state: State) -> None:
        for name in sorted({**folder.on_disk, **folder.now}):
            inner = f"{path}/{name}".lstrip("/")
            node = before = folder.on_disk.get(name)
            now = folder.now.get(name)
            if now is not before and arrived(inner, now is not None, self._is_last(inner)):
                node = now
            if isinstance(node, Folder):
                state[inner] = None
                self._look(node, inner, arrived, unsynced, state)
            elif isinstance(node, File):
                state[inner] = node.on_disk
                if node.now != node.on_disk:
                    half = node.now[: len(node.now) // 2]
                    state[inner] = {"nothing": node.on_disk, "zeros": bytes(len(node.now)), "half": half}[unsynced]


def cuts(disk: Disk, draw: random.Random) -> Iterator[tuple[str, State]]:
    """What the disk may hold if the power is cut now: the extremes, and one at random. Gives words and state."""
    everything: Choice = lambda _path, _there, _last: True  # noqa: E731
    yield "all names arrived, unsynced files are of zeros", disk.after_a_cut(everything, "zeros")
    yield "all names arrived, unsynced files are halves", disk.after_a_cut(everything, "half")
    yield "nothing unsynced arrived", disk.after_a_cut(lambda _path, _there, _last: False, "nothing")
    yield "the last change alone arrived", disk.after_a_cut(lambda _path, _there, last: last, "nothing")
    yield "names went, none came", disk.after_a_cut(lambda _path, there, _last: not there, "nothing")
    yield "names came, none went", disk.after_a_cut(lambda _path, there, _last: there, "zeros")
    yield "some changes arrived", disk.after_a_cut(lambda _path, _there, _last: draw.random() < 0.5, "half")


IN_ORDER = ("all names", "nothing unsynced")  # what begins the words of cuts where a rename is done or is not


def state_of(folder: Path) -> State:
    """What a real folder holds."""
    return {
        path.relative_to(folder).as_posix(): path.read_bytes() if path.is_file() else None
        for path in folder.rglob("*")
    }


def make(state: State, folder: Path) -> Path:
    """Write a state to a real folder."""
    folder.mkdir()
    for path, content in state.items():
        if content is None:
            (folder / path).mkdir()
        else:
            (folder / path).write_bytes(content)
    return folder
