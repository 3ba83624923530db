"""What every question of `tools/gpu_check` is given: a device, sizes, shard sets, time."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch

from ..trainer import PRESETS, Machine, Recipe
from .gpu_report import Row
from .gpu_sets import Sets


@dataclass(frozen=True, slots=True)
class Sizes:
    """How much of everything: for a card, or `small`, so that two cores answer all in a minute or two."""

    side: int = 224  # of crops
    width: float = 1.0
    classes: int = 1000  # of networks that are only timed
    batches: tuple[int, int] = (128, 1024)
    products: int = 8192  # side of the matrices
    copied_bytes: int = 2**31
    runs: int = 5
    run_s: float = 1.0
    steps: int = 50  # of a timed run
    agreeing: int = 1000  # images compared with the reference
    kept: tuple[int, int] = (1000, 32)  # batches that are watched, and their size
    alike: int = 20  # steps whose losses are compared
    chain_images: int = 16
    repeating: tuple[int, int] = (5, 300)  # steps before and after the checkpoint that a killed run goes on from
    learning: int | None = None  # steps at most; None: as time allows

    @classmethod
    def small(cls) -> Sizes:
        """For the cores: the same questions."""
        return cls(
            side=64,
            width=0.125,
            classes=10,
            batches=(16, 32),
            products=256,
            copied_bytes=2**22,
            runs=3,
            run_s=0.1,
            steps=2,
            agreeing=48,
            kept=(20, 8),
            chain_images=2,
            repeating=(2, 6),
            learning=12,
        )

    @property
    def full(self) -> bool:
        """Whether it is the network of 2012."""
        return (self.width, self.side) == (1.0, 224)

    def __str__(self) -> str:
        return f"width {self.width:g}, crops of {self.side}×{self.side}"


@dataclass(slots=True)
class Scene:
    """What is there."""

    device: torch.device
    sizes: Sizes
    sets: Sets
    folder: Path  # for what is thrown away
    found: dict[str, float] = field(default_factory=dict)  # what later questions want to know of earlier ones
    until: float = 0.0  # by time.monotonic: when the share of this question is over

    @property
    def on_card(self) -> bool:
        return self.device.type == "cuda"

    @property
    def left_s(self) -> float:
        """Of this question's share."""
        return self.until - time.monotonic()

    def machine(self, **wishes: Any) -> Machine:
        """This device, as `alextrain` chooses it."""
        return Machine.choose(str(self.device), **wishes)

    def recipe(self, preset: str = "original", **fields: Any) -> Recipe:
        """A preset at this size."""
        recipe: Recipe = replace(PRESETS[preset](), width=self.sizes.width, **fields)
        return recipe

    def images(self, number: int, *, seed: int = 0) -> torch.Tensor:
        """Drawn, about as pixels less their mean; float32, (N, 3, S, S)."""
        shape, generator = (number, 3, self.sizes.side, self.sizes.side), self._generator(seed)
        drawn = torch.randn(shape, generator=generator, device=self.device) * 60
        return drawn.contiguous(memory_format=torch.channels_last)

    def labels(self, number: int, *, seed: int = 1) -> torch.Tensor:
        """Drawn; int64 (N,)."""
        generator = self._generator(seed)
        return torch.randint(self.sizes.classes, (number,), generator=generator, device=self.device)

    def _generator(self, seed: int) -> torch.Generator:
        return torch.Generator(self.device).manual_seed(seed)


@dataclass(frozen=True, slots=True)
class Part:
    """One measurement; it gives its rows one by one."""

    what: str
    measure: Callable[[Scene], Iterable[Row]]
    needs_s: float = 0.0  # on a card: with less left it is not begun


@dataclass(frozen=True, slots=True)
class Question:
    """One of shared/gpu/README.md §2."""

    name: str
    weight: float  # of its share of the time, minutes of twelve
    parts: Callable[[Scene], Iterator[Part]]


def mark(device: torch.device) -> Any:
    """When all that was asked of the device so far is done: for `seconds_between`, after `synchronize`."""
    if device.type != "cuda":
        return time.perf_counter()
    event = torch.cuda.Event(enable_timing=True)  # type: ignore[no-untyped-call]
    event.record(torch.cuda.current_stream(device))
    return event


def synchronize(device: torch.device) -> None:
    """Wait for the device."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def seconds_between(device: torch.device, earlier: Any, later: Any) -> float:
    """Between two marks."""
    return float(earlier.elapsed_time(later)) / 1e3 if device.type == "cuda" else float(later - earlier)


def seconds_of(
    device: torch.device, work: Callable[[], object], *, runs: int, times: int, warm_ups: int = 3
) -> list[float]:
    """Seconds of one `work`, by runs of several; the first ones, which choose kernels, are not counted."""
    for _ in range(warm_ups):
        work()
    found = []
    for _ in range(runs):
        synchronize(device)
        began = mark(device)
        for _ in range(times):
            work()
        ended = mark(device)
        synchronize(device)
        found.append(seconds_between(device, began, ended) / times)
    return found
