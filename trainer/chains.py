"""What stands between a convolution and its reader, as one operation that reads its input once.

    [ReLU] → [LRN across maps] → [normaliser of the same map] → [max pool 3×3/2] → [ReLU]

in, out   x float, (N, C, H, W), best in channels-last memory; y of x's dtype, pooled: ceil((H − 3)/2) + 1 rows
kept      for the backward pass: x, and one byte per pooled value (where in its window the maximum was)
source    Krizhevsky et al. 2012 §3.3, §3.4; fidelity.md §0 (order), §2 (formulas, gradient, numerics)

Three ways to the same numbers: loops in C on the cores (_chains.c), Triton on a card (chains_triton.py), and
`composed`, the parts of lrn.py and torch one after the other: for float64, and where there was no compiler. Sums
and powers are fp32 whatever is stored.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import astuple, dataclass
from functools import cache
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from .lrn import lrn_across_maps, lrn_same_map

try:
    from . import _chains
except ImportError:
    _compiled: Any = None
else:
    _compiled = _chains

COMPILED = _compiled is not None  # whether the cores have the loops in C
_RELUS: tuple[Literal["before", "after"] | None, ...] = (None, "before", "after")  # by number, as in _chains.c


@dataclass(frozen=True, slots=True)
class Chain:
    """What is done, in the order of the fields' groups below `towers`; `n` and `same_n` are odd."""

    towers: int = 2  # equal groups of maps, one after the other; no window crosses from one to another
    n: int = 0  # neighbouring maps of an LRN window; 0: no LRN
    k: float = 2.0
    a: float = 0.0  # per square, §2.1
    same_n: int = 0  # side of the same-map normaliser's window; 0: none
    same_k: float = 1.0
    same_a: float = 0.0
    relu: Literal["before", "after"] | None = None  # before LRN, or after the pool
    pool: bool = False  # 3×3, stride 2, ceil mode


def normalise(x: Tensor, chain: Chain) -> Tensor:
    """The chain of x; differentiable once."""
    if not has_kernels(x) or (x.is_cuda and not _triton().takes(x.shape[1], chain)):
        return composed(x, chain)
    y: Tensor = _forward(x, *_arguments(chain))[0]
    return y


def has_kernels(x: Tensor) -> bool:
    """Whether the chain of such a tensor is one kernel, and not a composition of torch's."""
    if x.dtype not in (torch.float32, torch.bfloat16):
        return False
    return COMPILED if x.device.type == "cpu" else x.device.type == "cuda" and _triton() is not None


def composed(x: Tensor, chain: Chain) -> Tensor:
    """The same by lrn.py and torch, step by step: what the kernels are held against."""
    if chain.relu == "before":
        x = F.relu(x)
    if chain.n:
        x = lrn_across_maps(x, towers=chain.towers, n=chain.n, k=chain.k, a=chain.a)
    if chain.same_n:
        x = lrn_same_map(x, n=chain.same_n, k=chain.same_k, a=chain.same_a)
    if chain.pool:
        x = F.max_pool2d(x, 3, 2, ceil_mode=True)
    return F.relu(x) if chain.relu == "after" else x


@cache
def _triton() -> Any:
    """The kernels for cards, where Triton is installed (torch's builds for CUDA bring it)."""
    try:
        from . import chains_triton
    except ImportError:
        return None
    return chains_triton


def _arguments(chain: Chain) -> tuple[list[int], list[float]]:
    """The chain in types that an operator of torch takes."""
    whole = [chain.towers, chain.n, chain.same_n, _RELUS.index(chain.relu), int(chain.pool)]
    return whole, [chain.k, chain.a, chain.same_k, chain.same_a]


def _chain(whole: Sequence[int], real: Sequence[float]) -> Chain:
    towers, n, same_n, relu, pool = whole
    k, a, same_k, same_a = real
    return Chain(towers, n, k, a, same_n, same_k, same_a, _RELUS[relu], bool(pool))


# Operators of torch, so that torch.compile and CUDA graphs take each as a whole.


@torch.library.custom_op("alexshard::normalise", mutates_args=())
def _forward(x: Tensor, whole: Sequence[int], real: Sequence[float]) -> tuple[Tensor, Tensor]:
    """y, and where the maxima were."""
    chain = _chain(whole, real)
    x = x.contiguous(memory_format=torch.channels_last)
    if x.device.type == "cuda":
        y, where = _triton().forward(x, chain)
        return y, where
    y, where = _outputs(x, chain)
    _on_cores(x, None, y, where, chain)
    return y, where


@torch.library.custom_op("alexshard::normalise_backward", mutates_args=())
def _backward(g: Tensor, x: Tensor, where: Tensor, whole: Sequence[int], real: Sequence[float]) -> Tensor:
    """The gradient of x from that of y."""
    chain = _chain(whole, real)
    g, x = (each.contiguous(memory_format=torch.channels_last) for each in (g, x))
    if x.device.type == "cuda":
        found: Tensor = _triton().backward(g, x, where, chain)
        return found
    gradient = torch.empty_like(x)
    _on_cores(x, g, gradient, where, chain)
    return gradient


def _outputs(x: Tensor, chain: Chain) -> tuple[Tensor, Tensor]:
    """Memory for y and for the places of the maxima; of these there are none without a pool or a ReLU behind."""
    images, maps, *sides = x.shape
    rows, columns = (max(1, -(-(side - 3) // 2) + 1) if chain.pool else side for side in sides)
    y = torch.empty_like(x.new_empty((images, maps, rows, columns)), memory_format=torch.channels_last)
    if chain.pool or chain.relu == "after":
        return y, torch.empty_like(y, dtype=torch.uint8)
    return y, x.new_empty(0, dtype=torch.uint8)


def _on_cores(x: Tensor, g: Tensor | None, out: Tensor, where: Tensor, chain: Chain) -> None:
    images, maps, height, width = x.shape

    def memory(tensor: Tensor) -> Any:
        lying = tensor.permute(0, 2, 3, 1)
        return (lying.view(torch.int16) if tensor.dtype == torch.bfloat16 else lying).numpy()

    _compiled.run(
        memory(x),
        None if g is None else memory(g),
        memory(out),
        None if where.dim() == 1 else memory(where),
        (images, height, width, maps),
        x.dtype == torch.bfloat16,
        *astuple(chain)[:7],
        _RELUS.index(chain.relu),
        chain.pool,
        torch.get_num_threads(),
    )


@_forward.register_fake
def _(x: Tensor, whole: Sequence[int], real: Sequence[float]) -> tuple[Tensor, Tensor]:
    return _outputs(x, _chain(whole, real))


@_backward.register_fake
def _(_g: Tensor, x: Tensor, _where: Tensor, _whole: Sequence[int], _real: Sequence[float]) -> Tensor:
    return torch.empty_like(x, memory_format=torch.channels_last)


def _keep(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
    x, ctx.whole, ctx.real = inputs
    ctx.save_for_backward(x, output[1])
    ctx.set_materialize_grads(False)


def _gradient(ctx: Any, g: Tensor | None, _where: None) -> tuple[Tensor | None, None, None]:
    x, where = ctx.saved_tensors
    return (None if g is None else _backward(g, x, where, ctx.whole, ctx.real)), None, None


_forward.register_autograd(_gradient, setup_context=_keep)
