"""Documents are run: doctests of every module, and the links of every page."""

from __future__ import annotations

import doctest
import importlib
import re
from pathlib import Path

import alexshard
import pytest

ROOT = Path(alexshard.__file__).parent
MODULES = sorted(
    ".".join(("alexshard", *path.relative_to(ROOT).with_suffix("").parts))
    for package in ("shards", "pipeline", "trainer", "tools")
    for path in (ROOT / package).rglob("*.py")
    if path.name != "__init__.py"
)
PAGES = sorted([*ROOT.glob("*.md"), *ROOT.glob("docs/**/*.md"), ROOT / "shards" / "README.md"])


@pytest.mark.parametrize(
    "name",
    [
        name
        for name in MODULES
        if ">>>" in (ROOT / Path(*name.split(".")[1:]).with_suffix(".py")).read_text(encoding="utf-8")
    ],
)
def test_examples_in_docstrings_are_true(name: str) -> None:
    result = doctest.testmod(importlib.import_module(name))

    assert result.attempted > 0
    assert result.failed == 0


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_every_link_of_a_page_leads_somewhere(page: Path) -> None:
    links = re.findall(r"\]\(([^)#]+)[^)]*\)", page.read_text(encoding="utf-8"))
    broken = [link for link in links if "://" not in link and not (page.parent / link).exists()]

    assert broken == []
