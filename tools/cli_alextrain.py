"""The command `alextrain`: shard sets to a trained AlexNet, and what it is worth."""

from __future__ import annotations

import dataclasses
import io
import math
import os
import shlex
import signal
import sys
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal

import click

from .. import __version__
from ..shards import ShardSet, WrongCall, is_address
from .report import json_on_failure, print_json
from .terminal import Cli, Progress, facts, signals_raise

# Before torch is imported, which happens in the commands: OpenMP's threads then sleep at a barrier instead of
# spinning. Spinning takes the cores from the loader's threads and from whatever else runs: with other work on 2
# cores, a quarter-width network trained at 27 images/s so, and at 8 with torch's default.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

FOLDER = click.Path(path_type=Path)
# Words, not paths: a Path would make one slash of the two in s3://.
SHARDS = click.option(
    "--shards",
    metavar="SET",
    help="Shard set, folder with exactly one, or address (s3://…).  [default: shards/, or the run's own]",
)


def machine_options(command: Any) -> Any:
    """How batches are made and where shards of an address are kept: decides speed, and may change any time."""
    for option in reversed(
        (
            click.option("--threads", type=click.IntRange(1, 1024), help="Of the CPU.  [default: one a core]"),
            click.option(
                "--prefetch", type=click.IntRange(1, 64), help="Batches made ahead.  [default: by the memory]"
            ),
            click.option(
                "--backend",
                type=click.Choice(["threads", "dali", "reference"]),
                help="What makes the batches.  [default: threads on a CPU, dali on a GPU]",
            ),
            click.option(
                "--decoder",
                type=click.Choice(["cores", "card", "split"]),
                help="Of JPEGs.  [default: measured at the start on a GPU]",
            ),
            click.option("--cache", type=FOLDER, help="Where shards of an address are kept."),
            click.option("--cache-size", metavar="SIZE", help="The most that it may hold, such as 100GB."),
        )
    ):
        command = option(command)
    return command


@click.group(cls=Cli)
@click.version_option(__version__, prog_name="alextrain")
@click.pass_context
def main(ctx: click.Context) -> None:
    """Train AlexNet on a shard set as in 2012, and evaluate it."""
    ctx.with_resource(_warnings_in_a_line())


@contextmanager
def _warnings_in_a_line() -> Iterator[None]:
    """A warning is its sentence, once, without the place in the code that made it."""
    said = set()

    def say(message: Warning | str, *_: object, **__: object) -> None:
        if str(message) not in said:
            said.add(str(message))
            click.echo(f"warning: {message}", err=True)

    with warnings.catch_warnings():
        warnings.showwarning = say
        yield


@main.command()
@SHARDS
@click.option("--out", type=FOLDER, help="New folder for the run.  [default: runs/SET-PRESET-sSEED]")
@click.option("--resume", type=FOLDER, metavar="RUN", help="Go on with a run that was stopped.")
@click.option(
    "--preset",
    type=click.Choice(["original", "paper"]),
    help="What produced the paper's numbers, or what its text says.  [default: original]",
)
@click.option("--epochs", type=click.IntRange(min=1), help="The schedule scales to it.  [default: 93, paper 90]")
@click.option("--max-steps", type=click.IntRange(min=1), help="End early; the schedule stays that of all epochs.")
@click.option("-b", "--batch-size", type=click.IntRange(min=1), help="Of all devices together.  [default: 128]")
@click.option(
    "--width", type=float, help="Factor on every layer's width; 0.25 suits small machines.  [default: 1]"
)
@click.option("--lr", type=float, help="First rate of the weights; all rates scale with it.  [default: 0.01]")
@click.option(
    "--constant-rate", is_flag=True, default=None, help="No drop and no freeze: the first rates throughout."
)
@click.option("--mean", type=click.Choice(["image", "channel"]), help="What is subtracted.  [default: image]")
@click.option("--augment", type=click.Choice(["original", "paper", "none"]), help="[default: as the preset]")
@click.option(
    "--order",
    type=click.Choice(["global", "windowed", "stored"]),
    help="Of the samples: any, within windows of shards, as on disk.  [default: as the preset]",
)
@click.option("--window", type=click.IntRange(min=1), help="Shards in one of --order windowed.")
@click.option("--dropout/--no-dropout", default=None, help="[default: with]")
@click.option("--init", type=click.Choice(["original", "paper"]), help="Weights as this preset begins.")
@click.option("--bias", type=float, help="Where biases of 1 begin instead; 0.1 leaves plateaus sooner.")
@click.option("--init-fan-in", is_flag=True, default=None, help="Larger first weights in narrow layers.")
@click.option(
    "--seed", type=click.IntRange(0, 2**32 - 1), help="Of weights, order, draws and dropout.  [default: 0]"
)
@click.option(
    "--precision",
    type=click.Choice(["fp32", "tf32", "bf16"]),
    help="Of convolutions and products; weights and velocity are fp32.  [default: fp32]",
)
@click.option("--device", help="auto, cpu, cuda or cuda:N.  [default: auto]")
@click.option("--devices", metavar="A,B", help="Two devices, one tower on each, as cuda:0,cuda:1 or cpu,cpu.")
@click.option(
    "--parallel",
    type=click.Choice(["auto", "single", "towers", "ddp"]),
    default="auto",
    show_default=True,
    help="One device; the towers of 2012 on two; every rank of torchrun. auto: ddp under torchrun, towers with "
    "--devices or two GPUs, else single.",
)
@click.option("--compile/--no-compile", "compiled", default=False, help="By torch.compile.  [default: without]")
@click.option(
    "--graphs/--no-graphs", default=None, help="Steps as CUDA graphs.  [default: where there is a single card]"
)
@machine_options
@click.option(
    "--eval-every", type=click.IntRange(min=0), default=1, show_default=True, help="Epochs; 0: at the end."
)
@click.option(
    "--log-every",
    type=click.IntRange(min=1),
    help="Steps a line, and between checkpoints at least.  [default: a twentieth epoch, 1 to 100]",
)
def run(
    shards: str | None,
    out: Path | None,
    resume: Path | None,
    device: str | None,
    devices: str | None,
    parallel: Literal["auto", "single", "towers", "ddp"],
    compiled: bool,
    graphs: bool | None,
    threads: int | None,
    prefetch: int | None,
    backend: str | None,
    decoder: str | None,
    cache: Path | None,
    cache_size: str | None,
    eval_every: int,
    log_every: int | None,
    **wishes: Any,
) -> None:
    """Train AlexNet, into a folder with its configuration, figures and checkpoint.

    Ctrl-C and SIGTERM finish the step and write a checkpoint; --resume goes on from it. Under torchrun
    (torchrun --nproc-per-node 2 --no-python alextrain run …) all ranks train one network.
    """
    from ..trainer import Checkpoint, Machine, Ranks, RunFolder, train, validation_split
    from .training_lines import Lines

    if resume is not None and out is not None:
        raise WrongCall(
            "--resume goes on in the run's own folder, so --out has no meaning", remedy="leave one out"
        )
    ranks = Ranks.here("--no-python alextrain run")
    machine = Machine.choose(
        device,
        devices=devices.split(",") if devices else None,
        parallel=parallel,
        ranks=ranks,
        compiled=compiled,
        graphs=graphs,
        threads=threads,
        prefetch=prefetch,
        backend=backend,
        decoder=decoder,
    )
    checkpoint = Checkpoint.load(RunFolder(resume).checkpoint) if resume is not None else None
    recipe = _recipe(checkpoint.recipe if checkpoint else None, **wishes)
    shard_set = _shard_set(shards, resume, cache, cache_size)
    folder = resume or out or Path("runs") / f"{shard_set.name}-{recipe.preset}-s{recipe.seed}"
    outcome = train(
        recipe,
        shard_set,
        folder,
        machine,
        resume=checkpoint,
        eval_every=eval_every,
        log_every=log_every,
        reporter=Lines(),
    )
    ranks.leave()
    if not ranks.first:
        sys.exit(128 + outcome.stopped_by if outcome.stopped_by is not None else 0)
    shown = click.format_filename(folder)
    stored = {"--cache": cache, "--cache-size": cache_size}
    if outcome.stopped_by is not None:
        made = {"--threads": threads, "--prefetch": prefetch, "--backend": backend, "--decoder": decoder}
        told = {"--eval-every": None if eval_every == 1 else eval_every, "--log-every": log_every}
        spread = {"--device": device, "--devices": devices, "--parallel": None if parallel == "auto" else parallel}
        flags = [name for name, given in (("--compile", compiled), ("--no-graphs", graphs is False)) if given]
        again = " ".join([_words({"--resume": folder, **spread, **made, **stored, **told}), *flags])
        start = f"torchrun --nproc-per-node {ranks.here_too} --no-python " if ranks.count > 1 else ""
        nodes = -(-ranks.count // ranks.here_too)
        if nodes > 1:  # which cannot be told from here
            start = start.replace("torchrun", f"torchrun --nnodes {nodes} --rdzv-endpoint HOST:PORT")
        click.echo(
            f"stopped by {outcome.stopped_by.name} after step {outcome.step:,} of {outcome.total_steps:,}; "
            f"everything is in {shown}. To go on:\n  {start}alextrain run {again}",
            err=True,
        )
        sys.exit(128 + outcome.stopped_by)
    click.echo(f"{outcome.step:,} steps done; network, figures and configuration are in {shown}. Next:")
    split = "" if validation_split(shard_set) else " --split train"
    click.echo(f"  alextrain eval {_words({'': folder, '--shards': shard_set.shown, **stored})}{split}")


def _words(options: dict[str, object]) -> str:
    """Options of a command as a shell takes them; those that are None were not given."""
    given = {name: str(value) for name, value in options.items() if value is not None}
    return shlex.join(word for pair in given.items() for word in pair if word)


@main.command("eval")
@click.argument("run", type=FOLDER)
@SHARDS
@click.option("--split", type=click.Choice(["train", "val", "test"]), help="[default: val, else test]")
@click.option("--views", type=click.Choice(["1", "10"]), default="1", show_default=True, help="10: mean softmax.")
@click.option("--device", default="auto", show_default=True, help="auto, cpu, cuda or cuda:N.")
@machine_options
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
def eval_command(
    run: Path,
    shards: str | None,
    split: str | None,
    views: str,
    device: str,
    threads: int | None,
    prefetch: int | None,
    backend: str | None,
    decoder: str | None,
    cache: Path | None,
    cache_size: str | None,
    as_json: bool,
) -> None:
    """Loss, top-1 and top-5 error of a RUN's newest network."""
    from ..trainer import (
        Checkpoint,
        Machine,
        Ranks,
        RunFolder,
        build_network,
        evaluate,
        evaluation_loader,
        loading,
        loading_line,
        validation_split,
    )

    with json_on_failure(as_json), signals_raise(signal.SIGTERM):
        ranks = Ranks.here("--no-python alextrain eval")
        machine = Machine.choose(
            device,
            parallel="ddp" if ranks.count > 1 else "single",
            ranks=ranks,
            threads=threads,
            prefetch=prefetch,
            backend=backend,
            decoder=decoder,
        )
        checkpoint = Checkpoint.load(RunFolder(run).checkpoint)
        shard_set = _shard_set(shards, run, cache, cache_size)
        checkpoint.check_fits(shard_set)
        machine.prepare(checkpoint.recipe.precision)
        split = split or validation_split(shard_set)
        if split is None:
            raise WrongCall(f"{shard_set.shown} has no labelled val or test split", remedy="--split train")
        how_many: Literal[1, 10] = 10 if views == "10" else 1
        network = build_network(checkpoint.recipe, checkpoint.num_classes, checkpoint.side, machine.devices)
        checkpoint.put_into(network)
        with (
            evaluation_loader(checkpoint.recipe, shard_set, split, machine, views=how_many) as loader,
            _progress(f"eval {split}", loader.num_samples, ranks) as progress,
        ):
            if ranks.first:
                click.echo(loading_line(loader), err=True)
            found = evaluate(network, loader, ranks=ranks, on_images=progress.advance)
        assert found is not None  # nothing asked it to stop
        ranks.leave()
        if not ranks.first:
            return
        about = {
            "run": str(run),
            "step": checkpoint.step,
            "shard_set": shard_set.shown,
            "loader": loading(loader),
            "trained_on_this_set": shard_set.digest == checkpoint.shard_set,
            **dataclasses.asdict(found),
            "classes": checkpoint.num_classes,
            "chance_loss": math.log(checkpoint.num_classes),
        }
        print_json(about) if as_json else click.echo(facts(_readable(about)))


def _progress(title: str, images: int, ranks: Any) -> Progress:
    """Of this rank's part; the first rank shows it."""
    unit = "images" if ranks.count == 1 else "images of each rank"
    return Progress(title, -(-images // ranks.count), unit, stream=None if ranks.first else io.StringIO())


def _readable(about: dict[str, Any]) -> dict[str, object]:
    """The same for people: errors in percent, the loss beside that of a constant answer."""
    other = "" if about["trained_on_this_set"] else " (not the set it was trained on: its own mean is subtracted)"
    return {
        "run": f"{about['run']}, step {about['step']:,}",
        "shard set": f"{about['shard_set']}{other}",
        "split": f"{about['split']}, {about['samples']:,} images",
        "views": about["views"],
        "loss": f"{about['loss']:.4f}  (ln({about['classes']:,}) = {about['chance_loss']:.4f} is chance)",
        "top-1 error": f"{100 * about['top1_error']:.2f} %",
        "top-5 error": f"{100 * about['top5_error']:.2f} %",
        "speed": f"{about['images_per_s']:,.0f} images/s, {about['wait_s']:.1f} s of waiting for batches",
    }


def _recipe(
    begun: Any,
    *,
    preset: str | None,
    lr: float | None,
    constant_rate: bool | None,
    augment: str | None,
    init: str | None,
    bias: float | None,
    **fields: Any,
) -> Any:
    """A preset with what was asked for, or that of a run already begun, which `train` then lets change nothing."""
    from ..trainer import PRESETS

    recipe = begun or PRESETS[preset or "original"]()
    if preset is not None and preset != recipe.preset:
        recipe = PRESETS[preset]()
    recipe = dataclasses.replace(recipe, **{name: value for name, value in fields.items() if value is not None})
    if constant_rate:
        recipe = recipe.with_constant_rate()
    if lr is not None:
        recipe = recipe.with_learning_rate(lr)
    if augment is not None:
        recipe = dataclasses.replace(recipe, augment=None if augment == "none" else augment)
    if init is not None:
        recipe = dataclasses.replace(recipe, init_std=PRESETS[init]().init_std)
    return recipe if bias is None else recipe.with_initial_bias(bias)


def _shard_set(shards: str | None, run: Path | None, cache: Path | None, cache_size: str | None) -> ShardSet:
    """The set named; else the one that the run's configuration names; else the only one in shards/."""
    from ..pipeline import open_shard_set, parse_bytes
    from ..trainer import RunFolder

    if shards is None and run is not None:
        shards = RunFolder(run).shard_set()
    shards = shards or "shards"
    cache_bytes = None if cache_size is None else parse_bytes(cache_size)
    if not is_address(shards) and (cache, cache_size) != (None, None):
        raise WrongCall(
            f"--cache{'' if cache else '-size'} is for sets at an address, and {shards} is a folder",
            why="shards of a folder are read where they are",
            remedy="leave it out",
        )
    return open_shard_set(shards, cache=cache, cache_bytes=cache_bytes)


if __name__ == "__main__":
    main()
