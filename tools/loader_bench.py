"""One measurement of `tools/bench_loader`: what can be known is checked first, then everything runs in turns."""

from __future__ import annotations

import gc
import io
import os
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import click

from ..pipeline import (
    STAGES,
    Loader,
    RemoteShelf,
    Stages,
    Trace,
    crop_side,
    free_on,
    granted_cores,
    open_shard_set,
    write_trace,
)
from ..shards import AlexshardError, WrongCall, byte_size
from ..trainer import PRESETS, Machine, Ranks, Recipe
from .loader_figures import added, figures
from .loader_ladder import How, rank_rows, run_ladder, run_sweep, stage_rows
from .loader_report import demand_of
from .loader_rivals import Rivals
from .loader_sweep import Setting, check_alike, parse_sweep, places_of_sets
from .loader_training import MODES, Trainer, endless, measure_training, together_of, training_figures
from .loader_verdict import findings_of, judge
from .loader_versions import versions
from .terminal import Progress

PROFILED = 12  # batches of a trace
# What peers are asked for.
SAME_WORK: dict[str, Any] = {"order": "global", "augment": "paper", "mean": "channel", "mean_crop": None}


@dataclass(frozen=True, slots=True)
class Asked:
    """The command line. None: chosen here or by the loader."""

    shards: tuple[str, ...]
    split: str
    batch_size: int
    device: str
    backend: Any
    decoder: Any
    threads: int | None
    prefetch: int | None
    order: Any
    window: int | None
    mean: Any
    output: Any
    channels_last: bool
    preset: str
    width: float
    repeats: int
    seconds: float
    demand: bool
    sweep: tuple[str, ...]
    against: str | None
    cache: Path | None
    cache_bytes: int | None
    profile: Path | None


class Bench:
    """Everything checked and opened; `measure` makes the report.

    Raises:
        WrongCall: what is asked for cannot be; before anything is measured.
    """

    def __init__(self, asked: Asked, ranks: Ranks) -> None:
        self.asked, self.ranks = asked, ranks
        self.machine = Machine.choose(_device_of(asked.device, ranks), decoder=asked.decoder)
        self.machine.prepare()
        self.recipe: Recipe = replace(PRESETS[asked.preset](), width=asked.width)
        by_format = any(part.split("=")[0].strip() == "format" for text in asked.sweep for part in text.split(","))
        if len(asked.shards) > 1 and not by_format:
            raise WrongCall(
                f"--shards is given {len(asked.shards)} times",
                why="several sets are compared by a sweep",
                remedy="--sweep format, or one --shards",
            )
        self.sets = [
            open_shard_set(place, cache=asked.cache, cache_bytes=asked.cache_bytes)
            for place in places_of_sets(asked.shards, several=by_format)
        ]
        if asked.against is not None and (ranks.count > 1 or asked.output not in ("float32", "uint8")):
            why = "under torchrun" if ranks.count > 1 else f"with --output {asked.output}"
            raise WrongCall(
                f"--against {why} cannot be", why="peers are run by one process, and give float32 or uint8"
            )
        self.set = self.sets[0]
        check_alike(self.sets, asked.split)
        samples = self.set.manifest.splits[asked.split].samples if asked.split in self.set.manifest.splits else 0
        if 0 < samples < ranks.count:
            raise WrongCall(
                f"{ranks.count} ranks, and {asked.split} has {samples:,} samples",
                why="a rank without samples has nothing to measure",
                remedy=f"at most {samples:,} ranks",
            )
        self._decoders: dict[str, str] = {}  # of each setting: chosen once, since its turns stand in one row
        self.batch_size = asked.batch_size
        self._check_batch(samples)
        self.settings = (
            parse_sweep(
                asked.sweep,
                cores=granted_cores(),
                batch_size=self.batch_size,
                samples=max(1, samples // ranks.count),
                formats=[each.manifest.image.encoding for each in self.sets],
            )
            if asked.sweep
            else []
        )

    def _check_batch(self, samples: int) -> None:
        """Raises WrongCall where a rank has no whole batch, or memory holds no three: made, waiting, in use."""
        asked, most = self.asked, samples // self.ranks.count
        if samples and self.batch_size > most:
            raise WrongCall(
                f"a batch of {self.batch_size:,} is larger than the {most:,} images of {asked.split}"
                + (" that each rank has" if self.ranks.count > 1 else ""),
                where=self.set.shown,
                why="the last partial batch of an epoch is dropped, so nothing could be measured",
                remedy=f"-b {max(1, most // 4)}",
            )
        image = 3 * crop_side(self.set.manifest.image.side) ** 2 * {"float32": 4, "uint8": 1}.get(asked.output, 2)
        free = free_on(self.machine.device)
        if free is not None and 3 * self.batch_size * image > free:
            raise WrongCall(
                f"three batches of {self.batch_size:,} take {byte_size(3 * self.batch_size * image)}, and "
                f"{byte_size(free)} are free on {self.machine.device}",
                why="one is made, one waits, one is in use",
                remedy=f"-b {max(1, free // image // 8)}",
            )

    def open(self, setting: Setting | None = None, **options: Any) -> Loader:
        """The loader as asked for, with a setting of the sweep or other options in place."""
        asked, shard_set = self.asked, self.set
        if setting is not None and setting.knob == "format":
            shard_set = next(each for each in self.sets if each.manifest.image.encoding == setting.value)
        given: dict[str, Any] = {
            "batch_size": self.batch_size,
            "order": asked.order or self.recipe.order,
            "window": asked.window,
            "threads": asked.threads,
            "prefetch": asked.prefetch,
            "mean": asked.mean,
            "augment": self.recipe.augment,
            "mean_crop": self.recipe.mean_crop if asked.mean == "image" else None,
            **(setting.options if setting is not None else {}),
            **options,
        }
        if given["order"] != "windowed":
            given["window"] = None
        return Loader(
            shard_set,
            asked.split,
            device=self.machine.device,
            rank=self.ranks.rank,
            world_size=self.ranks.count,
            output=asked.output,
            channels_last=asked.channels_last,
            backend=asked.backend,
            decoder=self._decoders.get(setting.label, asked.decoder) if setting else asked.decoder,
            **given,
        )

    def measure(self) -> dict[str, Any]:
        """All figures, ready for JSON; the same on every rank."""
        report = self._in_turns()
        # Once the loader and the others have let go of their memory: it would be counted with each setting's.
        gc.collect()
        return {**report, "sweep": self._sweep()}

    def _in_turns(self) -> dict[str, Any]:
        """The loader as asked for, others, the trainer."""
        asked, ranks = self.asked, self.ranks
        with ExitStack() as stack:
            rivals = self._rivals(stack)
            loader = stack.enter_context(self.open())
            if rivals:
                rivals.add_ours(stack.enter_context(self.open(**SAME_WORK)))
                rivals.add_limits()
            for setting in self.settings:  # what cannot be opened is known now, not after minutes
                with self.open(setting) as tried:
                    self._decoders[setting.label] = tried.decoder
            trainer, why_not = self._trainer(loader)
            turns = rivals.turns(asked.seconds) if rivals else {}
            runs = len(STAGES) + 1 + len(turns) + (len(MODES) if trainer else 0)
            with self._progress(asked.repeats * runs, "bench") as on_run:
                own, others = run_ladder(loader, turns, How(asked.repeats, asked.seconds, ranks, on_run))
                training = self._training(loader, trainer, own, on_run) if trainer else None
            about = self._about(loader)
            # An eighth of what is free beside the batches that there are; a card's memory where they go there.
            room = loader.prefetch + (free_on(loader.device) or 0) // 8 // about["batch_bytes"]
            if asked.profile:
                self._profile(loader, trainer)
        stages = stage_rows(own, asked.output)
        demand, together = demand_of({"training": training}), together_of(training) if training else None
        found = findings_of(about, stages, together, demand=demand, ranks=ranks.count, room=room)
        return {
            **about,
            "stages": stages,
            "replay": figures([added(everyone) for everyone in own["replay"]]),
            "training": training,
            "training_note": why_not,
            "peers": [
                {**each, **figures([mine for (mine,) in others[each["name"]]])}
                for each in (rivals.listed if rivals else [])
            ],
            "peers_left_out": rivals.left_out if rivals else {},
            "ranks": rank_rows(own[STAGES[-1]]) if ranks.count > 1 else [],
            "verdict": asdict(judge(found)),
        }

    def _sweep(self) -> list[dict[str, Any]]:
        asked = self.asked
        settings = {each.label: partial(self.open, each) for each in self.settings}
        with self._progress(asked.repeats * len(STAGES) * len(settings), "sweep") as on_run:
            swept = run_sweep(settings, How(asked.repeats, asked.seconds, self.ranks, on_run))
        return [
            {
                "knob": each.knob,
                "value": each.value,
                "decoder": self._decoders[each.label],
                "stages": stage_rows(swept[each.label], asked.output),
            }
            for each in self.settings
        ]

    @contextmanager
    def _progress(self, runs: int, title: str) -> Iterator[Callable[[str], None]]:
        """Told of each run; one rank shows it."""
        with Progress(title, runs, "runs", stream=None if self.ranks.rank == 0 else io.StringIO()) as progress:
            yield lambda what: progress.advance(note=what)

    def _trainer(self, loader: Loader) -> tuple[Trainer | None, str]:
        if not self.asked.demand:
            return None, "not measured (--no-demand)"
        try:
            made = Trainer(self.recipe, self.machine, num_classes=loader.num_classes, side=loader.side)
        except AlexshardError as error:  # a set too small for the network can still be profiled
            return None, f"not measured: {error.what}"
        return made, ""

    def _training(
        self, loader: Loader, trainer: Trainer, own: dict[str, Any], on_run: Callable[[str], None]
    ) -> dict[str, Any]:
        mine = figures([everyone[self.ranks.rank] for everyone in own[STAGES[-1]]])
        found = measure_training(
            loader,
            trainer,
            repeats=self.asked.repeats,
            # On a card launching one step overlaps with computing the one before, as it does in a run.
            steps=10 if self.machine.device.type == "cuda" else 1,
            burn_s=mine["cpu_us_per_image"] * self.batch_size / 1e6,
            ranks=self.ranks,
            on_run=on_run,
        )
        return training_figures(found)

    def _rivals(self, stack: ExitStack) -> Rivals | None:
        """Who runs beside us; opened first, since some fork."""
        asked = self.asked
        if asked.against is None:
            return None
        return Rivals(
            asked.against,
            self.set,
            split=asked.split,
            batch_size=self.batch_size,
            threads=asked.threads or granted_cores(),
            output=asked.output,
            side=crop_side(self.set.manifest.image.side),
            stack=stack,
            on_open=lambda text: click.echo(f"bench: {text}", err=True),
        )

    def _profile(self, loader: Loader, trainer: Trainer | None) -> None:
        """Some steps once more, recorded: apart from the figures, since recording costs time too."""
        with Trace(None, process=f"rank {self.ranks.rank}" if self.ranks.count > 1 else "bench_loader") as trace:
            batches = endless(loader)
            for _ in range(PROFILED):
                batch = next(batches)
                if trainer:
                    trainer.step(batch)
                    trainer.synchronize()
                del batch
            batches.close()
        everyone = self.ranks.gathered(trace.events())
        if self.ranks.rank == 0 and self.asked.profile:
            write_trace(self.asked.profile, [event for events in everyone for event in events])

    def _about(self, loader: Loader) -> dict[str, Any]:
        asked = self.asked
        return {
            "shard_set": self.set.shown,
            "digest": self.set.digest,
            "split": asked.split,
            "samples": loader.num_samples,
            "stored": asdict(self.set.manifest.image),
            "side": loader.side,
            "store": self._store(),
            "batch_bytes": Stages(loader).batch_bytes,
            "settings": {
                "batch_size": self.batch_size,
                "device": str(self.machine.device),
                "backend": loader.backend,
                "decoder": loader.decoder,
                "split_share": loader.split_share,
                "threads": loader.threads,
                "prefetch": loader.prefetch,
                "order": loader.order,
                "window": loader.window,
                "output": asked.output,
                "channels_last": asked.channels_last,
                "mean": asked.mean,
                "preset": asked.preset,
                "width": asked.width,
                "repeats": asked.repeats,
                "seconds": asked.seconds,
            },
            "machine": {
                **self.machine.describe(),
                "cores": granted_cores(),
                "memory_bytes": os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"),
            },
            "versions": versions(),
        }

    def _store(self) -> dict[str, Any] | None:
        """What came from a store so far, on this rank."""
        shelf = self.set.shelf
        return asdict(shelf.statistics()) if isinstance(shelf, RemoteShelf) else None


def _device_of(asked: str, ranks: Ranks) -> str:
    """Each rank of a machine has its own card."""
    import torch

    if ranks.count > 1 and (asked == "cuda" or (asked == "auto" and torch.cuda.is_available())):
        return f"cuda:{ranks.local}"
    return asked
