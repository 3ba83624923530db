"""The picture of a run in a terminal: lines of text, for any width.

    records ─► Shown, what is known ─► picture ─► Region, where it is redrawn below all that is printed

Knows neither the trainer nor torch, so that `alextrain watch` is there at once. Colours are those of the
terminal's own palette that can be read on light and on dark.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from textwrap import wrap
from typing import Any

from rich.text import Text

from ..shards import byte_size, printable
from .run_files import Record, or_nan
from .shown import Shown, pace, percent
from .terminal import duration

_LABEL = 13  # columns
_FIGURES = 42  # columns behind the label, before a curve
_BARS = " ▁▂▃▄▅▆▇█"  # by eighths of a row


def picture(shown: Shown, *, width: int, now: float) -> list[Text]:
    """What is known, as lines of at most `width` columns; the most important ones first."""
    lines = _head(shown, width)
    if shown.last_step:
        lines.append(_bar(shown.step / shown.last_step, width))
    lines += _flowed("", _progress(shown, now), width)
    colour = "bold" if shown.going else "bold red" if shown.failed else "bold magenta"
    lines += _wrapped(shown.state, width, colour)
    if shown.failed and not shown.going and shown.end and shown.end["remedy"]:
        lines += _wrapped(f"what to do: {shown.end['remedy']}", width)
    rows = (
        ("loss", _loss(shown)),
        ("train error", _errors(shown.train)),
        ("val error", _errors(shown.val, epoch=True)),
        ("best so far", _errors(shown.best, epoch=True)),
        ("speed", _speed(shown)),
        ("rates", _rates(shown)),
        ("memory", _memory(shown)),
        ("checkpoint", _saved(shown, now)),
    )
    first = {}
    for label, pieces in rows:
        if pieces:
            first[label] = len(lines)
            lines += _flowed(label, pieces, width)
    for label, points, colour in (("loss", shown.losses, "cyan"), ("val error", shown.errors, "green")):
        columns = min(60, width - _LABEL - _FIGURES, len(shown.losses))
        if points and label in first and columns >= 8:
            beside = lines[first[label] : first[label] + 2]
            for line, bars in zip(beside, curve(points, columns, shown.step), strict=True):
                line.pad_right(_LABEL + _FIGURES - line.cell_len)
                line.append(bars, colour)
    for warning in shown.warnings:
        lines += _flowed("", [Text(f"warning: {printable(warning)}", "red")], width)
    for line in lines:
        line.truncate(max(1, width), overflow="ellipsis")
    return lines


def curve(points: Sequence[tuple[int, float]], width: int, last: int) -> list[str]:
    """Values over the steps 1..last as two rows of bars: of the lowest value the lowest, and so on.

    Each column is the mean of its steps; one without values is as the one before, or blank before the first.

    >>> curve([(4, 4.0), (8, 2.0), (10, 0.5), (20, 0.5)], 8, 20)
    [' █      ', ' █▇▁▁▁▁▁']
    """
    slots: list[list[float]] = [[] for _ in range(width)]
    for step, value in points:
        slots[min(width - 1, max(0, step - 1) * width // max(1, last))].append(value)
    means: list[float] = []
    for slot in slots:
        means.append(sum(slot) / len(slot) if slot else means[-1] if means else math.nan)
    known = [mean for mean in means if not math.isnan(mean)]
    low, high = min(known), max(known)
    size = (2 * len(_BARS) - 3) / (high - low) if high > low else 0
    eighths = [0 if math.isnan(mean) else 1 + round((mean - low) * size) for mean in means]
    return ["".join(_BARS[min(8, max(0, height - below))] for height in eighths) for below in (8, 0)]


def _head(shown: Shown, width: int) -> list[Text]:
    """A rule that begins with the run's folder and ends with what it is; on two lines where there is no room."""
    recipe, machine = shown.recipe, shown.config.get("machine") or {}
    name = Text(printable(str(shown.folder)), "bold")
    devices = list(dict.fromkeys(machine.get("devices") or ()))
    ranks = machine.get("ranks") or 1
    about = [Text(printable(recipe["preset"]))] if recipe.get("preset") else []
    about += [Text(f"{word} {recipe[word]:g}") for word in ("width", "seed") if recipe.get(word) is not None]
    about += [Text(printable(recipe["precision"]))] if recipe.get("precision") else []
    about += [Text((f"{ranks} × " if ranks > 1 else "") + printable(" and ".join(devices)))] if devices else []
    words = Text(" · ").join(about)
    fill = width - name.cell_len - words.cell_len - 8
    if fill >= 2:
        return [Text.assemble(("── ", "dim"), name, (f" {'─' * fill} ", "dim"), words, (" ──", "dim"))]
    fill = max(1, width - name.cell_len - 4)
    return [Text.assemble(("── ", "dim"), name, (f" {'─' * fill}", "dim")), *_flowed("", about, width)]


def _bar(share: float, width: int) -> Text:
    percent = f" {100 * share:5.1f} %"
    room = max(1, width - len(percent))
    full = min(room, int(share * room))
    return Text.assemble(("━" * full, "green"), ("─" * (room - full), "dim"), (percent, "bold"))


def _progress(shown: Shown, now: float) -> list[Text]:
    steps_per_epoch = shown.config.get("steps_per_epoch")
    pieces = []
    if steps_per_epoch and shown.last_step:
        epochs = _short(shown.last_step / steps_per_epoch)
        pieces.append(_of("epoch ", f"{shown.step / steps_per_epoch:.2f}", f" of {epochs}"))
    pieces.append(_of("step ", f"{shown.step:,}", f" of {shown.last_step:,}" if shown.last_step else ""))
    if (so_far := shown.seconds_so_far(now)) > 0:
        pieces.append(_of("", _time(so_far), " so far"))
    left = shown.seconds_left(now)
    evaluating = shown.evaluating if shown.going else None
    if evaluating is not None:
        pieces.append(Text(printable(str(evaluating)), "bold"))
    if shown.going and shown.done and evaluating is None:
        pieces.append(Text("finishing…"))
    elif shown.going and not shown.done:
        pieces.append(Text("measuring…") if left is None else _of("", _time(left), f" {shown.left_of}"))
    if shown.last_step < (shown.config.get("total_steps") or 0) and shown.recipe.get("epochs"):
        epochs = shown.recipe["epochs"]
        pieces.append(Text(f"schedule of {epochs:g} epoch{'' if epochs == 1 else 's'}"))
    return pieces


def _loss(shown: Shown) -> list[Text]:
    if shown.train is None:
        return []
    chance = shown.chance_loss
    beside = f" of ln({shown.num_classes:,}) = {chance:.4f}" if chance is not None else ""
    return [_of("", f"{or_nan(shown.train.get('loss')):.4f}", beside)]


def _errors(record: Record | None, *, epoch: bool = False) -> list[Text]:
    if record is None:
        return []
    pieces = [Text(f"top-{k} {percent(record.get(f'top{k}_error')):>6}") for k in (1, 5)]
    return [*pieces, Text(f"epoch {_short(record['epoch'])}")] if epoch else pieces


def _speed(shown: Shown) -> list[Text]:
    speed, waiting = shown.images_per_s, shown.waiting
    pieces = [] if speed is None else [_of("", f"{speed:,.1f}", " images/s")]
    if waiting is not None:
        pieces.append(Text(f"{100 * waiting:.0f} % waiting"))
        pieces.append(Text(f"the {pace(waiting)} sets the pace"))
    return pieces


def _rates(shown: Shown) -> list[Text]:
    if shown.train is None:
        return []
    rates: Mapping[str, Any] = shown.train.get("rates") or {"weights": shown.train.get("lr")}
    return [
        Text(f"{name} frozen", "dim") if rate is None else _of(f"{name} ", f"{or_nan(rate):g}", "")
        for name, rate in zip(map(printable, rates), rates.values(), strict=True)
    ]


def _memory(shown: Shown) -> list[Text]:
    used = (shown.train or shown.val or {}).get("memory_bytes")
    devices = (shown.config.get("machine") or {}).get("devices") or ["cpu"]
    return (
        [_of("", byte_size(used), " of the process" if devices[0] == "cpu" else f" of {printable(devices[0])}")]
        if used
        else []
    )


def _saved(shown: Shown, now: float) -> list[Text]:
    if shown.saved is None:
        return []
    step, when = shown.saved
    return [_of("step ", f"{step:,}", ""), Text(f"{_time(max(0.0, now - when))} ago")]


def _flowed(label: str, pieces: Sequence[Text], width: int) -> list[Text]:
    """Pieces behind a label, and on further lines under the first piece where they do not fit."""
    indent = _LABEL if label and width >= 30 else 0
    lines = [Text.assemble((label, "dim"))]
    lines[0].pad_right(indent - len(label))
    if label and not indent:
        lines.append(Text())
    empty = True
    for piece in pieces:
        if not empty and lines[-1].cell_len + 3 + piece.cell_len > width:
            lines.append(Text(" " * indent))
            empty = True
        lines[-1].append_text(piece if empty else Text.assemble((" · ", "dim"), piece))
        empty = False
    return lines


def _wrapped(text: str, width: int, style: str = "") -> list[Text]:
    """A sentence on as many lines as it needs; --options in it stay whole."""
    return [Text(line, style) for line in wrap(printable(text), max(1, width), break_on_hyphens=False)]


def _of(before: str, value: str, behind: str) -> Text:
    return Text.assemble(before, (value, "bold"), behind)


def _time(seconds: float) -> str:
    # No tenths: they are only restless in what is drawn twice a second.
    return f"{seconds:.0f} s" if seconds < 59.5 else duration(seconds)


def _short(number: float) -> str:
    return f"{number:.2f}".rstrip("0").rstrip(".")
