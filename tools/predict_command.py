"""`alextrain predict`: what a trained network finds in images."""

from __future__ import annotations

import dataclasses
import io
import signal
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import click

from ..shards import ClassEntry, WrongCall, printable
from .report import json_on_failure, print_json
from .terminal import Progress, signals_raise, table

if TYPE_CHECKING:
    from .predict import Prediction

PATH = click.Path(path_type=Path)
MANY = 200  # images from which on progress is told


@click.command("predict")
@click.argument("run", type=PATH)
@click.argument("images", type=PATH, nargs=-1, required=True, metavar="IMAGE…")
@click.option("--best", is_flag=True, help="The network of the best validation, not the newest.")
@click.option("--views", type=click.Choice(["1", "10"]), default="1", show_default=True, help="10: mean softmax.")
@click.option("--top", type=click.IntRange(min=1), default=5, show_default=True, help="Classes of each image.")
@click.option("--device", default="auto", show_default=True, help="auto, cpu, cuda or cuda:N.")
@click.option("--picture", type=PATH, metavar="FILE.png", help="Draw images and bars as in figure 4 of the paper.")
@click.option(
    "--label",
    metavar="CLASS",
    help="Correct class of all images, for --picture: synset, name or number.  [default: the image's folder, "
    "where it is called as a synset]",
)
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
def predict_command(
    run: Path,
    images: tuple[Path, ...],
    best: bool,
    views: str,
    top: int,
    device: str,
    picture: Path | None,
    label: str | None,
    as_json: bool,
) -> None:
    """The most probable classes of each IMAGE (JPEG, PNG, WebP, BMP), by the network of RUN.

    RUN is a run's folder or one of its checkpoints. Unless every image can be read, none is predicted.
    """
    from .predict import check_images

    with json_on_failure(as_json), signals_raise(signal.SIGTERM):
        if label is not None and picture is None:
            raise WrongCall(
                "--label colours a bar of the picture, and there is none", remedy="add --picture FILE.png"
            )
        if picture is not None:
            from .predict_picture import check_picture

            check_picture(picture, images)
        check_images(images)

        from ..trainer import Machine, build_network, load_checkpoint
        from .predict import Preparation, correct_labels, predict

        machine = Machine.choose(device, parallel="single")
        checkpoint = load_checkpoint(run, best=best, say=_say)
        classes = [ClassEntry(synset, words, None) for synset, words in checkpoint.classes]
        correct = correct_labels(images, classes, label)
        machine.prepare(checkpoint.recipe.precision)
        network = build_network(checkpoint.recipe, checkpoint.num_classes, checkpoint.side, machine.devices)
        checkpoint.put_into(network)
        how_many: Literal[1, 10] = 10 if views == "10" else 1
        with _progress(len(images)) as progress:
            predictions = predict(
                network,
                images,
                Preparation.of(checkpoint, how_many),
                classes,
                top=max(top, 5) if picture else top,
                device=str(machine.device),
                on_images=progress.advance,
            )
        if picture is not None:
            from .predict_picture import write_picture

            write_picture(picture, predictions, classes, correct)
            _say(f"the picture is in {click.format_filename(picture)}")
        predictions = [dataclasses.replace(each, top=each.top[:top]) for each in predictions]
        about = {"run": str(run), "step": checkpoint.step, "views": how_many}
        if as_json:
            told = [
                {"path": str(each.file), "top": [dataclasses.asdict(guess) for guess in each.top]}
                for each in predictions
            ]
            print_json({**about, "images": told, "picture": None if picture is None else str(picture)})
        else:
            click.echo(readable(predictions))


def readable(predictions: Sequence[Prediction]) -> str:
    """Each image's path, and below it a line for each class, aligned over all images."""
    guesses = [guess for each in predictions for guess in each.top]
    shares = [f"{100 * guess.probability:.1f} %" for guess in guesses]
    width = max(map(len, shares))
    rows = [
        (share.rjust(width), guess.synset, "" if guess.words == guess.synset else guess.words)
        for share, guess in zip(shares, guesses, strict=True)
    ]
    aligned = iter(table(rows).split("\n"))
    lines = []
    for each in predictions:
        lines.append(printable(str(each.file)))
        lines += [f"  {next(aligned)}" for _ in each.top]
    return "\n".join(lines)


def _progress(images: int) -> Progress:
    return Progress("predict", images, "images", stream=None if images >= MANY else io.StringIO())


def _say(line: object) -> None:
    click.echo(printable(str(line)), err=True)
