"""What each value of a checkpoint must be before anything is done with it: a file may hold any.

The rules look at a value's type first: comparing a tensor, or asking it for its truth, may raise anything.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor

from .network import AlexNet
from .recipe import Recipe
from .schedule import Plateau


def is_tensor(value: object) -> bool:
    """Plain float32 on the CPU, each number in memory of its own: no view that claims more than the file has."""
    return (
        type(value) is Tensor
        and not vars(value)
        and value.layout == torch.strided
        and value.device.type == "cpu"
        and value.dtype == torch.float32
        and not value.requires_grad
        and not value.is_neg()  # it would have no NumPy array
        and value.is_contiguous()
        and value.numel() > 0
    )


def are_finite(tensors: Mapping[str, Tensor]) -> bool:
    """Whether all numbers are: by least and most, since a mask would be as long as the weights."""
    return all(bool(each.isfinite()) for tensor in tensors.values() for each in tensor.aminmax())


def shape_of(tensor: Tensor | None) -> str:
    """In words, as 96×3×11×11."""
    return "none" if tensor is None else "×".join(map(str, tensor.shape))


def parameter_shapes(recipe: Recipe, num_classes: int, side: int) -> dict[str, str]:
    """In words, by name, of the network of a recipe; costs no memory, however large it is.

    Raises:
        WrongCall: there is no such network.
    """
    network = _Unfilled(recipe, num_classes, side)
    return {name: shape_of(parameter) for name, parameter in network.named_parameters()}


class _Unfilled(AlexNet):
    """A network that stays on "meta", where it is made: its parameters are names and shapes."""

    def to_empty(self, **_: Any) -> _Unfilled:
        return self

    def _initialise(self) -> None:
        """There is nothing to fill."""


def is_count(value: object) -> bool:
    """A whole number of things."""
    return type(value) is int and 0 <= value < 2**63


def _is_number(value: object) -> bool:
    return isinstance(value, float) and math.isfinite(value)


def _is_share(value: object) -> bool:
    return isinstance(value, float) and 0 <= value <= 1


def _is_text(value: object) -> bool:
    return isinstance(value, str)


def _is_tensors(value: object) -> bool:
    return isinstance(value, dict) and all(map(_is_text, value)) and all(map(is_tensor, value.values()))


def _is_momentum(value: object) -> bool:
    return (
        isinstance(value, dict)
        and value.keys() == {"momentum", "rates"}
        and _is_tensors(value["momentum"])
        and isinstance(value["rates"], dict)
        and all(_is_text(name) and _is_number(rate) and rate > 0 for name, rate in value["rates"].items())
    )


def _is_plateau(value: object) -> bool:
    return (
        isinstance(value, dict)
        and value.keys() == {field.name for field in dataclasses.fields(Plateau)}
        and (value["best_error"] is None or _is_share(value["best_error"]))
        and is_count(value["best_step"])
        and isinstance(value["stopped"], bool)
        and isinstance(value["drops"], list | tuple)
        and all(map(is_count, value["drops"]))
    )


def _is_classes(value: object) -> bool:
    return isinstance(value, list | tuple) and all(
        isinstance(pair, list | tuple) and len(pair) == 2 and all(map(_is_text, pair)) for pair in value
    )


def _is_evaluation(value: object) -> bool:
    return (
        isinstance(value, dict)
        and value.keys() == {"split", "views", "samples", "loss", "top1_error", "top5_error", "step"}
        and _is_text(value["split"])
        and all(is_count(value[name]) for name in ("views", "samples", "step"))
        and isinstance(value["loss"], float)
        and not math.isnan(value["loss"])  # endless it may be: outputs far apart are sound
        and all(_is_share(value[name]) for name in ("top1_error", "top5_error"))
    )


RULES: Mapping[str, Callable[[Any], bool]] = {
    "recipe": lambda value: isinstance(value, dict) and all(map(_is_text, value)),
    **dict.fromkeys(("side", "stored_side", "training_images", "steps_per_epoch", "step"), is_count),
    "evaluated_step": lambda value: is_count(value) or (type(value) is int and value == -1),
    "evaluation": lambda value: value is None or _is_evaluation(value),
    "classes": _is_classes,
    "mean_image": is_tensor,
    "channel_mean": lambda value: (
        isinstance(value, list | tuple) and len(value) == 3 and all(map(_is_number, value))
    ),
    "shard_set": _is_text,
    "set_name": _is_text,
    "plateau": _is_plateau,
    "loader": lambda value: (
        isinstance(value, dict) and all(is_count(value.get(name)) for name in ("epoch", "position"))
    ),
    "network": _is_tensors,
    "optimiser": _is_momentum,
}
