"""Commands whose file operations are counted, so that a test can act at the n-th of them, not after some time.

What is done below one folder counts, by whichever process of the command: files opened for writing, renames,
removals, folders made, fsync. See watched/sitecustomize.py, which runs inside the processes.
"""

from __future__ import annotations

import hashlib
import json
import os
import signal
import subprocess
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.conftest import alexshard

SITE = Path(__file__).parent / "watched"
LIMIT_S = 300  # for a command; a test that meets it has failed

needs_proc = pytest.mark.skipif(
    not Path("/proc/self/fd").is_dir(), reason="NOT TESTED: file operations are told apart by /proc/self/fd"
)


@dataclass(frozen=True, slots=True)
class Event:
    """One file operation, as it was about to happen."""

    role: str  # "coordinator" or "worker"
    text: str  # operation and paths below the watched folder: "rename set/.build/a.part set/.build/a"


@dataclass(frozen=True, slots=True)
class Done:
    """How a watched command ended."""

    code: int
    out: str
    err: str
    events: tuple[Event, ...]

    @property
    def was_killed(self) -> bool:
        return self.code == -signal.SIGKILL or "killed by SIGKILL" in self.err

    def __str__(self) -> str:
        last = f"{len(self.events)} events, last {self.events[-1]}" if self.events else "no event"
        return f"exit code {self.code}, {last}\n{self.out}\n{self.err}"


def watched(
    *arguments: object,
    below: Path,
    at: int | None = None,
    then: str = "kill all",
    since: str = "",
    role: str = "",
    blobs: Path | None = None,
    prefix: Sequence[str] = (),
    file_bytes: int | None = None,
) -> Done:
    """Run `alexshard` and count what it does below a folder.

    Args:
        at: the event to act at, just before it happens; 1 is the first.
        then: "kill this" (the process whose event it is), "kill coordinator", "kill all", "stop this", or a
            command of the shell, which ends before the event happens.
        since: count from the first event that matches this expression.
        role: count only events of "coordinator" or "worker".
        blobs: a folder that gets a record of all events and the bytes that were brought to the disk.
        prefix: a command that runs the command.
        file_bytes: a process that makes any file longer than this is killed in the middle of the write; nothing is
            counted then.
    """
    with tempfile.TemporaryDirectory() as folder:  # the disk below may be full
        log = Path(folder) / "log"
        orders = {
            "below": str(below.resolve()),
            "at": at,
            "then": then,
            "since": since,
            "role": role,
            "log": str(log),
            "blobs": str(blobs) if blobs else None,
            "file_bytes": file_bytes,
        }
        places = [str(SITE), *filter(None, [os.environ.get("PYTHONPATH")])]
        environment = os.environ | {"PYTHONPATH": os.pathsep.join(places), "WATCHED": json.dumps(orders)}

        with subprocess.Popen(
            [*prefix, *alexshard(*arguments)],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            env=environment,
            start_new_session=True,
        ) as process:
            try:
                # Returns when the last process that holds the pipes has ended: the workers too.
                out, err = process.communicate(timeout=LIMIT_S)
            except BaseException:
                os.killpg(process.pid, signal.SIGKILL)
                raise
        return Done(process.returncode, out, err, events_of(log))


def events_of(log: Path) -> tuple[Event, ...]:
    if not log.exists():
        return ()
    lines = map(json.loads, log.read_text(encoding="ascii").splitlines())
    return tuple(Event(line["role"], line["event"]) for line in lines)


def sha256_of(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def digests_of(folder: Path) -> dict[str, str]:
    """Every file below a folder with its SHA-256, and every folder in it that is empty."""
    return {
        path.relative_to(folder).as_posix(): sha256_of(path) if path.is_file() else "empty folder"
        for path in folder.rglob("*")
        if path.is_file() or not any(path.iterdir())
    }


def finished_shards(out: Path) -> dict[str, tuple[int, int]]:
    """Shards of an unfinished build with a record and the bytes that it promises: name to inode and time."""
    found = {}
    for record in (out / ".build").glob("*-*.json"):
        entry = json.loads(record.read_bytes())["record"]["entry"]
        for path in (out / ".build" / entry["name"], out / entry["name"]):
            if path.exists() and sha256_of(path) == entry["sha256"]:
                found[entry["name"]] = (path.stat().st_ino, path.stat().st_mtime_ns)
    return found
