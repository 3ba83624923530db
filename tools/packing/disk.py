"""What the disk refuses, in words."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from ...shards import AlexshardError


@contextmanager
def writing(what: str, folder: Path) -> Iterator[None]:
    """Turn what the disk refuses within the block into an error that says what could not be written.

    Raises:
        AlexshardError: the disk is full, fails, or may not be written to.
    """
    try:
        yield
    except ConnectionError:
        raise  # a pipe, no disk: whoever listened has gone
    except OSError as error:
        raise AlexshardError(
            f"{what} cannot be written: {error.strerror or error}",
            where=str(error.filename or folder),
            why="half of it would be of no use",
            remedy="make room, mend the disk, or choose a folder that you may write to",
        ) from None
