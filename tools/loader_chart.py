"""Pictures of `tools/bench_loader`: where the time of an image goes, one bar a setting, the demand as a line.

A bar's length is the wall time of an image in microseconds, so parts of it add up, and rates stand beside it. A
demand far off is a line behind a break of the axis. Places are in percent of the width, so one picture is right
for a phone and for a wide page, with letters of one size.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from .info_html import Html, element, joined
from .loader_figures import own_words, per_s, within_spread

CSS = (Path(__file__).parent / "loader_chart.css").read_text(encoding="utf-8")
ROW, BAR, LEGEND, AXIS = 42, 16, 20, 26  # pixels
MARGIN = 4.0  # percent of the width kept free at the right end
FAR = 2.5  # a demand further off than this many of the longest bar would leave nothing to see of the bars
BROKEN, BREAK = 72.0, 84.0  # percent of the width: where the longest bar then ends, and where the axis is broken

SHORT = {
    "bytes": "bytes",
    "decode": "decode",
    "crop": "crop",
    "finish": "mirror, mean, jitter",
    "device": "to the device",
    "loader": "hand-over",
    "ours": "alexshard, whole",
    "whole": "others, whole",
}


@dataclass(frozen=True, slots=True)
class Bar:
    """One setting: the wall time of an image in parts, in microseconds, by stage."""

    label: str
    parts_us: Mapping[str, float]
    heading: str = ""  # begins a group of bars
    told_us: Mapping[str, str] = field(default_factory=dict)  # parts in words, where they are no more than noise

    @property
    def total_us(self) -> float:
        return sum(self.parts_us.values())


def bar_of(label: str, stages: Sequence[Mapping[str, Any]], heading: str = "") -> Bar:
    """The bar of a report's `stages`."""
    noise = {row["stage"]: own_words(row) for row in stages if within_spread(row)}
    return Bar(label, {row["stage"]: row["own_us"] for row in stages}, heading, noise)


def picture(bars: Sequence[Bar], demand: float | None, described: str) -> Html:
    """An SVG of 100 % width; `demand` in images/s is a line across the bars."""
    content, height = _content(bars, demand)
    return element(
        "svg",
        content,
        width="100%",
        height=height,
        role="img",
        aria_label=described,
        class_="bars",
        overflow="visible",
    )


def picture_file(groups: Mapping[str, Sequence[Bar]], demand: float | None, lines: Sequence[str]) -> str:
    """Pictures by their titles as one file, with words below, and its own colours for light and dark."""
    width, line, y = 760, 18, 0
    parts: list[Html] = []
    for title, bars in groups.items():
        content, height = _content(bars, demand)
        parts.append(element("text", title, x=24, y=y + 28, class_="title"))
        parts.append(element("svg", content, x=24, y=y + 44, width=width - 48, height=height, overflow="visible"))
        y += 44 + height + 12
    for number, text in enumerate(lines):
        parts.append(element("text", text, x=24, y=y + 12 + line * number, class_="pale"))
    height = y + 12 + line * len(lines) + 8
    drawn = element(
        "svg",
        Html(f"<style>{CSS}</style>"),
        element("rect", width=width, height=height, class_="paper"),
        *parts,
        xmlns="http://www.w3.org/2000/svg",
        width=width,
        height=height,
        viewBox=f"0 0 {width} {height}",
        role="img",
        aria_label=", ".join(groups),
        class_="bars",
    )
    return f"{drawn}\n"


def _content(bars: Sequence[Bar], demand: float | None) -> tuple[Html, int]:
    longest = max(bar.total_us for bar in bars)
    asked = None if demand is None else 1e6 / demand
    inside = asked is not None and asked <= FAR * longest
    if asked is not None and not inside:
        axis, end = longest * (100 - MARGIN) / BROKEN, longest
    else:
        axis = end = max(longest, asked or 0.0)
    stages = [stage for stage in SHORT if any(bar.parts_us.get(stage, 0.0) > 0 for bar in bars)]
    top = LEGEND * math.ceil(len(stages) / 2) + 8
    parts: list[Html] = []
    y = top
    for bar in bars:
        if bar.heading:
            parts.append(element("text", bar.heading, x=0, y=y + 20, class_="heading"))
            y += 28
        parts += _bar(bar, y, axis)
        y += ROW
    parts = [*_legend(stages), *_axis(axis, end, top, y), *parts]  # the grid lies behind the bars
    if asked is not None and demand is not None:
        parts += _demand(min(asked, axis), demand, axis, top, y)
        if not inside:
            parts.append(element("text", "//", x=f"{BREAK}%", y=y + 15, text_anchor="middle", class_="pale"))
        y += 18
    # Letters lie over lines and bars, the demand over the bars.
    parts.sort(key=lambda part: part.startswith("<text"))
    return joined(parts), y + AXIS


def _bar(bar: Bar, y: int, axis: float) -> Iterator[Html]:
    rate = f"{per_s(1e6 / bar.total_us)} images/s, {bar.total_us:,.0f} µs" if bar.total_us else ""
    yield element("text", bar.label, x=0, y=y + 15)
    yield element("text", rate, x="100%", y=y + 15, text_anchor="end", class_="n")
    left = 0.0
    for stage, us in bar.parts_us.items():
        if us <= 0:
            continue
        yield element(
            "rect",
            element("title", f"{SHORT[stage]}: {bar.told_us.get(stage, f'{us:,.1f}')} µs an image"),
            x=_place(left, axis),
            y=y + 20,
            width=_place(us, axis),
            height=BAR,
            class_=f"part {stage}{' noise' if stage in bar.told_us else ''}",
        )
        left += us


def _legend(stages: Sequence[str]) -> Iterator[Html]:
    for number, stage in enumerate(stages):
        x, y = f"{number % 2 * 50}%", number // 2 * LEGEND
        yield element("rect", x=x, y=y + 3, width=11, height=11, class_=f"part {stage}")
        yield element("text", SHORT[stage], x=x, y=y + 13, dx=17)


def _axis(axis: float, end: float, top: int, y: int) -> Iterator[Html]:
    step = nice(end / 3)
    for number in range(int(end / step + 1e-9) + 1):
        x = _place(number * step, axis)
        yield element("line", x1=x, x2=x, y1=top, y2=y, class_="grid")
        anchor = "start" if number == 0 else "middle"
        unit = " µs" if number == 0 else ""
        yield element("text", f"{number * step:,g}{unit}", x=x, y=y + 15, text_anchor=anchor, class_="pale")


def _demand(asked: float, demand: float, axis: float, top: int, y: int) -> Iterator[Html]:
    x = _place(asked, axis)
    yield element("line", x1=x, x2=x, y1=top, y2=y, class_="demand")
    anchor = "start" if asked < axis / 3 else "end" if asked > axis * 2 / 3 else "middle"
    yield element(
        "text",
        f"the trainer asks for {per_s(demand)} images/s, {1e6 / demand:,.0f} µs",
        x=x,
        y=y + 34,
        text_anchor=anchor,
        class_="asked",
    )


def _place(us: float, axis: float) -> str:
    return f"{us / axis * (100 - MARGIN):.3f}%"


def nice(length: float) -> float:
    """The largest of 1, 2, 5 times a power of ten that is not longer.

    >>> nice(83), nice(250), nice(0.7)
    (50.0, 200.0, 0.5)
    """
    power = 10.0 ** math.floor(math.log10(length))
    return next(float(f"{digit * power:.12g}") for digit in (5, 2, 1) if digit * power <= length * (1 + 1e-9))
