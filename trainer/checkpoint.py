"""Everything a run needs to go on, and its network to be used, in one file that appears whole or not at all.

Plain values and tensors by `torch.save`; loading is `weights_only`, so a file can bring no code, and every value
is looked at. Momentum is kept as torch's buffers with the rates they belong to: converting them to the paper's
velocity and back would not be bit for bit. Masks, order and augmentation are functions of the seed
(architecture.md D1): no generator has a state to keep.
"""

from __future__ import annotations

import dataclasses
import zipfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ..pipeline import centre, crop_side
from ..shards import AlexshardError, ShardSet, WrongCall, appearing_whole
from .machine import versions
from .recipe import Recipe
from .schedule import Plateau
from .towers import Network

FORMAT = 2
_FIELDS_OF_FILE = {"format", "versions"}


class BadCheckpoint(AlexshardError):
    """A checkpoint cannot be read, or is that of another network or another shard set."""


@dataclass(frozen=True, kw_only=True)
class Checkpoint:
    """The state of a run after `step` updates."""

    recipe: Recipe
    side: int  # S, of the crops
    stored_side: int  # H, of the images in the shards
    classes: tuple[tuple[str, str], ...]  # (synset, words) by label
    mean_image: Tensor  # float32 (H, H, 3), RGB 0..255, of the training images
    channel_mean: tuple[float, ...]  # of the three, as the set's manifest has it
    shard_set: str  # digest
    set_name: str
    training_images: int  # of the set's training split
    steps_per_epoch: int
    step: int
    evaluated_step: int  # the last step whose network was evaluated; -1: none
    evaluation: dict[str, Any] | None  # that evaluation: split, views, samples, loss, top1_error, top5_error, step
    plateau: Plateau  # best validation error so far; with `drop_on` plateau also the drops made
    loader: dict[str, Any]  # Loader.state_dict(): epoch and position
    network: dict[str, Tensor]
    optimiser: dict[str, Any]  # PaperSGD.state_dict(): momentum and its rates

    @property
    def num_classes(self) -> int:
        """Outputs of the network."""
        return len(self.classes)

    def centre_mean(self) -> Tensor:
        """What is subtracted from a central crop, float32 (3, S, S), RGB 0..255."""
        if self.recipe.mean == "channel":
            return torch.tensor(self.channel_mean)[:, None, None].expand(3, self.side, self.side)
        whole = self.mean_image.permute(2, 0, 1)
        border = centre(self.stored_side - self.side)
        return whole[:, border : border + self.side, border : border + self.side].contiguous()

    def save(self, path: Path) -> None:
        """Write the file under a temporary name and rename it when it is on the disk."""
        fields = {field.name: getattr(self, field.name) for field in dataclasses.fields(self)}
        fields |= {"recipe": self.recipe.to_json(), "plateau": dataclasses.asdict(self.plateau)}
        fields |= {"format": FORMAT, "versions": versions()}
        with appearing_whole(path) as file:
            torch.save(fields, file)

    @classmethod
    def load(cls, path: Path) -> Checkpoint:
        """Read a checkpoint to the CPU.

        Raises:
            WrongCall: there is none.
            BadCheckpoint: it is cut, damaged, of another format, or holds more than values and tensors.
        """
        if not path.is_file():
            raise WrongCall(
                f"no checkpoint {path}",
                why="there is no network to go on with, or to ask",
                remedy="name a run's folder, or one of the files in its checkpoints/",
            )
        try:
            with zipfile.ZipFile(path) as archive:  # torch writes CRCs, and does not look at them
                damaged = archive.testzip()
            if damaged is not None:
                raise _unreadable(path, f"{damaged} is damaged")
            fields = torch.load(path, map_location="cpu", weights_only=True)
        except AlexshardError:
            raise
        except Exception as error:  # damaged bytes make both readers fail in every way there is
            raise _unreadable(path, _reason(error)) from error
        names = {field.name for field in dataclasses.fields(cls)} | _FIELDS_OF_FILE
        if not isinstance(fields, dict) or fields.get("format") != FORMAT or fields.keys() != names:
            found = fields.get("format") if isinstance(fields, dict) else None
            raise _unreadable(path, f"it is not a checkpoint of format {FORMAT} but of {found!r}")
        for name, right in _SHAPES.items():
            if not right(fields[name]):
                raise _unreadable(path, f"its {name} is not what a run writes")
        values = {name: value for name, value in fields.items() if name not in _FIELDS_OF_FILE}
        drops = tuple(values["plateau"].pop("drops"))
        values |= {
            "recipe": Recipe.from_json(values["recipe"]),
            "plateau": Plateau(**values["plateau"], drops=drops),
            "classes": tuple((synset, words) for synset, words in values["classes"]),
            "channel_mean": tuple(values["channel_mean"]),
        }
        checkpoint = cls(**values)
        if checkpoint.mean_image.shape != (checkpoint.stored_side, checkpoint.stored_side, 3):
            raise _unreadable(path, f"its mean image is {tuple(checkpoint.mean_image.shape)}")
        return checkpoint

    def check_fits(self, shard_set: ShardSet) -> None:
        """See that the network can be asked about the images of a set, be it the one it was trained on or not.

        Raises:
            BadCheckpoint: the set has another number of classes, or images of another size.
        """
        classes, side = shard_set.manifest.num_classes, crop_side(shard_set.manifest.image.side)
        if (classes, side) != (self.num_classes, self.side):
            raise BadCheckpoint(
                f"the network was trained for {self.num_classes:,} classes and crops of {self.side}×{self.side}",
                where=f"{shard_set.shown} has {classes:,} classes and gives crops of {side}×{side}",
                why="its answers would mean nothing there",
                remedy="name the shard set it was trained on by --shards",
            )

    def put_into(self, network: Network) -> None:
        """Give the network these weights.

        Raises:
            BadCheckpoint: they are those of another network.
        """
        try:
            network.load_state_dict(self.network)
        except RuntimeError as error:
            raise BadCheckpoint(
                "the checkpoint is of another network",
                where="; ".join(line.strip() for line in str(error).splitlines()[1:4]),
                remedy="use the recipe, class count and image size that it was trained with",
            ) from error


def _is_tensors(value: object) -> bool:
    return isinstance(value, dict) and all(
        isinstance(name, str) and isinstance(item, Tensor) and item.dtype == torch.float32
        for name, item in value.items()
    )


def _is_momentum(value: object) -> bool:
    return (
        isinstance(value, dict)
        and value.keys() == {"momentum", "rates"}
        and _is_tensors(value["momentum"])
        and isinstance(value["rates"], dict)
        and all(isinstance(name, str) and isinstance(rate, float) for name, rate in value["rates"].items())
    )


def _is_plateau(value: object) -> bool:
    return (
        isinstance(value, dict)
        and value.keys() == {field.name for field in dataclasses.fields(Plateau)}
        and isinstance(value["best_error"], float | None)
        and _is_count(value["best_step"])
        and isinstance(value["stopped"], bool)
        and isinstance(value["drops"], list | tuple)
        and all(map(_is_count, value["drops"]))
    )


def _is_classes(value: object) -> bool:
    return isinstance(value, list | tuple) and all(
        isinstance(pair, list | tuple) and len(pair) == 2 and all(isinstance(word, str) for word in pair)
        for pair in value
    )


def _is_count(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value >= 0


def _is_text(value: object) -> bool:
    return isinstance(value, str)


# What each value of a file must be before anything is done with it.
_SHAPES: dict[str, Callable[[Any], bool]] = {
    "recipe": lambda value: isinstance(value, dict) and all(map(_is_text, value)),
    **dict.fromkeys(("side", "stored_side", "training_images", "steps_per_epoch", "step"), _is_count),
    "evaluated_step": lambda value: isinstance(value, int) and value >= -1,
    "evaluation": lambda value: value is None or isinstance(value, dict),
    "classes": _is_classes,
    "mean_image": lambda value: isinstance(value, Tensor) and value.dtype == torch.float32,
    "channel_mean": lambda value: len(value) == 3 and all(isinstance(one, float) for one in value),
    "shard_set": _is_text,
    "set_name": _is_text,
    "plateau": _is_plateau,
    "loader": lambda value: isinstance(value, dict),
    "network": _is_tensors,
    "optimiser": _is_momentum,
}


def _reason(error: Exception) -> str:
    """In a line; torch explains at length how a file that brings code could be trusted after all."""
    first = str(error).partition("\n")[0]
    return "it holds more than values and tensors" if "Weights only" in first else first


def _unreadable(path: Path, reason: str) -> BadCheckpoint:
    return BadCheckpoint(
        f"the checkpoint cannot be read: {reason}",
        where=str(path),
        why="with damaged weights a network answers otherwise, and a run would be another",
        remedy="restore the file from a copy, or take another state of the run",
    )
