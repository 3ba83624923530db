"""G6 of `tools/gpu_check`: two towers are the one-device network, on every pair of devices that there is.

In float64 at small size to 1e-6 (logits, gradients, losses of some steps); in fp32 at the size of this visit the
difference is told, with the bytes that crossed beside fidelity.md §5 and the time of a step both ways.
"""

from __future__ import annotations

import statistics
from collections.abc import Iterable, Iterator
from dataclasses import replace
from functools import partial
from itertools import count
from typing import Any

import torch
import torch.nn.functional as F

from ..trainer import Crossed, Recipe, Schedule, Stepper, TwoTowers, build_network, crossing_bytes
from .gpu_report import Row, number
from .gpu_scene import Part, Scene, seconds_of, synchronize

Pair = tuple[torch.device, torch.device]
EXACT, NEAR = 1e-6, 2e-3  # relative: in float64; in fp32, of gradients, summed in another order
STEPS = 5


def parts(scene: Scene) -> Iterator[Part]:
    """Every pair: equal in float64, then at full size, then what a step takes."""
    for pair in pairs(scene):
        name = ",".join(map(str, pair))
        for preset in ("original", "paper"):
            yield Part(f"{name}: float64, {preset}", partial(_exact, pair=pair, preset=preset))
        yield Part(f"{name}: fp32, {scene.sizes}", partial(_near, pair=pair))
        yield Part(f"{name}: bytes that cross", partial(_crossed, pair=pair))
        yield Part(f"{name}: a step", partial(_speed, pair=pair))


def pairs(scene: Scene) -> list[Pair]:
    """One device twice; two cards where there are two."""
    found = [(scene.device, scene.device)]
    if scene.on_card:
        others = [torch.device("cuda", index) for index in range(torch.cuda.device_count())]
        found += [(scene.device, other) for other in others if other != scene.device][:1]
    return found


def _exact(scene: Scene, *, pair: Pair, preset: str) -> Iterable[Row]:
    recipe = replace(scene.recipe(preset), width=0.125)
    yield from _compared(scene, pair, recipe, classes=10, side=64, images=8, dtype=torch.float64, bound=EXACT)


def _near(scene: Scene, *, pair: Pair) -> Iterable[Row]:
    sizes, recipe = scene.sizes, scene.recipe()
    yield from _compared(
        scene,
        pair,
        recipe,
        classes=sizes.classes,
        side=sizes.side,
        images=sizes.batches[0],
        dtype=torch.float32,
        bound=NEAR,
    )


def _compared(
    scene: Scene,
    pair: Pair,
    recipe: Recipe,
    *,
    classes: int,
    side: int,
    images: int,
    dtype: torch.dtype,
    bound: float,
) -> Iterable[Row]:
    scene.machine().prepare()
    networks = [build_network(recipe, classes, side, devices).to(dtype) for devices in (pair[:1], pair)]
    generator = torch.Generator().manual_seed(8)
    batch = (torch.randn(images, 3, side, side, generator=generator, dtype=dtype) * 60).to(pair[0])
    labels = torch.randint(classes, (images,), generator=generator).to(pair[0])
    logits, gradients = zip(*(_gradients(network.eval(), batch, labels) for network in networks), strict=True)
    losses = [_losses(network, recipe, batch, labels) for network in networks]
    synchronize(scene.device)
    apart = {
        "logits": _apart(logits[1], logits[0]),
        "gradients": max(_apart(gradients[1][name], gradients[0][name]) for name in gradients[0]),
        f"losses of {STEPS} steps": _apart(*(torch.tensor(each, dtype=torch.float64) for each in losses[::-1])),
    }
    what = (
        f"{','.join(map(str, pair))} against one device, {str(dtype).removeprefix('torch.')}, {recipe.preset}, "
        f"width {recipe.width:g}, {side}×{side}: largest relative difference"
    )
    figure = ", ".join(f"{name} {number(value)}" for name, value in apart.items())
    yield Row.held(
        what,
        f"{figure} (bound {number(bound)})",
        all(value <= bound for value in apart.values()),
        n=f"{images} images",
        relative=list(apart.values()),
    )


def _gradients(
    network: Any, images: torch.Tensor, labels: torch.Tensor
) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
    """Logits and the gradients of all parameters, whole; units are halved and not dropped."""
    logits = network(images)
    found = torch.autograd.grad(
        F.cross_entropy(logits, labels), [each for parts in network.pieces().values() for each in parts]
    )
    for each in network.parameters():
        synchronize(each.device)
    gradients = iter(found)
    whole = {name: torch.cat([next(gradients).cpu() for _ in parts]) for name, parts in network.pieces().items()}
    return logits.detach().cpu(), whole


def _losses(network: Any, recipe: Recipe, images: torch.Tensor, labels: torch.Tensor) -> list[float]:
    """Of some steps with dropout and momentum."""
    stepper = Stepper(network, recipe, Schedule.of(recipe, 1000))
    return [float(stepper.step(step, images, labels)[0]) / len(labels) for step in range(STEPS)]


def _apart(found: torch.Tensor, expected: torch.Tensor) -> float:
    """The largest difference, as a part of the largest value."""
    return float((found.double() - expected.double()).abs().max() / expected.double().abs().max())


def _crossed(scene: Scene, *, pair: Pair) -> Iterable[Row]:
    for precision in ("fp32", "bf16"):
        recipe = scene.recipe(precision=precision)
        batch_size = scene.sizes.batches[0]
        network = build_network(recipe, scene.sizes.classes, scene.sizes.side, pair)
        assert isinstance(network, TwoTowers)
        stepper = Stepper(network, recipe, Schedule.of(recipe, 1000))
        stepper.step(0, scene.images(batch_size), scene.labels(batch_size))
        synchronize(scene.device)
        crossed: Crossed = network.crossed
        counted = crossed.forward_bytes + crossed.backward_bytes
        expected = crossing_bytes(recipe, scene.sizes.side, batch_size)
        yield Row.held(
            f"{','.join(map(str, pair))}: bytes that cross in a step of batch {batch_size}, {precision}",
            f"{counted:,} counted, {expected:,} as the towers of 2012 exchange",
            counted == expected,
            n="1 step",
            counted_bytes=counted,
            expected_bytes=expected,
        )


def _speed(scene: Scene, *, pair: Pair) -> Iterable[Row]:
    batch_size = scene.sizes.batches[0]
    for precision in ("fp32", "bf16") if scene.on_card else ("fp32",):
        recipe = scene.recipe(precision=precision)
        scene.machine().prepare(recipe.precision)
        for devices, name in ((pair[:1], str(pair[0])), (pair, ",".join(map(str, pair)))):
            network = build_network(recipe, scene.sizes.classes, scene.sizes.side, devices)
            stepper = Stepper(network, recipe, Schedule.of(recipe, 1000))
            images, labels, numbers = scene.images(batch_size), scene.labels(batch_size), count()
            both = (images, images.to(pair[1])) if len(devices) == 2 else images

            def step(
                stepper: Stepper = stepper, both: Any = both, labels: Any = labels, numbers: Any = numbers
            ) -> None:
                stepper.step(next(numbers), both, labels)

            runs = seconds_of(scene.device, step, runs=scene.sizes.runs, times=max(1, scene.sizes.steps // 5))
            milliseconds = [1e3 * seconds for seconds in runs]
            yield Row.of_runs(
                f"{name}: a step of batch {batch_size}, {precision}, as torch comes to it, {scene.sizes}",
                "ms",
                milliseconds,
                note=f"{number(batch_size / statistics.median(runs))} images/s",
            )
    scene.machine().prepare()
