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
  color: var(--ink); font-size: 1.25rem; line-height: 1.4; max-width: 64rem; margin: 0.75rem 0 0;
  overflow-wrap: anywhere;
}
.bars { margin-top: 1rem; }
.verdict code { font-size: inherit; }
td:last-child:not(.n) { min-width: 14rem; }
@media (max-width: 64rem) {
  table, tbody, tr, th, caption { display: block; }
  thead { display: none; }
  tr { padding: 0.6rem 0; border-top: 1px solid var(--line); }
  tbody th, td, td:last-child:not(.n) { padding: 0.1rem 0; border: 0; white-space: normal; min-width: 0; }
  td, td.n { display: flex; justify-content: space-between; gap: 1rem; white-space: normal; text-align: right; }
  td:empty { display: none; }
  td::before { content: attr(data-name); color: var(--pale); text-align: left; }
}
@media (max-width: 40rem) {
  caption { max-width: calc(100vw - 2rem); }
  thead th, tbody th { white-space: normal; }
  thead th:first-child { min-width: 7rem; }
}
"""


def page(report: dict[str, Any], when: str) -> str:
    """The page of a report; `when` it was measured, in words."""
    body = [
        element(
            "header",
            element("h1", "Where the loader's time goes"),
            element("p", f"{_name(report)}, {when}"),
            _verdict(report["verdict"]["text"]),
        ),
        element("main", *_pictures(report), *(_table(each) for each in tables_of(report)), _facts(report)),
        element("footer", element("p", f"Measured by bench_loader of alexshard {__version__}.")),
    ]
    return document("bench_loader · alexshard", _PAGE + CSS + _OWN, joined(body))


def _name(report: dict[str, Any]) -> str:
    """The set's name: where it lies on this machine stands with what was measured on."""
    shown = str(report["shard_set"])
    return shown.rstrip("/").rsplit("/", 1)[-1] or shown


def picture_of(report: dict[str, Any], when: str) -> str:
    """The pictures alone, an SVG file."""
    about = facts_of(report)
    lines = [about["machine"], about["batches"], f"{about['shard set']}; {when}"]
    return picture_file(pictures_of(report), demand_of(report), lines)


def _pictures(report: dict[str, Any]) -> Iterator[Html]:
    told = "The wall time of an image as the trainer gets it, in µs (its images/s beside it)"
    for number, (title, bars) in enumerate(pictures_of(report).items()):
        words = (
            f"{told}, and what each stage adds to it; paler: no more than its runs differ by."
            if number == 0
            else f"{told}: all at the same work."
        )
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
    drawn = table(told, each.header, each.rows, numbers=each.numbers, named=True)
    return element("section", element("h2", each.title), drawn)


def _facts(report: dict[str, Any]) -> Html:
    pairs = (element("div", element("dt", name), element("dd", value)) for name, value in facts_of(report).items())
    return element("section", element("h2", "Measured on"), element("dl", *pairs))
