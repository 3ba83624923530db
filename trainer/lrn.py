"""Local response normalisation, across neighbouring maps and within one map, each with its closed-form gradient.

in, out   x, y   float, (N, C, H, W)
          d = k + a · (sum of x² over the window)      y = x · d^-beta, beta = 3/4
window    across maps: n maps of the same tower centred on this one; same map: n × n pixels centred on this one;
          both clipped at the edges, where a stays as it is
gradient  dL/dx = g·d^-beta − 2·a·beta · x · (sum over the window of g·y/d), g = dL/dy: windows are symmetric
source    Krizhevsky et al. 2012 §3.3; fidelity.md §2

Only x is kept for the backward pass; d is computed again. Sums are in fp32 at least: in bf16 `2 + a·sum` would
lose every a·sum below 2^-7 (§2.3). On a CPU the work is done a few images at a time, so that all passes but the
first read from cache.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

BETA = 0.75  # the only exponent of either preset; d^-0.75 needs neither pow nor logarithm, §2.3

# Floats of one piece of work on a CPU, 4 MiB: what a core finds in its caches. Without pieces every pass goes to
# memory, which takes about twice as long.
CPU_PIECE = 2**20

WindowSum = Callable[[Tensor], Tensor]


def lrn_across_maps(x: Tensor, *, towers: int, n: int = 5, k: float, a: float) -> Tensor:
    """Normalise over n neighbouring maps of one tower; `towers` equal groups of maps lie one after the other."""

    def window(squares: Tensor) -> Tensor:
        return _sum_across_maps(squares.view(squares.shape[0] * towers, -1, *squares.shape[2:]), n).view_as(
            squares
        )

    return _normalise(x, window, k, a)


def lrn_same_map(x: Tensor, *, n: int = 5, k: float, a: float) -> Tensor:
    """Normalise over n × n pixels of the same map."""

    def window(squares: Tensor) -> Tensor:
        return F.avg_pool2d(squares, n, stride=1, padding=n // 2, divisor_override=1)

    return _normalise(x, window, k, a)


def _normalise(x: Tensor, window: WindowSum, k: float, a: float) -> Tensor:
    y: Tensor = _Normaliser.apply(x, window, k, a)  # type: ignore[no-untyped-call]
    return y


class _Normaliser(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, window: WindowSum, k: float, a: float) -> Tensor:
        x = x.contiguous()
        ctx.save_for_backward(x)
        ctx.window, ctx.k, ctx.a = window, k, a
        y = torch.empty_like(x)
        for x_part, y_part in _pieces(x, y):
            wide = _wide(x_part)
            torch.mul(wide, _power(_denominator(wide, window, k, a)), out=y_part)
        return y

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, g: Tensor) -> tuple[Tensor, None, None, None]:
        (x,) = ctx.saved_tensors
        g = g.contiguous()
        gradient = torch.empty_like(x)
        for x_part, g_part, out in _pieces(x, g, gradient):
            wide = _wide(x_part)
            d = _denominator(wide, ctx.window, ctx.k, ctx.a)
            gp = _power(d) * g_part  # g·d^-beta
            sums = ctx.window((gp * wide).div_(d))  # of g·y/d
            out.copy_(gp.addcmul_(wide, sums, value=-2 * ctx.a * BETA))
        return gradient, None, None, None


def _denominator(x: Tensor, window: WindowSum, k: float, a: float) -> Tensor:
    return window(x * x).mul_(a).add_(k)


def _power(d: Tensor) -> Tensor:
    """d^-0.75 = r·sqrt(r) with r = 1/sqrt(d)."""
    r = d.rsqrt()
    return r.sqrt().mul_(r)


def _sum_across_maps(values: Tensor, n: int) -> Tensor:
    sums = values.clone()
    for shift in range(1, min(n // 2 + 1, values.shape[1])):
        sums[:, shift:] += values[:, :-shift]
        sums[:, :-shift] += values[:, shift:]
    return sums


def _wide(x: Tensor) -> Tensor:
    return x.float() if x.dtype in (torch.bfloat16, torch.float16) else x


def _pieces(*tensors: Tensor) -> Iterator[tuple[Tensor, ...]]:
    """The same few images of every tensor, one group after the other; everything at once on a GPU."""
    images, floats = tensors[0].shape[0], tensors[0].numel()
    if tensors[0].device.type != "cpu" or floats <= CPU_PIECE:
        yield tensors
        return
    parts = -(-images // max(1, CPU_PIECE * images // floats))
    yield from zip(*(tensor.chunk(parts) for tensor in tensors), strict=True)
