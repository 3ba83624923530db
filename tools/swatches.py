"""The colours of a shard set: its mean, and the way each principal component leads from it."""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping
from typing import TextIO

import numpy as np

from ..shards import Statistics

Colour = tuple[int, int, int]  # red, green, blue on 0..255
STEPS = 15  # of a ramp; odd, so that its middle is the mean


def mean_colour(statistics: Statistics) -> Colour:
    """The mean of all training pixels."""
    return _colour(np.array(statistics.channel_mean))


def ramp(statistics: Statistics, component: int) -> list[Colour]:
    """From two standard deviations below the mean to two above, along one principal component."""
    mean = np.array(statistics.channel_mean)
    # A set of greys has eigenvalues of 0, which arithmetic may have left just below.
    deviation = np.sqrt(max(statistics.eigenvalues[component], 0.0))
    direction = np.array([row[component] for row in statistics.eigenvectors])
    return [_colour(mean + step * deviation * direction) for step in np.linspace(-2, 2, STEPS)]


def hexadecimal(colour: Colour) -> str:
    """A colour as pages write it.

    >>> hexadecimal((255, 0, 16))
    '#ff0010'
    """
    return "#{:02x}{:02x}{:02x}".format(*colour)


def blocks(colours: Iterable[Colour]) -> str:
    """Colours as blocks of two blanks, for a terminal of 24-bit colour."""
    return "".join("\x1b[48;2;{};{};{}m  ".format(*colour) for colour in colours) + "\x1b[0m"


def shows_colours(stream: TextIO, environment: Mapping[str, str] = os.environ) -> bool:
    """Whether `stream` is a terminal of 24-bit colour whose owner wants any (NO_COLOR: none)."""
    if environment.get("NO_COLOR") or environment.get("TERM", "dumb") == "dumb" or not stream.isatty():
        return False
    return environment.get("COLORTERM", "") in {"truecolor", "24bit"} or environment["TERM"].endswith("-direct")


def _colour(values: np.ndarray) -> Colour:
    red, green, blue = np.clip(np.round(values), 0, 255).astype(int).tolist()
    return red, green, blue
