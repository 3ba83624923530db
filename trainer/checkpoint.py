"""Everything a run needs to go on, in one file that appears whole or not at all.

Plain values and tensors by `torch.save`; loading is `weights_only`, so a file can bring no code. Momentum is
kept as torch's buffers with the rates they belong to: converting them to the paper's velocity and back would not
be bit for bit. Masks, order and augmentation are functions of the seed (architecture.md D1): no generator has a
state to keep.
"""

from __future__ import annotations

import dataclasses
import zipfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ..pipeline import crop_side
from ..shards import AlexshardError, ShardSet, WrongCall, appearing_whole
from .machine import versions
from .recipe import Recipe
from .towers import Network

FORMAT = 1
_FIELDS_OF_FILE = {"format", "versions"}


class BadCheckpoint(AlexshardError):
    """A checkpoint cannot be read, or is that of another network or another shard set."""


@dataclass(frozen=True, kw_only=True)
class Checkpoint:
    """The state of a run after `step` updates."""

    recipe: Recipe
    num_classes: int
    side: int
    shard_set: str  # digest
    step: int
    evaluated_step: int  # the last step whose network was evaluated; -1: none
    loader: dict[str, Any]  # Loader.state_dict(): epoch and position
    network: dict[str, Tensor]
    optimiser: dict[str, Any]  # PaperSGD.state_dict(): momentum and its rates

    def save(self, path: Path) -> None:
        """Write the file under a temporary name and rename it when it is on the disk."""
        fields = {field.name: getattr(self, field.name) for field in dataclasses.fields(self)}
        fields |= {"recipe": self.recipe.to_json(), "format": FORMAT, "versions": versions()}
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
                why="there is no network to continue or to evaluate",
                remedy="name a run folder that holds one; a run writes it when it ends or is stopped",
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
            raise _unreadable(path, str(error).partition("\n")[0]) from error
        names = {field.name for field in dataclasses.fields(cls)} | _FIELDS_OF_FILE
        if not isinstance(fields, dict) or fields.get("format") != FORMAT or fields.keys() != names:
            raise _unreadable(path, f"it is not a checkpoint of format {FORMAT}")
        values = {name: value for name, value in fields.items() if name not in _FIELDS_OF_FILE}
        return cls(**values | {"recipe": Recipe.from_json(values["recipe"])})

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


def _unreadable(path: Path, reason: str) -> BadCheckpoint:
    return BadCheckpoint(
        f"the checkpoint cannot be read: {reason}",
        where=str(path),
        why="a run continued from damaged weights would not be that run",
        remedy="restore the file from a copy, or start anew with another --out",
    )
