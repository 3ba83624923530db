"""G1 of `tools/gpu_check`: the batches of every form against reference.py, in grey levels.

A JPEG set tells the decoders apart: two of them round differently by a level, and another way to enlarge the
colour planes, a channel order or a crop that is off would show in the mean. On a raw set nothing but fp32 rounding
is left of crop, mirror, mean and jitter folded into it.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial
from itertools import islice
from typing import Literal

import torch

from ..pipeline import Loader
from .gpu_forms import forms, opened
from .gpu_report import Row, number
from .gpu_scene import Part, Scene

Preset = Literal["original", "paper"]
PRESETS: tuple[Preset, ...] = ("original", "paper")
BATCH = 32
RAW = 1e-3  # levels: rounding in fp32
SAME_LIBRARY = 1 + RAW  # libjpeg-turbo twice, of two versions
WORST, MEAN = 24.0, 0.5  # levels, of another decoder: one pixel at an edge of colours, and all of them


@dataclass(slots=True)
class Difference:
    """Of all pixels so far, in levels."""

    worst: float = 0.0
    total: float = 0.0
    values: int = 0
    images: int = 0

    def add(self, found: torch.Tensor, expected: torch.Tensor, *, scale: float) -> None:
        """A batch's images; `scale` is what made them of levels."""
        apart = (found.cpu().double() - expected.double()).abs() / scale
        worst = float(apart.max())
        self.worst = worst if worst != worst else max(self.worst, worst)  # nan stays
        self.total += float(apart.sum())
        self.values += apart.numel()
        self.images += len(found)

    @property
    def mean(self) -> float:
        return self.total / self.values


def parts(_scene: Scene) -> Iterator[Part]:
    """JPEG and raw, both presets."""
    for raw in (False, True):
        for preset in PRESETS:
            yield Part(
                f"against the reference, {'raw' if raw else 'JPEG'}, {preset}",
                partial(_compared, raw=raw, preset=preset),
            )
    yield Part("keys, labels, crops and mirrors", _places)


def _compared(scene: Scene, *, raw: bool, preset: Preset) -> Iterable[Row]:
    shard_set = scene.sets.raw if raw else scene.sets.images
    kind = f"{'raw' if raw else 'JPEG'}, {preset}"
    with ExitStack() as stack:
        found: dict[str, tuple[Loader, Difference]] = {}
        for form in forms(scene, raw=raw):
            loader = opened(scene, form, shard_set, batch_size=BATCH, augment=preset)
            if isinstance(loader, str):
                yield Row(f"{form.name} against the reference, {kind}", loader, verdict="left out")
                continue
            found[form.name] = stack.enter_context(loader), Difference()
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # that the reference is slow
            reference = stack.enter_context(
                Loader(shard_set, batch_size=BATCH, augment=preset, backend="reference")
            )
        batches = -(-scene.sizes.agreeing // BATCH)
        loaders = [reference, *(loader for loader, _ in found.values())]
        for expected, *others in islice(zip(*loaders, strict=True), batches):
            for batch, (_, difference) in zip(others, found.values(), strict=True):
                difference.add(batch.images, expected.images, scale=expected.scale)
    for name, (_, difference) in found.items():
        yield _row(f"{name} against the reference, {kind}", difference, raw=raw)


def _row(what: str, difference: Difference, *, raw: bool) -> Row:
    other_decoder = "cores" not in what and "threads" not in what
    worst = RAW if raw else WORST if other_decoder else SAME_LIBRARY
    mean = RAW if raw else MEAN
    holds = difference.worst <= worst and difference.mean <= mean and difference.images > 0
    return Row.held(
        what,
        f"worst {number(difference.worst)}, mean {number(difference.mean)} levels "
        f"(bounds {number(worst)} and {number(mean)})",
        holds,
        n=f"{difference.images:,} images",
        worst_levels=difference.worst,
        mean_levels=difference.mean,
        images=difference.images,
    )


def _places(scene: Scene) -> Iterable[Row]:
    """What comes along with the images, on the device, is what the reference has."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        reference = Loader(scene.sets.images, batch_size=BATCH, backend="reference")
    with reference, Loader(scene.sets.images, batch_size=BATCH, device=scene.device) as loader:
        expected, found = next(iter(reference)), next(iter(loader))
    same = found.keys == expected.keys and all(
        torch.equal(getattr(found, name).cpu(), getattr(expected, name))
        for name in ("labels", "crop", "mirror", "offset", "valid")
    )
    there = found.labels.device == found.images.device == scene.device
    figure = f"{'equal' if same else 'not equal'}, on {found.labels.device}"
    yield Row.held("keys, labels, crops, mirrors and jitter", figure, same and there, n=f"{len(found)} images")
