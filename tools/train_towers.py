"""Two towers for `tools/bench_train`: what crosses in a step, and how long both compute at once.

At once is told by the spans that the towers' threads record on the cores; on cards torch's own streams do it, and
a trace of the card shows it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import asdict
from typing import Any

from ..pipeline import Trace
from ..trainer import Recipe, TwoTowers, crossing_bytes
from .train_clock import Clock

Interval = tuple[float, float]


def tower_step(
    network: TwoTowers, take: Callable[[], None], clock: Clock, recipe: Recipe, side: int
) -> dict[str, Any]:
    """One step that `take` takes: bytes, and shares of its time."""
    before = network.crossed
    with Trace(None) as trace:
        began = clock.mark()
        take()
        clock.wait()
        ended = clock.mark()
        clock.wait()
    crossed = network.crossed - before
    busy = busy_intervals(trace.events())
    seconds = clock.seconds(began, ended)
    shares = None
    if all(busy):
        either, both = union([*busy[0], *busy[1]]), overlap(*map(union, busy))
        shares = {
            "both_share": both / 1e6 / seconds,
            "one_share": (length(either) - both) / 1e6 / seconds,
            "neither_share": 1 - length(either) / 1e6 / seconds,
        }
    return {
        **{name: number for name, number in asdict(crossed).items() if name != "image_bytes"},
        "crossed_bytes": crossed.forward_bytes + crossed.backward_bytes,
        "expected_bytes": crossing_bytes(recipe, side, recipe.batch_size),
        "image_bytes": crossed.image_bytes,
        "at_once": shares,
    }


def busy_intervals(events: Iterable[dict[str, Any]]) -> tuple[list[Interval], list[Interval]]:
    """When each tower computed, microseconds, from spans named `tower 0 …` and `tower 1 …`."""
    found: tuple[list[Interval], list[Interval]] = [], []
    for event in events:
        for number in (0, 1):
            if event["ph"] == "X" and event["name"].startswith(f"tower {number} "):
                found[number].append((event["ts"], event["ts"] + event["dur"]))
    return found


def union(intervals: Iterable[Interval]) -> list[Interval]:
    """The same moments in intervals that do not meet.

    >>> union([(3, 4), (0, 2), (1, 2.5)])
    [(0, 2.5), (3, 4)]
    """
    joined: list[Interval] = []
    for began, ended in sorted(intervals):
        if joined and began <= joined[-1][1]:
            joined[-1] = joined[-1][0], max(joined[-1][1], ended)
        else:
            joined.append((began, ended))
    return joined


def overlap(one: Iterable[Interval], other: Iterable[Interval]) -> float:
    """How long moments lie in both; each of intervals that do not meet.

    >>> overlap([(0, 2), (5, 8)], [(1, 6)])
    2
    """
    others = list(other)
    return sum(max(0, min(a[1], b[1]) - max(a[0], b[0])) for a in one for b in others)


def length(intervals: Iterable[Interval]) -> float:
    """Of intervals that do not meet."""
    return sum(ended - began for began, ended in intervals)
