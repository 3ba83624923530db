"""The chain of chains.py in C, on tensors that lie as (N, H, W, C)."""

from typing import Any

import numpy as np
from numpy.typing import NDArray

def run(
    x: NDArray[Any],
    g: NDArray[Any] | None,
    out: NDArray[Any],
    where: NDArray[np.uint8] | None,
    sizes: tuple[int, int, int, int],
    half: bool,
    towers: int,
    n: int,
    k: float,
    a: float,
    same_n: int,
    same_k: float,
    same_a: float,
    relu: int,
    pool: bool,
    threads: int,
    /,
) -> None: ...
