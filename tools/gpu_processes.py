"""Runs of `alextrain` for `tools/gpu_check`, each a process of its own as on any day."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from ..shards import AlexshardError
from .gpu_scene import Scene

WAIT_S = 600.0  # for a process at most
GRACE_S = 60.0  # for one that was asked to stop: it writes its state


def alextrain(
    scene: Scene, *arguments: object, timeout_s: float = WAIT_S, stop: Callable[[], bool] | None = None
) -> str:
    """What the command said. Where `stop` becomes true it is killed by SIGKILL, and that is no error.

    After `timeout_s` it is asked to stop in order, by SIGTERM; that is none either.

    Raises:
        AlexshardError: it failed.
    """
    command = [sys.executable, "-m", "alexshard.tools.cli_alextrain", *map(str, arguments)]
    log = scene.folder / "alextrain.log"
    with log.open("w+b") as said:
        process = subprocess.Popen(command, stdout=said, stderr=subprocess.STDOUT)
        try:
            ended_by_us = _ended(process, timeout_s, stop)
        finally:
            if process.poll() is None:
                process.kill()
                process.wait()
    text = log.read_text(errors="replace")
    if process.returncode != 0 and not ended_by_us:
        raise AlexshardError(
            f"alextrain exited {process.returncode}: {' '.join(text.strip().splitlines()[-4:])}",
            where=" ".join(command[1:]),
        )
    return text


def figures(run: Path, kind: str) -> list[dict[str, Any]]:
    """The lines of metrics.jsonl of one kind, "train" or "val"; none where the file is not there yet."""
    file = run / "metrics.jsonl"
    lines = file.read_text().split("\n")[:-1] if file.exists() else []  # the last may be half written
    return [record for record in map(json.loads, lines) if record["kind"] == kind]


def _ended(process: subprocess.Popen[bytes], timeout_s: float, stop: Callable[[], bool] | None) -> bool:
    """Wait for the end; whether it was our doing."""
    until = time.monotonic() + timeout_s
    while process.poll() is None:
        if stop is not None and stop():
            process.kill()
            process.wait()
            return True
        if time.monotonic() > until:
            process.terminate()
            try:
                process.wait(GRACE_S)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()
            return True
        time.sleep(0.02)
    return False
