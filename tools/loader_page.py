"""`tools/bench_loader --html`: the report as a page with its picture, in one file that asks for no other."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from .. import __version__
from .info_html import Html, document, element, joined, table
from .loader_chart import CSS, picture, picture_file
from .loader_report import Table, bars_of, demand_of, facts_of, tables_of

_PAGE = (Path(__file__).parent / "info_page.css").read_text(encoding="utf-8")
_OWN = """
header .verdict {
  color: var(--ink); font-size: 1.25rem; line-height: 1.4; max-width: 46rem; margin: 0.75rem 0 0;
  overflow-wrap: anywhere;
}
.bars { max-width: 46rem; margin-top: 1rem; }
td:last-child:not(.n) { min-width: 14rem; }
"""
TITLE = "Where the time of an image goes"


def page(report: dict[str, Any], when: str) -> str:
    """The page of a report; `when` it was measured, in words."""
    body = [
        element(
            "header",
            element("h1", "Where the loader's time goes"),
            element("p", f"{report['shard_set']}, {when}"),
            element("p", report["verdict"]["text"], class_="verdict"),
        ),
        element("main", _picture(report), *(_table(each) for each in tables_of(report)), _facts(report)),
        element("footer", element("p", f"Measured by bench_loader of alexshard {__version__}.")),
    ]
    return document("bench_loader · alexshard", _PAGE + CSS + _OWN, joined(body))


def picture_of(report: dict[str, Any], when: str) -> str:
    """The picture alone, an SVG file."""
    about = facts_of(report)
    lines = [about["machine"], about["batches"], f"{about['shard set']}; {when}"]
    return picture_file(bars_of(report), demand_of(report), TITLE, lines)


def _picture(report: dict[str, Any]) -> Html:
    drawn = picture(bars_of(report), demand_of(report), f"bar chart: {TITLE.lower()}")
    told = "The wall time of an image as the trainer gets it, and what each stage adds to it."
    if demand_of(report) is None:
        told += f" The trainer's demand: {report['training_note']}."
    return element("section", element("h2", TITLE), element("p", told), drawn)


def _table(each: Table) -> Html:
    told = each.note or "The median of the runs; in brackets the least and the most."
    drawn = table(told, each.header, each.rows, numbers=each.numbers)
    return element("section", element("h2", each.title), drawn)


def _facts(report: dict[str, Any]) -> Html:
    pairs = (element("div", element("dt", name), element("dd", value)) for name, value in facts_of(report).items())
    return element("section", element("h2", "Measured on"), element("dl", *pairs))
