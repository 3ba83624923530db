"""Batches for the devices of a run: from one loader, or for two towers from one on each device.

In 2012 each GPU had the whole batch. Each device decodes half of it here, and the halves are exchanged
(fidelity.md §5 counts activations; images come on top).
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ..pipeline import Loader, default_threads
from ..shards import ShardSet
from .machine import Machine
from .recipe import Recipe
from .step import Images


@dataclass(frozen=True, slots=True)
class Fed:
    """What one step takes: of one rank, on its device or on both towers'."""

    images: Images  # (N, 3, S, S), channels last; a pair for two towers
    labels: Tensor  # int64 (N,), where logits come out
    count: int  # N


class Feeder:
    """The training batches of this rank: the rest of an epoch at each iteration, with a state as `Loader`'s."""

    def __init__(self, recipe: Recipe, shard_set: ShardSet, machine: Machine, *, jitter_steps: int | None) -> None:
        wishes: dict[str, Any] = {
            "split": "train",
            "seed": recipe.seed,
            "augment": recipe.augment,
            "mean": recipe.mean,
            "mean_crop": recipe.mean_crop if recipe.mean == "image" else None,
            "order": recipe.order,
            "window": recipe.window,
            "eigen": recipe.eigen,
            "jitter_steps": jitter_steps,
            "channels_last": True,
            **machine.loading,
        }
        if recipe.precision == "bf16" and machine.device.type == "cuda":
            wishes["output"] = "bfloat16"  # what the first convolution would round to
        ranks, devices = machine.ranks, machine.devices
        if len(devices) == 2 and recipe.batch_size % 2 == 0:
            wishes["threads"] = max(1, (machine.threads or default_threads()) // 2)
            self.loaders = tuple(
                Loader(
                    shard_set,
                    batch_size=recipe.batch_size // 2,
                    device=device,
                    rank=half,
                    world_size=2,
                    **wishes,
                )
                for half, device in enumerate(devices)
            )
        else:
            self.loaders = (
                Loader(
                    shard_set,
                    batch_size=recipe.batch_size // ranks.count,
                    device=machine.device,
                    rank=ranks.rank,
                    world_size=ranks.count,
                    **wishes,
                ),
            )
        self._devices = devices

    @property
    def loader(self) -> Loader:
        """The one of the first device, for what it chose."""
        return self.loaders[0]

    def __iter__(self) -> Iterator[Fed]:
        if len(self.loaders) == 1:
            for batch in self.loader:
                yield Fed(batch.images, batch.labels, len(batch))
            return
        for first, second in zip(*self.loaders, strict=True):
            halves = first.images, second.images
            one, *others = (_whole(halves, device) for device in dict.fromkeys(self._devices))
            images = one, others[0] if others else one
            yield Fed(images, _whole((first.labels, second.labels), self._devices[0]), len(first) + len(second))

    def state_dict(self) -> dict[str, Any]:
        """Where the run is; any other number of loaders can go on from it."""
        return self.loader.state_dict()

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from there."""
        for loader in self.loaders:
            loader.load_state_dict(state)

    def close(self) -> None:
        """End what the loaders are doing."""
        for loader in self.loaders:
            loader.close()

    def __enter__(self) -> Feeder:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def _whole(halves: tuple[Tensor, Tensor], device: torch.device) -> Tensor:
    # From card to card torch has either's stream wait for the other's, and not this thread.
    return torch.cat([half.to(device) for half in halves])
