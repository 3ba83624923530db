"""A contact sheet: pictures in rows, two lines of text under each, a few lines above all of them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw

from .lettering import Lettering

TILE = 160  # pixels of a stored image's side on the sheet
_GAP = 12
_GROUP_GAP = 28  # between one original with its variants and the next
_MARGIN = 20
_PAPER, _INK, _PALE = (255, 255, 255), (20, 20, 20), (105, 105, 105)


@dataclass(frozen=True, slots=True)
class Tile:
    """One picture and what stands under it."""

    pixels: NDArray[np.uint8]  # (h, w, 3), RGB
    title: str
    note: str


@dataclass(frozen=True, slots=True)
class Layout:
    """Where every tile lies: groups of `tiles_per_group` side by side, `groups_per_row` in a row."""

    groups: int
    tiles_per_group: int
    groups_per_row: int
    header_lines: int

    @property
    def rows(self) -> int:
        return -(-self.groups // self.groups_per_row)

    @property
    def text_height(self) -> int:
        return _TITLE.height + _NOTE.height + 6

    @property
    def top(self) -> int:
        return _MARGIN + self.header_lines * _HEADER.height + _GAP

    @property
    def _group_width(self) -> int:
        return self.tiles_per_group * (TILE + _GAP) - _GAP

    @property
    def size(self) -> tuple[int, int]:
        """Width and height of the sheet in pixels."""
        gap = _GAP if self.tiles_per_group == 1 else _GROUP_GAP
        width = 2 * _MARGIN + self.groups_per_row * (self._group_width + gap) - gap
        return max(width, 480), self.top + self.rows * (TILE + self.text_height + _GAP) - _GAP + _MARGIN

    def place(self, group: int, tile: int = 0) -> tuple[int, int]:
        """Left and top of a tile."""
        row, column = divmod(group, self.groups_per_row)
        gap = _GAP if self.tiles_per_group == 1 else _GROUP_GAP
        x = _MARGIN + column * (self._group_width + gap) + tile * (TILE + _GAP)
        return x, self.top + row * (TILE + self.text_height + _GAP)


_HEADER, _TITLE, _NOTE = Lettering(15), Lettering(14), Lettering(12)


def layout_of(groups: int, tiles_per_group: int, header_lines: int = 1) -> Layout:
    """About as wide as high."""
    across = int(np.ceil(np.sqrt(groups * (TILE + 50) / TILE / tiles_per_group)))
    return Layout(groups, tiles_per_group, max(1, min(across, groups)), header_lines)


def draw_sheet(header: Sequence[str], groups: Sequence[Sequence[Tile]], *, stored_side: int) -> Image.Image:
    """The sheet; a tile of side `stored_side` fills its place, smaller ones are drawn to the same scale."""
    layout = layout_of(len(groups), max(map(len, groups)), len(header))
    sheet = Image.new("RGB", layout.size, _PAPER)
    canvas = ImageDraw.Draw(sheet)
    for number, line in enumerate(header):
        text = _HEADER.fit(line, layout.size[0] - 2 * _MARGIN)
        _HEADER.draw(canvas, (_MARGIN, _MARGIN + number * _HEADER.height), text, _PALE if number else _INK)
    for number, group in enumerate(groups):
        for place, tile in enumerate(group):
            x, y = layout.place(number, place)
            sheet.paste(_scaled(tile.pixels, stored_side), (x, y))
            _TITLE.draw(canvas, (x, y + TILE + 3), _TITLE.fit(tile.title, TILE), _INK)
            _NOTE.draw(canvas, (x, y + TILE + 3 + _TITLE.height), _NOTE.fit(tile.note, TILE), _PALE)
    return sheet


def _scaled(pixels: NDArray[np.uint8], stored_side: int) -> Image.Image:
    """Pixels to the scale at which a stored image fills its tile; tiny ones keep their squares."""
    height, width = pixels.shape[:2]
    size = max(1, round(width * TILE / stored_side)), max(1, round(height * TILE / stored_side))
    enlarged = stored_side < TILE
    return Image.fromarray(pixels).resize(size, Image.Resampling.NEAREST if enlarged else Image.Resampling.LANCZOS)
