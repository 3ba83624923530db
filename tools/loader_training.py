"""The trainer's side for `tools/bench_loader`: what it asks for, and what it gets beside the loader.

resident   steps on one batch that stays on the device: the demand
replayed   steps on the loader's batches kept in memory and handed over as the loader does: the headroom, what an
           infinitely fast loader would give
fed        steps on batches that the loader makes meanwhile, and how long the trainer waited for them
burnt      steps on the resident batch beside as much CPU work as the loader does for each batch, done by as many
           threads that never hold Python's lock: what sharing the cores alone costs

They take turns. Images come as the loader delivers them; what a trainer must still do to them is part of the step.
A trainer on a card waits while the card has no step to do: what this process waits meanwhile is none of it.
"""

from __future__ import annotations

import hashlib
import queue
import statistics
import threading
import time
from collections.abc import Callable, Generator, Iterator
from contextlib import closing
from dataclasses import dataclass
from itertools import count
from types import TracebackType
from typing import Any

import torch

from ..pipeline import Batch, Loader, Stages, span
from ..trainer import Machine, Ranks, Recipe, Schedule, Stepper, build_network
from .loader_figures import Run, added, figures
from .loader_meter import Meter
from .loader_verdict import Together

MODES = ("resident", "replayed", "fed", "burnt")
_BLOCK = bytes(4_000_000)  # hashed in about 2 to 10 ms, without Python's lock


class Trainer:
    """Takes steps and counts; the network learns nothing worth having."""

    def __init__(self, recipe: Recipe, machine: Machine, *, num_classes: int, side: int) -> None:
        self.machine = machine
        network = build_network(recipe, num_classes, side, machine.devices)
        # Else `original` would freeze conv1 after 72 steps, and ask for more from then on.
        steady = recipe.with_constant_rate()
        self._stepper = Stepper(network, steady, Schedule.of(steady, 1))
        self._numbers = count()

    def step(self, batch: Batch) -> None:
        """One step; on a card it may not have begun when this returns."""
        with span("step", images=len(batch)):
            images = batch.images if batch.images.dtype == torch.float32 else batch.images.float()
            self._stepper.step(next(self._numbers), images, batch.labels.clamp(min=0))

    def synchronize(self) -> None:
        self.machine.synchronize()

    def mark(self) -> Any:
        """When all steps so far are over, on what computes them: for `seconds_between`, after `synchronize`."""
        if self.machine.device.type != "cuda":
            return time.perf_counter()
        event = torch.cuda.Event(enable_timing=True)  # type: ignore[no-untyped-call]
        event.record(torch.cuda.current_stream(self.machine.device))
        return event

    def seconds_between(self, earlier: Any, later: Any) -> float:
        if self.machine.device.type != "cuda":
            return float(later - earlier)
        return float(earlier.elapsed_time(later)) / 1e3


@dataclass(frozen=True, slots=True)
class Steps:
    """One run of steps."""

    run: Run
    steps: int

    @property
    def step_s(self) -> float:
        """Seconds of a step without what it waited for its batch."""
        return (self.run.seconds - self.run.waited_s) / self.steps


def measure_training(
    loader: Loader,
    trainer: Trainer,
    *,
    repeats: int,
    steps: int,
    burn_s: float,
    ranks: Ranks,
    on_run: Callable[[str], None],
) -> dict[str, list[list[Steps]]]:
    """Runs of each mode, and of each run that of every rank. `burn_s`: CPU time the loader takes for a batch."""
    meter = Meter(trainer.machine.device, lambda: loader.times.store_s)
    stages = Stages(loader)
    kept = stages.kept()
    found: dict[str, list[list[Steps]]] = {mode: [] for mode in MODES}
    trainer.step(kept[0])
    trainer.synchronize()

    def run(mode: str, batches: Iterator[Batch], before: Callable[[], None] = lambda: None) -> None:
        for _ in range(stages.ahead("loader") if mode == "fed" else 0):
            next(batches)  # what was made before anybody trained would hide that the trainer waits
        before()
        trainer.step(next(batches))  # the loader works on meanwhile, as it will
        trainer.synchronize()
        ranks.wait()
        found[mode].append(ranks.gathered(_steps(trainer, batches, steps, meter, before)))
        on_run(mode)

    for _ in range(repeats):
        run("resident", _again(kept[0]))
        with closing(stages.replayed(kept)) as batches:
            run("replayed", batches)
        with closing(endless(loader)) as batches:
            run("fed", batches)
        with Burner(loader.threads, most=loader.prefetch) as burner:
            run("burnt", _again(kept[0]), lambda: burner.burn(burn_s))
    return found


def _steps(
    trainer: Trainer, batches: Iterator[Batch], steps: int, meter: Meter, before: Callable[[], None]
) -> Steps:
    images = 0
    meter.start()
    marks = [trainer.mark()]
    for _ in range(steps):
        before()
        batch = next(batches)
        marks.append(trainer.mark())
        trainer.step(batch)
        marks.append(trainer.mark())
        images += len(batch)
        del batch
        meter.look()
    trainer.synchronize()
    # From the end of each step to the begin of the next.
    waited = sum(trainer.seconds_between(*pair) for pair in zip(marks[::2], marks[1::2], strict=False))
    return Steps(meter.run(images, waited), steps)


def training_figures(found: dict[str, list[list[Steps]]]) -> dict[str, Any]:
    """What the report says of the modes."""

    middle = statistics.median
    about: dict[str, Any] = {}
    for mode, runs in found.items():
        everyone = [added([each.run for each in rank_runs]) for rank_runs in runs]
        step_s = [middle([each.step_s for each in rank_runs]) for rank_runs in runs]
        about[mode] = {
            **figures(everyone),
            "step_s": {"median": middle(step_s), "min": min(step_s), "max": max(step_s)},
            "waited_share": middle([run.waited_s / run.seconds for run in everyone]),
        }
    return about


def together_of(about: dict[str, Any]) -> Together:
    """What the verdict wants to know of `training_figures`."""
    alone = about["resident"]["step_s"]
    return Together(
        images_per_s=about["fed"]["images_per_s"]["median"],
        waited_share=about["fed"]["waited_share"],
        alone_s=alone["median"],
        beside_s=about["fed"]["step_s"]["median"],
        burnt_s=about["burnt"]["step_s"]["median"],
        spread=(alone["max"] - alone["min"]) / alone["median"],
    )


def endless(loader: Loader) -> Generator[Batch, None, None]:
    """The loader's batches, epoch after epoch."""
    while True:
        yield from loader


def _again(batch: Batch) -> Iterator[Batch]:
    while True:
        yield batch


class Burner:
    """Threads that use CPU time when told to, without Python's lock."""

    def __init__(self, threads: int, *, most: int) -> None:
        self._orders: queue.Queue[float | None] = queue.Queue(max(1, most) * threads)
        self._threads = [
            threading.Thread(target=self._work, name=f"alexshard-burn_{number}", daemon=True)
            for number in range(threads)
        ]

    def burn(self, seconds: float) -> None:
        """Use `seconds` of CPU time, shared by the threads; less where they are behind already, as a loader is."""
        for _ in self._threads:
            try:
                self._orders.put_nowait(seconds / len(self._threads))
            except queue.Full:
                return

    def _work(self) -> None:
        while (seconds := self._orders.get()) is not None:
            until = time.thread_time() + seconds
            while time.thread_time() < until:
                hashlib.sha256(_BLOCK)

    def __enter__(self) -> Burner:
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for _ in self._threads:
            self._orders.put(None)
        for thread in self._threads:
            thread.join()
