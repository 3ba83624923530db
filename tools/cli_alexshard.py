"""The command `alexshard`: archives to shard sets, and everything one asks of a shard set."""

from __future__ import annotations

import click

from .. import __version__
from .terminal import Cli


@click.group(cls=Cli)
@click.version_option(__version__, prog_name="alexshard")
def main() -> None:
    """Pack the ILSVRC archives into WebDataset shards and look at the result."""


if __name__ == "__main__":
    main()
