"""G3 of `tools/gpu_check`, before anything is timed: the fast ways give what the plain ones give.

chains   what follows a convolution as one kernel against `composed` in float64, both on the device, on what the
         network's own convolutions give
ways     some steps compiled, as a CUDA graph, and both, against the same steps as torch comes to each operation
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Iterable, Iterator
from functools import partial
from typing import Any

import torch

from ..trainer import AlexNet, Chain, Schedule, Stepper, build_network, composed, has_kernels, normalise
from .gpu_report import Row, number
from .gpu_scene import Part, Scene

CONVOLUTIONS = ("conv1", "conv2", "conv5")  # what the three chains follow
# Of the largest value. bf16: an element's own rounding. A gradient may go to another of two maxima that are equal
# but for rounding, so some are allowed to be elsewhere.
BOUND = {torch.float32: 1e-5, torch.bfloat16: 2**-8}
ELSEWHERE = 1e-5  # of all gradients
# Relative, after so many steps: losses, and of each tensor how far the weights went (of another batch: about 1.4).
LOSSES = {"fp32": 1e-3, "bf16": 5e-2}
WEIGHTS = {"fp32": 0.05, "bf16": 0.5}
Weights = dict[str, torch.Tensor]
COMPILING_S = 25.0


def chains(_scene: Scene) -> Iterator[Part]:
    """Those of both presets."""
    for preset in ("original", "paper"):
        yield Part(f"chains of {preset} against float64", partial(_chains, preset=preset))


def ways(scene: Scene, *, compiled: bool) -> Iterator[Part]:
    """Those that are compiled, or those that are not; on the cores there is no graph."""
    for precision in ("bf16", "fp32") if scene.on_card else ("fp32",):
        for graphs in (True, False) if scene.on_card else (False,):
            if compiled or graphs:
                way = " + ".join(name for name, on in (("compiled", compiled), ("graph", graphs)) if on)
                what = f"{scene.sizes.alike} steps, {way}, {precision}: against plain steps"
                measure = partial(_way, what=what, precision=precision, compiled=compiled, graphs=graphs)
                yield Part(what, measure, needs_s=COMPILING_S if compiled else 0.0)


def _chains(scene: Scene, *, preset: str) -> Iterable[Row]:
    scene.machine().prepare()
    recipe = scene.recipe(preset)
    network = build_network(recipe, scene.sizes.classes, scene.sizes.side, (scene.device,))
    assert isinstance(network, AlexNet)
    maps = maps_of(network, scene.images(scene.sizes.chain_images))
    for (name, x), chain in zip(maps.items(), network.chains, strict=True):
        for dtype in (torch.float32, torch.bfloat16):
            yield _chain(f"chain behind {name}, {preset}, {str(dtype).removeprefix('torch.')}", x.to(dtype), chain)


def maps_of(network: AlexNet, images: torch.Tensor) -> dict[str, torch.Tensor]:
    """What the convolutions with a chain behind them give for these images."""
    found: dict[str, torch.Tensor] = {}

    def keep(name: str, _module: Any, _inputs: Any, output: torch.Tensor) -> None:
        found[name] = output.detach().clone()

    hooks = [getattr(network, name).register_forward_hook(partial(keep, name)) for name in CONVOLUTIONS]
    with torch.no_grad():
        network.eval()(images)
    for hook in hooks:
        hook.remove()
    return found


def _chain(what: str, x: torch.Tensor, chain: Chain) -> Row:
    def with_gradient(function: Any, x: torch.Tensor, g: torch.Tensor | None) -> list[torch.Tensor]:
        x = x.clone().requires_grad_()
        y = function(x, chain)
        g = (
            torch.randn(y.shape, generator=torch.Generator().manual_seed(1)).to(y.device, x.dtype)
            if g is None
            else g
        )
        y.backward(g.to(y.dtype))
        assert x.grad is not None
        return [y.detach(), x.grad, g]

    found = with_gradient(normalise, x, None)
    expected = with_gradient(composed, x.double(), found[2].double())
    apart = [
        (one.double() - other).abs() / other.abs().max()
        for one, other in zip(found[:2], expected[:2], strict=True)
    ]
    bound = BOUND[x.dtype]
    elsewhere = float((~(apart[1] <= bound)).double().mean())
    worst = float(apart[0].max())
    kind = "as one kernel" if has_kernels(x) else "composed by torch, no kernel here"
    return Row.held(
        f"{what}, {'×'.join(map(str, x.shape))}, {kind}, against float64",
        f"values {number(worst)} (bound {number(bound)}), gradients beyond it {number(1e6 * elsewhere)} in a "
        "million",
        worst <= bound and elsewhere <= ELSEWHERE,
        n=f"{x.numel():,} values",
        worst=worst,
        gradients_elsewhere=elsewhere,
        kernel=has_kernels(x),
    )


def _way(scene: Scene, *, what: str, precision: str, compiled: bool, graphs: bool) -> Iterable[Row]:
    expected, went, _ = _taken(scene, precision=precision, compiled=False, graphs=False)
    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always")
        losses, moved, stepper = _taken(scene, precision=precision, compiled=compiled, graphs=graphs)
    if (stepper.compiled, stepper.graphs) != (compiled, graphs):
        why = f"the way was left: {' '.join(str(each.message) for each in told)}"
        yield Row(what, why, verdict="wrong" if scene.on_card else "left out")  # not every host has a compiler
        return
    apart = max(abs(one - other) / abs(other) for one, other in zip(losses, expected, strict=True))
    figure = "losses equal, every bit" if losses == expected else f"losses differ at most by {number(apart)}"
    further = max(float((moved[name] - went[name]).norm() / went[name].norm()) for name in went)
    yield Row.held(
        what,
        f"{figure} (bound {LOSSES[precision]:g}), the way of a tensor's weights by {number(further)} "
        f"(bound {WEIGHTS[precision]:g}); first loss {losses[0]:.4f}, last {losses[-1]:.4f}",
        apart <= LOSSES[precision] and further <= WEIGHTS[precision] and all(map(math.isfinite, losses)),
        n=f"{len(losses)} steps",
        weights_apart=further,
        losses=losses,
        plain_losses=expected,
    )


def _taken(scene: Scene, *, precision: str, compiled: bool, graphs: bool) -> tuple[list[float], Weights, Stepper]:
    """Some steps: their losses, how far each tensor went, and who took them."""
    torch.compiler.reset()  # after so many networks of one class it would leave the next one as it is
    sizes, recipe = scene.sizes, scene.recipe(precision=precision, init_fan_in=True)
    scene.machine().prepare(recipe.precision)
    network = build_network(recipe, sizes.classes, sizes.side, (scene.device,))
    stepper = Stepper(network, recipe, Schedule.of(recipe, 1000), compiled=compiled, graphs=graphs)
    before = {name: value.clone() for name, value in network.state_dict().items()}
    losses = []
    for step in range(sizes.alike):
        # Four batches in turn: a recorded step has to take each one's images, not those it was recorded with.
        images, labels = (make(sizes.batches[0], seed=step % 4) for make in (scene.images, scene.labels))
        losses.append(stepper.step(step, images, labels)[0])
    scene.machine().prepare()
    moved = {name: value - before[name] for name, value in network.state_dict().items()}
    return [float(loss) / sizes.batches[0] for loss in losses], moved, stepper
