"""Lines and markers of up to eight runs, told apart by colour, by pattern and by shape: in a grey print too.

Drawn three times as large, to be reduced to smooth edges.
Source of the colours: the palette of Okabe and Ito for all kinds of colour vision, its yellow left out.
"""

from __future__ import annotations

import math
from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray
from PIL import ImageDraw

Colour = tuple[int, int, int]
Points = NDArray[np.float64]  # (n, 2): x and y

FINE = 3  # pixels drawn for one of the picture
PAPER = (255, 255, 255)
COLOURS: tuple[Colour, ...] = (
    (0, 114, 178),
    (213, 94, 0),
    (0, 158, 115),
    (204, 121, 167),
    (86, 180, 233),
    (230, 159, 0),
    (20, 20, 20),
    (125, 85, 60),
)
DASHES: tuple[tuple[int, ...], ...] = (  # pixels of line and of gap in turns
    (),
    (16, 6),
    (4, 4),
    (18, 5, 4, 5),
    (30, 7),
    (9, 5),
    (18, 5, 4, 5, 4, 5),
    (2, 6),
)


def _star(spokes: int, inner: float) -> tuple[tuple[float, float], ...]:
    """Corners of a star whose first spoke points up; `inner` is the radius between two spokes."""
    corners = [(math.pi * n / spokes, 1.35 * (inner if n % 2 else 1.0)) for n in range(2 * spokes)]
    return tuple((radius * math.sin(angle), -radius * math.cos(angle)) for angle, radius in corners)


# Corners around a point, in units of the marker's radius; none: a circle.
MARKERS: tuple[tuple[tuple[float, float], ...], ...] = (
    (),
    ((-0.85, -0.85), (0.85, -0.85), (0.85, 0.85), (-0.85, 0.85)),
    ((0, -1.15), (1.05, 0.75), (-1.05, 0.75)),
    ((0, -1.25), (1.25, 0), (0, 1.25), (-1.25, 0)),
    ((0, 1.15), (1.05, -0.75), (-1.05, -0.75)),
    _star(4, 0.45),
    _star(5, 0.5),
    ((-1.2, -0.6), (1.2, -0.6), (1.2, 0.6), (-1.2, 0.6)),
)
MOST = len(COLOURS)


def thinned(places: Points) -> Points:
    """At most the lowest and the highest of every fine pixel's column: as much as can be seen."""
    column = np.floor(places[:, 0] * FINE).astype(np.int64)
    if len(places) <= 4 * (column.max() - column.min() + 1):
        return places
    starts = np.flatnonzero(np.diff(column, prepend=column[0] - 1))
    lows, highs = (each.reduceat(places[:, 1], starts) for each in (np.minimum, np.maximum))
    xs = places[starts, 0]
    return np.stack([np.repeat(xs, 2), np.stack([lows, highs], axis=1).reshape(-1)], axis=1)


class Pen:
    """Draws in pixels of the picture onto a canvas that is `FINE` times as large."""

    def __init__(self, canvas: ImageDraw.ImageDraw) -> None:
        self._canvas = canvas

    def line(self, places: Points, colour: Colour, width: float, dashes: tuple[int, ...] = ()) -> None:
        """A line through all places, (n, 2)."""
        for part in _dashed(places, dashes) if dashes else [places]:
            if len(part) > 1:
                fine = [(float(x), float(y)) for x, y in part * FINE]
                self._canvas.line(fine, fill=colour, width=round(width * FINE), joint="curve")

    def marker(self, place: tuple[float, float], number: int, radius: float) -> None:
        """The marker of that run, with a white edge."""
        x, y = (each * FINE for each in place)
        for size, colour in ((radius * FINE + 1.3 * FINE, PAPER), (radius * FINE, COLOURS[number])):
            if corners := MARKERS[number]:
                self._canvas.polygon([(x + size * dx, y + size * dy) for dx, dy in corners], fill=colour)
            else:
                self._canvas.ellipse((x - size, y - size, x + size, y + size), fill=colour)


def _dashed(places: Points, dashes: tuple[int, ...]) -> Iterator[Points]:
    """The parts of a line that are drawn, by its length."""
    along = np.concatenate([[0.0], np.cumsum(np.hypot(*np.diff(places, axis=0).T))])
    at, number = 0.0, 0
    while at < along[-1]:
        until = at + dashes[number % len(dashes)]
        if number % 2 == 0:
            inner = np.flatnonzero((along > at) & (along < until))
            ends = np.array([at, min(until, along[-1])])
            begin, end = (np.array([np.interp(s, along, places[:, axis]) for axis in (0, 1)]) for s in ends)
            yield np.concatenate([begin[None], places[inner], end[None]])
        at, number = until, number + 1


def paled(colour: Colour, share: float) -> Colour:
    """So much of the colour on paper."""
    red, green, blue = (round(share * own + (1 - share) * 255) for own in colour)
    return red, green, blue
