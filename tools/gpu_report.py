"""The table of `tools/gpu_check`: a row is told as soon as it is there, and both files are whole after each."""

from __future__ import annotations

import json
import math
import statistics
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal

import click

from ..shards import appearing_whole

SCHEMA = 1  # of --json

# A measured figure; one that is what it should be, or is not; what could not be measured, and what was not tried.
Verdict = Literal["told", "right", "wrong", "failed", "left out"]
_BAD = ("wrong", "failed")


@dataclass(frozen=True, slots=True)
class Row:
    """One line of the table."""

    what: str
    figure: str
    spread: str = ""  # least–most of the runs
    n: str = ""  # of what the figure is the median, or the sum
    verdict: Verdict = "told"
    values: Mapping[str, Any] = field(default_factory=dict)  # the same for machines, units in the names

    @classmethod
    def held(cls, what: str, figure: str, holds: bool, *, n: str = "", **values: Any) -> Row:
        """A figure that has to be within its bound."""
        return cls(what, figure, n=n, verdict="right" if holds else "wrong", values=values)

    @classmethod
    def of_runs(cls, what: str, unit: str, runs: Sequence[float], *, note: str = "", **values: Any) -> Row:
        """The median of repeated runs, with the least and the most."""
        middle = statistics.median(runs)
        figure = f"{number(middle)} {unit}" + (f"; {note}" if note else "")
        spread = f"{number(min(runs))}–{number(max(runs))}"
        return cls(what, figure, spread, f"{len(runs)} runs", values={"unit": unit, "runs": list(runs), **values})


class Report:
    """The rows so far. Every row is printed at once, and `out` and `json_file` are written anew."""

    def __init__(
        self, about: Mapping[str, str], *, command: str, out: Path | None = None, json_file: Path | None = None
    ) -> None:
        self.about, self.command, self._out, self._json = dict(about), command, out, json_file
        self.rows: list[tuple[str, Row]] = []
        self._traces: dict[int, str] = {}  # by the row's number
        self._began, self._at_s = time.monotonic(), list[float]()
        for name, value in self.about.items():
            click.echo(f"{name:10} {value}")
        self._write()

    def add(self, question: str, row: Row, *, trace: str | None = None) -> None:
        """One more row; `trace` is of the error that it tells of."""
        if trace is not None:
            self._traces[len(self.rows)] = trace
        self.rows.append((question, row))
        self._at_s.append(round(time.monotonic() - self._began, 1))
        behind = "; ".join(filter(None, (row.spread, row.n)))
        click.echo(f"{question:8} {row.what}: {_told(row)}" + (f"  ({behind})" if behind else ""))
        self._write()

    @property
    def exit_code(self) -> int:
        """1 where an answer is wrong or could not be had."""
        return int(any(row.verdict in _BAD for _, row in self.rows))

    def to_markdown(self) -> str:
        """The table as docs/gpu.md holds it."""
        lines = [f"| {name} | {_cell(value)} |" for name, value in self.about.items()]
        rows = [
            f"| {question} | {_cell(row.what)} | {_cell(_told(row))} | {_cell(row.spread)} | {_cell(row.n)} | "
            f"`{_cell(self._command(question))}` |"
            for question, row in self.rows
        ]
        head = ["| | what | figure | spread | n | command |", "|---|---|---|---|---|---|"]
        return "\n".join(["| about | |", "|---|---|", *lines, "", *head, *rows, ""])

    def to_json(self) -> dict[str, Any]:
        """One object."""
        rows = [
            {
                "question": question,
                **asdict(row),
                "at_s": self._at_s[place],  # since the beginning
                "command": self._command(question),
                **({"trace": self._traces[place]} if place in self._traces else {}),
            }
            for place, (question, row) in enumerate(self.rows)
        ]
        return {"schema": SCHEMA, "about": self.about, "rows": rows, "exit_code": self.exit_code}

    def _command(self, question: str) -> str:
        """The one that asks this question alone."""
        return f"{self.command} --only {question}" if question != "headline" else self.command

    def _write(self) -> None:
        for path, text in (
            (self._out, self.to_markdown),
            (self._json, lambda: json.dumps(_sound(self.to_json()), indent=1, ensure_ascii=False) + "\n"),
        ):
            if path is not None:
                with appearing_whole(path) as file:
                    file.write(text().encode("utf-8"))


def number(value: float) -> str:
    """With the digits that a reader needs.

    >>> number(31535.4), number(31.24), number(4.136), number(0.000125), number(0)
    ('31,535', '31.2', '4.14', '0.000125', '0')
    """
    if value == 0 or not math.isfinite(value):
        return f"{value:g}"
    return f"{value:,.0f}" if abs(value) >= 100 else f"{value:.3g}"


def _sound(value: Any) -> Any:
    """JSON has no number for what is none."""
    if isinstance(value, Mapping):
        return {name: _sound(each) for name, each in value.items()}
    if isinstance(value, list | tuple):
        return [_sound(each) for each in value]
    return str(value) if isinstance(value, float) and not math.isfinite(value) else value


def _told(row: Row) -> str:
    return {"wrong": f"WRONG: {row.figure}", "failed": f"failed: {row.figure}"}.get(
        row.verdict, f"left out: {row.figure}" if row.verdict == "left out" else row.figure
    )


def _cell(text: str) -> str:
    return " ".join(text.replace("|", "\\|").split())
