"""Predictions as figure 4 of the 2012 paper has them: images, and below each its most probable classes as bars.

Four images a row. Under an image stands its correct class, where that is known; the bar of that class is pink, all
others are blue, and a bar's full width is a probability of 1.
Source: Krizhevsky, Sutskever, Hinton 2012, figure 4; the released shownet.py; fidelity.md §7.6.
"""

from __future__ import annotations

import io
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw
from PIL.PngImagePlugin import PngInfo

from ..shards import ClassEntry, WrongCall, appearing_whole, printable
from .lettering import Lettering
from .predict import Guess, Prediction, square
from .show import check_out, first_word

PER_ROW = 4
BARS = 5  # of each image
PICTURE_AT_MOST = 100  # images: 25 rows
SIDE = 300  # pixels of an image on the picture, and of a bar of probability 1
MARGIN, GAP, ROW_GAP = 36, 36, 40
BAR, STEP = 26, 31  # height of a bar, and from one to the next
PAPER, INK, PALE = (255, 255, 255), (25, 25, 25), (115, 115, 115)
TRACK = (243, 243, 245)  # what is left of a bar's width
BLUE, PINK = (159, 194, 232), (245, 156, 168)
_TITLE, _NAME, _TICK = Lettering(19), Lettering(16), Lettering(13)
_TITLE_GAP, _AXIS = 10, 24


@dataclass(frozen=True, slots=True)
class Panel:
    """One image with its bars."""

    pixels: NDArray[np.uint8]  # (SIDE, SIDE, 3), RGB
    title: str
    known: bool  # the title is the correct class, not the file's name
    guesses: tuple[Guess, ...]
    correct: int | None  # label


def check_picture(picture: Path, files: Sequence[Path]) -> None:
    """See that a picture of these files can be drawn there.

    Raises:
        WrongCall: too many images; or not a PNG, in no folder, or one of the images.
        AlexshardError: nothing can be written there.
    """
    check_out("--picture", picture, ".png", why="the picture is a PNG, whose letters stay sharp")
    if picture.exists() and any(file.exists() and picture.samefile(file) for file in files):
        raise WrongCall(
            f"--picture {picture} is one of the images",
            why="it would be written over",
            remedy="another name for the picture",
        )
    if len(files) > PICTURE_AT_MOST:
        raise WrongCall(
            f"a picture of {len(files):,} images",
            why=f"one holds up to {PICTURE_AT_MOST}",
            remedy="name fewer images, or leave --picture out",
        )


def write_picture(
    picture: Path, predictions: Sequence[Prediction], classes: Sequence[ClassEntry], correct: Sequence[int | None]
) -> None:
    """Draw predictions into a PNG, which appears whole or not at all; its description says the same in words.

    Raises:
        AlexshardError: an image can no longer be read, or the picture not be written.
    """
    panels = [_panel(prediction, classes, label) for prediction, label in zip(predictions, correct, strict=True)]
    about = PngInfo()
    told = [
        "; ".join([str(each.file), *(f"{100 * guess.probability:.1f} % {guess.synset}" for guess in each.top)])
        for each in predictions
    ]
    about.add_itxt("Description", "\n".join(map(printable, told)))
    content = io.BytesIO()
    draw_panels(panels).save(content, "png", pnginfo=about)
    with appearing_whole(picture) as target:
        target.write(content.getvalue())


def draw_panels(panels: Sequence[Panel]) -> Image.Image:
    """The picture: panels in the order of reading."""
    across, down = min(PER_ROW, len(panels)), -(-len(panels) // PER_ROW)
    bars = max(len(panel.guesses) for panel in panels)
    height = SIDE + _TITLE_GAP + _TITLE.height + _TITLE_GAP + bars * STEP + _AXIS
    size = (
        2 * MARGIN + across * (SIDE + GAP) - GAP,
        2 * MARGIN + down * (height + ROW_GAP) - ROW_GAP,
    )
    sheet = Image.new("RGB", size, PAPER)
    canvas = ImageDraw.Draw(sheet)
    for number, panel in enumerate(panels):
        row, column = divmod(number, PER_ROW)
        left, top = MARGIN + column * (SIDE + GAP), MARGIN + row * (height + ROW_GAP)
        sheet.paste(Image.fromarray(panel.pixels), (left, top))
        canvas.rectangle((left, top, left + SIDE - 1, top + SIDE - 1), outline=INK)
        title = _TITLE.fit(panel.title, SIDE)
        middle = left + round((SIDE - _TITLE.width(title)) / 2)
        _TITLE.draw(canvas, (middle, top + SIDE + _TITLE_GAP), title, INK if panel.known else PALE)
        _draw_bars(canvas, panel, left, top + SIDE + 2 * _TITLE_GAP + _TITLE.height)
    return sheet


def _draw_bars(canvas: ImageDraw.ImageDraw, panel: Panel, left: int, top: int) -> None:
    """Bars with their names on them, the axis from 0 to 1 below."""
    for place, guess in enumerate(panel.guesses):
        y = top + place * STEP
        canvas.rectangle((left, y, left + SIDE - 1, y + BAR - 1), fill=TRACK)
        length = round(guess.probability * SIDE)
        if length > 0:
            colour = PINK if guess.label == panel.correct else BLUE
            canvas.rectangle((left, y, left + length - 1, y + BAR - 1), fill=colour)
        name = _NAME.fit(first_word(ClassEntry(guess.synset, guess.words, None)), SIDE - 16)
        _NAME.draw(canvas, (left + 8, y + (BAR - _NAME.height) // 2), name, INK)
    y = top + len(panel.guesses) * STEP - (STEP - BAR) + 5
    canvas.line((left, y, left + SIDE - 1, y), fill=PALE)
    for value, text in ((0, "0"), (0.5, "0.5"), (1, "1")):
        x = left + min(round(value * SIDE), SIDE - 1)
        canvas.line((x, y, x, y + 4), fill=PALE)
        shift = value * _TICK.width(text)  # the outer two stay within the bars' width
        _TICK.draw(canvas, (round(x - shift), y + 6), text, PALE)


def _panel(prediction: Prediction, classes: Sequence[ClassEntry], correct: int | None) -> Panel:
    known = correct is not None
    title = prediction.file.name if correct is None else first_word(classes[correct])
    return Panel(square(prediction.file, SIDE), title, known, prediction.top[:BARS], correct)
