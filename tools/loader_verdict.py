"""Which side is the limit, by how much, and what to turn: one line, computed from the figures of a report."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from .loader_figures import factor, own_us_per_image, per_s, starved

NEARLY = 0.05  # rates nearer to each other than this are called equal
NOTICED = 0.03  # a share of the trainer's time below this is not worth a word
IN_HAND = 1.5  # fewer threads are enough where they still give half as much again as is asked for


@dataclass(frozen=True, slots=True)
class Together:
    """The trainer fed by the loader. Seconds are those of one step, without the time it waited for its batch."""

    images_per_s: float
    waited_share: float  # of the trainer's time
    alone_s: float  # a step on a resident batch, nothing beside it
    beside_s: float  # a step with the loader beside it
    burnt_s: float | None  # a step beside as much CPU work that never takes Python's lock; None: not measured
    spread: float = 0.0  # (most − least) / median of the steps alone: what is smaller was not seen


@dataclass(frozen=True, slots=True)
class Findings:
    """What a verdict is computed from. Rates are images/s, of all ranks together."""

    rates: Mapping[str, float]  # by stage, in order; each stage contains those before it
    busy: Mapping[str, float]  # cores busy, by stage
    demand: float | None  # None: not measured
    together: Together | None
    threads: int  # of one rank
    cores: int  # of this machine that may be used
    encoding: str  # "jpeg" or "raw"
    device: str
    backend: str
    decoder: str
    mean: str
    output: str
    order: str
    ranks: int = 1
    remote: bool = False
    store_share: float = 0.0  # of the loader's time: waited for a shard to come from a store
    prefetch: int = 2
    room: int = 64  # the most that --prefetch can be for the memory that is free

    @property
    def given(self) -> float:
        return list(self.rates.values())[-1]

    @property
    def starved(self) -> bool:
        """Whether decoding alone did not get the cores it asked for."""
        threads = self.threads * self.ranks
        return starved(
            self.busy.get("decode", float(threads)), decoder=self.decoder, threads=threads, cores=self.cores
        )


@dataclass(frozen=True, slots=True)
class Verdict:
    """One line for people, and what it says for programs."""

    bottleneck: str  # a stage, "store", "trainer", "cores", "lock" or "none": both are equally fast
    factor: float | None  # how many times the other side outruns it; None: the demand is not known
    turn: tuple[str, ...] = field(default=())
    text: str = ""


def findings_of(
    about: Mapping[str, Any],
    stages: Sequence[Mapping[str, Any]],
    together: Together | None,
    *,
    demand: float | None,
    ranks: int,
    room: int,
) -> Findings:
    """What a report says of its settings and stages, with what it does not say."""
    chosen = about["settings"]
    names = ("threads", "device", "backend", "decoder", "mean", "output", "order", "prefetch")
    return Findings(
        rates={row["stage"]: row["images_per_s"]["median"] for row in stages},
        busy={row["stage"]: row["user_cores"] + row["system_cores"] for row in stages},
        demand=demand,
        together=together,
        cores=about["machine"]["cores"],
        encoding=about["stored"]["encoding"],
        ranks=ranks,
        remote=about["store"] is not None,
        store_share=stages[-1]["store_share"],
        room=min(64, room),
        **{name: chosen[name] for name in names},
    )


def judge(found: Findings) -> Verdict:
    """The verdict. Nothing is said of training where the trainer's demand was not measured."""
    verdict = _judged(found)
    if found.remote or not found.starved:
        return verdict
    busy = "Measured while threads that decode did not get their cores (a busy machine): rates can be higher."
    return replace(verdict, text=f"{busy} {verdict.text}")


def _judged(found: Findings) -> Verdict:
    stage = _costliest(found)
    turn = _turn(stage, found)
    given, demand = found.given, found.demand
    have = f"{_threads(found)} {'gives' if found.threads * found.ranks == 1 else 'give'} {per_s(given)} images/s"
    if demand is None:
        text = (
            f"{have[0].upper()}{have[1:]}; {_named(stage).lower()} costs most of the loader's time. "
            "Whether training waits is not said: the trainer's demand was not measured."
        )
        return Verdict(stage, None, (), text)
    together = found.together
    if abs(given / demand - 1) <= NEARLY:
        text = (
            f"Neither is the limit: {have}, the trainer asks for {per_s(demand)}; a faster trainer would wait "
            f"for {_named(stage).lower()}. Turn then: {', or '.join(turn)}."
        )
        return Verdict("none", given / demand, turn, text)
    if given < demand:
        got = f" (fed by it, it waited {together.waited_share:.0%} of its time)" if together else ""
        text = (
            f"{_named(stage)} is the limit: {have}, the trainer asks for {per_s(demand)}, "
            f"{factor(demand / given)} times as many{got}. Turn: {', or '.join(turn)}."
        )
        return Verdict(stage, demand / given, turn, text)
    if together and together.waited_share > NOTICED and _lost(together, demand) > max(NEARLY, together.spread):
        return _crowded(found, together, have)
    return _outrun(found, together, have)


def _outrun(found: Findings, together: Together | None, have: str) -> Verdict:
    """The loader gives more than is asked for, and the trainer did not wait."""
    assert found.demand is not None
    times = found.given / found.demand
    threads = _enough(found)
    fewer: tuple[str, ...] = (f"--threads {threads}",) if threads < found.threads else ()
    spare = f"; --threads {threads} should be enough" if fewer else "; no thread can be spared"
    if found.threads == 1:
        spare = "; one thread is enough"
    elif found.device != "cpu":
        spare = ""  # what the card does is no matter of threads
    said = (
        f"The trainer is the limit: it asks for {per_s(found.demand)} images/s, {have}, "
        f"{factor(times)} times as many{spare}"
    )
    slower = _slower(together)
    if together is None or slower <= max(NOTICED, together.spread):
        return Verdict("trainer", times, fewer, f"{said}.")
    kind, why = _whose(together, slower)
    turn = fewer or _fewer_cycles(found)
    text = f"{said}. Beside the loader a step takes {slower:.0%} longer, {why}. Turn: {', or '.join(turn)}."
    return Verdict(kind, times, turn, text)


def _crowded(found: Findings, together: Together, have: str) -> Verdict:
    """Alone the loader is fast enough, beside the trainer it is not."""
    assert found.demand is not None
    turn = ("more cores", *_fewer_cycles(found), *_more_prefetch(found))
    text = (
        f"They are in each other's way: alone {have} and the trainer asks for {per_s(found.demand)}, "
        f"but together it does {per_s(together.images_per_s)} and waits {together.waited_share:.0%} of its time. "
        f"Turn: {', or '.join(turn)}."
    )
    return Verdict("cores", found.given / found.demand, turn, text)


def _lost(together: Together, demand: float) -> float:
    """The part of its demand that the trainer did not get."""
    return 1 - together.images_per_s / demand


def _slower(together: Together | None) -> float:
    return 0.0 if together is None else together.beside_s / together.alone_s - 1


def _whose(together: Together, slower: float) -> tuple[str, str]:
    """Whether sharing the cores explains a slower step."""
    if together.burnt_s is None:
        return "cores", "by cores or Python's lock: which was not measured"
    by_cores = max(together.burnt_s / together.alone_s - 1, 0.0)
    rest = slower - by_cores
    if rest > max(by_cores, together.spread, NOTICED):
        return "lock", f"{by_cores:.0%} of it by sharing cores, the rest by memory or Python's lock"
    return "cores", f"as beside any work that takes these cores ({by_cores:.0%})"


def _enough(found: Findings) -> int:
    """The fewest threads that should still give half as much again as is asked for, if they share the work evenly.

    Threads beyond the cores give nothing; how many a card needs is not known.
    """
    assert found.demand is not None
    if found.device != "cpu":
        return found.threads
    each = found.given / min(found.threads, max(1, found.cores // found.ranks))
    return next((n for n in range(1, found.threads) if n * each >= IN_HAND * found.demand), found.threads)


def _costliest(found: Findings) -> str:
    idle = found.busy["loader"] < 0.5 * found.threads * found.ranks  # else others worked while one waited
    if found.remote and found.store_share > 0.5 and idle:
        return "store"
    own = own_us_per_image(found.rates)
    return max(own, key=lambda stage: own[stage])


def _threads(found: Findings) -> str:
    many = f"{found.threads} thread{'s' if found.threads > 1 else ''}"
    return many if found.ranks == 1 else f"{found.ranks} ranks of {many}"


NAMED = {
    "store": "The store",
    "bytes": "Reading",
    "decode": "Decode",
    "crop": "The crop",
    "finish": "Mirror, mean and jitter",
    "device": "The way to the device",
    "loader": "The hand-over",
}


def _named(stage: str) -> str:
    return NAMED[stage]


def _turn(stage: str, found: Findings) -> tuple[str, ...]:
    """What makes a stage faster, the nearest first."""
    on_cpu = found.device == "cpu"
    free = found.cores - found.threads * found.ranks
    more = max(found.cores // found.ranks, found.threads)
    by_cores: tuple[str, ...] = (f"--threads {more} (now {found.threads})",) if free > 0 else ("more cores",)
    raw = ("alexshard build --format raw",) if found.encoding == "jpeg" else ()
    if stage == "store":
        windowed = () if found.order == "windowed" else ("--order windowed, which reads ahead",)
        return (*windowed, "a faster link", "a --cache that holds the set")
    if stage == "bytes":
        if found.busy.get("bytes", 0.0) < 0.5 * found.threads * found.ranks:  # they wait for the disk
            seeks = ("--order windowed",) if found.order == "global" else ()
            busy = ("a quiet machine: threads that decode did not get their cores either",)
            return (*(busy if found.starved else ()), "memory that holds the shards", "a faster disk", *seeks)
        return by_cores
    if stage == "decode":
        if found.decoder in ("card", "split"):
            return (("--decoder split",) if found.decoder == "card" else ("more cores",)) + ("a faster card", *raw)
        card = () if on_cpu else ("--decoder split",)
        return (*by_cores, *card, *raw)
    if stage in ("crop", "finish"):
        threads = ("--backend threads",) if on_cpu and found.backend != "threads" else ()
        lighter = _lighter(found) if stage == "finish" else ()
        return (*threads, *(by_cores if on_cpu else ("a faster card",)), *lighter)
    if stage == "device":
        return (*_lighter(found), "a larger --batch-size")
    return (*_more_prefetch(found), "a larger --batch-size")


def _more_prefetch(found: Findings) -> tuple[str, ...]:
    """Twice as many batches ahead, or as many as there is memory for."""
    more = min(2 * found.prefetch, found.room)
    return (f"--prefetch {more} (now {found.prefetch})",) if more > found.prefetch else ()


def _lighter(found: Findings) -> tuple[str, ...]:
    channel = ("--mean channel",) if found.mean == "image" and found.output != "uint8" else ()
    return (*channel, *(() if found.output == "uint8" else ("--output uint8, for a trainer that normalises",)))


def _fewer_cycles(found: Findings) -> tuple[str, ...]:
    """What lets the loader take fewer cycles of the cores that the trainer computes on."""
    raw = ("alexshard build --format raw",) if found.encoding == "jpeg" else ()
    return (*_lighter(found), *raw) or ("more cores",)
