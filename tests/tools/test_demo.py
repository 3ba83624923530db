"""`tools/demo` before its first command: what it asks for, what it leaves alone, how it speaks."""

from __future__ import annotations

import os
import pty
import subprocess
import sys
from pathlib import Path

from tests.conftest import ROOT

WITH_COMMANDS = f"{Path(sys.executable).parent}:{os.environ['PATH']}"


def test_without_its_commands_on_the_path_it_changes_nothing_and_says_how(tmp_path):
    (tmp_path / "made-by-demo").touch()
    (tmp_path / "sheet.png").write_text("of the last demo")
    done = subprocess.run(
        [ROOT / "tools" / "demo"],
        env={"PATH": "/usr/bin:/bin", "DEMO_DIR": str(tmp_path)},
        capture_output=True,
        text=True,
        check=False,
    )

    assert done.returncode == 2
    assert "alexshard is not on the path; make demo puts it there" in done.stderr
    assert sorted(path.name for path in tmp_path.iterdir()) == ["made-by-demo", "sheet.png"]


def test_commands_are_told_plainly_but_on_a_terminal(tmp_path):
    command, environment = [ROOT / "tools" / "demo", "absent"], {**os.environ, "PATH": WITH_COMMANDS}
    piped = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, check=False)
    ours, theirs = pty.openpty()
    shown = subprocess.run(
        command, cwd=tmp_path, env=environment, stdout=theirs, stderr=subprocess.DEVNULL, check=False
    )
    os.close(theirs)
    written = os.read(ours, 4096).decode()
    os.close(ours)

    assert (piped.returncode, piped.stdout) == (2, "\n$ alexshard build absent --out shards/absent\n")
    assert shown.returncode == 2
    assert written == "\r\n\x1b[1m$ alexshard build absent --out shards/absent\x1b[0m\r\n"
