"""`alextrain run`: train, into a folder from which everything can go on."""

from __future__ import annotations

import re
import shlex
import sys
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import click

from ..shards import WrongCall
from .recipe_options import beginning, recipe_of, recipe_options
from .report import json_on_failure
from .trainer_options import FOLDER, SHARDS, machine_options, shard_set_of

if TYPE_CHECKING:
    from ..trainer import Outcome, Ranks, SaveEvery

_SECONDS = {"s": 1.0, "min": 60.0, "h": 3600.0}


@click.command("run")
@SHARDS
@click.option(
    "--out",
    type=FOLDER,
    help="Folder of the run; one that stands there goes on.  [default: runs/SET-PRESET-sSEED]",
)
@click.option("--resume", type=FOLDER, metavar="RUN", help="Go on with this run, by the recipe it began with.")
@recipe_options
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
@click.option("--deterministic", is_flag=True, help="The same bits every time, where torch can: slower on a card.")
@machine_options
@click.option(
    "--eval-every", type=click.IntRange(min=0), default=1, show_default=True, help="Epochs; 0: at the end."
)
@click.option(
    "--log-every", type=click.IntRange(min=1), help="Steps a line.  [default: a twentieth epoch, 1 to 100]"
)
@click.option(
    "--checkpoint-every",
    default="5min",
    show_default=True,
    metavar="N|TIME",
    help="Steps, as 500, or time, as 30s, 10min or 1h: with the next line, a minute later at the latest.",
)
@click.option(
    "--keep",
    type=click.IntRange(min=1),
    default=2,
    show_default=True,
    help="Newest checkpoints, besides the best.",
)
@click.option("--quiet", is_flag=True, help="Say nothing but warnings.")
@click.option("--json", "as_json", is_flag=True, help="One JSON object a line on stdout.")
def run_command(
    shards: str | None,
    out: Path | None,
    resume: Path | None,
    device: str | None,
    devices: str | None,
    parallel: Literal["auto", "single", "towers", "ddp"],
    compiled: bool,
    graphs: bool | None,
    deterministic: bool,
    threads: int | None,
    prefetch: int | None,
    backend: str | None,
    decoder: str | None,
    cache: Path | None,
    cache_size: str | None,
    eval_every: int,
    log_every: int | None,
    checkpoint_every: str,
    keep: int,
    quiet: bool,
    as_json: bool,
    init_from: Path | None,
    **wishes: Any,
) -> None:
    """Train AlexNet, into a folder with its configuration, figures and checkpoints.

    The same command again goes on where that folder stands, and so does --resume. Ctrl-C, SIGTERM, SIGUSR1 and
    SIGHUP finish the step and write a checkpoint. Under torchrun
    (torchrun --nproc-per-node 2 --no-python alextrain run …) all ranks train one network.
    """
    with json_on_failure(as_json, lines=True):
        save_every = _interval(checkpoint_every)
        from ..trainer import Machine, Ranks, RunFolder, train, validation_split
        from .training_lines import reporter_for

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
            deterministic=deterministic,
            threads=threads,
            prefetch=prefetch,
            backend=backend,
            decoder=decoder,
        )
        begun = RunFolder(resume).recipe() if resume is not None else None
        recipe = recipe_of(begun, **wishes)
        shard_set = shard_set_of(shards, resume, cache, cache_size)
        folder = resume or out or Path("runs") / f"{shard_set.name}-{recipe.preset}-s{recipe.seed}"
        recipe, source = beginning(recipe, folder, init_from)
        with reporter_for(quiet=quiet, as_json=as_json) as reporter:
            outcome = train(
                recipe,
                shard_set,
                folder,
                machine,
                eval_every=eval_every,
                log_every=log_every,
                save_every=save_every,
                keep=keep,
                init_from=source,
                reporter=reporter,
            )
        ranks.leave()
        stored = {"--cache": cache, "--cache-size": cache_size}
        made = {"--threads": threads, "--prefetch": prefetch, "--backend": backend, "--decoder": decoder}
        told = {
            "--eval-every": None if eval_every == 1 else eval_every,
            "--log-every": log_every,
            "--checkpoint-every": None if checkpoint_every == "5min" else checkpoint_every,
            "--keep": None if keep == 2 else keep,
        }
        spread = {"--device": device, "--devices": devices, "--parallel": None if parallel == "auto" else parallel}
        flags = {"--compile": compiled, "--no-graphs": graphs is False, "--deterministic": deterministic}
        flags |= {"--quiet": quiet, "--json": as_json}
        again = " ".join(
            [
                _words({"--resume": folder, **spread, **made, **stored, **told}),
                *(name for name, given in flags.items() if given),
            ]
        )
        split = "" if validation_split(shard_set) else " --split train"
        judge = f"alextrain eval {_words({'': folder, '--shards': shard_set.shown, **stored})}{split}"
        _end(outcome, ranks, _torchrun(ranks) + f"alextrain run {again}", judge, quiet=quiet, as_json=as_json)


def _end(outcome: Outcome, ranks: Ranks, go_on: str, judge: str, *, quiet: bool, as_json: bool) -> None:
    """Say how it ended, and exit as it did."""
    from .training_lines import json_line

    stopped = outcome.stopped_by
    shown = click.format_filename(outcome.folder)
    if as_json and ranks.first:
        line = json_line(
            "end",
            folder=str(outcome.folder),
            step=outcome.step,
            last_step=outcome.total_steps,
            stopped_by=stopped.name if stopped is not None else None,
            top1_error=outcome.evaluation.top1_error if outcome.evaluation else None,
            top5_error=outcome.evaluation.top5_error if outcome.evaluation else None,
            go_on=go_on if stopped is not None else None,
        )
        _tell(line)
    elif ranks.first and stopped is not None and not quiet:
        _tell(
            f"stopped by {stopped.name} after step {outcome.step:,} of {outcome.total_steps:,}; "
            f"everything is in {shown}. To go on:\n  {go_on}",
            err=True,
        )
    elif ranks.first and not quiet:
        _tell(f"{outcome.step:,} steps done; network, figures and configuration are in {shown}. Next:\n  {judge}")
    if stopped is not None:
        sys.exit(128 + stopped)


def _tell(text: str, *, err: bool = False) -> None:
    """The last words; if their reader has gone away the run has still ended as it did."""
    with suppress(OSError):
        click.echo(text, err=err)


def _torchrun(ranks: Ranks) -> str:
    """How the ranks were started, for the way on."""
    if ranks.count == 1:
        return ""
    nodes = -(-ranks.count // ranks.here_too)
    # Where the others are cannot be told from here.
    many = f" --nnodes {nodes} --rdzv-endpoint HOST:PORT" if nodes > 1 else ""
    return f"torchrun{many} --nproc-per-node {ranks.here_too} --no-python "


def _interval(text: str) -> SaveEvery:
    """A number of steps, or a time.

    >>> _interval("500"), _interval("10min")
    (SaveEvery(steps=500, seconds=300.0), SaveEvery(steps=None, seconds=600.0))
    """
    found = re.fullmatch(r"(\d+(?:\.\d+)?)\s*(s|min|h)?", text.strip())
    number = float(found[1]) if found else 0.0
    if found is None or not 0 < number < 1e9 or (found[2] is None and number != int(number)):
        raise WrongCall(
            f"--checkpoint-every {text}", remedy="a number of steps, as 500, or a time, as 30s, 10min or 1h"
        )
    from ..trainer import SaveEvery

    return SaveEvery(steps=int(number)) if found[2] is None else SaveEvery(seconds=number * _SECONDS[found[2]])


def _words(options: dict[str, object]) -> str:
    """Options of a command as a shell takes them; those that are None were not given."""
    given = {name: str(value) for name, value in options.items() if value is not None}
    return shlex.join(word for pair in given.items() for word in pair if word)
