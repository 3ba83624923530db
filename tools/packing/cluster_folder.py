"""The folder inside `.build` that belongs to one client of a cluster: workers write there, the client moves out.

It is also how a worker sees that its client still waits: it ends with the client's work, however that ends, and
what a killed client has left is removed by the next build.
"""

from __future__ import annotations

import os
import secrets
import shutil
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from ...shards import sync_folder
from .disk import writing

FOLDER_PREFIX = "cluster-"
TOKEN_NAME = "client"  # in the folder: says whose it is


@contextmanager
def own_folder(work: Path, token: str) -> Iterator[Path]:
    """A new folder inside `work` for what workers write; gone at the end with all that is in it."""
    own = Path(os.path.abspath(work)) / f"{FOLDER_PREFIX}{token}"  # noqa: PTH100 (links keep their names)
    with writing(str(own), work):
        own.mkdir()
        (own / TOKEN_NAME).write_text(token, encoding="ascii")
    try:
        yield own
    finally:
        _remove(own)


def _remove(folder: Path) -> None:
    """First by another name, so that a worker which still writes there makes nothing new meanwhile."""
    other = folder.with_name(f"{FOLDER_PREFIX}{secrets.token_hex(8)}")
    with suppress(OSError):
        folder.rename(other)
    shutil.rmtree(other, ignore_errors=True)


def move(names: tuple[str, ...], source: Path, dest: Path) -> None:
    with writing(names[-1], dest):
        for name in names:
            (source / name).replace(dest / name)
        sync_folder(dest)
