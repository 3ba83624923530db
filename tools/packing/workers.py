"""Shards by several processes. What comes out does not depend on how many there are.

Each worker has a pipe: plans go down it one at a time, counts, refusals and errors come up. Workers are fresh
processes (`spawn`), which hold nothing of the coordinator but the list of containers; they end with it.
"""

from __future__ import annotations

import multiprocessing
import os
import signal
import time
import traceback
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from multiprocessing.connection import Connection, wait
from multiprocessing.context import SpawnProcess
from pathlib import Path

from ...shards import AlexshardError, ImageFormat
from .plan import ShardPlan
from .shard import pack_shard
from .signals import signals_ignored
from .sources import Container, Refusal

TELL_EVERY_S = 0.2

OnProgress = Callable[[int, Sequence[Refusal]], None]


@dataclass(frozen=True, slots=True)
class Job:
    """What all shards of a build have in common."""

    containers: list[Container]
    image_format: ImageFormat
    folder: Path  # where shards, records and sums go


@dataclass(slots=True)
class _Progress:
    """What a worker tells: images looked at since it last told, and those of them that were refused."""

    images: int = 0
    refusals: list[Refusal] = field(default_factory=list)


class _Idle:
    """A worker's word that it has finished its shard."""


def default_workers() -> int:
    """The cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def pack_shards(plans: Iterator[ShardPlan], job: Job, *, workers: int, on_progress: OnProgress) -> None:
    """Pack every planned shard; with one worker in this process, else in `workers` others.

    Args:
        on_progress: called with images looked at and refusals among them; what it raises ends the work.

    Raises:
        AlexshardError: a shard failed, or a worker died; the other workers are stopped first.
    """
    if workers == 1:
        for plan in plans:
            pack_shard(
                plan,
                job.containers,
                job.image_format,
                job.folder,
                on_image=lambda refusal: on_progress(1, [refusal] if refusal else []),
            )
        return
    crew: list[_Worker] = []
    try:
        # Ctrl-C reaches the whole group of processes, and the coordinator alone decides what it means.
        with signals_ignored(signal.SIGINT):
            crew.extend(_Worker(job) for _ in range(workers))
        for worker in crew:
            worker.start_next(plans)
        while busy := {worker.pipe: worker for worker in crew if worker.plan is not None}:
            for pipe in wait(list(busy)):
                worker = busy[pipe]  # type: ignore[index]
                match worker.receive():
                    case _Progress(images, refusals):
                        on_progress(images, refusals)
                    case _Idle():
                        worker.start_next(plans)
    finally:
        for worker in crew:
            worker.process.terminate()
        for worker in crew:
            worker.process.join()
            worker.pipe.close()


class _Worker:
    """The coordinator's side of one worker."""

    def __init__(self, job: Job) -> None:
        context = multiprocessing.get_context("spawn")
        self.pipe, theirs = context.Pipe()
        self.process: SpawnProcess = context.Process(target=_work, args=(theirs, job), daemon=True)
        self.process.start()
        theirs.close()  # so that the pipe ends when the worker does
        self.plan: ShardPlan | None = None  # the shard it is at

    def start_next(self, plans: Iterator[ShardPlan]) -> None:
        self.plan = next(plans, None)
        if self.plan is not None:
            try:
                self.pipe.send(self.plan)
            except (BrokenPipeError, ConnectionResetError):
                raise self._died() from None

    def receive(self) -> _Progress | _Idle:
        try:
            message = self.pipe.recv()
        except (EOFError, ConnectionResetError):
            raise self._died() from None
        if isinstance(message, BaseException):
            raise message
        assert isinstance(message, _Progress | _Idle)
        return message

    def _died(self) -> AlexshardError:
        self.process.join()
        code = self.process.exitcode or 0
        how = f"killed by {signal.Signals(-code).name}" if code < 0 else f"with exit code {code}"
        return AlexshardError(
            f"a worker died ({how})",
            where=f"{self.plan.name if self.plan else 'no shard'}, process {self.process.pid}",
            why="its shard is lost, so the set would be incomplete",
            remedy="SIGKILL often means that memory ran out: build again with fewer workers (-j)",
        )


def _work(pipe: Connection, job: Job) -> None:
    """A worker: pack what comes down the pipe until it ends."""
    coordinator = os.getppid()
    told, progress = time.monotonic(), _Progress()

    def tell() -> None:
        nonlocal told, progress
        pipe.send(progress)
        told, progress = time.monotonic(), _Progress()

    def on_image(refusal: Refusal | None) -> None:
        if os.getppid() != coordinator:
            raise EOFError  # it was killed, and the next build must find nobody at work
        progress.images += 1
        if refusal is not None:
            progress.refusals.append(refusal)
        if time.monotonic() - told > TELL_EVERY_S:
            tell()

    try:
        while True:
            plan = pipe.recv()
            pack_shard(plan, job.containers, job.image_format, job.folder, on_image=on_image)
            tell()
            pipe.send(_Idle())
    except (EOFError, BrokenPipeError, ConnectionResetError):
        return  # the coordinator is gone
    except AlexshardError as error:
        pipe.send(error)
    except BaseException:
        pipe.send(RuntimeError(f"in a worker:\n{traceback.format_exc()}"))
