"""The same network run as two towers on two devices, as in 2012.

Device A holds the first half of every layer's maps or units and all of fc8, device B the second half. Images go
to both devices; activations cross into conv3, conv6 if there is one, fc6, fc7 (both ways) and fc8 (B to A),
gradients come back the same way, and nothing else ever crosses (fidelity.md §5). The state dict is that of
`AlexNet`: rows are joined and split.

    A  images ─ layers_1_to_2 ─┬─ layers_3_to_5 ─┬─ layer_6 ─┬─ layer_7 ─┬─ layer_8 ─ logits
                               ╳                 ╳           ╳           ╱               (╳ ╱: `_Crossing`)
    B  images ─ layers_1_to_2 ─┴─ layers_3_to_5 ─┴─ layer_6 ─┴─ layer_7 ─┘

layer_conv6, where the recipe has it, stands between layers_3_to_5 and layer_6, with a crossing on either side.

Between two crossings the towers run at once, forward and backward:

two cards        Each has its own stream of work, and autograd a thread for each card: nothing is done here.
one card twice   Tower B has a stream of its own.
cpu,cpu          Each tower has a thread, with half of the cores below it (`_Threads`, `_AtOnce`).
cpu and a card   One after the other; legal, for tests.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor, wait
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import cache, partial
from typing import Any, TypeVar

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.autograd.graph import Node

from ..pipeline import span
from .dropout import Masks
from .network import PER_TOWER, AlexNet, Pieces, pooled_side, scaled_width
from .recipe import Recipe

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Crossed:
    """Bytes that crossed between the towers so far; the difference of two is what crossed in between.

    On one device twice, too, where they only would have to.
    """

    forward_bytes: int = 0  # activations
    backward_bytes: int = 0  # gradients of activations
    image_bytes: int = 0  # of images, handed to each tower: not among those of fidelity.md §5

    def __add__(self, other: Crossed) -> Crossed:
        return Crossed(
            self.forward_bytes + other.forward_bytes,
            self.backward_bytes + other.backward_bytes,
            self.image_bytes + other.image_bytes,
        )

    def __sub__(self, other: Crossed) -> Crossed:
        return Crossed(
            self.forward_bytes - other.forward_bytes,
            self.backward_bytes - other.backward_bytes,
            self.image_bytes - other.image_bytes,
        )


def crossing_bytes(recipe: Recipe, side: int, batch_size: int) -> int:
    """What crosses in one step of training, activations and gradients, by the formula of fidelity.md §5.

    2 × elements of an image × batch × bytes of an element. The elements are both towers' maps below conv3, conv6
    (as many as below fc6) and fc6, both towers' units below fc7, and one tower's below fc8.

    >>> crossing_bytes(Recipe.original(), side=224, batch_size=128)
    60030976
    """
    _, conv2, _, _, conv5, hidden = (scaled_width(count, recipe.width) for count in PER_TOWER)
    into_conv3 = 2 * conv2 * pooled_side(side, 2) ** 2
    into_fc6 = 2 * conv5 * pooled_side(side, 3) ** 2
    into_conv6 = into_fc6 if recipe.conv6 else 0
    into_fc7, into_fc8 = 2 * hidden, hidden
    bytes_per_element = 2 if recipe.precision == "bf16" else 4
    return 2 * (into_conv3 + into_conv6 + into_fc6 + into_fc7 + into_fc8) * batch_size * bytes_per_element


class TwoTowers(nn.Module):
    """AlexNet on two devices, which may be one and the same. Logits are on the first."""

    def __init__(
        self, recipe: Recipe, num_classes: int, side: int, devices: Sequence[torch.device | str] = ("cpu", "cpu")
    ) -> None:
        super().__init__()
        self.towers = nn.ModuleList(
            AlexNet(recipe, num_classes, side, tower=tower).to(device) for tower, device in enumerate(devices)
        )
        self._meter, self._threads = _Meter(), _Threads()
        self.register_state_dict_post_hook(_join_towers)  # type: ignore[no-untyped-call]
        self.register_load_state_dict_pre_hook(_split_towers)  # type: ignore[no-untyped-call]

    def forward(self, images: Tensor | tuple[Tensor, Tensor], masks: Masks | None = None) -> Tensor:
        """Logits, (N, classes), on the first device; dropout as in `AlexNet.forward`.

        `images` may come as two of the same, one on either device.
        """
        maps = self._run("layers_1_to_2", self._handed_out(images))
        maps = self._run("layers_3_to_5", self._exchanged(maps))
        if self._tower(0).recipe.conv6:
            maps = self._run("layer_conv6", self._exchanged(maps))
        # Masks are applied before sending, so both devices read the same dropped units.
        hidden = self._run("layer_6", self._exchanged(maps), masks)
        hidden = self._run("layer_7", self._exchanged(hidden), masks)
        return _run_part(self._tower(0), "layer_8", (hidden[0], self._sent(hidden[1], to=0)))

    @property
    def devices(self) -> tuple[torch.device, torch.device]:
        """Where the towers are."""
        return self._tower(0).conv1.weight.device, self._tower(1).conv1.weight.device

    @property
    def crossed(self) -> Crossed:
        """What crossed since the network was made, counted where it crosses; any thread may ask."""
        return self._meter.crossed

    def pieces(self) -> Pieces:
        """Every parameter's pieces by its name in `AlexNet`, to be joined along the first dimension."""
        own = [dict(tower.named_parameters()) for tower in self.towers]
        return {name: tuple(parameters[name] for parameters in own if name in parameters) for name in own[0]}

    def _run(self, part: str, inputs: Sequence[Sequence[Tensor]], *masks: Masks | None) -> list[Tensor]:
        """One part of both towers: what each makes of its inputs."""
        towers = [self._tower(0), self._tower(1)]
        if all(device.type == "cpu" for device in self.devices):
            return _run_at_once(self._threads, towers, part, inputs, *masks)
        outputs = []
        # Work for a card is queued here and done later; the second tower's comes while the first one's is done.
        for number, tower in enumerate(towers):
            with torch.cuda.stream(self._stream(number)):
                outputs.append(_run_part(tower, part, inputs[number], *masks))
        return outputs

    def _handed_out(self, images: Tensor | tuple[Tensor, Tensor]) -> list[tuple[Tensor]]:
        first, second = (images, images) if isinstance(images, Tensor) else images
        self._meter.add(Crossed(image_bytes=first.nbytes + second.nbytes))
        return [(first.to(self.devices[0]),), (self._moved(second, to=1),)]

    def _exchanged(self, own: Sequence[Tensor]) -> list[tuple[Tensor, Tensor]]:
        """What both towers have, on either side, in the order of the towers."""
        return [(own[0], self._sent(own[1], to=0)), (self._sent(own[0], to=1), own[1])]

    def _sent(self, x: Tensor, *, to: int) -> Tensor:
        """What one tower made, for the other. Nothing but this lets activations and gradients cross."""
        moved = self._moved(x, to=to)
        with torch.cuda.stream(self._stream(to)):
            counted: Tensor = _Crossing.apply(self._meter, moved)  # type: ignore[no-untyped-call]
        return counted

    def _moved(self, x: Tensor, *, to: int) -> Tensor:
        """A tensor of the other tower, or of the caller, where this tower reads it.

        From card to card torch copies without holding this thread up, and has either card's stream wait for the
        other's; both need that here anyway. Any copy from or to the CPU is waited for.
        """
        device, stream, others = self.devices[to], self._stream(to), self._stream(1 - to)
        if stream is not None and others is not None and stream.device == others.device:
            # One card, no copy: the other stream must have written x, and must not reuse its memory while this
            # one reads. What the caller queued for the card, such as new weights, is waited for with the images.
            stream.wait_stream(others)
            if x.device == device:
                x.record_stream(stream)
        with torch.cuda.stream(stream):
            return x.to(device)

    def _stream(self, tower: int) -> torch.cuda.Stream | None:
        """Where the tower's card is given work: the caller's stream, but one card needs two. None on a CPU."""
        device = self.devices[tower]
        if device.type != "cuda":
            return None
        both_on_it = self.devices[0] == self.devices[1]
        return _second_stream(device) if both_on_it and tower == 1 else torch.cuda.current_stream(device)

    def _tower(self, number: int) -> AlexNet:
        tower = self.towers[number]
        assert isinstance(tower, AlexNet)
        return tower


Network = AlexNet | TwoTowers


def build_network(recipe: Recipe, num_classes: int, side: int, devices: Sequence[torch.device]) -> Network:
    """The network on one device, or as two towers on two."""
    if len(devices) == 1:
        return AlexNet(recipe, num_classes, side).to(devices[0])
    return TwoTowers(recipe, num_classes, side, devices)


class _Meter:
    """Adds up what crosses; backward passes of two cards do it in two threads. A copy begins at nothing."""

    def __init__(self) -> None:
        self.crossed = Crossed()
        self._lock = threading.Lock()

    def __reduce__(self) -> tuple[Any, ...]:
        return type(self), ()

    def add(self, crossed: Crossed) -> None:
        with self._lock:
            self.crossed = self.crossed + crossed


class _Crossing(torch.autograd.Function):
    """The identity, on the receiving side: counts the activation that came, and the gradient that goes back."""

    @staticmethod
    def forward(ctx: Any, meter: _Meter, x: Tensor) -> Tensor:
        ctx.meter = meter
        meter.add(Crossed(forward_bytes=x.nbytes))
        return x

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[None, Tensor]:
        ctx.meter.add(Crossed(backward_bytes=gradient.nbytes))
        return None, gradient


def _run_part(tower: AlexNet, part: str, inputs: Sequence[Tensor], *masks: Masks | None) -> Tensor:
    """One of AlexNet's parts of one tower, from what both towers have."""
    whole = inputs[0] if len(inputs) == 1 else torch.cat(list(inputs), dim=1)
    output: Tensor = getattr(tower, part)(whole, *masks)
    return output


# cpu,cpu. Autograd does the CPU's part of a backward pass in the thread that asked for it. So that two threads can
# do it, what a tower does between two crossings is a graph of its own, and two such graphs are one node of the
# caller's. On a card this would end in a deadlock: autograd's thread of that card would wait for itself.


def _run_at_once(
    threads: _Threads,
    towers: Sequence[AlexNet],
    part: str,
    inputs: Sequence[Sequence[Tensor]],
    *masks: Masks | None,
) -> list[Tensor]:
    modes = _Modes.here()
    halves = [
        _Half(partial(_run_part, tower, part), f"tower {number} {part}", modes, masks)
        for number, tower in enumerate(towers)
    ]
    outputs = threads.both([partial(half.forward, own) for half, own in zip(halves, inputs, strict=True)])
    if not torch.is_grad_enabled():
        return outputs
    first, second = ([*own, *half.parameters()] for own, half in zip(inputs, halves, strict=True))
    return list(_AtOnce.apply(threads, halves, *first, *second))  # type: ignore[no-untyped-call]


class _AtOnce(torch.autograd.Function):
    """Two halves as one node: a function of the inputs and parameters of the first, then of the second."""

    @staticmethod
    def forward(ctx: Any, threads: _Threads, halves: Sequence[_Half], *_: Tensor) -> tuple[Tensor, ...]:
        ctx.threads, ctx.halves = threads, halves
        return tuple(half.output.detach() for half in halves)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        if not ctx.halves:
            raise RuntimeError(
                "a second backward pass through towers on CPUs: run the forward pass again before it"
            )
        halves, ctx.halves = ctx.halves, ()  # their memory is free when this returns
        back = ctx.threads.both([partial(half.backward, own) for half, own in zip(halves, gradients, strict=True)])
        return None, None, *back[0], *back[1]


class _Half:
    """One tower's part between two crossings; `forward` and `backward` run in that tower's thread."""

    def __init__(
        self, run: Callable[..., Tensor], name: str, modes: _Modes, masks: tuple[Masks | None, ...]
    ) -> None:
        self._run, self._name, self._modes, self._masks = run, name, modes, masks

    def forward(self, inputs: Sequence[Tensor]) -> Tensor:
        """The output; the graph begins at `inputs`, which share only their memory with those of the caller."""
        with span(f"{self._name} forward"), self._modes.set():
            self._inputs = [each.detach().requires_grad_(each.requires_grad) for each in inputs]
            self.output = self._run(self._inputs, *self._masks)
        return self.output

    def parameters(self) -> list[Tensor]:
        """What the graph begins at besides the inputs."""
        found = _leaves(self.output)
        self._parameters = [each for each in found if all(each is not own for own in self._inputs)]
        return self._parameters

    def backward(self, gradient: Tensor) -> list[Tensor | None]:
        """The gradients of inputs and parameters. Hooks on parameters run here and again in the caller's graph."""
        read = [*self._inputs, *self._parameters]
        wanted = [each for each in read if each.requires_grad]
        if not self.output.requires_grad or not wanted:
            return [None] * len(read)
        with span(f"{self._name} backward"):
            found = iter(torch.autograd.grad(self.output, wanted, gradient, allow_unused=True))
        return [next(found) if each.requires_grad else None for each in read]


def _leaves(output: Tensor) -> list[Tensor]:
    """The tensors at which the graph of `output` begins, once each, in an order that is always the same."""
    leaves: list[Tensor] = []
    seen: set[Node] = set()
    nodes = [output.grad_fn]
    while nodes:
        node = nodes.pop()
        if node is None or node in seen:
            continue
        seen.add(node)
        if (leaf := getattr(node, "variable", None)) is not None:
            leaves.append(leaf)
        nodes += [each for each, _ in node.next_functions]
    return leaves


class _Threads:
    """A thread for each tower, with half of torch's threads below it.

    They begin at the first use, end when this is forgotten or the interpreter exits, and do not come along into a
    copy or a forked process, which have their own.
    """

    def __init__(self) -> None:
        self._pools: list[ThreadPoolExecutor] = []
        self._process: int | None = None

    def __reduce__(self) -> tuple[Any, ...]:
        return type(self), ()

    def both(self, jobs: Sequence[Callable[[], T]]) -> list[T]:
        """Do two jobs at once, one in each thread.

        Raises:
            BaseException: of the first tower, or else of the second; both are done then, and other jobs can come.
        """
        futures = [pool.submit(job) for pool, job in zip(self._begun(), jobs, strict=True)]
        wait(futures)
        return [future.result() for future in futures]

    def _begun(self) -> list[ThreadPoolExecutor]:
        if self._process != os.getpid():
            pools = [ThreadPoolExecutor(1) for _ in (0, 1)]
            threads = torch.get_num_threads()
            for tower, pool in enumerate(pools):
                pool.submit(_settle, f"alexshard-tower-{tower}", max(1, threads // 2)).result()
            torch.set_num_threads(threads)  # the number is its thread's own, and that of threads to come
            self._pools, self._process = pools, os.getpid()
        return self._pools


def _settle(name: str, threads: int) -> None:
    threading.current_thread().name = name
    torch.get_num_threads()  # sets this thread up; left for later, that would undo the next line
    torch.set_num_threads(threads)


@dataclass(frozen=True, slots=True)
class _Modes:
    """What torch keeps for each thread and a part depends on."""

    grad: bool
    inference: bool
    autocast: bool
    autocast_dtype: torch.dtype

    @classmethod
    def here(cls) -> _Modes:
        return cls(
            torch.is_grad_enabled(),
            torch.is_inference_mode_enabled(),
            torch.is_autocast_enabled("cpu"),
            torch.get_autocast_dtype("cpu"),
        )

    @contextmanager
    def set(self) -> Iterator[None]:
        with ExitStack() as stack:
            stack.enter_context(torch.inference_mode(self.inference))
            stack.enter_context(torch.set_grad_enabled(self.grad))
            if self.autocast:
                stack.enter_context(torch.autocast("cpu", self.autocast_dtype))
            yield


@cache
def _second_stream(card: torch.device) -> torch.cuda.Stream:
    return torch.cuda.Stream(card)  # type: ignore[no-untyped-call]


def _join_towers(module: nn.Module, state: dict[str, Any], prefix: str, _metadata: Any) -> None:
    assert isinstance(module, TwoTowers)
    for name in module.pieces():
        parts = [state.pop(f"{prefix}towers.{tower}.{name}", None) for tower in (0, 1)]
        state[prefix + name] = torch.cat([part.to(module.devices[0]) for part in parts if part is not None])


def _split_towers(module: nn.Module, state: dict[str, Any], prefix: str, *_: Any) -> None:
    assert isinstance(module, TwoTowers)
    for name, pieces in module.pieces().items():
        if (whole := state.pop(prefix + name, None)) is not None:
            for tower, part in enumerate(whole.chunk(len(pieces))):
                state[f"{prefix}towers.{tower}.{name}"] = part
