"""Commands as a person types them: real processes, from a folder of their own, found by the PATH."""

from __future__ import annotations

import os
import shlex
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.conftest import ROOT


class Desk:
    """A working folder in which commands are typed."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def type(self, line: str, *, expect: int = 0) -> subprocess.CompletedProcess[str]:
        """Run one line, split as a shell splits it; `tools/…` is the clone's. Its exit code must be `expect`."""
        words = [str(ROOT / word) if word.startswith("tools/") else word for word in shlex.split(line)]
        path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
        done = subprocess.run(
            words, cwd=self.folder, env={**os.environ, "PATH": path}, capture_output=True, text=True, check=False
        )
        assert done.returncode == expect, f"$ {line}\nexit {done.returncode}\n{done.stdout}\n{done.stderr}"
        assert "Traceback" not in done.stderr, f"$ {line}\n{done.stderr}"
        return done


@pytest.fixture(scope="session")
def make_desk(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Desk]:
    """`make_desk(name)` is a new empty working folder."""
    return lambda name: Desk(tmp_path_factory.mktemp(name))


@pytest.fixture(scope="session")
def drawn_desk(make_desk: Callable[[str], Desk]) -> Desk:
    """A desk on which a sample was drawn and built."""
    desk = make_desk("desk")
    desk.type("alexshard sample ilsvrc --train 120 --val 30 --test 20")
    desk.type("alexshard build ilsvrc")
    return desk
