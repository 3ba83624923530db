"""Loss and errors of a network over a split: the centre view, or the mean softmax of ten views.

Source: 2012 paper §4.1; fidelity.md §4. Dropout layers have all units, outputs halved.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import torch
from torch import nn

from ..pipeline import Loader
from ..shards import AlexshardError, ShardSet, WrongCall
from .machine import Machine
from .metrics import sums
from .ranks import Ranks
from .recipe import Recipe
from .window import Leash


@dataclass(frozen=True, slots=True)
class Evaluation:
    """What a split says about a network; errors are fractions, ties shared out by the rule of fidelity.md §4."""

    split: str
    views: int
    samples: int
    loss: float  # mean of −log of the (averaged) probability of the label
    top1_error: float
    top5_error: float
    images_per_s: float
    wait_s: float  # of it, spent waiting for batches


def evaluation_loader(
    recipe: Recipe, shard_set: ShardSet, split: str, machine: Machine, *, views: Literal[1, 10] = 1
) -> Loader:
    """Every sample of a split once, in stored order; a batch holds about as many views as one of training.

    Raises:
        WrongCall: the split is not there or has no labels.
    """
    entry = shard_set.manifest.splits.get(split)
    if entry is not None and not entry.labelled:
        raise WrongCall(
            f"the split {split} has no labels",
            where=shard_set.shown,
            why="an error is counted against labels",
            remedy="evaluate a split that has them (alexshard info shows which)",
        )
    ranks = machine.ranks
    return Loader(
        shard_set,
        split=split,
        batch_size=-(-recipe.batch_size // (views * ranks.count)),
        device=machine.device,
        rank=ranks.rank,
        world_size=ranks.count,
        channels_last=True,
        augment=None,
        mean=recipe.mean,
        mean_crop=recipe.mean_crop if recipe.mean == "image" else None,
        order="stored",
        views=views,
        drop_last=False,
        # Of one shape, so that a card's kernels are chosen once; on the cores a filled-up batch only costs.
        pad_last=machine.device.type == "cuda",
        **machine.loading,
    )


class NotFinite(AlexshardError):
    """Outputs of the network are not finite numbers."""


@dataclass(frozen=True, slots=True)
class Tally:
    """Sums over the samples that were seen. Ranks have parts of a split; `+` makes one of theirs.

    parts = [None] * world_size
    torch.distributed.all_gather_object(parts, tally(network, loader))
    evaluation = sum(parts[1:], parts[0]).evaluation("val")
    """

    views: int
    samples: int
    nll: float  # −log of the (averaged) probability of the label
    top1_credit: float
    top5_credit: float
    unsound: int  # outputs that are not finite numbers
    seconds: float
    wait_s: float

    def __add__(self, other: Tally) -> Tally:
        return Tally(
            self.views,
            self.samples + other.samples,
            self.nll + other.nll,
            self.top1_credit + other.top1_credit,
            self.top5_credit + other.top5_credit,
            self.unsound + other.unsound,
            max(self.seconds, other.seconds),  # ranks work at the same time
            max(self.wait_s, other.wait_s),
        )

    def evaluation(self, split: str) -> Evaluation:
        """The means.

        Raises:
            WrongCall: no sample was seen.
            AlexshardError: outputs are not finite, which is never counted as an answer.
        """
        if self.samples == 0:
            raise WrongCall(f"the split {split} has no samples to evaluate")
        if self.unsound:
            raise NotFinite(
                f"{self.unsound:,} outputs of the network are not finite",
                why="an output that is no number is neither right nor wrong",
                remedy="evaluate an earlier checkpoint; the run had diverged",
            )
        return Evaluation(
            split,
            self.views,
            self.samples,
            self.nll / self.samples,
            1 - self.top1_credit / self.samples,
            1 - self.top5_credit / self.samples,
            self.samples / self.seconds,
            self.wait_s,
        )


def tally(
    network: nn.Module,
    loader: Loader,
    *,
    stop: Callable[[], bool] = lambda: False,
    on_images: Callable[[int], object] = lambda _: None,
) -> Tally | None:
    """The sums over all of `loader`; None if `stop` became true on the way. `on_images` counts along.

    What a batch is filled up with (`batch.valid` is false there) is not counted.
    """
    network.eval()
    device = loader.device
    # Read once, at the end: a look at every batch would make the device wait.
    totals = torch.zeros(3, dtype=torch.float64, device=device)
    samples, unsound = torch.zeros(2, dtype=torch.int64, device=device)
    views, shown, wait_s = 1, 0, 0.0
    started = asked = time.perf_counter()
    leash = Leash(device)
    with torch.inference_mode():
        for batch in loader:
            wait_s += time.perf_counter() - asked
            if stop():
                return None
            count, many = batch.images.shape[0], batch.images.shape[1:-3]
            logits = network(batch.images.flatten(0, -4)).unflatten(0, (count, *many))
            valid = batch.valid.to(logits.device)
            totals = totals + sums(logits, batch.labels, valid)
            unsound = unsound + (~logits.isfinite() & valid.view(-1, *[1] * (logits.dim() - 1))).sum()
            samples = samples + valid.sum()
            views = many[0] if many else 1
            leash.queued()
            on_images(min(count, loader.num_samples - shown))
            shown = min(shown + count, loader.num_samples)
            asked = time.perf_counter()
    nll, top1, top5 = totals.tolist()
    seconds = time.perf_counter() - started
    return Tally(views, int(samples), nll, top1, top5, int(unsound), seconds, wait_s)


def evaluate(
    network: nn.Module,
    loader: Loader,
    *,
    ranks: Ranks | None = None,
    stop: Callable[[], bool] = lambda: False,
    on_images: Callable[[int], object] = lambda _: None,
) -> Evaluation | None:
    """The figures over all of `loader`, of several ranks over all their loaders.

    None if `stop` became true on the way, on any rank. `on_images` counts along, on this rank.

    Raises:
        AlexshardError: outputs are not finite, which is never counted as an answer.
    """
    found = (ranks or Ranks()).gathered(tally(network, loader, stop=stop, on_images=on_images))
    parts = [part for part in found if part is not None]
    return sum(parts[1:], parts[0]).evaluation(str(loader.split)) if len(parts) == len(found) else None
