"""G7 of `tools/gpu_check`: the same again, from one seed and after a SIGKILL; and why not, where it is not.

In one process the network takes some steps twice. In processes of their own: a run without a stop; and one that
ends at a checkpoint, goes on, is killed, and goes on again from there. Pixels must be the same for that, so JPEGs
are decoded on the cores (docs/loader.md); the card's decoder is compared with itself in G5.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterable, Iterator
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import torch

from ..trainer import RunFolder, Schedule, Stepper, build_network
from .gpu_processes import alextrain, figures
from .gpu_report import Row, number
from .gpu_scene import Part, Scene

Weights = dict[str, torch.Tensor]


def parts(scene: Scene) -> Iterator[Part]:
    """Twice in one process, in each precision that a run may have; what torch says; a run that is killed."""
    for precision in ("fp32", "bf16"):
        for graphs in (False, True) if scene.on_card else (False,):
            way = f"{precision}{', as a CUDA graph' if graphs else ''}"
            yield Part(
                f"two runs of one seed, {way}", partial(_twice, precision=precision, graphs=graphs, way=way)
            )
    yield Part("what torch names as not deterministic", _named)
    yield Part("a run that is killed and goes on", _killed, needs_s=60)


def _twice(scene: Scene, *, precision: str, graphs: bool, way: str) -> Iterable[Row]:
    first, second = (_trained(scene, precision=precision, graphs=graphs) for _ in range(2))
    yield _same(f"two runs of one seed, {scene.sizes.alike} steps, {way}, {scene.sizes}: weights", second, first)


def _trained(scene: Scene, *, precision: str, graphs: bool) -> Weights:
    sizes, recipe = scene.sizes, scene.recipe(precision=precision)
    scene.machine().prepare(recipe.precision)
    network = build_network(recipe, sizes.classes, sizes.side, (scene.device,))
    stepper = Stepper(network, recipe, Schedule.of(recipe, 1000), graphs=graphs)
    for step in range(sizes.alike):
        stepper.step(step, scene.images(sizes.batches[0], seed=step), scene.labels(sizes.batches[0], seed=step))
    scene.machine().prepare()
    return {name: value.cpu() for name, value in network.state_dict().items()}


def _named(scene: Scene) -> Iterable[Row]:
    """A step under `use_deterministic_algorithms(warn_only=True)`: operations that have no such way are named."""
    sizes, recipe = scene.sizes, scene.recipe()
    network = build_network(recipe, sizes.classes, sizes.side, (scene.device,))
    stepper = Stepper(network, recipe, Schedule.of(recipe, 1000))
    images, labels = scene.images(sizes.batches[0]), scene.labels(sizes.batches[0])
    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always")
        torch.use_deterministic_algorithms(True, warn_only=True)
        try:
            stepper.step(0, images, labels)
        finally:
            torch.use_deterministic_algorithms(False)
    named = sorted({str(warning.message).partition(". ")[0].partition("\n")[0] for warning in told})
    figure = "; ".join(named) or "nothing in a step; cuDNN's choice of ways is not its to name"
    yield Row("torch.use_deterministic_algorithms", figure, n="1 step", values={"named": named})


def _killed(scene: Scene) -> Iterable[Row]:
    before, after = scene.sizes.repeating
    shard_set, preset = scene.sets.images, "original"
    batch_size = min(scene.sizes.batches[0], shard_set.manifest.splits["train"].samples // 4)
    runs = {name: scene.folder / f"run-{name}" for name in ("whole", "killed")}
    on: list[object] = ["--shards", shard_set.shown, "--device", scene.device, "--log-every", 1, "--eval-every", 0]
    on += ["--decoder", "cores"] if scene.on_card else []
    asked: list[object] = ["--preset", preset, "--width", scene.sizes.width, "-b", batch_size]
    whole, killed = runs["whole"], runs["killed"]
    alextrain(scene, "run", "--out", whole, *asked, *on, "--max-steps", before + after)
    alextrain(scene, "run", "--out", killed, *asked, *on, "--max-steps", before)
    go_on = ["run", "--resume", killed, *on, "--max-steps", before + after]
    reached: list[int] = []

    def beyond() -> bool:
        """Whether it is past the checkpoint, and some steps are still to come."""
        steps = [line["step"] for line in figures(killed, "train")]
        reached[:] = steps[-1:]
        return bool(steps) and steps[-1] > before

    alextrain(scene, *go_on, stop=beyond)
    kept = RunFolder(killed).load().step
    alextrain(scene, *go_on)
    found, expected = (_weights(runs[name]) for name in ("killed", "whole"))
    row = _same(
        f"killed after step {reached[0]} of {before + after}, went on from step {kept}, {scene.sizes}, batch "
        f"{batch_size}: weights",
        found,
        expected,
    )
    if kept != before:
        row = replace(row, figure=f"{row.figure} (it had written another state before it was killed)")
    yield row
    losses = [[line["loss"] for line in figures(runs[name], "train")] for name in ("killed", "whole")]
    lines = f"{len(losses[0])} and {len(losses[1])} lines"
    holds = len(losses[0]) == len(losses[1]) == before + after
    apart = max((abs(a - b) for a, b in zip(*losses, strict=False)), default=float("nan"))
    yield Row.held(
        "its losses in metrics.jsonl against those of the run that was not killed",
        f"{lines}, largest difference {number(apart)}",
        holds,
        n=f"{before + after} steps",
        largest_difference=apart,
    )


def _weights(run: Path) -> Weights:
    checkpoint: Any = RunFolder(run).load()
    return dict(checkpoint.network)


def _same(what: str, found: Weights, expected: Weights) -> Row:
    """Equal bits, or by how much they differ: on a card that is no error, since sums may be added in any order."""
    if found.keys() != expected.keys() or not all(value.isfinite().all() for value in found.values()):
        return Row(what, "other tensors, or numbers that are not finite", verdict="wrong")
    if all(torch.equal(found[name], expected[name]) for name in expected):
        return Row(what, "equal, every bit", n=f"{len(expected)} tensors", values={"equal": True})
    apart = {name: float((found[name] - expected[name]).abs().max()) for name in expected}
    largest = max(apart, key=apart.__getitem__)
    relative = apart[largest] / float(expected[largest].abs().max())
    return Row(
        what,
        f"not equal: {sum(value > 0 for value in apart.values())} of {len(apart)} tensors differ, at most by "
        f"{number(apart[largest])} in {largest}, {number(relative)} of its largest value",
        n=f"{len(expected)} tensors",
        values={"equal": False, "largest_difference": apart[largest], "relative": relative},
    )
