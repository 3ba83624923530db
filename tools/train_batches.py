"""What `tools/bench_train` trains on: batches that stay on the device, and the loader's.

Never zeros: how long a product or a ReLU takes can depend on the values. Without a shard set images are drawn,
smooth as photographs are, with a little grain, of about the spread of pixels less their mean.
"""

from __future__ import annotations

from collections.abc import Generator
from contextlib import closing
from dataclasses import dataclass
from itertools import islice

import torch
import torch.nn.functional as F
from torch import Tensor

from ..pipeline import Stages
from ..trainer import Fed, Feeder, Machine, Stepper
from .train_clock import Clock

KEPT = 2  # batches that stay, in turn
SMOOTH, GRAIN, MOST = 55.0, 8.0, 150.0  # levels: spread of either part, limit of their sum


def drawn(number: int, side: int, *, seed: int = 0) -> Tensor:
    """Images as pixels less their mean; float32, (N, 3, S, S), channels last, within ±150."""
    generator = torch.Generator().manual_seed(seed)
    small = torch.randn(number, 3, -(-side // 16) + 1, -(-side // 16) + 1, generator=generator)
    smooth = F.interpolate(small, size=(side, side), mode="bicubic", align_corners=False) * SMOOTH
    smooth += torch.randn(smooth.shape, generator=generator) * GRAIN
    return smooth.clamp_(-MOST, MOST).contiguous(memory_format=torch.channels_last)


def drawn_batches(number: int, side: int, classes: int, machine: Machine, *, bf16: bool) -> list[Fed]:
    """Batches as `Feeder` would deliver them."""
    found = []
    kind = torch.bfloat16 if bf16 and machine.device.type == "cuda" else torch.float32
    for seed in range(KEPT):
        images = drawn(number, side, seed=seed)
        labels = torch.randint(classes, (number,), generator=torch.Generator().manual_seed(seed))
        by_device = {device: images.to(device, kind) for device in dict.fromkeys(machine.devices)}
        both = [by_device[device] for device in machine.devices]
        found.append(Fed(both[0] if len(both) == 1 else (both[0], both[1]), labels.to(machine.device), number))
    return found


def kept_batches(feeder: Feeder) -> list[Fed]:
    """Some of the loader's, copied, so that they stay whatever it does with its memory."""
    with closing(endless(feeder)) as batches:
        return [_copied(batch) for batch in islice(batches, KEPT)]


def as_stock(batch: Fed) -> tuple[Tensor, Tensor]:
    """The same batch as one without this project has it: float32, (N, 3, S, S) in memory, on one device."""
    images = batch.images if isinstance(batch.images, Tensor) else batch.images[0]
    return images.float().contiguous(), batch.labels


@dataclass(frozen=True, slots=True)
class FedRun:
    """One run of steps on batches that the loader made meanwhile."""

    images: int
    seconds: float
    waited_s: float  # between steps, when there was nothing to compute

    @property
    def images_per_s(self) -> float:
        return self.images / self.seconds

    @property
    def waited_share(self) -> float:
        return self.waited_s / self.seconds


class Feeding:
    """Steps on the loader's batches."""

    def __init__(self, feeder: Feeder, clock: Clock) -> None:
        self._feeder, self._clock = feeder, clock
        self._batches = endless(feeder)

    def run(self, stepper: Stepper, steps: int, first_step: int) -> FedRun:
        """So many steps. What was made before, while others ran, is not counted: it would hide the waiting."""
        for _ in range(Stages(self._feeder.loader).ahead("loader")):
            next(self._batches)
        batch = next(self._batches)
        stepper.step(first_step, batch.images, batch.labels)  # the loader works on meanwhile, as it will
        clock, images = self._clock, 0
        clock.wait()
        marks = [clock.mark()]
        for number in range(steps):
            batch = next(self._batches)
            marks.append(clock.mark())
            stepper.step(first_step + 1 + number, batch.images, batch.labels)
            marks.append(clock.mark())
            images += batch.count
            del batch
        clock.wait()
        # From the end of each step to the begin of the next; on a card, by its own events.
        waited = sum(clock.seconds(*pair) for pair in zip(marks[:-1:2], marks[1::2], strict=True))
        return FedRun(images, clock.seconds(marks[0], marks[-1]), waited)

    def close(self) -> None:
        """End the iteration."""
        self._batches.close()


def endless(feeder: Feeder) -> Generator[Fed, None, None]:
    """Its batches, epoch after epoch. To be closed."""
    while True:
        yield from feeder


def _copied(batch: Fed) -> Fed:
    images = batch.images.clone() if isinstance(batch.images, Tensor) else tuple(x.clone() for x in batch.images)
    return Fed(images, batch.labels.clone(), batch.count)  # type: ignore[arg-type]
