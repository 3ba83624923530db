"""The two presets' crops, mirrors and colour jitter, as constants and small functions.

Source: fidelity.md §0, §1.3, §3.2–§3.5, §4. Pixels are RGB on 0..255, places are (y, x) with the origin top left.
legend  slack = stored side − crop side = 2·border: how far a crop can be moved
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from ..shards import Statistics

JITTER_STD = 0.1  # of alpha in the paper, section 4.1

Places = tuple[tuple[int, int, bool], ...]  # (y, x, mirrored) of each view


@dataclass(frozen=True, slots=True)
class Augmentation:
    """How training images are varied."""

    name: str
    sharing_a_crop: int  # consecutive positions with one crop and mirror
    last_offset_drawn: bool  # offsets 0..slack, else 0..slack − 1
    power: float  # of the eigenvalue in the jitter: lambda or its square root
    unit: float  # of the pixels that the jitter is reckoned on: 255 for [0, 1], 1 for [0, 255]
    divisor: float  # of the jittered image
    published_lambda: tuple[float, float, float]  # on the scale of `unit`
    published_p: tuple[tuple[float, float, float], ...]  # ROWS: one component each

    def num_offsets(self, slack: int) -> int:
        """How many offsets a crop can have in y, and in x."""
        return max(1, slack + self.last_offset_drawn)

    def jitter_matrix(self, statistics: Statistics | None) -> NDArray[np.float64]:
        """(3 components, 3 channels): standard normals (N, 3) @ this = what is added to every pixel, on 0..255.

        From a set's own eigenvectors, or with None from the published ones.
        """
        if statistics is None:
            eigenvalues, components = np.array(self.published_lambda), np.array(self.published_p)
        else:
            # A set of greys has eigenvalues of 0, which arithmetic may have left just below.
            eigenvalues = np.maximum(statistics.eigenvalues, 0.0) / self.unit**2
            components = np.array(statistics.eigenvectors).T
        lengths = JITTER_STD * eigenvalues**self.power * self.unit
        return lengths[:, None] * components  # type: ignore[no-any-return]


PAPER = Augmentation(
    name="paper",
    sharing_a_crop=1,
    last_offset_drawn=False,
    power=1.0,
    unit=255.0,
    divisor=1.0,
    published_lambda=(0.2175, 0.0188, 0.0045),
    published_p=((-0.5675, -0.5808, -0.5836), (0.7192, -0.0045, -0.6948), (0.4009, -0.8140, 0.4203)),
)
ORIGINAL = Augmentation(
    name="original",
    sharing_a_crop=32,
    last_offset_drawn=True,
    power=0.5,
    unit=1.0,
    divisor=1.1,
    published_lambda=(121.78006099**2, 37.09388853**2, 19.72083305**2),
    published_p=(
        (-0.56351045, -0.5761844, -0.59200296),
        (-0.71257945, -0.02354167, 0.70119634),
        (0.41795513, -0.81698062, 0.39731118),
    ),
)
AUGMENTATIONS = {augmentation.name: augmentation for augmentation in (PAPER, ORIGINAL)}


def crop_side(stored: int) -> int:
    """Side of the crop for a stored side: a multiple of 4 with border round(S / 14), as near as the side allows.

    >>> [crop_side(stored) for stored in (256, 220, 182, 146, 128, 110, 74, 32)]
    [224, 192, 160, 128, 112, 96, 64, 28]

    Source: fidelity.md §1.3. Of two equally near sides, the larger.
    """
    sides = range(4, stored + 1, 4)
    return min(sides, key=lambda side: (abs(stored - side - 2 * round(side / 14)), -side), default=stored)


def centre(slack: int) -> int:
    """Offset of the central crop, in y and in x."""
    return slack // 2


def ten_views(slack: int) -> Places:
    """The five places of the ten views, then their mirrors in the same order. Source: fidelity.md §4."""
    middle = centre(slack)
    corners = ((0, 0), (0, slack), (middle, middle), (slack, 0), (slack, slack))
    return tuple((y, x, mirrored) for mirrored in (False, True) for y, x in corners)
