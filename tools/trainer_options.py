"""Options that several commands of `alextrain` share, and what they come to."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from ..shards import NoShardSet, ShardSet, WrongCall, is_address

if TYPE_CHECKING:
    from ..trainer import Checkpoint

FOLDER = click.Path(path_type=Path)
# Words, not paths: a Path would make one slash of the two in s3://.
SHARDS = click.option(
    "--shards",
    metavar="SET",
    help="Shard set, folder with exactly one, or address (s3://…).  [default: shards/, or the run's own]",
)


def machine_options(command: Any) -> Any:
    """How batches are made and where shards of an address are kept: decides speed, and may change any time."""
    for option in reversed(
        (
            click.option("--threads", type=click.IntRange(1, 1024), help="Of the CPU.  [default: one a core]"),
            click.option(
                "--prefetch", type=click.IntRange(1, 64), help="Batches made ahead.  [default: by the memory]"
            ),
            click.option(
                "--backend",
                type=click.Choice(["threads", "dali", "reference"]),
                help="What makes the batches.  [default: threads on a CPU, dali on a GPU]",
            ),
            click.option(
                "--decoder",
                type=click.Choice(["cores", "card", "split"]),
                help="Of JPEGs.  [default: measured at the start on a GPU]",
            ),
            click.option("--cache", type=FOLDER, help="Where shards of an address are kept."),
            click.option("--cache-size", metavar="SIZE", help="The most that it may hold, such as 100GB."),
        )
    ):
        command = option(command)
    return command


def shard_set_of(shards: str | None, run: Path | None, cache: Path | None, cache_size: str | None) -> ShardSet:
    """The set named; else the one that the run's configuration names; else the only one in shards/."""
    from ..pipeline import open_shard_set, parse_bytes
    from ..trainer import RunFolder

    own = RunFolder(run).shard_set() if shards is None and run is not None else None
    shards = shards or own or "shards"
    cache_bytes = None if cache_size is None else parse_bytes(cache_size)
    if not is_address(shards) and (cache, cache_size) != (None, None):
        raise WrongCall(
            f"--cache{'' if cache else '-size'} is for sets at an address, and {shards} is a folder",
            why="shards of a folder are read where they are",
            remedy="leave it out",
        )
    try:
        return open_shard_set(shards, cache=cache, cache_bytes=cache_bytes)
    except NoShardSet as error:
        if own is None or run is None:
            raise
        about = RunFolder(run).configuration()["shard_set"]
        raise WrongCall(
            f"the shard set that {run} was trained on is not at {own}: {error.what}",
            where=f"it was called {about.get('name')}, digest {str(about.get('digest'))[:12]}…",
            why="what a run goes on with, or is evaluated on, must be what it was trained on",
            remedy="say by --shards where it is now",
        ) from error


def network_of(run: Path, *, best: bool = False) -> Checkpoint:
    """The newest state of a run that can be read, or the best, or that of one file; damaged ones are warned of."""
    from ..trainer import load_checkpoint

    return load_checkpoint(run, best=best, say=lambda line: click.echo(f"warning: {line}", err=True))
