"""Runs `alexshard build` on a source that nobody trusts, and checks what holds whatever the source is."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from alexshard.shards import read_rows

from tests.conftest import alexshard

LONGEST_LINE = 500  # characters of what a person is shown
WALL_S = 120  # a net below everything: nothing here takes more than a few seconds

# Runs the command after it and adds its peak memory. Its own process is small, since what a child inherits counts.
_MEASURED = (
    "import os, subprocess, sys\n"
    "process = subprocess.Popen(sys.argv[1:])\n"
    "_, status, usage = os.wait4(process.pid, 0)\n"
    "print(f'peak {usage.ru_maxrss // 1024}', file=sys.stderr)\n"
    "os._exit(os.waitstatus_to_exitcode(status) % 256)\n"
)


@dataclass(frozen=True)
class Ended:
    """How a build ended."""

    code: int
    lines: list[str]  # of both streams
    peak_mb: int
    out: Path

    @property
    def said(self) -> str:
        """The first line of the error."""
        return next((line for line in self.lines if line.startswith("error: ")), "")

    @property
    def told(self) -> list[str]:
        """The lines without those of progress, which depend on time."""
        return [line for line in self.lines if not line.startswith(("look ", "build "))]

    def quarantine(self) -> list[dict[str, str]]:
        text = (self.out / "quarantine.jsonl").read_bytes().decode("ascii")
        return [json.loads(line) for line in text.splitlines()]

    def notes(self) -> dict[str, str]:
        """What was packed: original name to note."""
        return {row.original: row.note for row in read_rows(self.out / "samples.tsv")}


def state(folder: Path, leave_out: Path) -> dict[str, Any]:
    """Everything below a folder, without opening any of it."""
    found, waiting = {}, [str(folder)]
    while waiting:
        with os.scandir(waiting.pop()) as entries:
            for entry in entries:
                status, is_folder = entry.stat(follow_symlinks=False), entry.is_dir(follow_symlinks=False)
                if entry.path != str(leave_out):
                    found[entry.path] = (
                        status.st_mode,
                        None if is_folder else (status.st_size, status.st_mtime_ns),
                    )
                    waiting += [entry.path] if is_folder else []
    return found


def build(tmp_path: Path, source: Path, *options: object, limit_mb: int, wall_s: int = WALL_S) -> Ended:
    """Build a source by the command, and check what holds whatever the source is."""
    for name in ("home", "temporary"):
        (tmp_path / name).mkdir(exist_ok=True)
    out, before = tmp_path / "set", state(tmp_path, tmp_path / "set")
    command = alexshard("build", source, "--out", out, "--size", 32, "-j", 1, *options)
    done = subprocess.run(
        [sys.executable, "-S", "-c", _MEASURED, *command],
        capture_output=True,
        timeout=wall_s,
        cwd=tmp_path,
        env=os.environ | {"HOME": str(tmp_path / "home"), "TMPDIR": str(tmp_path / "temporary")},
        check=False,
    )
    # Progress writes over its own line; both streams must be text, names that are not included.
    text = (done.stdout + done.stderr).decode("utf-8").replace("\r", "\n")
    *lines, peak = text.rstrip("\n").split("\n")
    ended = Ended(done.returncode, lines, int(peak.removeprefix("peak ")), out)

    assert state(tmp_path, out) == before, "something was written outside of the output"
    assert "Traceback" not in text, text
    unfit = [line for line in lines if not line.isprintable() or len(line) > LONGEST_LINE]
    assert not unfit, f"not for a terminal, or too long: {unfit[0][:1000]!r}"
    assert ended.peak_mb < limit_mb, f"took {ended.peak_mb} MB"
    if ended.code == 0:
        _check_accounts(ended)
    else:
        assert ended.said, f"exit code {ended.code} and no error: {text}"
        assert not (out / "manifest.json").exists(), "a failed build looks complete"
    return ended


def _check_accounts(ended: Ended) -> None:
    splits = json.loads((ended.out / "manifest.json").read_bytes())["splits"].values()
    found, packed, refused = (sum(split[key] for split in splits) for key in ("found", "samples", "quarantined"))
    rows, lines = len(list(read_rows(ended.out / "samples.tsv"))), len(ended.quarantine())
    assert (found, packed, refused) == (packed + refused, rows, lines), (
        f"{found} found, {rows} rows, {lines} refused"
    )


@contextmanager
def within(seconds: int) -> Iterator[None]:
    """A net below what runs in this process."""

    def late(*_: object) -> None:
        raise AssertionError(f"not done within {seconds} s")

    before = signal.signal(signal.SIGALRM, late)
    signal.alarm(seconds)
    try:
        yield
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, before)


@contextmanager
def deep_folder(path: Path, depth: int) -> Iterator[None]:
    """So many folders in each other, removed afterwards: `shutil.rmtree`, and so pytest, cannot."""
    path.mkdir()
    here = Path.cwd()
    os.chdir(path)
    try:
        for _ in range(depth):
            Path("d").mkdir()
            os.chdir("d")
        os.chdir(here)
        yield
    finally:
        os.chdir(here)
        subprocess.run(["rm", "-r", path], check=True)
