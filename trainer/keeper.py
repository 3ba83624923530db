"""Checkpoints written while training goes on: a copy of the state, and a thread that writes it.

    weights, momentum ─► copy in memory of its own (queued on a card, not waited for) ─► thread: file, rename

One is written at a time. A write that fails costs that checkpoint and never the run: the files before it stay, the
run is told, and tries again when the next one is due.
"""

from __future__ import annotations

import errno
import threading
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from .checkpoint import Checkpoint
from .run_folder import RunFolder

FULL = (errno.ENOSPC, errno.EDQUOT)


class Copies:
    """Copies of tensors on the CPU, in memory that is used again for the next copy."""

    def __init__(self) -> None:
        self._memory: dict[str, Tensor] = {}
        self._events: list[torch.cuda.Event] = []

    def take(self, name: str, pieces: Sequence[Tensor]) -> Tensor:
        """`pieces`, which may be on several devices, as one tensor joined along the first dimension.

        From a card the copy is queued behind the work given to it so far; `wait` before reading.
        """
        on_card = any(piece.device.type == "cuda" for piece in pieces)
        if name not in self._memory:
            shape = (sum(len(piece) for piece in pieces), *pieces[0].shape[1:])
            self._memory[name] = torch.empty(shape, dtype=pieces[0].dtype, pin_memory=on_card)
        copy, start = self._memory[name], 0
        for piece in pieces:
            copy[start : start + len(piece)].copy_(piece.detach(), non_blocking=True)
            start += len(piece)
        return copy

    def take_all(self, pieces: Mapping[str, Sequence[Tensor]], prefix: str) -> dict[str, Tensor]:
        """Every tensor by its name; `prefix` tells them from others taken at the same time."""
        return {name: self.take(prefix + name, parts) for name, parts in pieces.items()}

    def queued(self, devices: Sequence[torch.device]) -> None:
        """All copies are queued."""
        self._events = []
        for device in devices:
            if device.type == "cuda":
                event = torch.cuda.Event()  # type: ignore[no-untyped-call]
                event.record(torch.cuda.current_stream(device))
                self._events.append(event)

    def wait(self) -> None:
        """Until they are made."""
        for event in self._events:
            event.synchronize()


class Keeper:
    """Writes a run's checkpoints, keeps the newest few and the best."""

    def __init__(self, folder: RunFolder, keep: int) -> None:
        self._folder, self._keep = folder, keep
        self._thread: threading.Thread | None = None
        self._error: OSError | None = None
        self._written: int | None = None
        self.copies = Copies()

    @property
    def busy(self) -> bool:
        """Whether one is being written."""
        return self._thread is not None and self._thread.is_alive()

    def save(self, checkpoint: Checkpoint, *, best: bool) -> None:
        """Begin to write, once the one before is written. Its tensors are `copies`, taken after a `wait`."""
        self.wait()
        thread = threading.Thread(target=self._write, args=(checkpoint, best), name="alexshard-checkpoint")
        try:
            thread.start()
        except RuntimeError:  # no memory for it, or too many: then training waits
            self._write(checkpoint, best)
        else:
            self._thread = thread

    def wait(self) -> None:
        """Until nothing is being written."""
        if self._thread is not None:
            self._thread.join()

    def outcome(self) -> tuple[int | None, OSError | None]:
        """The step that was written since this was asked last, and what went wrong."""
        if self.busy:
            return None, None
        told = self._written, self._error
        self._written = self._error = None
        return told

    def _write(self, checkpoint: Checkpoint, best: bool) -> None:
        path = self._folder.checkpoint_of(checkpoint.step)
        try:
            self.copies.wait()
            try:
                checkpoint.save(path)
            except OSError as error:
                if error.errno not in FULL or not self._folder.prune(1):
                    raise
                checkpoint.save(path)  # there is more room now
            if best:
                self._folder.mark_best(path)
            self._folder.prune(self._keep)
            self._written = checkpoint.step
        except OSError as error:
            self._error = error
        except Exception as error:  # whatever it was, the state is not on the disk
            self._error = OSError(errno.EIO, str(error).partition("\n")[0] or type(error).__name__)
