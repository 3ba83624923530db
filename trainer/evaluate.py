"""Loss and errors of a network over a split: the centre view, or the mean softmax of ten views.

Source: 2012 paper §4.1; fidelity.md §4. Dropout layers have all units, outputs halved.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import torch

from ..pipeline import Loader
from ..shards import AlexshardError, ShardSet, WrongCall
from .machine import Machine
from .metrics import sums
from .recipe import Recipe
from .towers import Network


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
            where=str(shard_set.path),
            why="an error is counted against labels",
            remedy="evaluate a split that has them (alexshard info shows which)",
        )
    return Loader(
        shard_set,
        split=split,
        batch_size=-(-recipe.batch_size // views),
        device=machine.device,
        augment=None,
        mean=recipe.mean,
        mean_crop=recipe.mean_crop if recipe.mean == "image" else None,
        order="stored",
        views=views,
        drop_last=False,
        threads=machine.threads,
    )


def evaluate(
    network: Network,
    loader: Loader,
    *,
    stop: Callable[[], bool] = lambda: False,
    on_images: Callable[[int], object] = lambda _: None,
) -> Evaluation | None:
    """The figures over all of `loader`; None if `stop` became true on the way. `on_images` counts along.

    Raises:
        AlexshardError: outputs are not finite, which is never counted as an answer.
    """
    network.eval()
    totals = bad = None
    samples, wait_s = 0, 0.0
    started = asked = time.perf_counter()
    with torch.inference_mode():
        for batch in loader:
            wait_s += time.perf_counter() - asked
            if stop():
                return None
            count, views = batch.images.shape[0], batch.images.shape[1:-3]
            logits = network(batch.images.flatten(0, -4)).unflatten(0, (count, *views))
            # Read once, at the end: a look at every batch would make the device wait.
            here, unsound = sums(logits, batch.labels), (~logits.isfinite()).sum()
            totals, bad = (here, unsound) if totals is None or bad is None else (totals + here, bad + unsound)
            samples += count
            on_images(count)
            asked = time.perf_counter()
    if totals is None or bad is None:
        raise WrongCall(f"the split {loader.split} has no samples to evaluate")
    if bad.item():
        raise AlexshardError(
            f"{int(bad.item()):,} outputs of the network are not finite",
            why="an output that is no number is neither right nor wrong",
            remedy="evaluate an earlier checkpoint; the run had diverged",
        )
    loss, top1, top5 = (totals / samples).tolist()
    seconds = time.perf_counter() - started
    return Evaluation(
        str(loader.split), views[0] if views else 1, samples, loss, 1 - top1, 1 - top5, samples / seconds, wait_s
    )
