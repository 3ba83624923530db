"""Everything a run needs to go on, and its network to be used, in one file that appears whole or not at all.

Plain values and tensors by `torch.save`; loading is `weights_only`, so a file can bring no code, and every value
is looked at. Momentum is kept as torch's buffers with the rates they belong to: converting them to the paper's
velocity and back would not be bit for bit. Masks, order and augmentation are functions of the seed
(architecture.md D1): no generator has a state to keep.
"""

from __future__ import annotations

import dataclasses
import math
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
from .sgd import rate_group
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
        path.parent.mkdir(parents=True, exist_ok=True)
        with appearing_whole(path) as file:
            try:
                torch.save(fields, file)
            except RuntimeError as error:
                # torch's writer hides in it what the disk said.
                cause = error.__cause__ or error.__context__
                if isinstance(cause, OSError):
                    raise OSError(cause.errno, cause.strerror) from error
                raise

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
                if any(entry.compress_type != zipfile.ZIP_STORED for entry in archive.infolist()):
                    raise _unreadable(path, "it is compressed, which no state is")
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
        try:
            return cls._of(fields)._checked(path)
        except WrongCall as error:
            raise _unreadable(path, f"its recipe: {error.what}") from error

    @classmethod
    def _of(cls, fields: dict[str, Any]) -> Checkpoint:
        values = {name: value for name, value in fields.items() if name not in _FIELDS_OF_FILE}
        drops = tuple(values["plateau"].pop("drops"))
        values |= {
            "recipe": Recipe.from_json(values["recipe"]),
            "plateau": Plateau(**values["plateau"], drops=drops),
            "classes": tuple((synset, words) for synset, words in values["classes"]),
            "channel_mean": tuple(values["channel_mean"]),
        }
        return cls(**values)

    def _checked(self, path: Path) -> Checkpoint:
        """See that its values go together; itself.

        Raises:
            BadCheckpoint: they do not.
        """
        momentum, rates = self.optimiser["momentum"], self.optimiser["rates"]
        groups = {rate_group(name, self.recipe) for name in self.network}
        place = self.loader["epoch"] * self.steps_per_epoch + self.loader["position"] // self.recipe.batch_size
        holds = {
            "its sides": self.side == crop_side(self.stored_side) and self.side > 0,
            "its mean image": self.mean_image.shape == (self.stored_side, self.stored_side, 3),
            "its momentum": all(
                name in self.network and buffer.shape == self.network[name].shape
                for name, buffer in momentum.items()
            ),
            "its rates": rates.keys() == groups and all(0 < rate < math.inf for rate in rates.values()),
            "its place in the epoch": self.steps_per_epoch > 0 and place == self.step,
            "its drops": len(self.plateau.drops) < len(self.recipe.schedule) or not self.plateau.drops,
        }
        if wrong := [name for name, right in holds.items() if not right]:
            raise _unreadable(path, f"{', '.join(wrong)} cannot be of this run")
        return self

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
        and (
            value["best_error"] is None
            or (isinstance(value["best_error"], float) and 0 <= value["best_error"] <= 1)
        )
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
    return isinstance(value, int) and not isinstance(value, bool) and 0 <= value < 2**63


def _is_evaluation(value: object) -> bool:
    return (
        isinstance(value, dict)
        and value.keys() == {"split", "views", "samples", "loss", "top1_error", "top5_error", "step"}
        and isinstance(value["split"], str)
        and all(_is_count(value[name]) for name in ("views", "samples", "step"))
        and all(isinstance(value[name], float) for name in ("loss", "top1_error", "top5_error"))
    )


def _is_share(value: object) -> bool:
    return isinstance(value, float) and 0 <= value <= 1


def _is_text(value: object) -> bool:
    return isinstance(value, str)


# What each value of a file must be before anything is done with it.
_SHAPES: dict[str, Callable[[Any], bool]] = {
    "recipe": lambda value: isinstance(value, dict) and all(map(_is_text, value)),
    **dict.fromkeys(("side", "stored_side", "training_images", "steps_per_epoch", "step"), _is_count),
    "evaluated_step": lambda value: value == -1 or _is_count(value),
    "evaluation": lambda value: value is None or _is_evaluation(value),
    "classes": _is_classes,
    "mean_image": lambda value: isinstance(value, Tensor) and value.dtype == torch.float32,
    "channel_mean": lambda value: (
        isinstance(value, list | tuple) and len(value) == 3 and all(isinstance(one, float) for one in value)
    ),
    "shard_set": _is_text,
    "set_name": _is_text,
    "plateau": _is_plateau,
    "loader": lambda value: (
        isinstance(value, dict) and all(_is_count(value.get(n)) for n in ("epoch", "position"))
    ),
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
