"""Lettering on pictures: names fitted to a width, in whatever script they are written.

Pillow's own font knows little beyond ASCII. A character that it lacks is drawn in a font of this machine that has
it, and where there is none written as its code (`\\u72ac`), so that no name is lost and none is a row of boxes.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from functools import cache, lru_cache
from itertools import groupby
from pathlib import Path

from PIL import ImageDraw, ImageFont

from ..shards import printable

ELLIPSIS = "…"
Font = ImageFont.FreeTypeFont
_FONT_FOLDERS = (
    "/usr/share/fonts",
    "/usr/local/share/fonts",
    "~/.local/share/fonts",
    "~/.fonts",
    "/Library/Fonts",
)
# Wide coverage first; what is called otherwise comes after these, by name.
_WIDE = ("DejaVuSans.", "NotoSans-Regular", "NotoSansCJK-Regular", "unifont", "wqy", "DroidSansFallback")
_FONTS_TRIED = 200  # of a machine with thousands: looking through all would take minutes
_ABSENT = "\uffff"  # no character, so every font draws its "missing" box for it


class Lettering:
    """Text of one size in pixels."""

    def __init__(self, size: int) -> None:
        self.size = size
        built_in = ImageFont.load_default(size)
        if not isinstance(built_in, Font):
            raise RuntimeError("this Pillow was built without FreeType, and its bitmap font has one size")
        self._built_in: Font = built_in
        self.height = sum(built_in.getmetrics())

    def fit(self, text: str, width: int) -> str:
        """`text`, shortened with … where it is wider than `width` pixels."""
        text = "".join(self._shown(character) for character in printable(text))
        if self.width(text) <= width:
            return text
        # Halving finds the longest beginning that fits: width grows with every character.
        low, high = 0, len(text)
        while low < high:
            middle = (low + high + 1) // 2
            fits = self.width(text[:middle].rstrip() + ELLIPSIS) <= width
            low, high = (middle, high) if fits else (low, middle - 1)
        return text[:low].rstrip() + ELLIPSIS

    def width(self, text: str) -> float:
        """Pixels that `text` takes."""
        return sum(font.getlength(run) for font, run in self._runs(text))

    def draw(
        self, canvas: ImageDraw.ImageDraw, place: tuple[int, int], text: str, colour: tuple[int, ...]
    ) -> None:
        """Write `text` with its left top at `place` (x, y)."""
        x: float = place[0]
        baseline = place[1] + self._built_in.getmetrics()[0]
        for font, run in self._runs(text):
            canvas.text((x, baseline), run, font=font, fill=colour, anchor="ls")
            x += font.getlength(run)

    def _runs(self, text: str) -> Iterator[tuple[Font, str]]:
        """The text in pieces of one font each."""
        for font, run in groupby(text, key=lambda character: self._font_of(character) or self._built_in):
            yield font, "".join(run)

    def _font_of(self, character: str) -> Font | None:
        if _has(self._built_in, character):
            return self._built_in
        place = _system_font(character)
        return None if place is None else _opened(*place, self.size)

    def _shown(self, character: str) -> str:
        return character if self._font_of(character) else character.encode("unicode_escape").decode("ascii")


@lru_cache(maxsize=4096)
def _has(font: Font, character: str) -> bool:
    if character == " ":
        return True
    return bytes(font.getmask(character)) != _missing_box(font)


@cache
def _missing_box(font: Font) -> bytes:
    return bytes(font.getmask(_ABSENT))


@lru_cache(maxsize=4096)
def _system_font(character: str) -> tuple[str, int] | None:
    """File and face of the first font of this machine that has the character."""
    for path in _system_fonts():
        try:
            font = _opened(path, 0, 16)
            if _has(font, character):
                return path, 0
        except (OSError, ValueError):  # a file that is no font, or a bitmap font of another size
            continue
    return None


@cache
def _opened(path: str, face: int, size: int) -> Font:
    return ImageFont.truetype(path, size, index=face)


@cache
def _system_fonts() -> list[str]:
    files = [
        str(path)
        for folder in map(os.path.expanduser, _FONT_FOLDERS)
        for path in Path(folder).rglob("*")
        if path.suffix.lower() in {".ttf", ".otf", ".ttc"}
    ]

    def rank(path: str) -> tuple[int, str]:
        name = Path(path).name
        return next((i for i, known in enumerate(_WIDE) if name.startswith(known)), len(_WIDE)), name

    return sorted(files, key=rank)[:_FONTS_TRIED]
