"""HTML that cannot be broken by what is written into it: text is escaped unless it was made here.

What comes out is HTML and well-formed XML at once, so that any parser can check it.
"""

from __future__ import annotations

import html
from collections.abc import Iterable, Sequence

from ..shards import printable

_VOID = {"img", "meta", "rect"}


class Html(str):
    """Text that is markup already; only the functions of this module make it."""

    __slots__ = ()


def element(tag: str, *children: object, **attributes: object) -> Html:
    """`<tag …>children</tag>`; children that are no Html are text. `class_` is written class, `a_b` a-b.

    >>> element("td", "<b>", 5, class_="n")
    '<td class="n">&lt;b&gt;5</td>'
    """
    names = {name.removesuffix("_").replace("_", "-"): value for name, value in attributes.items()}
    words = "".join(
        f' {name}="{html.escape(printable(str(value)))}"' for name, value in names.items() if value is not None
    )
    if tag in _VOID and not children:
        return Html(f"<{tag}{words}/>")
    return Html(f"<{tag}{words}>{joined(children)}</{tag}>")


def joined(parts: Iterable[object]) -> Html:
    """Parts one after the other."""
    return Html("".join(part if isinstance(part, Html) else _text(part) for part in parts))


def style(css: str) -> Html:
    """A style sheet, which must be our own: nothing in it is escaped."""
    if "<" in css or "&" in css:
        raise ValueError("a style sheet with markup in it")
    return Html(f"<style>{css}</style>")


def table(
    caption: str,
    header: Sequence[str],
    rows: Iterable[Sequence[object]],
    *,
    numbers: Sequence[int] = (),
    class_: str | None = None,
    named: bool = False,
) -> Html:
    """A table that may be wider than the page; a row begins with its header, `numbers` are aligned right.

    `named`: each figure knows its column's name, for a page so narrow that a row becomes a list.
    """

    def cell(tag: str, place: int, content: object, **attributes: object) -> Html:
        return element(tag, content, class_="n" if place in numbers else None, **attributes)

    head = element("tr", *(cell("th", place, name, scope="col") for place, name in enumerate(header)))
    body = [
        element(
            "tr",
            cell("th", 0, row[0], scope="row"),
            *(
                cell("td", place, content, data_name=header[place] if named else None)
                for place, content in enumerate(row[1:], start=1)
            ),
        )
        for row in rows
    ]
    content = element(
        "table", element("caption", caption), element("thead", head), element("tbody", *body), class_=class_
    )
    # Tables wider than a phone are moved on their own; by keyboard too, hence the tabindex.
    return element("div", content, class_="wide", tabindex=0, role="region", aria_label=caption)


def document(title: str, css: str, body: Html) -> str:
    """A page that asks nobody for anything: its policy forbids every request."""
    policy = "default-src 'none'; img-src data:; style-src 'unsafe-inline'"
    head = element(
        "head",
        element("meta", charset="utf-8"),
        element("meta", http_equiv="Content-Security-Policy", content=policy),
        element("meta", name="viewport", content="width=device-width, initial-scale=1"),
        element("meta", name="color-scheme", content="light dark"),
        element("title", title),
        style(css),
    )
    return "<!DOCTYPE html>\n" + element("html", head, element("body", body), lang="en") + "\n"


def _text(value: object) -> str:
    return html.escape(printable(f"{value:,}" if type(value) is int else str(value)))
