"""What `tools/bench_train` is asked for, checked as a whole before any time is spent."""

from __future__ import annotations

import os
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from ..pipeline import free_on, open_shard_set
from ..shards import ShardSet, WrongCall, byte_size
from ..trainer import PRESETS, AlexNet, Machine, Plan, Recipe
from .train_networks import AGAINST, RATE
from .train_stock import NOT_INSTALLED, torchvision_version

PRECISIONS = ("fp32", "tf32", "bf16")


@dataclass(frozen=True, slots=True, kw_only=True)
class Asked:
    """What to measure. None or empty: chosen here."""

    shards: str | None = None
    device: str = "auto"
    devices: tuple[str, ...] = ()
    batch_size: int = 128
    width: float = 1.0
    side: int | None = None  # with shards theirs, else 224
    classes: int | None = None  # with shards theirs, else 1000
    preset: str = "original"
    precisions: tuple[str, ...] = ()
    compiled: bool = False
    graphs: bool | None = None
    threads: int | None = None
    repeats: int = 5
    steps: int | None = None  # of a run
    seconds: float = 1.0  # of a run, where steps are not given; at least one step
    against: tuple[str, ...] = AGAINST
    parts: bool = True
    profile: Path | None = None


class Checked:
    """What is asked for, made sense of: machine, recipe, precisions, set, sizes, and which networks run.

    Raises:
        WrongCall: it cannot be, or the device's memory does not hold it.
    """

    def __init__(self, asked: Asked) -> None:
        self.asked = asked
        _check_alone()
        for name in ("repeats", "batch_size"):
            if getattr(asked, name) < 1:
                raise WrongCall(f"{name.replace('_', ' ')} of {getattr(asked, name)}", remedy="give at least 1")
        self.machine = Machine.choose(
            None if asked.devices else asked.device,
            devices=asked.devices or None,
            parallel="auto" if asked.devices else "single",
            compiled=asked.compiled,
            graphs=asked.graphs,
            threads=asked.threads,
        )
        self.recipe: Recipe = (
            replace(PRESETS[asked.preset](), width=asked.width, batch_size=asked.batch_size)
            .with_constant_rate()
            .with_learning_rate(RATE)
        )
        self.precisions = self._precisions()
        self.set: ShardSet | None = None
        self.side, self.classes = asked.side or 224, asked.classes or 1000
        if asked.shards is not None:
            self._open(asked.shards)
        # The smallest network of this side, which is refused where nothing is left behind the last pool.
        AlexNet(replace(self.recipe, width=1e-3), 1, self.side)
        self.names, self.left_out = self._names()
        self._check_memory()

    def _open(self, place: str) -> None:
        asked = self.asked
        for name in ("side", "classes"):
            if getattr(asked, name) is not None:
                raise WrongCall(
                    f"--{name} {getattr(asked, name)} with --shards",
                    why="the set's images and classes are measured",
                    remedy=f"leave --{name} out, or --shards",
                )
        self.set = open_shard_set(place)
        plan = Plan.of(self.recipe, self.set, self.machine)
        self.side, self.classes = plan.side, plan.num_classes

    def _precisions(self) -> tuple[Any, ...]:
        on_card, asked = self.machine.device.type == "cuda", self.asked.precisions
        if unknown := [each for each in asked if each not in PRECISIONS]:
            raise WrongCall(
                f"--precision {','.join(asked)}: {unknown[0]!r} is no precision",
                remedy=f"some of {', '.join(PRECISIONS)}",
            )
        if len(set(asked)) < len(asked):
            raise WrongCall(f"--precision {','.join(asked)} names one twice", remedy="name each once")
        if "tf32" in asked and not on_card:
            raise WrongCall(
                "--precision tf32 on the cores",
                why="TF32 is a way of a card's tensor cores; the cores would compute fp32 under another name",
                remedy="--precision fp32,bf16",
            )
        return asked or (PRECISIONS if on_card else ("fp32", "bf16"))

    def _names(self) -> tuple[list[str], dict[str, str]]:
        """Who runs, and who does not, with the reason."""
        asked = self.asked.against
        if unknown := [each for each in asked if each not in AGAINST]:
            raise WrongCall(
                f"--against: {unknown[0]!r} is none of {', '.join(AGAINST)}", remedy="or --against all, none"
            )
        if len(set(asked)) < len(asked):
            raise WrongCall(f"--against {','.join(asked)} names one twice", remedy="name each once")
        names = ["alexshard", *(["one device"] if self.machine.parallel == "towers" else []), *asked]
        out = {}
        if "torchvision" in asked:
            if torchvision_version() == NOT_INSTALLED:
                out["torchvision"] = NOT_INSTALLED
            elif self.asked.width != 1:
                out["torchvision"] = "it has no other widths than its own"
            elif self.side < 63:
                out["torchvision"] = "it takes images of 63 pixels or more"
        return [name for name in names if name not in out], out

    def _check_memory(self) -> None:
        """Raises WrongCall where the device does not hold even weights, momentum, gradients and images."""
        free, asked = free_on(self.machine.device), self.asked
        parameters = 61e6 * asked.width**2
        least = len(self.names) * 12 * parameters + 3 * 12 * asked.batch_size * self.side**2
        if free is not None and least > free:
            raise WrongCall(
                f"{len(self.names)} networks of width {asked.width:g} and batches of {asked.batch_size:,} take "
                f"{byte_size(round(least))} at least, and {byte_size(free)} are free on {self.machine.device}",
                why="they are measured in turns, so they are there at the same time",
                remedy="a smaller -b or --width, or --against none",
            )


def _check_alone() -> None:
    if os.environ.get("WORLD_SIZE", "1") not in ("", "1"):
        raise WrongCall(
            "bench_train under torchrun",
            why="every rank would measure a network of its own on the same machine",
            remedy="start it without torchrun; --devices A,B measures two towers",
        )
