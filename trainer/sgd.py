"""The paper's momentum rule, v ← 0.9·v − 0.0005·ε·w − ε·g and w ← w + v, on torch's fused SGD.

torch keeps b = −v/ε instead of v, so the two agree while ε is constant. When ε changes, v must stay: every buffer
is multiplied by ε_old/ε_new. A frozen tensor (rate None) is skipped altogether: no step, no decay, velocity kept.
Source: Krizhevsky et al. 2012 §5; fidelity.md §6; architecture.md D9.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from .network import Pieces
from .recipe import Recipe
from .schedules import Segment


class PaperSGD:
    """The optimiser of one network: weights, biases, and parameters with rates of their own; biases have no decay.

    `pieces` are the network's parameters by name, each in pieces to be joined along the first dimension.
    """

    def __init__(self, pieces: Pieces, recipe: Recipe) -> None:
        self._pieces = pieces
        members: dict[str, list[nn.Parameter]] = {}
        self._members: dict[str, list[str]] = {}
        for name, parts in pieces.items():
            members.setdefault(rate_group(name, recipe), []).extend(parts)
            self._members.setdefault(rate_group(name, recipe), []).append(name)
        devices = {part.device.type for parts in pieces.values() for part in parts}
        self._sgd = torch.optim.SGD(
            [
                {
                    "params": parts,
                    "rate_group": group,
                    "weight_decay": recipe.weight_decay if group.endswith(("weights", ".weight")) else 0.0,
                }
                for group, parts in members.items()
            ],
            lr=recipe.learning_rate,
            momentum=recipe.momentum,
            fused=devices <= {"cpu", "cuda"},
        )

    @property
    def rates(self) -> dict[str, float]:
        """The rate of each group that its momentum buffers belong to; a frozen group keeps its last."""
        return {group["rate_group"]: group["lr"] for group in self._sgd.param_groups}

    @torch.no_grad()
    def use(self, segment: Segment) -> None:
        """Take the rates of `segment` from the next step on; velocities stay what they are."""
        for group in self._sgd.param_groups:
            rate = segment.rates[group["rate_group"]]
            for parameter in group["params"]:
                # Without a gradient, torch's SGD skips the tensor, and autograd need not compute it.
                parameter.requires_grad_(rate is not None)
            if rate is None or rate == group["lr"]:
                continue
            for parameter in group["params"]:
                if (buffer := self._buffer(parameter)) is not None:
                    buffer.mul_(group["lr"] / rate)
            group["lr"] = rate

    def step(self) -> None:
        """One update by the gradients of the parameters, which are dropped afterwards."""
        self._sgd.step()
        self.forget_gradients()

    def forget_gradients(self) -> None:
        """Drop what a backward pass left."""
        self._sgd.zero_grad(set_to_none=True)

    @property
    def layers(self) -> tuple[str, ...]:
        """Those of `update_ratios`, in its order."""
        return tuple(name.removesuffix(".weight") for name in self._pieces if name.endswith(".weight"))

    @torch.no_grad()
    def update_ratios(self, segment: Segment) -> Tensor:
        """|Δw| / |w| of each layer's weights in the last step, float32 (layers,), on the first layer's device.

        The step was Δw = −ε · buffer. 0 for a frozen layer. Queued on a card, not waited for.
        """
        ratios: list[Tensor] = []
        home = next(iter(self._pieces.values()))[0].device
        rates = {name: group for group in self._sgd.param_groups for name in self._members[group["rate_group"]]}
        for name, parts in self._pieces.items():
            if not name.endswith(".weight"):
                continue
            group = rates[name]
            frozen = segment.rates[group["rate_group"]] is None
            squares = torch.zeros(2, device=home)
            for part in parts:
                buffer = None if frozen else self._buffer(part)
                norms = [torch.zeros_like(part[0].sum()) if buffer is None else buffer.norm(), part.norm()]
                squares += torch.stack(norms).square().to(home, non_blocking=True)
            moved, weight = squares.sqrt()
            ratios.append(group["lr"] * moved / weight.clamp(min=torch.finfo(torch.float32).tiny))
        return torch.stack(ratios)

    def momentum_pieces(self) -> dict[str, list[Tensor]]:
        """torch's buffers by parameter name, in pieces; of parameters that have one."""
        found = {
            name: [buffer for part in parts if (buffer := self._buffer(part)) is not None]
            for name, parts in self._pieces.items()
        }
        return {name: buffers for name, buffers in found.items() if buffers}

    def missing_momentum(self) -> list[Tensor]:
        """Memory as the next step will take for buffers that are not there yet."""
        parts = [part for group in self._sgd.param_groups for part in group["params"]]
        return [torch.zeros_like(part) for part in parts if self._buffer(part) is None]

    def state_dict(self) -> dict[str, Any]:
        """`momentum`: torch's buffers by parameter name, whole, on the CPU; `rates`: what they belong to."""
        momentum = {
            name: torch.cat([piece.cpu() for piece in pieces]) for name, pieces in self.momentum_pieces().items()
        }
        return {"momentum": momentum, "rates": self.rates}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Continue with the momentum that `state_dict` gave, whatever pieces the network is in."""
        for group in self._sgd.param_groups:
            group["lr"] = state["rates"][group["rate_group"]]
        for name, whole in state["momentum"].items():
            parts = self._pieces[name]
            for part, buffer in zip(parts, whole.chunk(len(parts)), strict=True):
                if (own := self._buffer(part)) is not None:
                    own.copy_(buffer)  # in place: a recorded step goes on with this memory
                    continue
                # A copy: a piece of the loaded tensor would keep all of it in memory, and share it.
                self._sgd.state[part]["momentum_buffer"] = buffer.to(part.device, copy=True)

    def _buffer(self, parameter: nn.Parameter) -> Tensor | None:
        return self._sgd.state[parameter].get("momentum_buffer") if parameter in self._sgd.state else None


def rate_group(name: str, recipe: Recipe) -> str:
    """The rate group of a parameter: its own name where it has rates of its own, else weights or biases."""
    if name in dict(recipe.layer_rates):
        return name
    return "weights" if name.endswith("weight") else "biases"
