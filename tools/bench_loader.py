"""`tools/bench_loader`: images/s of the loader by stage, what the trainer asks for, which is the limit."""

from __future__ import annotations

import os
import platform
import signal
import statistics
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from importlib.metadata import PackageNotFoundError, version
from itertools import accumulate
from pathlib import Path
from typing import Any

import click

from .. import __version__
from ..shards import AlexshardError, ShardSet
from .report import json_on_failure, print_json
from .terminal import CliCommand, Progress, facts, signals_raise, table

# As `alextrain` does, before torch is imported: else the demand measured here is not the trainer's.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

MEANING = {
    "bytes": "stored bytes read",
    "decode": "+ decode",
    "augment": "+ crop, mirror, mean, jitter",
    "device": "+ to the device, as the trainer gets it",
}


@dataclass(frozen=True, slots=True)
class Rate:
    """Images per second of repeated runs."""

    median: float
    min: float
    max: float
    runs: tuple[float, ...]

    @classmethod
    def of(cls, runs: Sequence[float]) -> Rate:
        return cls(statistics.median(runs), min(runs), max(runs), tuple(runs))


@dataclass(frozen=True, slots=True)
class Verdict:
    """Which side is the limit, by what factor, and what to turn."""

    bottleneck: str  # a stage, or "trainer"
    factor: float | None  # how many times the other side outruns it; None: the demand is not known
    text: str


@click.command(cls=CliCommand)
@click.option("--shards", type=click.Path(path_type=Path), default=Path("shards"), show_default=True)
@click.option("--split", type=click.Choice(["train", "val", "test"]), default="train", show_default=True)
@click.option("-b", "--batch-size", type=click.IntRange(min=1), default=128, show_default=True)
@click.option("--device", default="auto", show_default=True, help="auto, cpu, cuda or cuda:N.")
@click.option("--threads", type=click.IntRange(1, 1024), help="That decode.  [default: one a core]")
@click.option("--decoder", type=click.Choice(["cores", "card"]), help="[default: where the batches go]")
@click.option("--mean", type=click.Choice(["image", "channel"]), default="image", show_default=True)
@click.option("--output", type=click.Choice(["float32", "uint8"]), default="float32", show_default=True)
@click.option("--preset", type=click.Choice(["original", "paper"]), default="original", show_default=True)
@click.option("--width", type=float, default=1.0, show_default=True, help="Of the trainer's network.")
@click.option("--repeats", type=click.IntRange(min=1), default=5, show_default=True, help="Runs of each stage.")
@click.option("--seconds", type=float, default=1.0, show_default=True, help="Of one run, at least.")
@click.option("--demand/--no-demand", default=True, help="Whether to measure the trainer too.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
@click.version_option(__version__, prog_name="bench_loader")
def main(as_json: bool, **options: Any) -> None:
    """Say where the loader's time goes, and whether the trainer has to wait for it.

    Runs of the stages take turns, so that a machine that grows slower does so for all; figures are the median and,
    in brackets, the least and the most of the runs.
    """
    with json_on_failure(as_json), signals_raise(signal.SIGTERM):
        report = measure(**options)
        print_json(report) if as_json else click.echo(to_text(report))


def measure(
    *,
    shards: Path,
    split: str,
    batch_size: int,
    device: str,
    threads: int | None,
    decoder: Any,
    mean: Any,
    output: Any,
    preset: str,
    width: float,
    repeats: int,
    seconds: float,
    demand: bool,
) -> dict[str, Any]:
    """All figures, ready for JSON; rates are in images/s."""
    from dataclasses import replace

    from ..pipeline import STAGES, Loader, Stages
    from ..trainer import PRESETS, Machine, measure_demand

    machine = Machine.choose(device)
    machine.prepare()
    recipe = replace(PRESETS[preset](), width=width)
    shard_set = ShardSet.open(shards)
    entry = shard_set.manifest.splits.get(split)
    samples = batch_size if entry is None else entry.samples
    with Loader(
        shard_set,
        split,
        batch_size=min(batch_size, samples),
        device=machine.device,
        augment=recipe.augment,
        order=recipe.order,
        mean=mean,
        mean_crop=recipe.mean_crop if mean == "image" else None,
        output=output,
        threads=threads,
        decoder=decoder,
    ) as loader:
        ladder, runs = Stages(loader), {stage: list[float]() for stage in STAGES}
        with Progress("bench", total=repeats * len(STAGES), unit="runs") as progress:
            for _ in range(repeats):
                for stage in STAGES:
                    runs[stage].append(ladder.images_per_s(stage, seconds=seconds))
                    progress.advance(note=stage)
        about = {
            "shard_set": str(shard_set.path),
            "digest": shard_set.digest,
            "split": split,
            "samples": loader.num_samples,
            "stored": asdict(shard_set.manifest.image),
            "side": loader.side,
            "batch_size": min(batch_size, samples),
            "device": str(machine.device),
            "decoder": loader.decoder,
            "threads": loader.threads,
            "prefetch": loader.prefetch,
            "preset": preset,
            "width": width,
            "mean": mean,
            "output": output,
            "repeats": repeats,
            "seconds": seconds,
        }
        side, num_classes = loader.side, loader.num_classes
    asked, why_not = None, "not measured (--no-demand)"
    if demand:
        click.echo(f"bench: {repeats + 1} steps of the trainer, for its demand", err=True)
        try:
            rates = measure_demand(
                recipe,
                num_classes=num_classes,
                side=side,
                device=str(machine.device),
                batch_size=about["batch_size"],
                repeats=repeats,
            )
            asked, why_not = Rate.of(rates), ""
        except AlexshardError as error:  # a set too small for the network can still be profiled
            why_not = f"not measured: {error.what}"
    stages = {stage: Rate.of(runs[stage]) for stage in STAGES}
    return {
        **about,
        "stages": [
            {"stage": stage, "meaning": MEANING[stage], "images_per_s": asdict(stages[stage]), "own_us": own}
            for stage, own in own_us_per_image({stage: rate.median for stage, rate in stages.items()}).items()
        ],
        "demand": None if asked is None else {"images_per_s": asdict(asked)},
        "demand_note": why_not,
        "verdict": asdict(
            judge(
                {stage: rate.median for stage, rate in stages.items()},
                None if asked is None else asked.median,
                threads=about["threads"],
                cores=len(os.sched_getaffinity(0)),
                encoding=shard_set.manifest.image.encoding,
                device=about["device"],
                decoder=about["decoder"],
                mean=mean,
                output=output,
            )
        ),
        "machine": {
            **machine.describe(),
            "memory_bytes": os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"),
        },
        "versions": versions(),
    }


def own_us_per_image(rates: dict[str, float]) -> dict[str, float]:
    """Microseconds an image that each stage adds to those before it; their sum is what the last one takes.

    A stage contains those before it: where one was measured to be slower than a later one, by chance or because
    the later one does things at the same time, it is taken to cost what the later one does.
    """
    times = list(accumulate((1e6 / rate for rate in reversed(rates.values())), min))
    return {
        stage: time - before for stage, before, time in zip(rates, [0.0, *times[:0:-1]], times[::-1], strict=True)
    }


def judge(
    rates: dict[str, float],
    demand: float | None,
    *,
    threads: int,
    cores: int,
    encoding: str,
    device: str,
    decoder: str,
    mean: str,
    output: str,
) -> Verdict:
    """Compare what the loader gives with what the trainer asks for, both in images/s."""
    given, own = rates["device"], own_us_per_image(rates)
    if demand is not None and given >= demand:
        # Threads share the work evenly; half as much again is kept in hand.
        spare = "--threads 1 would be enough" if given / threads > 1.5 * demand else "no thread to spare"
        return Verdict(
            "trainer",
            given / demand,
            f"The trainer is the limit: it asks for {demand:,.0f} images/s, the loader gives {given:,.0f}, "
            f"{given / demand:,.1f} times as many. A faster --device or a smaller --width uses more; {spare}.",
        )
    stage = max(own, key=lambda name: own[name])
    by_cores = f"--threads {cores} (now {threads})" if threads < cores else "more cores"
    disk, by_card = ["a faster disk", "memory that holds the shards"], "a faster card"
    turn = ", or ".join(
        {
            "bytes": disk,
            "decode": disk
            if encoding == "raw"
            else [by_card if decoder == "card" else by_cores, "alexshard build --format raw"],
            "augment": [
                by_cores if device == "cpu" else by_card,
                *(["--mean channel"] if mean == "image" and output == "float32" else []),
            ],
            "device": ["a larger --batch-size"],
        }[stage]
    )
    if demand is None:
        return Verdict(stage, None, f"The loader gives {given:,.0f} images/s; {stage} costs most. Turn: {turn}.")
    return Verdict(
        stage,
        demand / given,
        f"The loader is the limit, and {stage} in it: the trainer asks for {demand:,.0f} images/s, "
        f"{demand / given:,.1f} times the {given:,.0f} it gets. Turn: {turn}.",
    )


def versions() -> dict[str, str]:
    """What the figures depend on."""
    import numpy
    import PIL
    import torch

    def of(*names: str) -> str:
        for name in names:
            try:
                return version(name)
            except PackageNotFoundError:
                continue
        return "not installed"

    return {
        "alexshard": __version__,
        "python": platform.python_version(),
        "torch": str(torch.__version__),
        "dali": of("nvidia-dali-cuda130", "nvidia-dali-cuda120"),
        "simplejpeg": of("simplejpeg"),
        # pillow-simd lies over Pillow; the module knows which it is.
        "pillow-simd" if ".post" in PIL.__version__ else "pillow": PIL.__version__,
        "numpy": numpy.__version__,
    }


def to_text(report: dict[str, Any]) -> str:
    """The report for people: machine, table, verdict in one line."""
    stored, machine = report["stored"], report["machine"]
    kind = "raw" if stored["encoding"] == "raw" else f"JPEG quality {stored['quality']}"
    about = {
        "machine": f"{', '.join(machine['names'])}, {machine['cores']} cores, "
        f"{machine['memory_bytes'] / 2**30:.0f} GiB",
        "versions": ", ".join(f"{name} {number}" for name, number in report["versions"].items()),
        "shard set": f"{report['shard_set']}, {report['split']}, {report['samples']:,} images, "
        f"{stored['side']}x{stored['side']} {kind}",
        "batches": f"{report['batch_size']} images of {report['side']}x{report['side']} on {report['device']}, "
        f"{report['output']}, mean {report['mean']}, augmented as {report['preset']}",
        "settings": f"decoder {report['decoder']}, threads {report['threads']}, prefetch {report['prefetch']}; "
        f"{report['repeats']} runs of {report['seconds']:g} s",
    }
    rows: list[tuple[str, str, str]] = [
        (row["meaning"], _rate(row["images_per_s"]), f"{row['own_us']:,.0f}") for row in report["stages"]
    ]
    demand = _rate(report["demand"]["images_per_s"]) if report["demand"] else report["demand_note"]
    rows.append((f"the trainer's demand, width {report['width']:g}", demand, ""))
    figures = table(rows, header=("stage", "images/s: median [least..most]", "own µs/image"))
    return f"{facts(about)}\n\n{figures}\n\n{report['verdict']['text']}"


def _rate(rate: dict[str, Any]) -> str:
    digits = 0 if rate["median"] >= 100 else 1
    return f"{rate['median']:,.{digits}f} [{rate['min']:,.{digits}f}..{rate['max']:,.{digits}f}]"


if __name__ == "__main__":
    main()
