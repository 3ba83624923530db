"""The same network run as two towers on two devices, as in 2012.

Device A holds the first half of every layer's maps or units and all of fc8, device B the second half. Images go
to both devices; activations cross into conv3, fc6, fc7 (both ways) and fc8 (B to A), gradients come back the
same way, and nothing else ever crosses (fidelity.md §5). The state dict is that of `AlexNet`: rows are joined
and split.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from .dropout import Masks
from .network import AlexNet, Pieces
from .recipe import Recipe


class TwoTowers(nn.Module):
    """AlexNet on two devices, which may be one and the same. Logits are on the first."""

    def __init__(
        self, recipe: Recipe, num_classes: int, side: int, devices: Sequence[torch.device | str] = ("cpu", "cpu")
    ) -> None:
        super().__init__()
        self.devices = tuple(torch.device(device) for device in devices)
        self.towers = nn.ModuleList(
            AlexNet(recipe, num_classes, side, tower=tower).to(device) for tower, device in enumerate(self.devices)
        )
        self.register_state_dict_post_hook(_join_towers)  # type: ignore[no-untyped-call]
        self.register_load_state_dict_pre_hook(_split_towers)  # type: ignore[no-untyped-call]

    def forward(self, images: Tensor, masks: Masks | None = None) -> Tensor:
        """Logits, (N, classes), on the first device; dropout as in `AlexNet.forward`."""
        maps = [tower.layers_1_to_2(images.to(device)) for tower, device in self._each()]
        maps = [tower.layers_3_to_5(_both(maps, device)) for tower, device in self._each()]
        # Masks are applied before sending, so both devices read the same dropped units.
        hidden = [tower.layer_6(_both(maps, device), masks) for tower, device in self._each()]
        hidden = [tower.layer_7(_both(hidden, device), masks) for tower, device in self._each()]
        first, device = self._each()[0]
        return first.layer_8(_both(hidden, device))

    def pieces(self) -> Pieces:
        """Every parameter's pieces by its name in `AlexNet`, to be joined along the first dimension."""
        own = [dict(tower.named_parameters()) for tower in self.towers]
        return {name: tuple(parameters[name] for parameters in own if name in parameters) for name in own[0]}

    def _each(self) -> list[tuple[AlexNet, torch.device]]:
        return list(zip(self.towers, self.devices, strict=True))  # type: ignore[arg-type]


Network = AlexNet | TwoTowers


def build_network(recipe: Recipe, num_classes: int, side: int, devices: Sequence[torch.device]) -> Network:
    """The network on one device, or as two towers on two."""
    if len(devices) == 1:
        return AlexNet(recipe, num_classes, side).to(devices[0])
    return TwoTowers(recipe, num_classes, side, devices)


def _both(parts: list[Tensor], device: torch.device) -> Tensor:
    return torch.cat([part.to(device) for part in parts], dim=1)


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
