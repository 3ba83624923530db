"""The kernels of the first layer, as a picture and as two numbers.

in    weights  (M, 3, k, k), the towers one after the other: conv1.weight of `AlexNet`, (96, 3, 11, 11) in 2012
out   picture  uint8, (H, W, 3), RGB: 16 kernels a row, tower A's rows above tower B's

One tower turns out colour-blind and the other colour-specific, which of them by chance; `colourfulness` says how
far. Source: Krizhevsky, Sutskever, Hinton 2012, section 6.1 and figure 3; fidelity.md §7.5.
"""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

PER_ROW = 16
BORDER = 1  # pixels of a kernel: black, around every kernel


def filters_picture(
    weights: Tensor, towers: int = 2, *, per_kernel: bool = False, scale: int = 1
) -> NDArray[np.uint8]:
    """The kernels in rows of 16, uint8 (H, W, 3); each tower begins a row, what is left of its last row is black.

    Each tower is stretched by itself, over all of its kernels, to 0..255: less its minimum, divided by its
    maximum. A tower of one value is drawn black, and so is a weight that is no finite number.

    Args:
        weights: floats (M, 3, k, k), RGB; M is a multiple of `towers`.
        per_kernel: before that each kernel, less its mean, is divided by its standard deviation, both over its
            3·k² values.
        scale: by which all is enlarged, to the nearest pixel, so that pixels stay squares; at least 1.
    """
    kernels_TMHWC = _by_tower(weights, towers).permute(0, 1, 3, 4, 2)
    if per_kernel:
        within = (2, 3, 4)
        spread = kernels_TMHWC.std(within, correction=0, keepdim=True)
        kernels_TMHWC = (kernels_TMHWC - kernels_TMHWC.mean(within, keepdim=True)) / spread.where(spread > 0, 1.0)
    finite = kernels_TMHWC.isfinite()
    stretched = torch.zeros_like(kernels_TMHWC)
    for tower, sound, out in zip(kernels_TMHWC, finite, stretched, strict=True):
        if sound.any():
            lowest, highest = tower[sound].min(), tower[sound].max()
            out[sound] = (tower[sound] - lowest) / (highest - lowest if highest > lowest else 1.0)
    levels_TMHWC = (stretched * 255).round().to(torch.uint8).numpy()

    count, k = levels_TMHWC.shape[1], levels_TMHWC.shape[2]
    cell = k + BORDER
    columns = min(PER_ROW, count)
    rows = -(-count // columns)  # of one tower
    picture = np.zeros((BORDER + towers * rows * cell, BORDER + columns * cell, 3), np.uint8)
    for tower, kernels in enumerate(levels_TMHWC):
        for number, kernel in enumerate(kernels):
            row, column = divmod(number, columns)
            top, left = BORDER + (tower * rows + row) * cell, BORDER + column * cell
            picture[top : top + k, left : left + k] = kernel
    return picture.repeat(scale, axis=0).repeat(scale, axis=1)


def colourfulness(weights: Tensor) -> tuple[float, float]:
    """How much of the kernels is colour, of tower A and of tower B: 0 where all are grey, at most 1.

    The mean over a tower's kernels of: the variance of red, green and blue at a pixel, averaged over the pixels,
    divided by the variance of all 3·k² values. A kernel of one value throughout counts as 0.
    """
    kernels_TMCHW = _by_tower(weights, 2)
    colour = kernels_TMCHW.var(2, correction=0).mean((2, 3))
    whole = kernels_TMCHW.var((2, 3, 4), correction=0)
    share = torch.where(whole > 0, colour / whole.where(whole > 0, 1.0), 0.0)
    first, second = share.mean(1).tolist()
    return first, second


def _by_tower(weights: Tensor, towers: int) -> Tensor:
    """float64 (towers, M / towers, 3, k, k), on the CPU."""
    if weights.dim() != 4 or weights.shape[1] != 3 or len(weights) == 0 or len(weights) % towers:
        raise ValueError(f"kernels of {towers} towers are (M, 3, k, k), M a multiple of it; got {weights.shape}")
    return weights.detach().to("cpu", torch.float64).reshape(towers, -1, *weights.shape[1:])
