"""Where the time of a step lies, for `tools/bench_train`: hooks on the very step that is taken.

phases       forward; loss and backward; optimiser; and the rest of the step (masks' keys, figures for the log)
layers       conv1 … fc8 and what stands between, forward from call to return, backward from the moment the
             gradient of a part's output is there until that of its input is; what lies between parts (ReLU,
             dropout) is the rest of its phase
normalisers  each chain on the tensors and gradients of that step, with LRN and same-map normaliser and without
             (pool and ReLU stay), in turns: the difference is theirs

On the cores a step waits for each operation. On a card marks are events in its stream and nothing is waited for;
the step is one that torch launches operation by operation, so time in which the card waits for the next launch is
in the part that was not launched yet. Steps with hooks are apart from those that give rates.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from functools import partial
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor, nn

from ..trainer import LAYERS, AlexNet, Chain, normalise
from .train_clock import Clock, Mark, middle, spread
from .train_stock import Stock

PHASES = ("forward", "backward", "optimiser")
CHAINS = ("chain1", "chain2", "chain5")  # named for the convolution that each follows
NORMS = ("norm1", "norm2")  # of the stock network
MATRIX_PARTS = ("conv1", "conv2", "conv3", "conv4", "conv5", "fc6", "fc7", "fc8")
CHAIN_RUNS = 2  # of which the faster one counts: the first one's memory is new, or its kernel not compiled
CARD_TIMES = 10  # that a chain is run in a row on a card

Way = str  # forward, backward; of a phase: whole
Kept = dict[str, tuple[Tensor, Tensor]]  # input and gradient of the output, by chain


class Watch:
    """The marks of one step."""

    def __init__(self, clock: Clock) -> None:
        self.kept: Kept = {}
        self._clock = clock
        self._began: dict[tuple[str, Way], Mark] = {}
        self._ended: dict[tuple[str, Way], Mark] = {}

    def begin(self, name: str, way: Way = "whole") -> None:
        """A part begins here."""
        self._began[name, way] = self._clock.mark()

    def end(self, name: str, way: Way = "whole") -> None:
        """And ends here."""
        self._ended[name, way] = self._clock.mark()

    def spans(self) -> list[tuple[str, Way, Mark, Mark]]:
        """Every part with its begin and end. What has no end of its own ends with the backward pass."""
        last = self._ended.get(("backward", "whole"))
        return [
            (*key, began, ended)
            for key, began in self._began.items()
            if (ended := self._ended.get(key, last)) is not None
        ]

    def seconds(self) -> dict[tuple[str, Way], float]:
        """How long each part took; after `Clock.wait`."""
        return {(name, way): self._clock.seconds(*marks) for name, way, *marks in self.spans()}


@contextmanager
def watching(network: nn.Module, optimiser: Any, clock: Clock, *, keep: bool = False) -> Iterator[Watch]:
    """Hooks on a network and on what updates it, for one step; with `keep` it holds what the chains saw."""
    watch = Watch(clock)
    with ExitStack() as stack:
        _watch_phases(network, optimiser, watch, stack)
        if isinstance(network, AlexNet):
            _watch_functions(network, watch, stack, keep=keep)
        elif isinstance(network, Stock):
            for name in (*LAYERS, *NORMS):
                _watch_module(getattr(network, name), name, watch, stack)
        yield watch


def _watch_phases(network: nn.Module, optimiser: Any, watch: Watch, stack: ExitStack) -> None:
    def before(*_: Any) -> None:
        watch.begin("forward")

    def after(*_: Any) -> None:
        watch.end("forward")
        watch.begin("backward")

    update = optimiser.step

    def step() -> None:
        watch.end("backward")
        watch.begin("optimiser")
        update()
        watch.end("optimiser")

    stack.callback(network.register_forward_pre_hook(before).remove)
    stack.callback(network.register_forward_hook(after).remove)
    optimiser.step = step
    stack.callback(delattr, optimiser, "step")


def _watch_functions(network: AlexNet, watch: Watch, stack: ExitStack, *, keep: bool) -> None:
    """AlexNet calls the same three functions for all its parts: they are wrapped where it finds them."""
    layers = {id(getattr(network, name)): name for name in LAYERS if hasattr(network, name)}
    chains = {id(chain): name for name, chain in zip(CHAINS, network.chains, strict=True)}
    where = sys.modules[AlexNet.__module__]

    def of_layer(original: Callable[..., Tensor], layer: nn.Module, x: Tensor) -> Tensor:
        name = layers.get(id(layer))
        return _timed(watch, name, partial(original, layer), x) if name else original(layer, x)

    def of_chain(original: Callable[..., Tensor], x: Tensor, chain: Chain) -> Tensor:
        name = chains.get(id(chain))
        return _timed(watch, name, lambda x: original(x, chain), x, keep=keep) if name else original(x, chain)

    for name, wrapper in (("convolve", of_layer), ("multiply", of_layer), ("normalise", of_chain)):
        original = getattr(where, name)
        setattr(where, name, partial(wrapper, original))
        stack.callback(setattr, where, name, original)


def _timed(watch: Watch, name: str, run: Callable[[Tensor], Tensor], x: Tensor, *, keep: bool = False) -> Tensor:
    watch.begin(name, "forward")
    y = run(x)
    watch.end(name, "forward")
    _watch_gradients(watch, name, x, y, keep=keep)
    return y


def _watch_module(module: nn.Module, name: str, watch: Watch, stack: ExitStack) -> None:
    def before(*_: Any) -> None:
        watch.begin(name, "forward")

    def after(_module: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> None:
        watch.end(name, "forward")
        _watch_gradients(watch, name, inputs[0], output)

    stack.callback(module.register_forward_pre_hook(before).remove)
    stack.callback(module.register_forward_hook(after).remove)


def _watch_gradients(watch: Watch, name: str, x: Tensor, y: Tensor, *, keep: bool = False) -> None:
    def begins(gradient: Tensor) -> None:
        if keep:
            watch.kept[name] = x.detach(), gradient.detach()
        watch.begin(name, "backward")

    def ends(_gradient: Tensor) -> None:
        watch.end(name, "backward")

    if y.requires_grad:
        y.register_hook(begins)  # type: ignore[no-untyped-call]
    if x.requires_grad:
        x.register_hook(ends)  # type: ignore[no-untyped-call]


def seconds_of_normalisers(kept: Kept, chains: Sequence[Chain], clock: Clock) -> dict[str, dict[str, float]]:
    """Each chain that has a normaliser, with it and without: seconds of `forward`, `backward`, … of one run."""
    found: dict[str, dict[str, float]] = {}
    for name, chain in zip(CHAINS, chains, strict=True):
        if not (chain.n or chain.same_n):
            continue
        own: list[tuple[float, float]] = []
        bare: list[tuple[float, float]] = []
        for _ in range(CHAIN_RUNS):
            own.append(_seconds_of_chain(*kept[name], chain, clock))
            bare.append(_seconds_of_chain(*kept[name], without_normalisers(chain), clock))
        for suffix, runs in (("", own), ("_without", bare)):
            forward, backward = (min(way) for way in zip(*runs, strict=True))
            found.setdefault(name, {}).update({f"forward{suffix}": forward, f"backward{suffix}": backward})
    return found


def _seconds_of_chain(x: Tensor, gradient: Tensor, chain: Chain, clock: Clock) -> tuple[float, float]:
    times = CARD_TIMES if clock.on_card else 1
    x = x.detach().requires_grad_()
    clock.wait()
    marks = [clock.mark()]
    for _ in range(times):
        y = normalise(x, chain)
    marks.append(clock.mark())
    for _ in range(times):
        torch.autograd.grad(y, x, gradient, retain_graph=True)
    marks.append(clock.mark())
    clock.wait()
    forward, backward = (clock.seconds(*both) / times for both in pairwise(marks))
    return forward, backward


def without_normalisers(chain: Chain) -> Chain:
    """The chain's pool and ReLU alone."""
    return replace(chain, n=0, same_n=0)


@dataclass(frozen=True, slots=True)
class StepParts:
    """What one watched step gave."""

    seconds: Mapping[tuple[str, Way], float]  # by part and way; phases and `step` have the way `whole`
    normalisers: Mapping[str, Mapping[str, float]]  # of AlexNet, by chain


def parts_figures(steps: Sequence[StepParts]) -> dict[str, Any]:
    """What a report says of watched steps of one network."""
    step = spread([each.seconds["step", "whole"] for each in steps])
    whole = step["median"]
    phases = {f"{name}_s": spread([each.seconds[name, "whole"] for each in steps]) for name in PHASES}
    known = [each.seconds["step", "whole"] - sum(each.seconds[name, "whole"] for name in PHASES) for each in steps]
    layers = []
    for name in dict.fromkeys(name for name, way in steps[0].seconds if way != "whole"):
        forward = spread([each.seconds[name, "forward"] for each in steps])
        backward = spread([each.seconds.get((name, "backward"), 0.0) for each in steps])
        share = middle(
            [
                (each.seconds[name, "forward"] + each.seconds.get((name, "backward"), 0.0))
                / each.seconds["step", "whole"]
                for each in steps
            ]
        )
        layers.append({"name": name, "forward_s": forward, "backward_s": backward, "share": share})
    return {
        "step_s": step,
        **phases,
        "rest_s": spread(known),
        "shares": {name: phases[f"{name}_s"]["median"] / whole for name in PHASES},
        "layers": sorted(layers, key=_place),
        "normalisers": _normalisers(steps, whole),
    }


def _normalisers(steps: Sequence[StepParts], whole: float) -> dict[str, Any] | None:
    """Their own time in either way: differences of AlexNet's chains, or the stock network's modules."""
    own: dict[Way, list[float]] = {"forward": [], "backward": []}
    for each in steps:
        for way, seconds in own.items():
            if each.normalisers:
                seconds.append(sum(c[way] - c[f"{way}_without"] for c in each.normalisers.values()))
            elif (NORMS[0], way) in each.seconds:
                seconds.append(sum(each.seconds[name, way] for name in NORMS))
    if not own["forward"]:
        return None
    forward, backward = spread(own["forward"]), spread(own["backward"])
    chains = {
        name: {f"{which}_s": spread([each.normalisers[name][which] for each in steps]) for which in about}
        for name, about in steps[0].normalisers.items()
    }
    return {
        "forward_s": forward,
        "backward_s": backward,
        "share": (forward["median"] + backward["median"]) / whole,
        "chains": chains,
    }


def _place(layer: Mapping[str, Any]) -> tuple[int, int]:
    """In the order of the network: a chain, or a normaliser, behind the layer of its number."""
    name = layer["name"]
    return int(name[-1]), name.startswith(("chain", "norm"))
