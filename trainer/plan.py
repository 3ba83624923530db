"""What a run is going to do, known before it does anything: its length, its checks, its words."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from ..pipeline import Loader, crop_side
from ..shards import ShardSet, Split, WrongCall, is_address
from .checkpoint import Checkpoint
from .checkpoint_file import BadCheckpoint
from .machine import Machine, versions
from .network import pool5_side
from .recipe import Recipe, differences
from .schedule import Schedule


@dataclass(frozen=True, slots=True)
class Plan:
    """A recipe on a shard set on a machine."""

    recipe: Recipe
    shard_set: ShardSet
    machine: Machine
    steps_per_epoch: int
    schedule: Schedule
    last_step: int  # the run is over after so many steps
    side: int  # of the crops
    val_split: str | None

    @classmethod
    def of(cls, recipe: Recipe, shard_set: ShardSet, machine: Machine, *, eval_every: int = 1) -> Plan:
        """Check that they go together.

        Raises:
            WrongCall: no labelled training split, or one smaller than a batch, or of images that are too small;
                rates that follow an evaluation which is not made.
        """
        ranks = machine.ranks.count
        if recipe.batch_size % ranks:
            raise WrongCall(
                f"a batch of {recipe.batch_size:,} on {ranks:,} ranks",
                why="each rank takes an equal part of every batch, or its images would count for more or less",
                remedy=f"-b {max(1, round(recipe.batch_size / ranks)) * ranks}",
            )
        epoch = steps_per_epoch(recipe, shard_set)
        schedule = Schedule.of(recipe, epoch)
        side = crop_side(shard_set.manifest.image.side)
        pool5_side(side)
        val_split = validation_split(shard_set)
        if recipe.drop_on == "plateau" and (val_split is None or eval_every != 1):
            raise WrongCall(
                "rates that drop when validation stops improving (drop_on plateau)",
                where="no labelled val or test split" if val_split is None else f"--eval-every {eval_every}",
                why="the rule looks at the validation error after every epoch",
                remedy="--eval-every 1 on a set with val, or a schedule by epochs, such as --schedule paper",
            )
        last = min(schedule.total_steps, recipe.max_steps or schedule.total_steps)
        return cls(recipe, shard_set, machine, epoch, schedule, last, side, val_split)

    @property
    def num_classes(self) -> int:
        """Classes of the shard set, and outputs of the network."""
        return self.shard_set.manifest.num_classes

    def check_continues(self, checkpoint: Checkpoint) -> None:
        """Refuse to go on from the checkpoint of another run.

        Raises:
            BadCheckpoint: it was trained on another shard set.
            WrongCall: it was trained by another recipe.
        """
        if checkpoint.shard_set != self.shard_set.digest:
            raise BadCheckpoint(
                f"the run was trained on another shard set than {self.shard_set.shown}",
                where=f"digest {self.shard_set.digest[:12]}…, the checkpoint's {checkpoint.shard_set[:12]}…",
                why="order, labels and mean would change in the middle of a run",
                remedy="give the set it began with by --shards, or start a new run with --out",
            )
        # Only where the run ends may change; everything else would make it another run.
        same_end = dataclasses.replace(checkpoint.recipe, max_steps=self.recipe.max_steps)
        if changed := differences(same_end, self.recipe):
            raise WrongCall(
                "the run to go on with has another recipe",
                where="; ".join(changed),
                why="a run is continued by the rules it began with",
                remedy="give these options as it began, or start a new run with another --out",
            )

    def evaluates_at(self, step: int, every: int) -> bool:
        """Whether the network is evaluated after `step` steps: every so many epochs (0: never), and at the end."""
        epoch, rest = divmod(step, self.steps_per_epoch)
        after_epoch = every > 0 and rest == 0 and epoch > 0 and epoch % every == 0
        return self.val_split is not None and (after_epoch or step == self.last_step)

    def config(self, loader: Loader) -> dict[str, Any]:
        """What config.json holds: recipe resolved, shard set, classes, machine, what `loader` chose, versions."""
        return {
            "recipe": self.recipe.to_json(),
            "steps_per_epoch": self.steps_per_epoch,
            "total_steps": self.schedule.total_steps,
            "last_step": self.last_step,
            "schedule_steps": list(self.schedule.starts),
            "side": self.side,
            "shard_set": {
                "path": found_again(self.shard_set),
                "name": self.shard_set.name,
                "digest": self.shard_set.digest,
            },
            "classes": [{"synset": e.synset, "words": e.words} for e in self.shard_set.manifest.classes],
            "machine": self.machine.describe(),
            "loader": loading(loader),
            "versions": versions(),
        }

    def lines(self, *, eval_every: int) -> list[str]:
        """The plan in words."""
        recipe, total, batch = self.recipe, self.schedule.total_steps, self.recipe.batch_size
        splits = self.shard_set.manifest.splits
        changes = ", ".join(f"{start:,}" for start in self.schedule.starts[1:])
        lines = [
            f"preset {recipe.preset}, width {recipe.width:g}, seed {recipe.seed}, {recipe.precision}, "
            f"on {_where(self.machine)}",
            f"{self.shard_set.shown}: {splits[Split.TRAIN].samples:,} training images of {self.num_classes:,} "
            f"classes, crops of {self.side}×{self.side}",
            f"{recipe.epochs:,} epoch{'s' * (recipe.epochs > 1)} of {self.steps_per_epoch:,} steps of {batch:,}: "
            f"{total:,} steps, "
            f"{total * batch:,} images; "
            + (f"rates change at steps {changes}" if changes else self._rates_in_words()),
        ]
        lines.append(_share(self.machine, batch))
        if recipe.precision == "tf32" and self.machine.device.type == "cpu":
            lines.append("tf32 is of cards: on the cores it is fp32")
        if self.last_step < total:
            lines.append(f"ends after step {self.last_step:,}, as asked; the schedule stays that of all epochs")
        if self.val_split is None:
            lines.append("no labelled val or test split: trained without evaluation")
        else:
            every = {0: "at the end", 1: "after every epoch"}.get(eval_every, f"after every {eval_every} epochs")
            lines.append(
                f"evaluated on {self.val_split}, {splits[Split(self.val_split)].samples:,} images, {every}"
            )
        return lines

    def _rates_in_words(self) -> str:
        recipe = self.recipe
        if recipe.drop_on == "epochs":
            return "one rate throughout"
        drops = len(recipe.schedule) - 1
        return f"rates drop {drops} times, when the best validation error is over {recipe.patience} epochs old"


def _where(machine: Machine) -> str:
    """The devices, and how the network is spread over them, in words."""
    devices = " and ".join(map(str, machine.devices))
    if machine.parallel == "ddp":
        return f"{machine.ranks.count:,} ranks, data-parallel; this one on {devices}"
    if machine.parallel == "towers":
        cards = torch.cuda.device_count()
        idle = f"; {cards - 2} more GPUs are visible" if cards > 2 else ""
        return f"{devices}, a tower each, as in 2012 (torchrun trains data-parallel on all){idle}"
    return devices


def _share(machine: Machine, batch: int) -> str:
    """The batch of all devices together, and of each."""
    if machine.parallel == "ddp":
        return f"batch {batch:,} of all ranks together, {batch // machine.ranks.count:,} on each"
    if machine.parallel == "towers":
        half = "half of it decoded by each" if batch % 2 == 0 else "decoded by the first"
        return f"batch {batch:,}, the same on both devices; {half}"
    return f"batch {batch:,} on one device"


def found_again(shard_set: ShardSet) -> str:
    """Where a set is, for whoever looks for it from another folder: an address without secrets, or a full path."""
    shown = shard_set.shown
    return shown if is_address(shown) else str(Path(shown).resolve())


def loading(loader: Loader) -> dict[str, Any]:
    """How a loader makes its batches, as it was asked to or chose: for a reader of figures."""
    return {
        "backend": loader.backend,
        "decoder": loader.decoder,
        "split_share": loader.split_share,
        "threads": loader.threads,
        "prefetch": loader.prefetch,
        "order": loader.order,
        "window": loader.window,
    }


def loading_line(loader: Loader) -> str:
    """The same in words."""
    many = "" if loader.window == 1 else "s"
    windows = f" of {loader.window:,} shard{many}" if loader.window is not None else ""
    share = f" ({100 * loader.split_share:.0f} % on the card)" if loader.split_share is not None else ""
    # One image after the other, by Pillow: neither a choice of decoders nor threads.
    workers = (
        "" if loader.backend == "reference" else f", decoder {loader.decoder}{share}, threads {loader.threads}"
    )
    return f"loader: backend {loader.backend}{workers}, prefetch {loader.prefetch}, order {loader.order}{windows}"


def steps_per_epoch(recipe: Recipe, shard_set: ShardSet) -> int:
    """Whole global batches in the training split.

    Raises:
        WrongCall: there is no labelled training split, or it is smaller than a batch.
    """
    entry = shard_set.manifest.splits.get(Split.TRAIN)
    if entry is None or not entry.labelled or not shard_set.manifest.num_classes:
        raise WrongCall(
            f"{shard_set.shown} has no labelled train split",
            why="there is nothing to learn from",
            remedy="build the set with its train split: alexshard build SOURCE --splits train,val",
        )
    if entry.samples < recipe.batch_size:
        raise WrongCall(
            f"a batch of {recipe.batch_size:,} is larger than the {entry.samples:,} training images",
            where=shard_set.shown,
            why="the last partial batch of an epoch is dropped, so no step would be taken",
            remedy=f"-b {max(1, entry.samples // 4)}",
        )
    return entry.samples // recipe.batch_size


def validation_split(shard_set: ShardSet) -> str | None:
    """The split to evaluate on: val, else test, else none; it must have labels."""
    splits = shard_set.manifest.splits
    held = {str(name): entry for name, entry in splits.items() if entry.labelled and entry.samples}
    return next((name for name in ("val", "test") if name in held), None)
