"""`tools/bench_loader --html`: the report as a page with its picture, in one file that asks for no other."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from .. import __version__
from .info_html import Html, document, element, joined, table
from .loader_chart import CSS, picture, picture_file
from .loader_report import Table, demand_of, facts_of, pictures_of, tables_of

_PAGE = (Path(__file__).parent / "info_page.css").read_text(encoding="utf-8")
_OWN = """
header .verdict {
  color: var(--ink); font-size: 1.25rem; line-height: 1.4; max-width: 46rem; margin: 0.75rem 0 0;
  overflow-wrap: anywhere;
}
.bars { max-width: 46rem; margin-top: 1rem; }
.verdict code { font-size: inherit; }
td:last-child:not(.n) { min-width: 14rem; }
"""


def page(report: dict[str, Any], when: str) -> str:
    """The page of a report; `when` it was measured, in words."""
    body = [
        element(
            "header",
            element("h1", "Where the loader's time goes"),
            element("p", f"{report['shard_set']}, {when}"),
            _verdict(report["verdict"]["text"]),
        ),
        element("main", *_pictures(report), *(_table(each) for each in tables_of(report)), _facts(report)),
        element("footer", element("p", f"Measured by bench_loader of alexshard {__version__}.")),
    ]
    return document("bench_loader · alexshard", _PAGE + CSS + _OWN, joined(body))


def picture_of(report: dict[str, Any], when: str) -> str:
    """The pictures alone, an SVG file."""
    about = facts_of(report)
    lines = [about["machine"], about["batches"], f"{about['shard set']}; {when}"]
    return picture_file(pictures_of(report), demand_of(report), lines)


def _pictures(report: dict[str, Any]) -> Iterator[Html]:
    told = "The wall time of an image as the trainer gets it, in µs"
    for number, (title, bars) in enumerate(pictures_of(report).items()):
        words = f"{told}, and what each stage adds to it." if number == 0 else f"{told}: all at the same work."
        if number == 0 and demand_of(report) is None:
            words += f" The trainer's demand: {report['training_note']}."
        drawn = picture(bars, demand_of(report), f"bar chart: {title.lower()}")
        yield element("section", element("h2", title), element("p", words), drawn)


def _verdict(text: str) -> Html:
    """Options are not broken at the ends of lines."""
    parts = re.split(r"(--[a-z][a-z-]+)", text)
    return element("p", *(element("code", part) if part[:2] == "--" else part for part in parts), class_="verdict")


def _table(each: Table) -> Html:
    told = each.note or "The median of the runs; in brackets the least and the most."
    drawn = table(told, each.header, each.rows, numbers=each.numbers)
    return element("section", element("h2", each.title), drawn)


def _facts(report: dict[str, Any]) -> Html:
    pairs = (element("div", element("dt", name), element("dd", value)) for name, value in facts_of(report).items())
    return element("section", element("h2", "Measured on"), element("dl", *pairs))
