"""The bytes of a checkpoint, read once from beginning to end, and what is said where that fails.

Three things can be wrong with a state, and they lead to different places:

it is damaged         BadCheckpoint    another state of the run may serve; a run sets this one aside
it cannot be read     CannotReadNow    the disk or the memory said no, and the state may be sound: nothing is done
it is of another age  LaterFormat      a later alexshard wrote it, and can go on from it: nothing is done
"""

from __future__ import annotations

import errno
import io
import pickletools
import warnings
import zipfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any, BinaryIO, TypeVar

import torch

from ..shards import AlexshardError, WrongCall, printable
from .step import out_of_memory

T = TypeVar("T")

# A mark in a zip's list of parts, which no CRC covers. torch reads nothing for a part that has it, and hands out
# whatever was in that memory before as its numbers.
_A_FOLDER = 0x10

_BEGINS = b"PK\3\4"

# What makes the values that torch writes for a run, and how a pickle names what it calls.
_CALLED = {"collections OrderedDict", "torch FloatStorage", "torch._utils _rebuild_tensor_v2"}
_CALLS = {"GLOBAL", "STACK_GLOBAL", "INST", "EXT1", "EXT2", "EXT4"}

_NEVER = "; where it never can, move it away, and the state before it is taken"

_LONGEST_REASON = 200  # letters; a file may bring more


class BadCheckpoint(AlexshardError):
    """A checkpoint is damaged, or is that of another network or another shard set."""


class CannotReadNow(AlexshardError):
    """The operating system did not give a checkpoint's bytes, or there is no memory for them."""


class LaterFormat(AlexshardError):
    """A checkpoint was written by a later alexshard."""


class NoCheckpoint(WrongCall):
    """There is none of that name."""


def contents(path: Path) -> Any:
    """What the file holds: values and tensors, on the CPU, whatever they are.

    Raises:
        NoCheckpoint: there is none.
        CannotReadNow: the operating system says why.
        BadCheckpoint: it is cut or damaged, or holds more than values and tensors.
    """
    with asking_the_disk(path):
        if not path.is_file():
            raise no_checkpoint(path)
        try:
            file = _File(path)
        except FileNotFoundError as error:  # removed in between
            raise no_checkpoint(path) from error
    # Both readers have this one file open, so that they see the same bytes even if its name is given to others.
    with io.BufferedReader(file) as bytes_of:
        try:
            _check_whole(path, bytes_of)
            bytes_of.seek(0)
            with warnings.catch_warnings(action="ignore"):  # of what only a file that is refused holds
                return torch.load(bytes_of, map_location="cpu", weights_only=True)
        except AlexshardError:
            raise
        except Exception as error:  # damaged bytes make both readers fail in every way there is
            if file.refusal is not None:  # which torch may have made another error of
                raise cannot_read_now(path, file.refusal) from error
            raise not_understood(path, error) from error


class _File(io.FileIO):
    """Remembers what the operating system refused, whatever becomes of that error on its way."""

    refusal: OSError | None = None

    def readinto(self, buffer: Any) -> int:
        return self._asked(partial(super().readinto, buffer))

    def readall(self) -> bytes:
        return self._asked(super().readall)

    def seek(self, offset: int, whence: int = 0) -> int:
        return self._asked(partial(super().seek, offset, whence))

    def _asked(self, call: Callable[[], T]) -> T:
        try:
            return call()
        except OSError as error:
            if error.errno != errno.EINVAL:  # damaged bytes may name a place before the file's beginning
                self.refusal = error
            raise


def _check_whole(path: Path, file: BinaryIO) -> None:
    """See that all bytes are those that were written: torch writes CRCs, and does not look at them.

    Raises:
        BadCheckpoint: they are not, or would become more than they are.
    """
    if file.read(len(_BEGINS)) != _BEGINS:
        raise unreadable(
            path, "it does not begin as one"
        )  # torch would read it as of an older kind, and unlooked at
    size = file.seek(0, io.SEEK_END)
    with zipfile.ZipFile(file) as archive:
        entries = archive.infolist()
        if any(entry.compress_type != zipfile.ZIP_STORED for entry in entries):
            raise unreadable(path, "it is compressed, which no state is")
        if any(entry.external_attr & _A_FOLDER for entry in entries):
            raise unreadable(path, "the list of its parts is damaged")
        if sum(entry.file_size for entry in entries) > size:
            raise unreadable(path, "its parts are larger than itself")
        broken = archive.testzip()
        if broken is not None:
            raise unreadable(path, f"{broken} is damaged")
        for entry in entries:
            if entry.filename.lower().endswith("data.pkl"):  # torch finds it in any case
                _check_calls(path, archive.read(entry))


def _check_calls(path: Path, values: bytes) -> None:
    """See that no value is made by anything but what a run's tensors and dictionaries are.

    Without this what torch allows may ask for any amount of memory, as `bytearray` does.

    Raises:
        BadCheckpoint: something else makes one.
    """
    for code, called, _ in pickletools.genops(values):
        if code.name in _CALLS and called not in _CALLED:
            raise unreadable(path, f"its values are made by {called or 'what it names as it goes'}")


@contextmanager
def asking_the_disk(path: Path, what: str = "the checkpoint") -> Iterator[None]:
    """Within the block an error of the operating system is one of its own.

    Raises:
        CannotReadNow: there was one.
    """
    try:
        yield
    except OSError as error:
        raise cannot_read_now(path, error, what) from error


def not_understood(path: Path, error: Exception) -> AlexshardError:
    """What `error`, which reading a file or using its values came to, says of it: nothing, or that it is bad."""
    # Without a number it is not of the operating system: a library found bytes that it did not expect.
    if out_of_memory(error) or (isinstance(error, OSError) and error.errno not in (None, errno.EINVAL)):
        return cannot_read_now(path, error)
    first = str(error).partition("\n")[0]
    # torch explains at length how a file that brings code could be trusted after all.
    return unreadable(path, "it holds more than values and tensors" if "Weights only" in first else first)


def unreadable(path: Path, reason: str) -> BadCheckpoint:
    """The error of a damaged state; `reason` may have words of the file in it."""
    return damaged(path, f"the checkpoint cannot be read: {_shown(reason) or 'nothing is known of the reason'}")


def damaged(path: Path, what: str) -> BadCheckpoint:
    """The same with other words than that it cannot be read."""
    return BadCheckpoint(
        what,
        where=str(path),
        why="with damaged weights a network answers otherwise, and a run would be another",
        remedy="restore the file from a copy, or take another state of the run",
    )


def cannot_read_now(path: Path, error: Exception, what: str = "the checkpoint") -> CannotReadNow:
    """The error of a state that may be sound."""
    memory = out_of_memory(error)
    reason = "there is not enough memory" if memory else getattr(error, "strerror", None) or _shown(str(error))
    return CannotReadNow(
        f"{what} cannot be read now: {reason}",
        where=str(path),
        why="it may well be sound, so nothing older is taken in its place, and it stays as it is",
        remedy=f"the same command again, once {'more memory is free' if memory else f'it can be read{_NEVER}'}",
    )


def later_format(path: Path, found: int, known: int, writer: object) -> LaterFormat:
    """The error of a state of a format that is not known yet; `writer` is the version that it says wrote it."""
    by = f" {_shown(writer)}" if isinstance(writer, str) else ""
    return LaterFormat(
        f"the checkpoint is of format {found}, written by a later alexshard{by}; this one reads format {known}",
        where=str(path),
        why="an older state in its place would cost the steps since, so nothing is taken and it stays as it is",
        remedy=f"use alexshard{by or ' of the version that wrote it'}; the run's config.json names it too",
    )


def no_checkpoint(path: Path) -> NoCheckpoint:
    """The error of a state that is not there."""
    return NoCheckpoint(
        f"no checkpoint {path}",
        why="there is no network to go on with, or to ask",
        remedy="name a run's folder, or one of the files in its checkpoints/",
    )


def _shown(text: str) -> str:
    """On one line that does nothing to a terminal."""
    return printable(text if len(text) <= _LONGEST_REASON else f"{text[:_LONGEST_REASON]}…")
