"""The check line and the ceilings of `tools/gpu_check`: what the device does at most, through torch.

products   C = A·B of square matrices, 2·n³ operations
copies     one buffer to another on the device, read and written: twice its bytes
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from functools import partial

import torch

from .gpu_report import Row
from .gpu_scene import Part, Scene, seconds_of

PRECISIONS = ("bf16", "tf32", "fp32")


def parts(scene: Scene) -> Iterator[Part]:
    """Products in three precisions, then copies."""
    for precision in PRECISIONS:
        if precision != "tf32" or scene.on_card:
            yield Part(f"matrix products, {precision}", partial(_products, precision=precision))
    yield Part("copies on the device", _copies)


def _products(scene: Scene, *, precision: str) -> Iterable[Row]:
    side = scene.sizes.products
    scene.machine().prepare("tf32" if precision == "tf32" else "fp32")
    dtype = torch.bfloat16 if precision == "bf16" else torch.float32
    a, b = (torch.randn(side, side, device=scene.device).to(dtype) for _ in range(2))
    runs = seconds_of(scene.device, lambda: a @ b, runs=scene.sizes.runs, times=10)
    scene.machine().prepare()
    rates = [2 * side**3 / seconds for seconds in runs]
    scene.found[f"peak {precision}"] = sorted(rates)[len(rates) // 2]
    yield Row.of_runs(
        f"matrix products, {precision}, {side}×{side}",
        "TFLOP/s",
        [rate / 1e12 for rate in rates],
        precision=precision,
        side=side,
    )


def _copies(scene: Scene) -> Iterable[Row]:
    size = scene.sizes.copied_bytes
    source = torch.randint(256, (size,), dtype=torch.uint8, device=scene.device)
    target = torch.empty_like(source)
    runs = seconds_of(scene.device, lambda: target.copy_(source), runs=scene.sizes.runs, times=10)
    yield Row.of_runs(
        f"copies on the device, {size / 2**20:,.0f} MiB, read and written",
        "GB/s",
        [2 * size / seconds / 1e9 for seconds in runs],
        bytes=size,
    )
