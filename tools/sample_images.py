"""The pictures of `alexshard sample`: a textured figure on a cluttered ground, one kind per class.

in   a kind ("striped disc"), a size in pixels, a random generator
out  an RGB image of that size

A figure is a shape filled with a texture; both are functions of the figure's own plane, in which it reaches about
1 from its centre. A shape gives a signed distance (negative inside), a texture a value in 0..1 that mixes the
figure's two colours. The figure's hue leans towards its class but varies over a third of the circle, and the
ground is drawn without regard to the class, so the mean colour of an image says little about what it shows.
"""

from __future__ import annotations

import colorsys
import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import reduce
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

Plane = NDArray[Any]  # float32, (height, width) of the region that is drawn
Shape = Callable[[Plane, Plane], Plane]

# --------------------------------------------------------------------------
# Shapes: (u, v) -> signed distance, v pointing down
# --------------------------------------------------------------------------


def _polygon(u: Plane, v: Plane, sides: int, inradius: float) -> Plane:
    """A regular polygon, one side at the bottom."""
    angles = np.pi / 2 + 2 * np.pi * np.arange(sides) / sides
    sides_uv = [math.cos(a) * u + math.sin(a) * v for a in angles]
    return reduce(np.maximum, sides_uv) - inradius


def _star(u: Plane, v: Plane) -> Plane:
    """Five points: |angle| folded into one tenth, where the edge is a straight line."""
    tenth = math.pi / 5
    angle = np.abs((np.arctan2(u, -v) + tenth) % (2 * tenth) - tenth)
    radius = np.hypot(u, v)
    x, y = radius * np.cos(angle), radius * np.sin(angle)
    # The edge runs from the point (1.1, 0) to the notch at radius 0.5.
    along_x, along_y = 0.5 * math.cos(tenth) - 1.1, 0.5 * math.sin(tenth)
    length = math.hypot(along_x, along_y)
    return (x - 1.1) * (along_y / length) - y * (along_x / length)


def _heart(u: Plane, v: Plane) -> Plane:
    """A square on its corner and two half discs on its upper sides."""
    a, b = np.abs(u), v - 0.15
    return np.minimum((a + np.abs(b)) * 0.7071 - 0.6, np.hypot(a - 0.4243, b + 0.4243) - 0.6)


SHAPES: dict[str, tuple[Shape, str]] = {
    "disc": (lambda u, v: np.hypot(u, v) - 1, "round"),
    "star": (_star, "straight"),
    "heart": (_heart, "round"),
    "square": (lambda u, v: np.maximum(np.abs(u), np.abs(v)) - 0.85, "straight"),
    "cross": (
        lambda u, v: np.minimum(
            np.maximum(np.abs(u) - 1, np.abs(v) - 0.34), np.maximum(np.abs(u) - 0.34, np.abs(v) - 1)
        ),
        "straight",
    ),
    "triangle": (lambda u, v: _polygon(u, v - 0.1, 3, 0.58), "straight"),
    "gear": (
        lambda u, v: np.hypot(u, v) - 0.86 - 0.14 * np.clip(5 * np.cos(11 * np.arctan2(v, u)), -1, 1),
        "straight",
    ),
    "flower": (lambda u, v: np.hypot(u, v) - 0.75 - 0.3 * np.cos(5 * np.arctan2(v, u)), "round"),
    "crescent": (lambda u, v: np.maximum(np.hypot(u, v) - 1, 0.8 - np.hypot(u - 0.55, v)), "round"),
    "ring": (lambda u, v: np.abs(np.hypot(u, v) - 0.75) - 0.25, "round"),
}

# --------------------------------------------------------------------------
# Textures: a place -> share of the second colour before it is clipped to 0..1
# --------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Places:
    """Where in a figure its pixels lie; every array has the same shape."""

    u: Plane
    v: Plane
    noise: Plane  # smooth, about -0.5..0.5

    @property
    def radius(self) -> Plane:
        return np.hypot(self.u, self.v)

    @property
    def angle(self) -> Plane:
        return np.arctan2(self.v, self.u)


Texture = Callable[[Places], Plane]


def _edged(wave: Plane) -> Plane:
    """The first colour where the wave is below zero, the second where it is above, with a short transition."""
    return 0.5 + 4 * wave


def _bricks(p: Places) -> Plane:
    """Courses of bricks with thin joints, every second course shifted by half a brick."""
    course = np.floor(p.v * 4)
    across = np.abs((p.u * 2 + 0.5 * (course % 2)) % 1 - 0.5)
    down = np.abs((p.v * 4) % 1 - 0.5)
    joint: Plane = np.maximum(across - 0.42, (down - 0.36) / 2)
    return 24 * joint + 0.5


def _zigzag(p: Places) -> Plane:
    return _edged(np.sin(2 * np.pi * (2 * p.v + np.abs((p.u * 2) % 1 - 0.5) * 1.4)))


TEXTURES: dict[str, Texture] = {
    "striped": lambda p: _edged(np.sin(5 * np.pi * p.u)),
    "checkered": lambda p: _edged(np.sin(3.5 * np.pi * p.u) * np.sin(3.5 * np.pi * p.v)),
    "dotted": lambda p: _edged(np.cos(5 * np.pi * p.u) + np.cos(5 * np.pi * p.v) - 0.7),
    "bricked": _bricks,
    "zigzag": _zigzag,
    "banded": lambda p: _edged(np.sin(6 * np.pi * p.radius)),
    "rayed": lambda p: _edged(np.cos(8 * p.angle)),
    "spiralled": lambda p: _edged(np.sin(2 * p.angle + 4 * np.pi * p.radius)),
    "mottled": lambda p: _edged(p.noise),
    "plain": lambda p: np.zeros_like(p.u),
}


@dataclass(frozen=True, slots=True)
class Kind:
    """What one class shows."""

    shape: str
    texture: str
    hue: float  # 0..1, the hue its figures lean to

    @property
    def words(self) -> str:
        return f"{self.texture} {self.shape}"

    @property
    def gloss(self) -> str:
        return f"a drawn {self.shape} filled with a {self.texture} texture"

    @property
    def is_round(self) -> bool:
        return SHAPES[self.shape][1] == "round"


def kinds(number: int) -> list[Kind]:
    """The first `number` kinds, at most 100: no shape and no texture comes twice among the first ten."""
    shapes, textures = list(SHAPES), list(TEXTURES)
    return [
        # 3 and 10 share no factor: neighbours in the list lie far apart on the circle of hues.
        Kind(shapes[i % 10], textures[(i % 10 + i // 10) % 10], hue=(3 * i % 10) / 10)
        for i in range(number)
    ]


GRAIN = 20  # largest brightness that grain adds to the ground

# --------------------------------------------------------------------------
# A picture
# --------------------------------------------------------------------------


def picture(kind: Kind, width: int, height: int, rng: np.random.Generator) -> Image.Image:
    """An RGB image of `width` × `height` pixels that shows the kind once, near its centre."""
    # Planes of one channel each throughout: NumPy is several times faster on them than on interleaved pixels.
    planes = _ground(width, height, rng)
    radius = min(width, height) * rng.uniform(0.34, 0.46)
    x0, y0 = width / 2 + rng.uniform(-0.1, 0.1) * radius, height / 2 + rng.uniform(-0.1, 0.1) * radius
    reach = radius * 1.2
    columns = slice(max(0, int(x0 - reach)), min(width, int(x0 + reach) + 1))
    rows = slice(max(0, int(y0 - reach)), min(height, int(y0 + reach) + 1))
    x = ((np.arange(width, dtype=np.float32)[None, columns] - x0) / radius).astype(np.float32)
    y = ((np.arange(height, dtype=np.float32)[rows, None] - y0) / radius).astype(np.float32)

    u, v = _turned(x, y, rng.normal(0, 0.25))
    distance = SHAPES[kind.shape][0](u, v) * radius
    zoom = rng.uniform(0.85, 1.2)
    turned = _turned(u * zoom, v * zoom, rng.normal(0, 0.25))
    places = Places(*turned, _smooth_noise(u.shape[1], u.shape[0], 9, rng))
    share = np.clip(TEXTURES[kind.texture](places), 0, 1)

    hue = kind.hue + rng.uniform(-1 / 6, 1 / 6)
    first = _colour(hue, rng.uniform(0.55, 0.95), rng.uniform(0.75, 1.0))
    second = _colour(hue + rng.normal(0, 0.06), rng.uniform(0.3, 0.9), rng.uniform(0.05, 0.35))
    light = 1 + 0.18 * (x * rng.uniform(-1, 1) + y * rng.uniform(-1, 1))
    # A dark outline of about a twentieth of the radius, then the figure; each edge one pixel wide.
    ground_left = 1 - 0.85 * np.clip(0.5 + 0.05 * radius - distance, 0, 1)
    inside = np.clip(0.5 - distance, 0, 1)
    for plane, one, other in zip(planes, first, second, strict=True):
        region = plane[rows, columns] * ground_left
        region += inside * ((one + share * (other - one)) * light - region)
        plane[rows, columns] = np.clip(region, 0, 255)
    return Image.merge("RGB", [Image.fromarray(plane) for plane in planes])


def _turned(u: Plane, v: Plane, angle: float) -> tuple[Plane, Plane]:
    c, s = math.cos(angle), math.sin(angle)
    return c * u + s * v, c * v - s * u


def _colour(hue: float, saturation: float, value: float) -> tuple[float, ...]:
    return tuple(255 * channel for channel in colorsys.hsv_to_rgb(hue % 1, saturation, value))


def _muted_colour(rng: np.random.Generator) -> tuple[float, ...]:
    return _colour(rng.random(), rng.uniform(0.1, 0.6), rng.uniform(0.25, 0.9))


def _smooth_noise(width: int, height: int, cells: int, rng: np.random.Generator) -> Plane:
    """Noise in about -0.5..0.5 whose lumps are `cells` to a side."""
    small = Image.fromarray(rng.random((cells, cells), dtype=np.float32) - np.float32(0.5))
    return np.asarray(small.resize((width, height), Image.Resampling.BICUBIC))


def _ground(width: int, height: int, rng: np.random.Generator) -> list[NDArray[np.uint8]]:
    """A wash between two muted colours, a few soft strokes across it, and grain; three planes (height, width)."""
    # It is soft, so a third of the size is enough to draw it in.
    small_width, small_height = -(-width // 3), -(-height // 3)
    wash = np.clip(0.5 + 1.2 * _smooth_noise(small_width, small_height, 4, rng), 0, 1)
    small = [one + wash * (other - one) for one, other in zip(_muted_colour(rng), _muted_colour(rng), strict=True)]
    x = np.linspace(-1, 1, small_width, dtype=np.float32)[None, :]
    y = np.linspace(-1, 1, small_height, dtype=np.float32)[:, None]
    for _ in range(rng.integers(1, 4)):
        across, _along = _turned(x, y, rng.uniform(0, math.pi))
        stroke = 0.6 * (np.abs(across - rng.uniform(-1, 1)) < rng.uniform(0.02, 0.12)).astype(np.float32)
        for plane, value in zip(small, _muted_colour(rng), strict=True):
            plane += stroke * (value - plane)
    grain = rng.integers(0, GRAIN + 1, (height, width), dtype=np.uint8)
    images = [Image.fromarray(np.clip(plane, 0, 255 - GRAIN).astype(np.uint8)) for plane in small]
    return [np.asarray(image.resize((width, height), Image.Resampling.BILINEAR)) + grain for image in images]
