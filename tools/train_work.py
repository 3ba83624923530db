"""How much there is to compute in a step, and how fast the device multiplies: the share of the peak.

work    multiply-adds of convolutions and products, from the numbers of weights and the sides of the maps; forward
        once, backward twice (gradients of inputs and of weights), but conv1 has no gradient of the images
peak    the fastest of several square matrix products through torch in the same precision, measured here, before
        the networks run and after
source  fidelity.md §1.1 and §9: 724,406,816 multiply-adds forward, 2,067,805,248 (4.136 GFLOP) in a step
"""

from __future__ import annotations

import math
import time
from typing import Any

import torch

from ..trainer import AlexNet, TwoTowers, cores_have_bf16
from .train_clock import Clock

FLOP = 2  # of a multiply-add
CORES_SIDES, CARD_SIDE = (1024, 2048), 8192
LONGEST_S, LEAST = 0.7, 3  # of the products of one side; of which there are at least so many


def forward_macs(network: AlexNet | TwoTowers, side: int) -> dict[str, int]:
    """Multiply-adds of one image by layer; both towers together."""
    maps = {"conv1": math.ceil((side - 11) / 4) + 1}
    maps["conv2"] = _pooled(maps["conv1"])
    maps |= dict.fromkeys(("conv3", "conv4", "conv5"), _pooled(maps["conv2"]))
    weights = {
        name.removesuffix(".weight"): sum(part.numel() for part in parts)
        for name, parts in network.pieces().items()
        if name.endswith(".weight")
    }
    return {name: number * maps.get(name, 1) ** 2 for name, number in weights.items()}


def step_macs(forward: dict[str, int]) -> int:
    """Multiply-adds of one image in a step of training."""
    return 3 * sum(forward.values()) - forward["conv1"]


def peak_of(device: torch.device, precision: str) -> dict[str, Any]:
    """The fastest product, FLOP/s, and how it was found. Settings for fp32 and tf32 are those of the process."""
    kinds = [torch.bfloat16 if precision == "bf16" else torch.float32]
    if precision == "bf16" and device.type == "cpu" and not cores_have_bf16():
        kinds.append(torch.float32)  # what the network computes with here: precision.py
    sides = (CARD_SIDE,) if device.type == "cuda" else CORES_SIDES
    found = {(kind, side): _fastest(device, kind, side) for kind in kinds for side in sides}
    kind, side = max(found, key=lambda each: found[each])
    return {
        "flop_per_s": found[kind, side],
        "product_side": side,
        "product_type": str(kind).removeprefix("torch."),
    }


def _fastest(device: torch.device, kind: torch.dtype, side: int) -> float:
    clock = Clock([device])
    generator = torch.Generator(device).manual_seed(side)
    one, other = (torch.randn(side, side, generator=generator, device=device).to(kind) for _ in range(2))
    out = one @ other
    clock.wait()
    until, best, done = time.perf_counter() + LONGEST_S, math.inf, 0
    while done < LEAST or (time.perf_counter() < until and done < 100):
        before = clock.mark()
        torch.matmul(one, other, out=out)
        after = clock.mark()
        clock.wait()
        best, done = min(best, clock.seconds(before, after)), done + 1
    return FLOP * side**3 / best


def _pooled(maps: int) -> int:
    return math.ceil((maps - 3) / 2) + 1
