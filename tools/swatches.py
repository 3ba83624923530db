"""The colours of a shard set: its mean, and the way each principal component leads from it."""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping
from functools import cache
from typing import TextIO

import numpy as np

from ..shards import Statistics

Colour = tuple[int, int, int]  # red, green, blue on 0..255
STEPS = 15  # of a ramp; odd, so that its middle is the mean
MANY, ALL = 256, 2**24  # colours that a terminal shows, where it shows enough
_CUBE = (0, 95, 135, 175, 215, 255)  # levels of red, green and blue among 256 colours; then come 24 greys
_GREYS = range(8, 248, 10)
_OF_256_COLOURS = {"xterm", "screen", "tmux", "rxvt"}  # for decades now, though their names do not say so


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


def blocks(colours: Iterable[Colour], number: int = ALL) -> str:
    """Colours as blocks of two blanks, for a terminal that shows `number` of them, MANY or ALL."""
    if number == ALL:
        codes = ["2;{};{};{}".format(*colour) for colour in colours]
    else:
        codes = [f"5;{nearest_of_256(colour)}" for colour in colours]
    return "".join(f"\x1b[48;{code}m  " for code in codes) + "\x1b[0m"


def nearest_of_256(colour: Colour) -> int:
    """The number of the nearest of the 240 colours that all terminals of 256 colours have alike.

    >>> [nearest_of_256(colour) for colour in ((255, 0, 0), (0, 0, 95), (119, 118, 117))]
    [196, 17, 243]
    """
    return min(_palette(), key=lambda known: sum((a - b) ** 2 for a, b in zip(known[1], colour, strict=True)))[0]


@cache
def _palette() -> list[tuple[int, Colour]]:
    cube = [(red, green, blue) for red in _CUBE for green in _CUBE for blue in _CUBE]
    return list(enumerate([*cube, *((grey, grey, grey) for grey in _GREYS)], start=16))


def colours_shown(stream: TextIO, environment: Mapping[str, str] = os.environ) -> int:
    """How many colours may be written to `stream`: ALL, MANY, or 0 (no terminal, one of few colours, NO_COLOR).

    COLORTERM is lost on the way through ssh, TERM is not.
    """
    term = environment.get("TERM", "dumb")
    if environment.get("NO_COLOR") or not stream.isatty():
        return 0
    if term != "dumb" and (environment.get("COLORTERM") in {"truecolor", "24bit"} or term.endswith("-direct")):
        return ALL
    return MANY if "256color" in term or term.split("-")[0] in _OF_256_COLOURS else 0


def _colour(values: np.ndarray) -> Colour:
    red, green, blue = np.clip(np.round(values), 0, 255).astype(int).tolist()
    return red, green, blue
