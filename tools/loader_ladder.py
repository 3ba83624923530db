"""Running the ladder of `tools/bench_loader`: stages of loaders, and peers, in turns."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass, replace
from typing import Any

from ..pipeline import STAGES, Loader, Stages
from ..trainer import Ranks
from .loader_figures import Run, added, figures, own_us_per_image
from .loader_meter import Meter, timed
from .loader_peers import settled

Open = Callable[[], Loader]


@dataclass(frozen=True, slots=True)
class How:
    """How often and how long; who measures too; who is told of each run."""

    repeats: int
    seconds: float
    ranks: Ranks
    on_run: Callable[[str], None]


def meanings(output: str) -> dict[str, str]:
    """What each stage does more than the one before it, for people."""
    return {
        "bytes": "stored bytes read and checked",
        "decode": "+ decode",
        "crop": "+ crop, into batches of bytes",
        "finish": "+ mirror" if output == "uint8" else f"+ mirror, mean, jitter, as {output}",
        "device": "+ to the device",
        "loader": "as the trainer gets it: background thread, prefetch",
    }


def run_stages(loader: Loader, how: How) -> dict[str, list[Run]]:
    """One run of each stage; of each, that of every rank."""
    stages, found = Stages(loader), {}
    for stage in STAGES:
        meter = Meter(loader.device, lambda: loader.times.store_s)
        with closing(stages.batches(stage)) as work:
            mine = timed(work, seconds=how.seconds, ahead=stages.ahead(stage), meter=meter, ranks=how.ranks)
        found[stage] = how.ranks.gathered(mine)
        how.on_run(stage)
    return found


def run_replay(loader: Loader, how: How) -> list[Run]:
    """Batches kept in memory, handed over as the loader hands over its own: the hand-over's limit."""
    stages = Stages(loader)
    with closing(stages.replayed(stages.kept())) as batches:
        work = (len(batch) for batch in batches)
        mine = timed(
            work,
            seconds=how.seconds / 2,
            ahead=stages.ahead("loader"),
            meter=Meter(loader.device),
            ranks=how.ranks,
        )
    return how.ranks.gathered(mine)


def run_ladder(
    loader: Loader, rivals: Mapping[str, Callable[[], Run]], how: How
) -> tuple[dict[str, list[list[Run]]], dict[str, list[list[Run]]]]:
    """Runs of each stage, of "replay" and of each rival, which take turns; of each run that of every rank."""
    own: dict[str, list[list[Run]]] = {stage: [] for stage in (*STAGES, "replay")}
    others: dict[str, list[list[Run]]] = {name: [] for name in rivals}
    for _ in range(how.repeats):
        if rivals:
            settled()  # the last of them still makes batches ahead
        for stage, runs in run_stages(loader, how).items():
            own[stage].append(runs)
        own["replay"].append(run_replay(loader, how))
        how.on_run("replay")
        for name, turn in rivals.items():
            others[name].append([turn()])
            how.on_run(name)
    return own, others


def stage_rows(runs: Mapping[str, Sequence[Sequence[Run]]], output: str) -> list[dict[str, Any]]:
    """What the report says of the stages, in order."""
    about = {stage: figures([added(everyone) for everyone in runs[stage]]) for stage in STAGES}
    own = own_us_per_image({stage: each["images_per_s"]["median"] for stage, each in about.items()})
    said = meanings(output)
    return [
        {"stage": stage, "meaning": said[stage], "own_us": own[stage], **each} for stage, each in about.items()
    ]


def rank_rows(runs: Sequence[Sequence[Run]]) -> list[dict[str, Any]]:
    """Each rank's part of what all get, from the runs of the last stage."""
    everyone = [figures(mine) for mine in zip(*runs, strict=True)]
    total = sum(each["images_per_s"]["median"] for each in everyone)
    return [
        {
            "rank": rank,
            "images_per_s": each["images_per_s"],
            "share": each["images_per_s"]["median"] / total,
            "cores": each["user_cores"] + each["system_cores"],
            "rss_bytes": each["rss_bytes"],
        }
        for rank, each in enumerate(everyone)
    ]


def run_sweep(settings: Mapping[str, Open], how: How) -> dict[str, dict[str, list[list[Run]]]]:
    """Runs of each stage of each setting, which take turns.

    A loader lives for one turn, so that none is measured with another's memory beside it.
    """
    found: dict[str, dict[str, list[list[Run]]]] = {name: {stage: [] for stage in STAGES} for name in settings}
    for _ in range(how.repeats):
        for name, opened in settings.items():
            with opened() as loader:

                def tell(stage: str, name: str = name) -> None:
                    how.on_run(f"{name}: {stage}")

                for stage, runs in run_stages(loader, replace(how, on_run=tell)).items():
                    found[name][stage].append(runs)
    return found
