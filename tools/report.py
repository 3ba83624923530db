"""A command's result on stdout: text for people, or with `--json` one object with a `schema` number."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import click

from ..shards import AlexshardError

SCHEMA = 1
_ESCAPED = re.compile("[\x7f-\x9f\ud800-\udfff]")


def json_text(content: Any, **how: Any) -> str:
    r"""JSON with letters as they are, and escaped what acts on a terminal or is half of a character.

    >>> print(json_text({"name": "é\x9b31m\udce9"}))
    {"name": "é\u009b31m\udce9"}
    """
    text = json.dumps(content, ensure_ascii=False, **how)
    return _ESCAPED.sub(lambda found: f"\\u{ord(found[0]):04x}", text)


def print_json(content: Mapping[str, Any]) -> None:
    """Print one JSON object."""
    click.echo(json_text({"schema": SCHEMA, **content}, indent=1))


@contextmanager
def json_on_failure(as_json: bool, *, lines: bool = False) -> Iterator[None]:
    """With `--json` an error too is one object on stdout; its message goes to stderr and its exit code stays.

    With `lines` it is an event in a line, as those before it.
    """
    try:
        yield
    except AlexshardError as error:
        if as_json:
            about = {"what": error.what, "where": error.where, "why": error.why, "remedy": error.remedy}
            from .shown import json_line  # which takes SCHEMA from here

            failure = {"error": about, "exit_code": error.exit_code}
            click.echo(json_line("error", **failure)) if lines else print_json(failure)
        raise
