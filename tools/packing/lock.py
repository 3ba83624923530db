"""One build at a time on an output, and a second one is told who the first is."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from ...shards import Holder, WrongCall
from ...shards import locked as locked_folder


@contextmanager
def locked(folder: Path, output: Path) -> Iterator[str | None]:
    """Within the block this process alone works in `folder`; gives a remark where that cannot be ensured.

    Raises:
        WrongCall: another build is at work; the message says who.
        OSError: the folder cannot be made or written to.
    """

    def busy(holder: Holder | None) -> WrongCall:
        return WrongCall(
            f"another build is at work on {output}",
            where=str(holder) if holder else "",
            why="two builds would spoil each other's shards",
            remedy="wait for it, or choose another folder with --out",
        )

    remark = f"the disk of {output} knows no locks: see to it that no other machine builds there at the same time"
    with locked_folder(folder, busy=busy, no_locks=remark) as said:
        yield said
