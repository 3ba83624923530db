"""Shards by several processes. What comes out does not depend on how many there are.

Each worker has a pipe: plans go down it one at a time, counts, refusals and errors come up. Workers are fresh
processes (`spawn`), which hold nothing of the coordinator but the list of containers; they end with it. Also one
worker is a process of its own, since a process cannot tell that it hangs.
"""

from __future__ import annotations

import ctypes
import multiprocessing
import multiprocessing.process
import multiprocessing.resource_tracker
import os
import signal
import socket
import struct
import time
import traceback
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from multiprocessing.connection import Connection, wait
from multiprocessing.context import SpawnProcess
from pathlib import Path
from typing import Protocol

from ...shards import AlexshardError, ImageFormat, ShardName, usable_cores
from .plan import ShardPlan
from .shard import pack_shard, source_order
from .signals import signals_delayed, signals_ignored
from .sources import Container, Refusal

TELL_EVERY_S = 0.2
START_S = 60.0  # for a worker to start, from a disk that may be far away
HUNG_AFTER_S = 300.0  # a photograph takes milliseconds, the largest that is decoded some seconds
_TICK_S = 0.5
_END_S = 10.0  # a killed process is gone at once, unless it waits for a disk that does not answer
_PR_SET_PDEATHSIG = 1  # of Linux's prctl(2)

OnProgress = Callable[[int, Sequence[Refusal]], None]
OnShard = Callable[[ShardName], None]


@dataclass(frozen=True, slots=True)
class Job:
    """What all shards of a build have in common."""

    containers: list[Container]
    image_format: ImageFormat
    folder: Path  # where shards, records and sums go
    hung_after_s: float = HUNG_AFTER_S  # without a word from a worker


class Executor(Protocol):
    """Who packs shards: `pack_shards` with some workers, or a cluster."""

    def __call__(
        self, plans: Iterator[ShardPlan], job: Job, *, on_progress: OnProgress, on_shard: OnShard
    ) -> None: ...


@dataclass(slots=True)
class _Progress:
    """What a worker tells: images looked at since it last told, and those of them that were refused."""

    images: int = 0
    refusals: list[Refusal] = field(default_factory=list)


class _Finished:
    """A worker's word that its shard is finished."""


def default_workers() -> int:
    """The cores that this process may use."""
    return usable_cores()


def pack_shards(
    plans: Iterator[ShardPlan], job: Job, *, workers: int, on_progress: OnProgress, on_shard: OnShard
) -> None:
    """Pack every planned shard in `workers` processes.

    Args:
        on_progress: called with images looked at and refusals among them; what it raises ends the work.
        on_shard: called once for each shard, when its files are finished in job.folder.

    Raises:
        AlexshardError: a shard failed, or a worker died or hangs; the other workers are stopped first.
    """
    crew: list[_Worker] = []
    clock = _LivedTime()
    try:
        # It would be started with the first worker, and Python lets signals through after that.
        multiprocessing.resource_tracker.ensure_running()
        # A signal to the whole group of processes (Ctrl-C, a job's end) is the coordinator's to answer.
        with signals_delayed(signal.SIGINT, signal.SIGTERM):
            crew.extend(_Worker(job) for _ in range(workers))
        for worker in crew:
            worker.start_next(plans, clock.now)
        while busy := {worker.pipe: worker for worker in crew if worker.plan is not None}:
            ready = wait(list(busy), timeout=_TICK_S)
            clock.look()
            for pipe in ready:
                worker = busy[pipe]  # type: ignore[index]
                match worker.receive(clock.now):
                    case _Progress(images, refusals):
                        on_progress(images, refusals)
                    case _Finished():
                        assert worker.plan is not None
                        on_shard(worker.plan.name)
                        worker.start_next(plans, clock.now)
            for worker in busy.values():
                if worker.plan is not None and clock.now - worker.heard > worker.patience_s:
                    raise worker.hung()
    finally:
        with signals_ignored(signal.SIGINT, signal.SIGTERM):
            _end(crew)


class _LivedTime:
    """Seconds in which the coordinator was there to listen.

    Neither a command that was stopped in a terminal and continued an hour later nor a long wait for an upload
    makes workers look as if they hung.
    """

    def __init__(self) -> None:
        self.now = 0.0
        self._looked = time.monotonic()

    def look(self) -> None:
        before, self._looked = self._looked, time.monotonic()
        self.now += min(self._looked - before, 2 * _TICK_S)


class _Worker:
    """The coordinator's side of one worker."""

    def __init__(self, job: Job) -> None:
        context = multiprocessing.get_context("spawn")
        self._job = job
        self.pipe, theirs = context.Pipe()
        _limit_waiting(self.pipe, max(START_S, job.hung_after_s))  # a large plan waits for the worker's start
        self._done = context.RawValue(ctypes.c_longlong, 0)  # images of its shard; in shared memory
        self.process: SpawnProcess = context.Process(
            target=_work, args=(theirs, job, self._done, os.getpid()), daemon=True
        )
        self.process.start()
        theirs.close()  # so that the pipe ends when the worker does
        self.plan: ShardPlan | None = None  # the shard it is at
        self.heard = 0.0  # when it last told something
        self.patience_s = max(START_S, job.hung_after_s)  # until it has told anything

    def start_next(self, plans: Iterator[ShardPlan], now: float) -> None:
        self.plan = next(plans, None)
        if self.plan is not None:
            self._done.value = 0
            self.heard = now
            try:
                self.pipe.send(self.plan)
            except BlockingIOError:
                raise self.hung() from None
            except (BrokenPipeError, ConnectionResetError):
                raise self._died() from None

    def receive(self, now: float) -> _Progress | _Finished:
        self.heard, self.patience_s = now, self._job.hung_after_s
        try:
            message = self.pipe.recv()
        except BlockingIOError:
            raise self.hung() from None
        except (EOFError, ConnectionResetError):
            raise self._died() from None
        if isinstance(message, AlexshardError):
            message.where = message.where or self._where()
            raise message
        assert isinstance(message, _Progress | _Finished)
        return message

    def hung(self) -> AlexshardError:
        return AlexshardError(
            f"a worker has told nothing for {self.patience_s:g} s and was killed",
            where=self._where(),
            why="it hangs: at this image, or on a disk that does not answer",
            remedy="look at both; the same command continues, and --hung-after allows a slow disk more time",
        )

    def _died(self) -> AlexshardError:
        self.process.join(_END_S)
        code = self.process.exitcode or 0
        how = f"killed by {signal.Signals(-code).name}" if code < 0 else f"with exit code {code}"
        return AlexshardError(
            f"a worker died ({how})",
            where=self._where(),
            why="its shard is not finished",
            remedy="SIGKILL often means that memory ran out: the same command continues, or with a smaller -j",
        )

    def _where(self) -> str:
        if self.plan is None:
            return f"no shard, process {self.process.pid}"
        samples = source_order(self.plan.samples)
        done = int(self._done.value)
        if done < len(samples):
            source = self._job.containers[samples[done].container].label
            at = f"image {samples[done].name} of {source} ({done + 1:,} of {len(samples):,})"
        else:
            at = f"all {done:,} images done, writing them"
        return f"{self.plan.name}, {at}, process {self.process.pid}"


def _limit_waiting(pipe: Connection, seconds: float) -> None:
    """A message that stops half-way, in either direction, raises BlockingIOError after some seconds."""
    limit = struct.pack("ll", int(seconds), int(seconds % 1 * 1e6))
    with socket.socket(fileno=os.dup(pipe.fileno())) as end:
        for direction in (socket.SO_SNDTIMEO, socket.SO_RCVTIMEO):
            end.setsockopt(socket.SOL_SOCKET, direction, limit)


def _end(crew: list[_Worker]) -> None:
    for worker in crew:
        worker.process.kill()  # also one that was stopped; what it was writing has a temporary name
    for worker in crew:
        worker.process.join(_END_S)
        if worker.process.is_alive():
            # It waits inside the kernel and ends when that lets it go; nobody shall wait for it at our exit.
            multiprocessing.process._children.discard(worker.process)  # type: ignore[attr-defined]
        worker.pipe.close()


def _work(pipe: Connection, job: Job, done: ctypes.c_longlong, coordinator: int) -> None:
    """A worker: pack what comes down the pipe until it ends."""
    _end_with(coordinator)
    told, progress = time.monotonic(), _Progress()

    def tell() -> None:
        nonlocal told, progress
        pipe.send(progress)
        told, progress = time.monotonic(), _Progress()

    def on_image(refusal: Refusal | None) -> None:
        if os.getppid() != coordinator:
            raise EOFError  # it was killed, and the next build must find nobody at work
        done.value += 1
        progress.images += 1
        if refusal is not None:
            progress.refusals.append(refusal)
        if time.monotonic() - told > TELL_EVERY_S:
            tell()

    try:
        tell()  # that it has started
        while True:
            plan = pipe.recv()
            pack_shard(plan, job.containers, job.image_format, job.folder, on_image=on_image)
            tell()
            pipe.send(_Finished())
    except (EOFError, BrokenPipeError, ConnectionResetError):
        return  # the coordinator is gone
    except AlexshardError as error:
        pipe.send(error)
    except MemoryError:
        pipe.send(_no_memory())
    except BaseException as error:
        pipe.send(_unforeseen(error))


def _no_memory() -> AlexshardError:
    return AlexshardError(
        "memory ran out while an image was packed",
        why="the image may be sound, so it can be neither packed nor refused",
        remedy="build with fewer workers (-j) or on a machine with more memory; the same command continues",
    )


def _unforeseen(error: BaseException) -> AlexshardError:
    return AlexshardError(
        f"a worker failed: {''.join(traceback.format_exception_only(error)).strip()}",
        why="".join(("nobody foresaw this, so it is a fault of alexshard:\n", *traceback.format_exception(error))),
        remedy="report it with these lines; without the image at which it happens a build goes through",
    )


def _end_with(coordinator: int) -> None:
    """Have Linux kill this process when the coordinator ends; elsewhere it looks after every image."""
    with suppress(OSError, AttributeError):
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != coordinator:
        os._exit(1)  # it ended before
