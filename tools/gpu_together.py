"""G4 of `tools/gpu_check`: the trainer fed by the loader, which decodes JPEGs, against itself on one batch.

fed        a step waits for its batch, as in `alextrain run`; waiting is told by the device: from the end of each
           step to the begin of the next, so what the hand-over itself queues counts as waiting too
resident   the same steps on one batch that stays on the device

They take turns. A run lies within one epoch, behind the batches that were made before it and before the last ones.
"""

from __future__ import annotations

import statistics
import warnings
from collections.abc import Iterable, Iterator
from functools import partial
from itertools import count

import torch

from ..pipeline import crop_side
from ..trainer import Fed, Feeder, Schedule, Stepper, build_network
from .gpu_report import Row
from .gpu_scene import Part, Scene, mark, seconds_between, synchronize

GOAL_WAITING, GOAL_RATIO = 0.01, 0.98
AHEAD = 10  # batches at either end of an epoch that are not counted: more than are made ahead


def parts(scene: Scene) -> Iterator[Part]:
    """On a card bf16 as `alextrain` would take it; on the cores fp32."""
    precision = "bf16" if scene.on_card else "fp32"
    small, large = scene.sizes.batches
    for batch_size, compiled in ((small, False), (small, True), (large, False)):
        if compiled and not scene.on_card:
            continue  # on the cores a compiler would take longer than everything else here
        what = f"fed, batch {batch_size}, {precision}{', compiled' if compiled else ''}"
        measure = partial(_measured, what=what, batch_size=batch_size, precision=precision, compiled=compiled)
        yield Part(what, measure, needs_s=40.0 if compiled else 0.0)


def _measured(scene: Scene, *, what: str, batch_size: int, precision: str, compiled: bool) -> Iterable[Row]:
    shard_set, device = scene.sets.many, scene.device
    recipe = scene.recipe(batch_size=batch_size, precision=precision)
    machine = scene.machine(compiled=compiled)
    machine.prepare(recipe.precision)
    torch.compiler.reset()
    side = crop_side(shard_set.manifest.image.side)
    network = build_network(
        recipe, max(scene.sizes.classes, shard_set.manifest.num_classes), side, machine.devices
    )
    stepper = Stepper(network, recipe, Schedule.of(recipe, 1000), compiled=compiled, graphs=machine.graphs)
    with (
        warnings.catch_warnings(record=True) as told,
        Feeder(recipe, shard_set, machine, jitter_steps=None) as feeder,
    ):
        warnings.simplefilter("always")
        steps = max(scene.sizes.steps, min(2 * scene.sizes.steps, len(feeder.loader) - 2 * AHEAD))
        start, numbers = feeder.state_dict(), count()
        fed, waited, resident = [], [], []
        for _ in range(scene.sizes.runs):
            feeder.load_state_dict(start)
            batches = _endless(feeder)
            for _ in range(AHEAD):
                batch = next(batches)
                _step(stepper, numbers, batch)
            kept = Fed(batch.images.clone(), batch.labels.clone(), batch.count)  # type: ignore[union-attr]
            synchronize(device)
            marks = [mark(device)]
            for _ in range(steps):
                batch = next(batches)
                marks.append(mark(device))
                _step(stepper, numbers, batch)
                marks.append(mark(device))
                del batch
            synchronize(device)
            batches.close()  # type: ignore[attr-defined]
            seconds = seconds_between(device, marks[0], marks[-1])
            fed.append(steps * batch_size / seconds)
            waits = zip(marks[::2], marks[1::2], strict=False)
            waited.append(sum(seconds_between(device, *pair) for pair in waits) / seconds)
            began = mark(device)
            for _ in range(steps):
                _step(stepper, numbers, kept)
            ended = mark(device)
            synchronize(device)
            resident.append(steps * batch_size / seconds_between(device, began, ended))
        loader, way = feeder.loader, _way(stepper)
    chosen = f"{loader.backend}, decoder {loader.decoder}, {loader.threads} threads"
    about = {"batch_size": batch_size, "precision": precision, "way": way, "loader": chosen}
    yield Row.of_runs(
        f"{what}, {way}, {scene.sizes}, {scene.sets.about(shard_set)}", "images/s", fed, note=chosen, **about
    )
    if (stepper.compiled, stepper.graphs) != (compiled, machine.graphs):
        why = " ".join(str(warning.message) for warning in told)
        yield Row(f"{what}: the way was left", why, verdict="wrong")
    share, ratio = statistics.median(waited), statistics.median(fed) / statistics.median(resident)
    # Of goals it is said whether they are reached; a goal that is missed is no wrong answer.
    yield Row(
        f"{what}: waiting for data",
        f"{100 * share:.2f} % of the time ({_goal(share < GOAL_WAITING)} under 1 %)",
        f"{100 * min(waited):.2f}–{100 * max(waited):.2f} %",
        f"{len(waited)} runs",
        values={"waiting_shares": waited, **about},
    )
    yield Row(
        f"{what}: fed / resident",
        f"{ratio:.3f} ({_goal(ratio >= GOAL_RATIO)} at least {GOAL_RATIO})",
        n=f"{len(fed)} runs each, in turns",
        values={"ratio": ratio, "resident_images_per_s": resident, **about},
    )
    if batch_size == scene.sizes.batches[0]:
        scene.found["fed"] = max(scene.found.get("fed", 0.0), statistics.median(fed))


def _endless(feeder: Feeder) -> Iterator[Fed]:
    while True:
        yield from feeder


def _step(stepper: Stepper, numbers: count[int], batch: Fed) -> None:
    # Steps of the first segment: nothing is recorded or compiled anew meanwhile.
    stepper.step(next(numbers), batch.images, batch.labels)


def _way(stepper: Stepper) -> str:
    """How the steps were taken in the end."""
    ways = [name for name, on in (("compiled", stepper.compiled), ("as a CUDA graph", stepper.graphs)) if on]
    return " and ".join(ways) or "as torch comes to it"


def _goal(reached: bool) -> str:
    return "goal reached:" if reached else "goal missed:"
