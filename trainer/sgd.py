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
from .recipe import RATE_GROUPS, Recipe, Segment


class PaperSGD:
    """The optimiser of one network, in the four groups of fidelity.md §6; biases have no weight decay.

    `pieces` are the network's parameters by name, each in pieces to be joined along the first dimension.
    """

    def __init__(self, pieces: Pieces, recipe: Recipe) -> None:
        self._pieces = pieces
        members: dict[str, list[nn.Parameter]] = {group: [] for group in RATE_GROUPS}
        for name, parts in pieces.items():
            members[rate_group(name)].extend(parts)
        devices = {part.device.type for parts in pieces.values() for part in parts}
        self._sgd = torch.optim.SGD(
            [
                {
                    "params": parts,
                    "rate_group": group,
                    "weight_decay": recipe.weight_decay if group.endswith("weights") else 0.0,
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
            rate = getattr(segment, group["rate_group"])
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

    def state_dict(self) -> dict[str, Any]:
        """`momentum`: torch's buffers by parameter name, whole, on the CPU; `rates`: what they belong to."""
        momentum = {}
        for name, parts in self._pieces.items():
            buffers = [buffer.cpu() for part in parts if (buffer := self._buffer(part)) is not None]
            if buffers:
                momentum[name] = torch.cat(buffers)
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


def rate_group(name: str) -> str:
    """The rate group of a parameter: `conv1.weight` → `conv1_weights`, `fc6.bias` → `biases`."""
    kind = "weights" if name.endswith("weight") else "biases"
    return f"conv1_{kind}" if name.startswith("conv1.") else kind
