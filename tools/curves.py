"""The picture of `alextrain compare`: loss above, error below, a line for each run.

Runs are told apart by colour, by the pattern of their lines and by their markers (pen.py). Long runs have a bold
line, the means of stretches, and behind it faintly every figure.
"""

from __future__ import annotations

import math
import re
import statistics
from collections.abc import Sequence
from dataclasses import dataclass, field, replace

import numpy as np
from PIL import Image, ImageDraw

from .axes import Axis, around, from_zero
from .lettering import Lettering
from .pen import COLOURS, DASHES, FINE, MOST, PAPER, Pen, Points, paled, thinned

WIDTH, MARGIN, LEFT, RIGHT = 1600, 40, 92, 28  # pixels of the picture, as all sizes here
PANEL, PANEL_GAP, TITLE_GAP, BELOW = 430, 46, 12, 74
LEGEND_ROW, SAMPLE = 32, 74
STRETCHES = 240  # of the axis, over which long runs are averaged
CUT = 3.0  # times the middle first loss: where the axis ends if a loss is above, and no other end is given
MARKERS_AT_MOST = 12  # on a line
INK, PALE, GRID, CHANGE = (30, 30, 30), (105, 105, 105), (230, 230, 230), (150, 150, 150)
_TITLE, _NAME, _TICK = Lettering(21), Lettering(19), Lettering(17)


@dataclass(frozen=True)
class Curve:
    """One run: points (x, y) of its loss and of its error in percent, and where its rates changed."""

    name: str
    loss: Points
    error: Points
    changes: Sequence[float] = ()
    note: str = ""  # behind its name in the legend


def points(xs: Sequence[float], ys: Sequence[float]) -> Points:
    """Points of these places and levels, (n, 2)."""
    return np.array([xs, ys], dtype=np.float64).T.reshape(-1, 2)


@dataclass(frozen=True)
class Panel:
    """Where one of the two is drawn, and on which axes."""

    title: str
    x: Axis
    y: Axis
    lines: Sequence[Points]  # by run, as drawn in bold
    faint: Sequence[Points]  # by run; none where the bold line has every figure
    changes: Sequence[Sequence[float]] = field(default=())
    cut: bool = False  # figures above the axis are left out

    def pixels(self, points: Points) -> Points:
        """Points of the axes on the picture."""
        return np.stack([self.x.place(points[:, 0]), self.y.place(points[:, 1])], axis=1)

    def inside(self, points: Points) -> list[Points]:
        """The parts of a line that are on the axes, in pixels; where it leaves them a part ends on the edge."""
        above = points[:, 1] > self.y.high
        if not (self.cut and above.any()):
            return [self.pixels(points)]
        level = np.log if self.y.log else np.asarray
        before = np.flatnonzero(above[1:] != above[:-1])
        (x0, y0), (x1, y1) = points[before].T, points[before + 1].T
        share = (level(self.y.high) - level(y0)) / (level(y1) - level(y0))
        edge = np.stack([x0 + share * (x1 - x0), np.full(len(before), self.y.high)], axis=1)
        whole = np.insert(points, before + 1, edge, axis=0)
        outside = np.insert(above, before + 1, False)
        ends = np.flatnonzero(outside[1:] != outside[:-1]) + 1
        parts = zip(np.split(whole, ends), np.split(outside, ends), strict=True)
        return [self.pixels(part) for part, left_out in parts if not left_out[0]]


def draw(
    curves: Sequence[Curve],
    *,
    against: str,
    error_title: str = "validation top-1 error, %",
    chance: tuple[str, float] | None = None,
    ceiling: tuple[str, float] | None = None,
    notes: Sequence[str] = (),
) -> Image.Image:
    """The picture, RGB; at most `MOST` curves, at least one with a point.

    `against` says in words what the axis below is; `chance` is the loss of a constant answer, with its name;
    `ceiling` that at which the axis ends if one is above, with what it is; `notes` stand below all.
    """
    columns = _columns(curves)
    top = MARGIN + -(-len(curves) // columns) * LEGEND_ROW + 22
    loss_top = top + _TITLE.height + TITLE_GAP
    error_top = loss_top + PANEL + PANEL_GAP + _TITLE.height + TITLE_GAP
    notes_top = error_top + PANEL + BELOW
    points = [curve.loss for curve in curves] + [curve.error for curve in curves]
    x = from_zero(np.concatenate([each[:, 0] for each in points]), LEFT, WIDTH - RIGHT)
    changes = [curve.changes for curve in curves]
    levels = [] if chance is None else [chance[1]]
    cut = _cut(curves, ceiling)
    loss = _panel("training loss", x, loss_top, [curve.loss for curve in curves], changes, levels, cut)
    error = _panel(error_title, x, error_top, [curve.error for curve in curves], changes, [])
    notes = [*_key(loss, error, against), *([] if cut is None else [cut[0]]), *notes]

    height = notes_top + len(notes) * (_TICK.height + 4) + MARGIN - 14
    sheet = Image.new("RGB", (WIDTH * FINE, height * FINE), PAPER)
    pen = Pen(ImageDraw.Draw(sheet))
    for panel in (loss, error):
        _draw_grid(pen, panel)
        if panel is loss and chance is not None:
            level = float(panel.y.place([chance[1]])[0])
            pen.line(np.array([[x.begin, level], [x.end, level]]), PALE, 1.4, (9, 6))
        _draw_lines(pen, panel)
    for number, (left, row) in enumerate(_legend_places(len(curves), columns)):
        middle = row + LEGEND_ROW / 2
        pen.line(np.array([[left, middle], [left + SAMPLE, middle]]), COLOURS[number], 2.6, DASHES[number])
        pen.marker((left + SAMPLE / 2, middle), number, 6.5)
    sheet = sheet.reduce(FINE)

    canvas = ImageDraw.Draw(sheet)
    _letter_legend(canvas, curves, columns)
    for panel in (loss, error):
        _letter_panel(canvas, panel, with_x=panel is error)
    middle = (x.begin + x.end) / 2 - _NAME.width(against) / 2
    _NAME.draw(canvas, (round(middle), error_top + PANEL + 36), against, INK)
    if chance is not None:
        words = f"dashed: {chance[0]}, a constant answer"  # above the panel, where no line runs through it
        place = (x.end - round(_TICK.width(words)), loss_top - TITLE_GAP - _TICK.height)
        _TICK.draw(canvas, place, words, PALE)
    for number, note in enumerate(notes):
        place = (LEFT, notes_top + number * (_TICK.height + 4))
        _TICK.draw(canvas, place, _TICK.fit(note, WIDTH - LEFT - RIGHT), PALE)
    return sheet


def _panel(
    title: str,
    x: Axis,
    top: int,
    points: Sequence[Points],
    changes: Sequence[Sequence[float]],
    levels: Sequence[float],
    cut: tuple[str, float] | None = None,
) -> Panel:
    """Of the loss, whose axis shows `levels` too and ends at `cut`, or of errors in percent."""
    is_loss = title.endswith("loss")
    lines = [_averaged(each, x) for each in points]
    faint = [each if len(line) < len(each) else each[:0] for each, line in zip(points, lines, strict=True)]
    every = np.concatenate([*(each[:, 1] for each in lines), levels])
    if cut is not None:
        every = np.minimum(every, cut[1])
    y = around(every, top + PANEL, top, log_allowed=is_loss, most=math.inf if is_loss else 100.0)
    if cut is not None:
        y = replace(y, high=cut[1])
    title = f"{title}, logarithmic" if y.log else title
    return Panel(title, x, y, lines, faint, changes, cut is not None)


def _cut(curves: Sequence[Curve], ceiling: tuple[str, float] | None) -> tuple[str, float] | None:
    """Where the axis of the loss ends because one has diverged, and words of it: else all others were one line."""
    known = [curve.loss for curve in curves if len(curve.loss)]
    if ceiling is None and known:
        ceiling = f"{CUT:g} × the middle first loss", CUT * statistics.median_low(each[0, 1] for each in known)
    if ceiling is None or ceiling[1] <= 0:
        return None
    words, end = ceiling
    beyond = [curve for curve in curves if len(curve.loss) and curve.loss[:, 1].max() > end]
    if not beyond:
        return None
    most = max(float(curve.loss[:, 1].max()) for curve in beyond)
    names = ", ".join(curve.name for curve in beyond)
    return f"the axis of the loss ends at {end:.3g}, {words}; above it, up to {most:.2g}: {names}", end


def _key(loss: Panel, error: Panel, against: str) -> list[str]:
    """What is not told elsewhere on the picture."""
    key = []
    if any(loss.changes):
        grey = " (grey: of several runs)" if _shared(loss.changes) else ""
        key.append(f"dotted verticals: learning rates change{grey}")
    if any(len(each) for each in (*loss.faint, *error.faint)):
        width = _about(loss.x.high / STRETCHES)
        # "1 epoch" of "epochs", "1 hour of training" of "hours of training"
        unit = re.sub(r"s\b", "", against, count=1) if width == "1" else against
        key.append(f"bold: means over {width} {unit}, faint: every figure")
    return ["; ".join(key)] if key else []


def _about(value: float) -> str:
    """Two digits of it.

    >>> _about(0.3894), _about(3651.2)
    ('0.39', '3,700')
    """
    return f"{float(f'{value:.2g}'):,.10g}"


def _averaged(points: Points, x: Axis) -> Points:
    """Means over stretches of the axis, where a run has more points than there are stretches."""
    if len(points) <= STRETCHES:
        return points
    stretch = np.minimum((points[:, 0] - x.low) / (x.high - x.low) * STRETCHES, STRETCHES - 1).astype(np.int64)
    counts = np.bincount(stretch, minlength=STRETCHES)
    sums = [np.bincount(stretch, weights=column, minlength=STRETCHES) for column in points.T]
    return np.stack([each[counts > 0] / counts[counts > 0] for each in sums], axis=1)


def _draw_grid(pen: Pen, panel: Panel) -> None:
    x, y = panel.x, panel.y
    for value, _ in x.ticks():
        at = float(x.place([value])[0])
        pen.line(np.array([[at, y.begin], [at, y.end]]), GRID, 1)
    for value, _ in y.ticks():
        at = float(y.place([value])[0])
        pen.line(np.array([[x.begin, at], [x.end, at]]), GRID, 1)
    shared = _shared(panel.changes)
    for at in x.place(shared):
        pen.line(np.array([[at, y.begin], [at, y.end]]), CHANGE, 1.4, (3, 4))
    for number, own in enumerate(panel.changes):
        for at in x.place([value for value in own if value not in shared]):
            pen.line(np.array([[at, y.begin], [at, y.end]]), paled(COLOURS[number], 0.55), 1.4, (3, 4))
    frame = np.array([[x.begin, y.end], [x.begin, y.begin], [x.end, y.begin]])
    pen.line(frame, PALE, 1.4)


def _shared(changes: Sequence[Sequence[float]]) -> list[float]:
    """Changes of rates that several runs have."""
    every = [value for own in changes for value in dict.fromkeys(own)]
    return sorted({value for value in every if every.count(value) > 1})


def _draw_lines(pen: Pen, panel: Panel) -> None:
    for number, faint in enumerate(panel.faint):
        if len(faint):
            for part in panel.inside(faint):
                pen.line(thinned(part), paled(COLOURS[number], 0.28), 1)
    for number, line in enumerate(panel.lines):
        parts = panel.inside(line)
        for part in parts:
            pen.line(part, COLOURS[number], 2.6, DASHES[number])
        if panel.cut and len(line) and line[-1, 1] > panel.y.high:
            x, y = parts[-1][-1] if parts else panel.pixels(line[:1])[0]
            pen.line(np.array([[x - 9, y + 5], [x, y - 7], [x + 9, y + 5]]), COLOURS[number], 3)
    for number, line in enumerate(panel.lines):
        places = panel.pixels(line)
        for at in _marked(len(places), number):
            if not panel.cut or line[at, 1] <= panel.y.high:
                pen.marker((float(places[at, 0]), float(places[at, 1])), number, 5.5)


def _marked(points: int, number: int) -> list[int]:
    """Which points have markers: few enough to tell, those of other runs at other places, and the last."""
    if points <= MARKERS_AT_MOST:
        return list(range(points))
    apart = points / MARKERS_AT_MOST
    first = apart * (number + 0.5) / MOST
    return [*(int(first + apart * each) for each in range(MARKERS_AT_MOST - 1)), points - 1]


def _short_names(names: Sequence[str], room: Sequence[float]) -> list[str]:
    """Names for the legend: where one is too long, all without the words that they have in common at either end.

    >>> _short_names(["run-of-may-wide-a", "run-of-may-deep-a"], [80, 80])
    ['…wide-…', '…deep-…']
    """
    if len(names) < 2 or all(_NAME.width(name) <= most for name, most in zip(names, room, strict=True)):
        return list(names)
    words = [re.findall(r"[^-_/ ]+[-_/ ]*|[-_/ ]+", name) for name in names]
    fewest = min(map(len, words)) - 1  # of which every name keeps one
    before = next((n for n in range(fewest) if len({own[n] for own in words}) > 1), fewest)
    rest = fewest - before
    behind = next((n for n in range(rest) if len({own[-1 - n] for own in words}) > 1), rest)
    kept = ["".join(own[before : len(own) - behind]) for own in words]
    return [("…" if before else "") + own + ("…" if behind else "") for own in kept]


def _columns(curves: Sequence[Curve]) -> int:
    """Of the legend: as many as leave room for the longest name."""
    most = min(4, len(curves))
    widest = max(SAMPLE + 14 + _NAME.width(f"{curve.name}  {curve.note}") + 30 for curve in curves)
    return next((n for n in range(most, 1, -1) if widest <= _legend_width() / n), min(2, len(curves)))


def _legend_width() -> int:
    return WIDTH - LEFT - RIGHT


def _legend_places(curves: int, columns: int) -> list[tuple[int, int]]:
    """The left top of each entry, in the order of reading."""
    across = _legend_width() // columns
    return [(LEFT + n % columns * across, MARGIN + n // columns * LEGEND_ROW) for n in range(curves)]


def _letter_legend(canvas: ImageDraw.ImageDraw, curves: Sequence[Curve], columns: int) -> None:
    rooms = [_legend_width() // columns - SAMPLE - 44 - round(_NAME.width(f"  {curve.note}")) for curve in curves]
    names = _short_names([curve.name for curve in curves], rooms)
    for number, (left, top) in enumerate(_legend_places(len(curves), columns)):
        name = _NAME.fit(names[number], rooms[number])
        place = (left + SAMPLE + 14, top + (LEGEND_ROW - _NAME.height) // 2)
        _NAME.draw(canvas, place, name, INK)
        behind = place[0] + round(_NAME.width(f"{name}  "))
        _NAME.draw(canvas, (behind, place[1]), curves[number].note, PALE)


def _letter_panel(canvas: ImageDraw.ImageDraw, panel: Panel, *, with_x: bool) -> None:
    x, y = panel.x, panel.y
    _TITLE.draw(canvas, (x.begin, y.end - _TITLE.height - TITLE_GAP), panel.title, INK)
    for value, words in y.ticks():
        at = float(y.place([value])[0])
        place = (x.begin - round(_TICK.width(words)) - 10, round(at - _TICK.height / 2))
        _TICK.draw(canvas, place, words, PALE)
    for value, words in x.ticks() if with_x else ():
        at = float(x.place([value])[0])
        _TICK.draw(canvas, (round(at - _TICK.width(words) / 2), y.begin + 8), words, PALE)
