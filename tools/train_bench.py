"""One measurement of `tools/bench_train`: what can be known is checked first, then networks run in turns.

Asked ─► checked ─► for each precision: batches, networks, warm-up ─► rounds, each with every network once:
                    a timed run ─► the same fed by the loader ─► a step taken apart      ─► figures, verdict
"""

from __future__ import annotations

import gc
import io
import math
import os
import resource
from collections.abc import Sequence
from contextlib import ExitStack, closing
from dataclasses import dataclass, replace
from typing import Any

import torch

from ..pipeline import Trace, span
from ..shards import AlexshardError
from ..trainer import Fed, Feeder, Machine, Recipe, TwoTowers
from .loader_versions import versions
from .terminal import Progress
from .train_asked import Asked, Checked
from .train_batches import FedRun, Feeding, drawn_batches, kept_batches
from .train_clock import Clock, spread
from .train_networks import Contender, Ours, contender, explained
from .train_parts import StepParts, parts_figures
from .train_stock import torchvision_version
from .train_towers import tower_step
from .train_verdict import ratios_of, verdict_of
from .train_work import FLOP, forward_macs, peak_of, step_macs

SCHEMA = 1
PROFILED = 6  # steps of a trace
TAKEN_APART = ("alexshard", "stock")


def bench(asked: Asked, *, quiet: bool = True) -> dict[str, Any]:
    """All figures, ready for JSON.

    Raises:
        WrongCall: what is asked for cannot be; before anything is measured.
        AlexshardError: the device's memory does not hold it.
    """
    return Bench(asked, quiet=quiet).measure()


class Bench:
    """Everything checked; `measure` makes the report."""

    def __init__(self, asked: Asked, *, quiet: bool = True) -> None:
        self.asked, self.quiet, self.given = asked, quiet, Checked(asked)

    def measure(self) -> dict[str, Any]:
        """Precision by precision, as two of them share neither settings nor memory."""
        asked = self.asked
        try:
            found = [self._measured(precision) for precision in self.given.precisions]
        except torch.OutOfMemoryError as error:
            raise AlexshardError(
                f"{self.given.machine.device} has too little memory: {str(error).partition('.')[0]}",
                why="all networks are there at the same time, since they are measured in turns",
                remedy=f"-b {max(1, asked.batch_size // 2)}, or --against none",
            ) from None
        finally:
            self.given.machine.prepare()  # fp32 is fp32 again for whoever goes on in this process
        return {
            "schema": SCHEMA,
            "network": self._network,
            "precisions": found,
            "left_out": self.given.left_out,
            "meanings": {name: explained(name) for name in self.given.names},
            "settings": self._settings(),
            "machine": {
                **self.given.machine.describe(),
                "memory_bytes": os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"),
            },
            "resident_bytes": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024,
            "versions": {**versions(), "torchvision": torchvision_version(), "cuda": str(torch.version.cuda)},
            "verdict": {"text": " ".join(each["verdict"] for each in found)},
        }

    def _measured(self, precision: Any) -> dict[str, Any]:
        self.given.machine.prepare(precision)
        if self.asked.compiled:
            torch.compiler.reset()  # a function is compiled for so many networks and no more
        _forget()
        peaks = [peak_of(self.given.machine.device, precision)]
        recipe = replace(self.given.recipe, precision=precision)
        with ExitStack() as stack:
            batches, feeding = self._batches(recipe, stack)
            networks = self._ready(recipe, batches, feeding)
            turns = self._in_turns(networks, precision)
            peaks.append(peak_of(self.given.machine.device, precision))
            peak = max(peaks, key=lambda each: float(each["flop_per_s"]))
            self._note_network(networks["alexshard"])
            profiled = self.asked.profile is not None and precision == self.given.precisions[0]
            if profiled:
                self._profile(networks["alexshard"])
            return self._figures(precision, peak, networks, turns)

    def _batches(self, recipe: Recipe, stack: ExitStack) -> tuple[list[Fed], Feeding | None]:
        if self.given.set is None:
            bf16 = recipe.precision == "bf16"
            return drawn_batches(
                self.asked.batch_size, self.given.side, self.given.classes, self.given.machine, bf16=bf16
            ), None
        feeder = stack.enter_context(Feeder(recipe, self.given.set, self.given.machine, jitter_steps=None))
        batches = kept_batches(feeder)
        return batches, stack.enter_context(closing(Feeding(feeder, Clock(self.given.machine.devices))))

    def _ready(self, recipe: Recipe, batches: Sequence[Fed], feeding: Feeding | None) -> dict[str, Contender]:
        """Networks that took their first steps, and how many steps their runs have."""
        ready: dict[str, Contender] = {}
        self._steps: dict[str, int] = {}
        with self._progress("warm-up", len(self.given.names), "networks") as progress:
            for name in self.given.names:
                before = _taken_on(self.given.machine)
                made = contender(
                    name,
                    recipe,
                    self.given.machine,
                    batches,
                    num_classes=self.given.classes,
                    side=self.given.side,
                    feeding=feeding if name == "alexshard" else None,
                )
                seconds = made.warm_up()
                wanted = self.asked.steps or math.ceil(self.asked.seconds / max(seconds, 1e-6))
                self._steps[name] = max(1, wanted)
                made.taken_bytes = _taken_by(made, before, self.given.machine)
                ready[name] = made
                progress.advance(note=f"{recipe.precision} {name}")
        return ready

    def _in_turns(self, networks: dict[str, Contender], precision: str) -> _Turns:
        turns = _Turns({name: [] for name in networks}, [], {}, [])
        ours = networks["alexshard"]
        assert isinstance(ours, Ours)
        with self._progress(precision, self.asked.repeats, "rounds") as progress:
            for _ in range(self.asked.repeats):
                for name, network in networks.items():
                    turns.seconds[name].append(network.run(self._steps[name]))
                if self.given.set is not None:
                    turns.fed.append(ours.fed(self._steps["alexshard"]))
                for name in TAKEN_APART if self.asked.parts else ():
                    if name in networks:
                        turns.parts.setdefault(name, []).append(networks[name].parts())
                if isinstance(ours.network, TwoTowers):
                    turns.towers.append(
                        tower_step(ours.network, ours.step, ours.clock, ours.recipe, self.given.side)
                    )
                progress.advance()
        return turns

    def _figures(
        self, precision: str, peak: dict[str, Any], networks: dict[str, Contender], turns: _Turns
    ) -> dict[str, Any]:
        batch, flop = self.asked.batch_size, self._network["step_flop_per_image"]
        rows: list[dict[str, Any]] = []
        for name, network in networks.items():
            steps = self._steps[name]
            rates = [batch * steps / seconds for seconds in turns.seconds[name]]
            same_work = name != "torchvision"
            rate = spread(rates)
            rows.append(
                {
                    "name": name,
                    "images_per_s": rate,
                    "step_s": spread([seconds / steps for seconds in turns.seconds[name]]),
                    "steps_per_run": steps,
                    "peak_share": flop * rate["median"] / peak["flop_per_s"] if same_work else None,
                    "way": network.way,
                    "loss": network.loss,
                    "device_bytes": network.taken_bytes,
                }
            )
        about: dict[str, Any] = {
            "precision": precision,
            "peak": peak,
            "networks": rows,
            "ratios": ratios_of(rows, precision, self._settings()),
            "fed": _fed_figures(turns.fed, rows[0]["images_per_s"]["runs"]),
            "parts": {name: parts_figures(steps) for name, steps in turns.parts.items()},
            "towers": _tower_figures(turns.towers),
        }
        return {**about, "verdict": verdict_of(about, self._network, batch, str(self.given.machine.device))}

    def _note_network(self, network: Contender) -> None:
        assert isinstance(network, Ours)
        forward = forward_macs(network.network, self.given.side)
        self._network = {
            "preset": self.asked.preset,
            "width": self.asked.width,
            "side": self.given.side,
            "classes": self.given.classes,
            "parameters": sum(part.numel() for parts in network.network.pieces().values() for part in parts),
            "forward_macs_per_image": forward,
            "step_flop_per_image": FLOP * step_macs(forward),
        }

    def _profile(self, network: Contender) -> None:
        """Some steps once more, recorded: apart from the figures, since recording costs time too."""
        assert isinstance(network, Ours)
        path = self.asked.profile
        assert path is not None
        with Trace(path, process="bench_train") as trace:
            for _ in range(PROFILED):
                with span("step, as timed"):
                    network.step()
                    network.clock.wait()
            for _ in range(PROFILED if not network.clock.on_card else 0):
                for name, way, began, ended in network.watched().spans():
                    trace.add(name if way == "whole" else f"{name} {way}", began, ended, {})
        if network.clock.on_card:
            from torch.profiler import ProfilerActivity, profile

            with profile(activities=[ProfilerActivity.CPU, ProfilerActivity.CUDA]) as kernels:
                for _ in range(PROFILED):
                    network.step()
                network.clock.wait()
            kernels.export_chrome_trace(str(path.with_suffix(".kernels.json")))

    def _settings(self) -> dict[str, Any]:
        asked = self.asked
        return {
            "shard_set": None if self.given.set is None else self.given.set.shown,
            "digest": None if self.given.set is None else self.given.set.digest,
            "device": str(self.given.machine.device),
            "batch_size": asked.batch_size,
            "width": asked.width,
            "side": self.given.side,
            "classes": self.given.classes,
            "preset": asked.preset,
            "precisions": list(self.given.precisions),
            "compiled": asked.compiled,
            "graphs": self.given.machine.graphs,
            "threads": self.given.machine.threads or torch.get_num_threads(),
            "repeats": asked.repeats,
            "steps": asked.steps,
            "seconds": asked.seconds,
            "against": list(asked.against),
        }

    def _progress(self, title: str, total: int, unit: str) -> Progress:
        return Progress(f"bench {title}", total, unit, stream=io.StringIO() if self.quiet else None)


@dataclass(frozen=True, slots=True)
class _Turns:
    """What the rounds gave."""

    seconds: dict[str, list[float]]  # of a run, by network
    fed: list[FedRun]
    parts: dict[str, list[StepParts]]
    towers: list[dict[str, Any]]


def _fed_figures(runs: Sequence[FedRun], resident: Sequence[float]) -> dict[str, Any] | None:
    if not runs:
        return None
    rates = [run.images_per_s for run in runs]
    return {
        "images_per_s": spread(rates),
        "waited_share": spread([run.waited_share for run in runs]),
        "of_resident": spread([rate / alone for rate, alone in zip(rates, resident, strict=True)]),
    }


def _tower_figures(steps: Sequence[dict[str, Any]]) -> dict[str, Any] | None:
    if not steps:
        return None
    at_once = [each["at_once"] for each in steps if each["at_once"]]
    shares = {name: spread([each[name] for each in at_once]) for name in at_once[0]} if at_once else None
    return {**steps[-1], "at_once": shares}


def _forget() -> None:
    """What networks of another precision left behind."""
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()


def _taken_on(machine: Machine) -> int:
    if machine.device.type != "cuda":
        return 0
    _forget()
    return sum(torch.cuda.memory_reserved(device) for device in dict.fromkeys(machine.devices))


def _taken_by(network: Contender, before: int, machine: Machine) -> int | None:
    """What the network takes on its cards for a step: weights, momentum, activations, gradients, a graph's memory.

    Without what trying out kernels took for a moment: memory is given back first, and asked for by one more step.
    """
    if machine.device.type != "cuda":
        return None
    _forget()
    network.step()
    network.clock.wait()
    return sum(torch.cuda.memory_reserved(device) for device in dict.fromkeys(machine.devices)) - before
