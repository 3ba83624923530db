"""`alextrain eval`: what a trained network is worth."""

from __future__ import annotations

import dataclasses
import io
import math
import signal
from pathlib import Path
from typing import Any, Literal

import click

from ..shards import WrongCall
from .report import json_on_failure, print_json
from .terminal import Progress, facts, signals_raise
from .trainer_options import FOLDER, SHARDS, machine_options, network_of, shard_set_of


@click.command("eval")
@click.argument("run", type=FOLDER)
@SHARDS
@click.option("--split", type=click.Choice(["train", "val", "test"]), help="[default: val, else test]")
@click.option("--views", type=click.Choice(["1", "10"]), default="1", show_default=True, help="10: mean softmax.")
@click.option("--best", is_flag=True, help="The network of the best validation, not the newest.")
@click.option("--device", default="auto", show_default=True, help="auto, cpu, cuda or cuda:N.")
@machine_options
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
def eval_command(
    run: Path,
    shards: str | None,
    split: str | None,
    views: str,
    best: bool,
    device: str,
    threads: int | None,
    prefetch: int | None,
    backend: str | None,
    decoder: str | None,
    cache: Path | None,
    cache_size: str | None,
    as_json: bool,
) -> None:
    """Loss, top-1 and top-5 error of a RUN's newest network.

    RUN is a run's folder or one of its checkpoints.
    """
    from ..trainer import (
        Machine,
        Ranks,
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
        checkpoint = network_of(run, best=best)
        shard_set = shard_set_of(shards, run if run.is_dir() else None, cache, cache_size)
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
