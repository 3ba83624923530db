"""G3 of `tools/gpu_check`: the trainer alone, on batches that stay on the device.

First that the fast ways compute what the plain ones do (gpu_alike.py). Then `tools/bench_train` at every batch,
precision and way of taking a step: images/s, the share of the products that the device does, the same without the
normalisers in turns with it, and a step taken apart.
"""

from __future__ import annotations

import statistics
import warnings
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch

from . import gpu_alike
from .gpu_report import Row, number
from .gpu_scene import Part, Scene
from .train_asked import Asked
from .train_bench import bench

GOAL_NORMALISERS = 0.85  # of the speed without them
OF_RUN = 0.4  # of the seconds of a loader's run: steps are all alike


@dataclass(frozen=True, slots=True)
class Way:
    """How steps are taken."""

    batch_size: int
    precision: str
    compiled: bool = False
    graphs: bool = False

    @property
    def name(self) -> str:
        """As bench_train calls it."""
        return (
            " + ".join(name for name, on in (("compiled", self.compiled), ("graph", self.graphs)) if on) or "eager"
        )

    def __str__(self) -> str:
        return f"batch {self.batch_size}, {self.precision}, {self.name}"


def parts(scene: Scene) -> Iterator[Part]:
    """What decides first; what the minutes may not suffice for last."""
    precisions = ("bf16", "tf32", "fp32") if scene.on_card else ("fp32", "bf16")
    yield from gpu_alike.chains(scene)
    for compiled in (False, True):
        yield from gpu_alike.ways(scene, compiled=compiled)
        for graphs in (True, False):
            if (compiled or graphs) and not scene.on_card:
                continue  # there are no graphs, and a compiler would take longer than all the rest
            for batch_size in scene.sizes.batches:
                for precision in precisions:
                    way = Way(batch_size, precision, compiled, graphs)
                    needs_s = gpu_alike.COMPILING_S if compiled else 0.0
                    yield Part(str(way), partial(_measured, way=way), needs_s=needs_s)


def _measured(scene: Scene, *, way: Way) -> Iterable[Row]:
    sizes = scene.sizes
    torch.compiler.reset()  # after so many networks of one class it would leave the next one as it is
    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always")
        report = bench(
            Asked(
                device=str(scene.device),
                batch_size=way.batch_size,
                width=sizes.width,
                side=sizes.side,
                classes=sizes.classes,
                precisions=(way.precision,),
                compiled=way.compiled,
                graphs=way.graphs,
                repeats=sizes.runs,
                seconds=OF_RUN * sizes.run_s,
                against=() if way.compiled else ("bare",),  # a compiler would take its time for that too
                parts=way.name == "eager",  # hooks are called where torch comes to each operation
            )
        )
    (found,) = report["precisions"]
    networks = {each["name"]: each for each in found["networks"]}
    yield _rate(scene, way, networks["alexshard"], report["network"], [str(each.message) for each in told])
    if "bare" in networks:
        yield _beside_bare(scene, way, networks)
    if found["parts"]:
        yield _by_part(scene, way, found["parts"]["alexshard"])


def _rate(scene: Scene, way: Way, ours: Mapping[str, Any], network: Mapping[str, Any], told: list[str]) -> Row:
    if ours["way"] != way.name:
        return Row(str(way), f"steps were taken {ours['way']}: {' '.join(told)}", verdict="wrong")
    flop, rates = network["step_flop_per_image"], ours["images_per_s"]["runs"]
    tflop_per_s = statistics.median(rates) * flop / 1e12
    note = f"{number(tflop_per_s)} TFLOP/s, {100 * ours['peak_share']:.1f} % of the products that the device does"
    if ours["device_bytes"]:
        note += f", {ours['device_bytes'] / 2**30:.2f} GiB"
    return Row.of_runs(
        f"{way}, {scene.sizes}",
        "images/s",
        rates,
        note=note,
        flop_per_image=flop,
        peak_share=ours["peak_share"],
        device_bytes=ours["device_bytes"],
    )


def _beside_bare(scene: Scene, way: Way, networks: Mapping[str, Mapping[str, Any]]) -> Row:
    ours, bare = (networks[name]["images_per_s"]["runs"] for name in ("alexshard", "bare"))
    ratio = statistics.median(ours) / statistics.median(bare)
    each = [one / other for one, other in zip(ours, bare, strict=True)]
    return Row(
        f"{way}, {scene.sizes}: speed with normalisers / without",
        f"{ratio:.3f} (goal {'reached' if ratio >= GOAL_NORMALISERS else 'missed'}: {GOAL_NORMALISERS})",
        f"{min(each):.3f}–{max(each):.3f}",
        f"{len(each)} runs each, in turns",
        values={"ratio": ratio, "images_per_s_without": bare},
    )


def _by_part(scene: Scene, way: Way, parts: Mapping[str, Any]) -> Row:
    seconds = {name: parts[f"{name}_s"]["median"] for name in ("forward", "backward", "optimiser", "rest", "step")}
    own = parts["normalisers"]
    seconds["of it the normalisers (LRN, same map)"] = own["forward_s"]["median"] + own["backward_s"]["median"]
    return Row(
        f"{way}, {scene.sizes}: by part",
        ", ".join(f"{name} {number(1e3 * each)} ms" for name, each in seconds.items()),
        n=f"{len(parts['step_s']['runs'])} steps",
        values={"seconds": seconds, "layers": parts["layers"]},
    )
