"""What a report of `tools/bench_loader` says to people: facts and tables, for the terminal and for the page."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from ..shards import byte_size
from .loader_chart import Bar, bar_of
from .loader_figures import own_words, per_s, starved, within_spread
from .terminal import facts, table

RATE = "images/s: median [least..most]"
MODES = {
    "resident": "its demand: steps on a batch that stays",
    "replayed": "headroom: the loader's batches, replayed from memory",
    "fed": "together: fed by the loader",
    "burnt": "beside as much other CPU work, without Python's lock",
}


@dataclass(frozen=True, slots=True)
class Table:
    """One table; the first column names the row, `note` is said below it."""

    title: str
    header: tuple[str, ...]
    rows: Sequence[tuple[str, ...]]
    note: str = ""
    numbers: tuple[int, ...] = field(default=())  # columns of numbers


def facts_of(report: dict[str, Any]) -> dict[str, str]:
    """On what the figures were measured."""
    stored, machine, chosen = report["stored"], report["machine"], report["settings"]
    kind = "raw" if stored["encoding"] == "raw" else f"JPEG quality {stored['quality']}"
    many = "" if chosen["window"] == 1 else "s"
    order = chosen["order"] + (f" of {chosen['window']} shard{many}" if chosen["window"] else "")
    decoder = chosen["decoder"]
    if chosen["split_share"] is not None:
        decoder += f" ({chosen['split_share']:.0%} on the card)"
    laid = ", channels last" if chosen["channels_last"] else ""
    ranks = f"{len(report['ranks'])} ranks at the same time; " if report["ranks"] else ""
    names = ", ".join(machine["names"])
    return {
        "machine": f"{names}, {machine['cores']} cores, {byte_size(machine['memory_bytes'])}",
        "versions": ", ".join(f"{name} {number}" for name, number in report["versions"].items()),
        "shard set": f"{report['shard_set']}, {report['split']}, {report['samples']:,} images, "
        f"{stored['side']}x{stored['side']} {kind}",
        "batches": f"{chosen['batch_size']} images of {report['side']}x{report['side']} on {chosen['device']}, "
        f"{chosen['output']}{laid}, {byte_size(report['batch_bytes'])}, mean {chosen['mean']}, "
        f"augmented as {chosen['preset']}",
        "settings": f"backend {chosen['backend']}, decoder {decoder}, threads {chosen['threads']}, "
        f"prefetch {chosen['prefetch']}, order {order}",
        "runs": f"{ranks}{chosen['repeats']} of {chosen['seconds']:g} s each, in turns",
    }


def tables_of(report: dict[str, Any]) -> list[Table]:
    """Every table that the report has something for, in the order of reading."""
    found = [_ladder(report), _training(report), _peers(report), *_sweep(report), _ranks(report)]
    return [each for each in found if each is not None]


def _ladder(report: dict[str, Any]) -> Table:
    on_card = report["settings"]["device"] != "cpu"
    rows = [
        (
            row["meaning"],
            rate_words(row["images_per_s"]),
            own_words(row),
            f"{row['user_cores']:.2f} + {row['system_cores']:.2f}",
            byte_size(row["rss_bytes"]),
            *((byte_size(row["device_bytes"]),) if on_card else ()),
        )
        for row in report["stages"]
    ]
    replay = report["replay"]
    if replay is not None:
        cores = f"{replay['user_cores']:.2f} + {replay['system_cores']:.2f}"
        memory = byte_size(replay["rss_bytes"])
        card = (byte_size(replay["device_bytes"]),) if on_card else ()
        rows.append(
            ("batches from memory, handed over", rate_words(replay["images_per_s"]), "", cores, memory, *card)
        )
    header = (
        "stage",
        RATE,
        "own µs/image",
        "cores busy: user + system",
        "memory",
        *(("card",) if on_card else ()),
    )
    notes = []
    if (store := report["store"]) is not None:
        notes.append(
            f"{store['shards']:,} shards came from the store, {byte_size(store['bytes'])}; "
            f"somebody waited for them {store['stalled_s']:.1f} s in all, "
            f"and {report['stages'][-1]['store_share']:.1%} of the runs as the trainer gets it."
        )
    if report["peers"]:
        notes.append("Memory is that of the process, with all the others open.")
    if any(within_spread(row) for row in report["stages"]):
        notes.append("≤: the stage costs less than its runs differ by.")
    notes += _crowded(report)
    return Table("The loader by stage", header, rows, " ".join(notes), numbers=(1, 2, 3, 4, 5)[: len(header) - 1])


def _crowded(report: dict[str, Any]) -> list[str]:
    """Whether other work took the cores: decoding waits for nothing but them, and for where the images lie."""
    reading, decode = report["stages"][:2]
    threads, cores = report["settings"]["threads"] * (len(report["ranks"]) or 1), report["machine"]["cores"]
    got = decode["user_cores"] + decode["system_cores"]
    few = starved(got, decoder=report["settings"]["decoder"], threads=threads, cores=cores)
    if report["store"] is not None or not few:
        return []
    why = "A slow disk, or a busy machine" if reading["own_us"] > decode["own_us"] else "A busy machine"
    return [
        f"{why}: threads that only decode got {got:.1f} of {min(threads, cores)} cores, "
        "so rates are lower than they can be."
    ]


def _training(report: dict[str, Any]) -> Table | None:
    training = report["training"]
    if training is None:
        return None
    rows = []
    for mode, said in MODES.items():
        about = training[mode]
        step = about["step_s"]
        rows.append(
            (
                said,
                rate_words(about["images_per_s"]),
                f"{step['median'] * 1e3:,.1f} [{step['min'] * 1e3:,.1f}..{step['max'] * 1e3:,.1f}]",
                f"{about['waited_share']:.1%}",
            )
        )
    width = report["settings"]["width"]
    note = ""
    if report["ranks"]:
        note = "Each rank trains for itself: gradients are not exchanged."
    return Table(
        f"The trainer, width {width:g}",
        ("steps", RATE, "a step, ms", "waited"),
        rows,
        note,
        numbers=(1, 2, 3),
    )


def _peers(report: dict[str, Any]) -> Table | None:
    if not report["peers"]:
        return None
    rows = [
        (
            _named(each),
            rate_words(each["images_per_s"]),
            f"{each['images_per_s']['median'] / report['peers'][0]['images_per_s']['median']:.2f}",
            f"{each['user_cores'] + each['system_cores']:.2f}",
            each["lacks"],
        )
        for each in report["peers"]
    ]
    out = "; ".join(f"{name}: {why}" for name, why in report["peers_left_out"].items())
    return Table(
        "Others on the same images, in the same turns",
        ("loader", RATE, "of ours", "cores busy", "what it does not do"),
        rows,
        f"Not run: {out}." if out else "",
        numbers=(1, 2, 3),
    )


def _sweep(report: dict[str, Any]) -> list[Table]:
    found, on_card = [], report["settings"]["device"] != "cpu"
    for knob in dict.fromkeys(each["knob"] for each in report["sweep"]):
        rows = []
        for each in report["sweep"]:
            if each["knob"] != knob:
                continue
            last = each["stages"][-1]
            rows.append(
                (
                    f"{each['value']}{', decoder ' + each['decoder'] if on_card else ''}",
                    rate_words(last["images_per_s"]),
                    *(own_words(row) for row in each["stages"]),
                    f"{last['user_cores'] + last['system_cores']:.2f}",
                    byte_size(last["rss_bytes"]),
                )
            )
        stages = tuple(row["stage"] for row in report["stages"])
        header = (knob, f"as the trainer gets it, {RATE}", *stages, "cores", "memory")
        note = (
            "The columns named for stages are their own µs an image. Measured after the tables above, in turns of "
            "its own: its rows compare with each other, not with theirs."
        )
        found.append(Table(f"Sweep of {knob}", header, rows, note, numbers=tuple(range(1, len(header)))))
    return found


def _ranks(report: dict[str, Any]) -> Table | None:
    if not report["ranks"]:
        return None
    rows = [
        (
            f"rank {each['rank']}",
            rate_words(each["images_per_s"]),
            f"{each['share']:.0%}",
            f"{each['cores']:.2f}",
            byte_size(each["rss_bytes"]),
        )
        for each in report["ranks"]
    ]
    return Table(
        "Each rank's part, as its trainer gets it",
        ("rank", RATE, "share", "cores busy", "memory"),
        rows,
        numbers=(1, 2, 3, 4),
    )


def pictures_of(report: dict[str, Any]) -> dict[str, list[Bar]]:
    """Bars by the title of their picture: this setting with those of a sweep, and others."""
    chosen = report["settings"]
    words = f"{chosen['threads']} threads, {report['stored']['encoding']}, {chosen['output']}"
    bars = [bar_of(words, report["stages"])]
    knob = ""
    for each in report["sweep"]:
        heading = "" if each["knob"] == knob else f"Sweep of {each['knob']}"
        knob = each["knob"]
        bars.append(bar_of(str(each["value"]), each["stages"], heading))
    found = {"Where the time of an image goes": bars}
    if report["peers"]:
        found["Others on the same images"] = [
            Bar(_named(each), {"whole" if number else "ours": 1e6 / each["images_per_s"]["median"]})
            for number, each in enumerate(report["peers"])
        ]
    return found


def _named(peer: dict[str, Any]) -> str:
    return f"{peer['name']} {peer['version']}".strip()


def demand_of(report: dict[str, Any]) -> float | None:
    """What the trainer asks for, images/s; None: not measured."""
    training = report["training"]
    return None if training is None else float(training["resident"]["images_per_s"]["median"])


def to_text(report: dict[str, Any]) -> str:
    """The report for people: machine, tables, and the verdict in one line."""
    parts = [facts(facts_of(report))]
    for each in tables_of(report):
        drawn = table(each.rows, header=each.header)
        parts.append("\n".join([each.title, drawn, *([each.note] if each.note else [])]))
    if report["training"] is None:
        parts.append(f"The trainer's demand: {report['training_note']}.")
    parts.append(report["verdict"]["text"])
    return "\n\n".join(parts)


def rate_words(rate: dict[str, Any]) -> str:
    """A rate's median and, in brackets, its least and most."""
    return f"{per_s(rate['median'])} [{per_s(rate['min'])}..{per_s(rate['max'])}]"
