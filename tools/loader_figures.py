"""Figures of `tools/bench_loader`: what repeated runs gave, and what they used. Values and arithmetic alone."""

from __future__ import annotations

import statistics
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from itertools import accumulate
from typing import Any

ALMOST = 0.8  # of the cores that decoding asks for: with less, threads waited


@dataclass(frozen=True, slots=True)
class Rate:
    """Images per second of repeated runs."""

    median: float
    min: float
    max: float
    runs: tuple[float, ...]

    @classmethod
    def of(cls, runs: Sequence[float]) -> Rate:
        return cls(statistics.median(runs), min(runs), max(runs), tuple(runs))


@dataclass(frozen=True, slots=True)
class Run:
    """One run: images by the clock, the CPU time of the whole process, memory while it ran."""

    images: float  # of several ranks: what they would have given in the longest of their times
    seconds: float
    user_s: float
    system_s: float
    rss_bytes: int  # resident, the most seen
    own_bytes: int  # of these, not pages of files
    device_bytes: int = 0  # taken on the card, the most seen
    store_s: float = 0.0  # waited for a shard to come from a store
    waited_s: float = 0.0  # the trainer waited for a batch

    @property
    def images_per_s(self) -> float:
        return self.images / self.seconds


def added(runs: Sequence[Run]) -> Run:
    """Runs of several ranks at the same time as one: rates, cores and memory add up; the slowest ends it."""
    seconds = max(run.seconds for run in runs)
    rate = sum(run.images_per_s for run in runs)

    def total(name: str) -> float:
        return seconds * sum(float(getattr(run, name)) / run.seconds for run in runs)

    return Run(
        images=rate * seconds,
        seconds=seconds,
        user_s=total("user_s"),
        system_s=total("system_s"),
        rss_bytes=sum(run.rss_bytes for run in runs),
        own_bytes=sum(run.own_bytes for run in runs),
        device_bytes=sum(run.device_bytes for run in runs),
        store_s=total("store_s") / len(runs),
        waited_s=total("waited_s") / len(runs),
    )


def figures(runs: Sequence[Run]) -> dict[str, Any]:
    """What a report says of repeated runs: rates, and of the rest the median."""

    def middle(values: Iterable[float]) -> float:
        return statistics.median(values)

    return {
        "images_per_s": asdict(Rate.of([run.images_per_s for run in runs])),
        "user_cores": middle(run.user_s / run.seconds for run in runs),
        "system_cores": middle(run.system_s / run.seconds for run in runs),
        "cpu_us_per_image": middle(1e6 * (run.user_s + run.system_s) / run.images for run in runs),
        "store_share": middle(run.store_s / run.seconds for run in runs),
        # The least of the runs: later ones have beside them what earlier ones of other stages left for reuse.
        "rss_bytes": min(run.rss_bytes for run in runs),
        "own_bytes": min(run.own_bytes for run in runs),
        "device_bytes": min(run.device_bytes for run in runs),
    }


def starved(decode_cores: float, *, decoder: str, threads: int, cores: int) -> bool:
    """Whether threads that only decode, of all ranks, did not get the cores that they asked for.

    What they wait for is the cores, where images lie in memory.
    """
    return decoder == "cores" and decode_cores < ALMOST * min(threads, cores)


def own_us_per_image(rates: Mapping[str, float]) -> dict[str, float]:
    """Microseconds an image that each stage adds to those before it; their sum is what the last one takes.

    A stage contains those before it: where one was measured to be slower than a later one, by chance or because
    the later one does things at the same time, it is taken to cost what the later one does.
    """
    times = list(accumulate((1e6 / rate for rate in reversed(list(rates.values()))), min))
    return {
        stage: time - before for stage, before, time in zip(rates, [0.0, *times[:0:-1]], times[::-1], strict=True)
    }


def within_spread(row: Mapping[str, Any]) -> bool:
    """Whether what a stage adds is no more than what its runs differ by: then it was not seen."""
    return bool(row["own_us"] < _spread_us(row))


def own_words(row: Mapping[str, Any]) -> str:
    """A stage's own microseconds an image; where they are within the spread of its runs, the most they can be."""
    return f"≤ {max(1.0, _spread_us(row)):,.0f}" if within_spread(row) else f"{row['own_us']:,.0f}"


def _spread_us(row: Mapping[str, Any]) -> float:
    rate = row["images_per_s"]
    return float(1e6 / rate["min"] - 1e6 / rate["max"])


def factor(times: float) -> str:
    """How many times, with the digits that a reader needs.

    >>> factor(125.83), factor(3.27), factor(1.043)
    ('126', '3.3', '1.04')
    """
    return f"{times:,.0f}" if times >= 20 else f"{times:.1f}" if times >= 1.95 else f"{times:.2f}"


def per_s(rate: float) -> str:
    """Images per second, with the digits that a reader needs.

    >>> per_s(2540.3), per_s(31.24)
    ('2,540', '31.2')
    """
    return f"{rate:,.0f}" if rate >= 100 else f"{rate:.1f}"
