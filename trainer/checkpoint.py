"""Everything a run needs to go on, and its network to be used, in one file that appears whole or not at all.

Plain values and tensors by `torch.save`; loading is `weights_only`, so a file can bring no code, and every value
is looked at. Momentum is kept as torch's buffers with the rates they belong to: converting them to the paper's
velocity and back would not be bit for bit. Masks, order and augmentation are functions of the seed
(architecture.md D1): no generator has a state to keep.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ..pipeline import centre, crop_side
from ..shards import AlexshardError, ShardSet, WrongCall, appearing_whole, printable
from .checkpoint_file import BadCheckpoint, contents, damaged, later_format, not_understood, unreadable
from .checkpoint_values import RULES, are_finite, is_count, parameter_shapes, shape_of
from .machine import versions
from .recipe import Recipe
from .schedule import Plateau
from .sgd import rate_group
from .towers import Network

FORMAT = 2
_FIELDS_OF_FILE = {"format", "versions"}


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
            NoCheckpoint: there is none.
            BadCheckpoint: it is cut, damaged, of an earlier format, or holds what no run writes.
            LaterFormat: a later alexshard wrote it.
            CannotReadNow: the operating system does not give its bytes, or there is no memory for them.
        """
        fields = contents(path)
        try:
            _check_fields(fields, path)
            return cls._of(fields)._checked(path)
        except WrongCall as error:
            raise unreadable(path, f"its recipe: {error.what}") from error
        except AlexshardError:
            raise
        except Exception as error:  # no rule foresees every value
            raise not_understood(path, error) from error

    @classmethod
    def _of(cls, fields: dict[str, Any]) -> Checkpoint:
        values = {name: value for name, value in fields.items() if name not in _FIELDS_OF_FILE}
        drops = tuple(values["plateau"].pop("drops"))
        values |= {
            "recipe": Recipe.from_json(values["recipe"]),
            "plateau": Plateau(**values["plateau"], drops=drops),
            "classes": tuple((synset, words) for synset, words in values["classes"]),
            "channel_mean": tuple(values["channel_mean"]),
            "network": dict(values["network"]),
            "optimiser": {name: dict(held) for name, held in values["optimiser"].items()},
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
            "its rates": rates.keys() == groups,
            "its place in the epoch": self.steps_per_epoch > 0 and place == self.step,
            "its drops": len(self.plateau.drops) < len(self.recipe.schedule) or not self.plateau.drops,
        }
        if wrong := [name for name, right in holds.items() if not right]:
            raise unreadable(path, f"{', '.join(wrong)} cannot be of this run")
        shapes = parameter_shapes(self.recipe, self.num_classes, self.side)
        for name in shapes | self.network:
            here, wanted = shape_of(self.network.get(name)), shapes.get(name, "none")
            if here != wanted:
                other = f"{printable(name)} is {here}, not {wanted}"
                raise damaged(path, f"the checkpoint is of another network than its recipe's: {other}")
        # A run looks at its weights before it writes them, and momentum that is not finite makes them so too.
        numbers = {"weights": self.network, "momentum": momentum, "mean image": {"": self.mean_image}}
        if unsound := [what for what, tensors in numbers.items() if not are_finite(tensors)]:
            raise unreadable(path, f"not all numbers of its {' and '.join(unsound)} are finite")
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


def _check_fields(fields: Any, path: Path) -> None:
    """See that the file holds a checkpoint of this format, each value of its kind.

    Raises:
        BadCheckpoint: it does not.
        LaterFormat: a later alexshard wrote it.
    """
    found: Any = fields.get("format") if isinstance(fields, dict) else None
    if is_count(found) and found > FORMAT:
        by = fields.get("versions")
        raise later_format(path, found, FORMAT, by.get("alexshard") if isinstance(by, dict) else None)
    names = {field.name for field in dataclasses.fields(Checkpoint)} | _FIELDS_OF_FILE
    if not is_count(found) or found != FORMAT or fields.keys() != names:
        shown = found if found is None or is_count(found) else f"a {type(found).__name__}"
        raise unreadable(path, f"it is not a checkpoint of format {FORMAT} but of {shown}")
    for name, right in RULES.items():
        if not right(fields[name]):
            raise unreadable(path, f"its {name} is not what a run writes")
