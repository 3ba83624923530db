"""`tools/gpu_check`: G1 to G8 of shared/gpu/README.md on whatever card is there, in one table."""

from __future__ import annotations

import os
import platform
import shutil
import signal
import subprocess
import tempfile
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import click

from .. import __version__
from ..shards import ShardSet, WrongCall
from .terminal import CliCommand, signals_raise

# As `alextrain` does, before torch is imported.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

PLACE = Path(__file__).resolve().parent.parent
NAMES = ("ceilings", *(f"G{number}" for number in range(1, 9)))
FILE = click.Path(path_type=Path, dir_okay=False)


@click.command(cls=CliCommand)
@click.option("--device", default="auto", show_default=True, help="auto, cpu, cuda or cuda:N.")
@click.option("--shards", metavar="SET", help="A shard set, JPEG or raw.  [default: drawn and built here]")
@click.option(
    "--images",
    type=click.Path(exists=True, file_okay=False, path_type=Path),
    help="Real images: a folder per class, or a shard set of them.  [default: drawn]",
)
@click.option(
    "--minutes",
    type=click.FloatRange(min=0),
    default=12.0,
    show_default=True,
    help="That all of it may take; what no longer fits is left out, in words.",
)
@click.option("--only", metavar="G1,G3,…", help="These questions alone.")
@click.option("--small", is_flag=True, help="Small networks and images, as always without a card.")
@click.option("--out", type=FILE, help="Write the table as Markdown, anew after every row.")
@click.option("--json", "json_file", type=FILE, help="Write one JSON object, anew after every row.")
@click.version_option(__version__, prog_name="gpu_check")
def main(
    device: str,
    shards: str | None,
    images: Path | None,
    minutes: float,
    only: str | None,
    small: bool,
    out: Path | None,
    json_file: Path | None,
) -> None:
    """Everything that is asked of a card, each answer told as soon as it is there.

    Ends with the headline: 90 epochs of ILSVRC-2010 in so many minutes. Without a card the same runs on the cores
    at small size, so that a visit to one only needs this command. Exit code 1 where an answer is wrong or failed.
    """
    asked = _asked(only)
    for name, file in (("--out", out), ("--json", json_file)):
        if file is not None and not file.parent.is_dir():
            raise WrongCall(f"{name} {file}: there is no folder {file.parent}", remedy=f"mkdir -p {file.parent}")
    # Late, so that a wrong call is told at once: this imports torch.
    from ..pipeline import open_shard_set
    from ..trainer import Machine
    from .gpu_report import Report
    from .gpu_scene import Scene, Sizes
    from .gpu_sets import Making, Sets
    from .gpu_visit import visit

    machine = Machine.choose(device, parallel="single")
    machine.prepare()
    if machine.device.type == "cpu" and not small:
        small = True  # at full size a single row would take longer than all the minutes
        click.echo("no card: small networks and images, and no headline", err=True)
    given: ShardSet | None = open_shard_set(shards) if shards else None
    words = {"--device": device, "--shards": shards, "--images": images, "--small": small}
    told = [name if value is True else f"{name} {value}" for name, value in words.items() if value]
    report = Report(about(machine), command=" ".join(["tools/gpu_check", *told]), out=out, json_file=json_file)
    with (
        signals_raise(signal.SIGTERM),
        tempfile.TemporaryDirectory(prefix="gpu-check-", ignore_cleanup_errors=True) as folder,
    ):
        sets = Sets(Path(folder), Making.small() if small else Making(), given=given, pictures=images)
        sizes = Sizes.small() if small else Sizes()
        visit(Scene(machine.device, sizes, sets, Path(folder)), report, minutes=minutes, only=asked)
    click.get_current_context().exit(report.exit_code)


def _asked(only: str | None) -> list[str]:
    asked = [name.strip() for name in only.split(",")] if only else []
    if unknown := [name for name in asked if name not in NAMES]:
        raise WrongCall(f"--only {','.join(unknown)}: no such question", remedy=f"some of {', '.join(NAMES)}")
    return asked


def about(machine: Any) -> dict[str, str]:
    """What the figures depend on: the check line of shared/gpu/README.md §1 and more."""
    import torch

    from .loader_versions import versions

    found = {**versions(), "triton": _triton()}
    described = machine.describe()
    return {
        "date": f"{datetime.now(UTC):%Y-%m-%d %H:%M} UTC",
        "device": ", ".join(described["names"]),
        "driver": _driver(),
        "cuda": str(torch.version.cuda or "this torch is built without"),
        "cores": f"{described['cores']} of {platform.processor() or platform.machine()}",
        **{name: found[name] for name in found if name != "alexshard"},
        "commit": _commit(),
    }


def _triton() -> str:
    try:
        import triton
    except ImportError:
        return "not installed"
    return str(triton.__version__)


def _driver() -> str:
    if shutil.which("nvidia-smi") is None:
        return "no nvidia-smi here"
    query = ["nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"]
    done = subprocess.run(query, capture_output=True, text=True, check=False)
    return done.stdout.strip().partition("\n")[0] or "nvidia-smi says nothing"


def _commit() -> str:
    """Of git, and whether files differ from it; else the version."""

    def git(*arguments: str) -> str:
        command = ["git", "-C", str(PLACE), *arguments]
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()

    try:
        commit = git("rev-parse", "--short=12", "HEAD")
        return f"{commit}{' and changes' if git('status', '--porcelain') else ''}, version {__version__}"
    except (OSError, subprocess.CalledProcessError):
        return f"version {__version__} (no git here)"


if __name__ == "__main__":
    main()
