"""In which numbers a network computes: fp32, tf32, or bf16 with fp32 weights, velocity and sums.

bf16 is autocast: convolutions and matrix products take operands rounded to bf16 and add up in fp32; a gradient of
weights is rounded to bf16 once and then kept in fp32, as weights, momentum and loss are (updates at a rate of 1e-5
vanish in bf16: fidelity.md §8). On
cores without instructions for bf16 the same products are done on rounded fp32 operands: a fifth of the time that
emulated instructions take, and nothing is lost, since a product of two bf16 numbers is exact in fp32.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from functools import wraps
from typing import Any, Concatenate, Literal, ParamSpec, Protocol

import torch
import torch.nn.functional as F
from torch import Tensor, nn

Precision = Literal["fp32", "tf32", "bf16"]
P = ParamSpec("P")

# Looked up once, and here: torch.compile follows a constant, not a cache.
_HAS = torch.cpu.get_capabilities()
_CORES_HAVE_BF16 = _HAS.get("architecture") != "x86_64" or bool(_HAS.get("avx512_bf16") or _HAS.get("amx_bf16"))


class Precise(Protocol):
    """What says in which precision it computes."""

    @property
    def precision(self) -> Precision: ...


def use(precision: Precision) -> None:
    """Set this process up: on a card, fp32 is fp32 (cuDNN would take TF32), and tf32 is TF32 everywhere."""
    torch.backends.cudnn.allow_tf32 = precision == "tf32"
    torch.backends.cuda.matmul.allow_tf32 = precision == "tf32"
    # cuBLAS may add up parts of a product in bf16 otherwise.
    torch.backends.cuda.matmul.allow_bf16_reduced_precision_reduction = False


def in_precision(
    method: Callable[Concatenate[Any, Tensor, P], Tensor],
) -> Callable[Concatenate[Any, Tensor, P], Tensor]:
    """A network's method on a tensor, computed in the network's `precision`; float64 is left alone."""

    @wraps(method)
    def computed(self: Precise, x: Tensor, /, *args: P.args, **kwargs: P.kwargs) -> Tensor:
        with _context(self.precision, x):
            return method(self, x, *args, **kwargs)

    return computed


def convolve(layer: nn.Conv2d, x: Tensor) -> Tensor:
    """The layer's maps, within `in_precision`."""
    if not _widened(x):
        maps: Tensor = layer(x)
        return maps
    with torch.autocast("cpu", enabled=False):
        # The layer's own padding, stride and groups; the bias is added to fp32 sums.
        wide: Tensor = layer._conv_forward(_rounded(x), _rounded(layer.weight), layer.bias)
        return wide.bfloat16()


def multiply(layer: nn.Linear, x: Tensor) -> Tensor:
    """The layer's units, within `in_precision`."""
    if not _widened(x):
        units: Tensor = layer(x)
        return units
    with torch.autocast("cpu", enabled=False):
        return F.linear(_rounded(x), _rounded(layer.weight), layer.bias).bfloat16()


def cores_have_bf16() -> bool:
    """Whether the processor multiplies bf16 numbers in instructions of its own."""
    return _CORES_HAVE_BF16


def _context(precision: Precision, x: Tensor) -> AbstractContextManager[Any]:
    if precision != "bf16" or x.dtype == torch.float64:
        return nullcontext()
    return torch.autocast(x.device.type, torch.bfloat16)


def _widened(x: Tensor) -> bool:
    return x.device.type == "cpu" and torch.is_autocast_enabled("cpu") and not cores_have_bf16()


def _rounded(x: Tensor) -> Tensor:
    """bf16 numbers in fp32."""
    return x.bfloat16().float()
