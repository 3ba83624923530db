"""What all tests share: where the real images lie, and sources and shard sets made once a session.

Tests on the drawn sample set pass in anyone's clone; tests that ask for `shared` or `assembled` use real images
and skip, saying so, where these are not there.
"""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import settings

from tests.s3_server import s3, s3_port  # noqa: F401 (fixtures)

# As `alextrain` does, before torch is imported: spinning threads make tests beside other work far slower.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

# No test fails for being slow: machines are shared.
settings.register_profile("no deadline", deadline=None)
settings.load_profile("no deadline")

ROOT = Path(__file__).resolve().parent.parent


@pytest.fixture(scope="session")
def shared() -> Path:
    """The folder with `data/assemble.py` and real images: $ALEXSHARD_SHARED, else ../shared beside the clone."""
    folder = Path(os.environ.get("ALEXSHARD_SHARED", ROOT.parent / "shared"))
    if not (folder / "data" / "assemble.py").is_file():
        pytest.skip(f"NO REAL IMAGES: {folder} has no data/assemble.py (set ALEXSHARD_SHARED)")
    return folder


@pytest.fixture(scope="session")
def assembled(shared: Path, tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """`assembled(kind)` is a source of real images as `assemble.py` lays it out, made once a session."""
    made: dict[str, Path] = {}

    def assemble(kind: str) -> Path:
        if kind not in made:
            dest = tmp_path_factory.mktemp("assembled") / f"source-{kind}"
            run(sys.executable, shared / "data" / "assemble.py", kind, dest)
            made[kind] = dest
        return made[kind]

    return assemble


@pytest.fixture(scope="session")
def sample_source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small drawn source in the layout of the ILSVRC2010 archives."""
    dest = tmp_path_factory.mktemp("drawn") / "drawn-source"
    run(*alexshard("sample", dest, "--train", 160, "--val", 40, "--test", 40))
    return dest


@pytest.fixture(scope="session")
def sample_set(sample_source: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The shard set (JPEG, 256×256) of `sample_source`."""
    dest = tmp_path_factory.mktemp("sets") / "drawn"
    run(*alexshard("build", sample_source, "--out", dest))
    return dest


@pytest.fixture(scope="session")
def raw_sample_set(sample_source: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same as raw pixels."""
    dest = tmp_path_factory.mktemp("sets") / "drawn-raw"
    run(*alexshard("build", sample_source, "--out", dest, "--format", "raw"))
    return dest


def alexshard(*arguments: object) -> list[str]:
    """The command line that runs `alexshard` in this Python."""
    return [sys.executable, "-m", "alexshard.tools.cli_alexshard", *map(str, arguments)]


def run(*command: object) -> str:
    """Run a command that must succeed; returns its stdout, and shows both streams where it does not."""
    done = subprocess.run([str(part) for part in command], capture_output=True, text=True, check=False)
    if done.returncode != 0:
        raise AssertionError(f"{command} exited {done.returncode}\n{done.stdout}\n{done.stderr}")
    return done.stdout
