"""What a report of `tools/bench_train` says to people: facts, tables, and the verdict."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from ..shards import byte_size
from .loader_figures import factor
from .loader_report import rate_words
from .terminal import facts, table
from .train_verdict import goal_words

RATE = "images/s: median [least..most]"
SAID = {"backward": "loss and backward"}


def to_text(report: Mapping[str, Any]) -> str:
    """The report for people."""
    parts = [facts(facts_of(report))]
    for about in report["precisions"]:
        parts += _precision(about)
    out = "; ".join(f"{name}: {why}" for name, why in report["left_out"].items())
    if out:
        parts.append(f"Not run: {out}.")
    parts += [each["verdict"] for each in report["precisions"]]
    return "\n\n".join(parts)


def facts_of(report: Mapping[str, Any]) -> dict[str, str]:
    """On what the figures were measured."""
    machine, network, settings = report["machine"], report["network"], report["settings"]
    macs = sum(network["forward_macs_per_image"].values())
    steps, seconds = settings["steps"], settings["seconds"]
    run = f"{steps} step{'s' if steps > 1 else ''}" if steps else f"{seconds:g} s, one step at least"
    names = ", ".join(dict.fromkeys(machine["names"]))
    images = "smooth drawn ones" if settings["shard_set"] is None else f"of {settings['shard_set']}"
    found = {
        "machine": f"{names}, {machine['cores']} cores, {byte_size(machine['memory_bytes'])}",
        "versions": ", ".join(f"{name} {number}" for name, number in report["versions"].items()),
        "network": f"{network['preset']}, width {network['width']:g}, {network['parameters']:,} parameters, "
        f"{network['classes']:,} classes; {macs / 1e6:,.1f} M multiply-adds forward, "
        f"{network['step_flop_per_image'] / 1e9:.3f} GFLOP an image in a step",
        "images": f"batches of {settings['batch_size']:,}, {network['side']}x{network['side']}, {images}",
        "settings": f"{' and '.join(machine['devices'])}, {settings['threads']} threads",
        "runs": f"{settings['repeats']} rounds, each with every network once; a run is {run}",
        "memory": f"{byte_size(report['resident_bytes'])} resident at most, all networks together",
    }
    return {**found, **report["meanings"]}


def _precision(about: Mapping[str, Any]) -> list[str]:
    drawn = [_rates(about), *_parts(about)]
    if about["fed"] is not None:
        drawn.append(_fed(about["fed"]))
    if about["towers"] is not None:
        drawn.append(_towers(about["towers"]))
    return drawn


def _rates(about: Mapping[str, Any]) -> str:
    ratios = {each["to"]: each for each in about["ratios"]}
    on_card = any(row["device_bytes"] for row in about["networks"])
    rows = []
    for row in about["networks"]:
        ratio = ratios.get(row["name"])
        rows.append(
            (
                row["name"],
                rate_words(row["images_per_s"]),
                ms_words(row["step_s"]),
                "" if row["peak_share"] is None else f"{row['peak_share']:.2f}",
                row["way"],
                *((byte_size(row["device_bytes"]),) if on_card else ()),
                "" if ratio is None else ratio_words(ratio["ratio"]),
                "" if ratio is None else goal_words(ratio),
            )
        )
    header = (
        "network",
        RATE,
        "a step, ms",
        "of peak",
        "steps",
        *(("card",) if on_card else ()),
        "alexshard / it",
        "",
    )
    peak = about["peak"]
    return "\n".join(
        [
            f"{about['precision']}: steps on batches that stay on the device",
            table(rows, header=header),
            f"Peak: {peak['flop_per_s'] / 1e12:,.3f} TFLOP/s, the best product of two {peak['product_type']} "
            f"matrices of {peak['product_side']:,}x{peak['product_side']:,} here.",
        ]
    )


def _parts(about: Mapping[str, Any]) -> list[str]:
    return [_parts_of(about["precision"], name, parts) for name, parts in about["parts"].items()]


def _parts_of(precision: str, name: str, parts: Mapping[str, Any]) -> str:
    whole = parts["step_s"]["median"]
    rows = [
        (SAID.get(phase, phase), ms_words(parts[f"{phase}_s"]), "", f"{parts[f'{phase}_s']['median'] / whole:.1%}")
        for phase in ("forward", "backward", "optimiser", "rest")
    ]
    rows += [
        (f"  {each['name']}", ms_words(each["forward_s"]), ms_words(each["backward_s"]), f"{each['share']:.1%}")
        for each in parts["layers"]
    ]
    own = parts["normalisers"]
    if own is not None:
        rows.append(
            ("normalisers alone", ms_words(own["forward_s"]), ms_words(own["backward_s"]), f"{own['share']:.1%}")
        )
    note = "Of steps taken operation by operation, with hooks, apart from those above."
    if own is not None and own["chains"]:
        note += (
            " Chains are normalisers, pool and ReLU in one; the normalisers alone are what chains take more with "
            "them than without, on the tensors of the step."
        )
    title = f"{precision}: where a step of {name} goes, {whole * 1e3:,.1f} ms"
    return "\n".join([title, table(rows, header=("part", "forward, ms", "backward, ms", "of the step")), note])


def _fed(fed: Mapping[str, Any]) -> str:
    waited = fed["waited_share"]
    return (
        f"Fed by the loader: {rate_words(fed['images_per_s'])} images/s, {ratio_words(fed['of_resident'])} of the "
        f"rate on batches that stay; waiting for data {waited['median']:.1%} [{waited['min']:.1%}.."
        f"{waited['max']:.1%}] of the time."
    )


def _towers(towers: Mapping[str, Any]) -> str:
    said = (
        f"Crossed between the towers in a step: {towers['forward_bytes']:,} bytes of activations, "
        f"{towers['backward_bytes']:,} of gradients, {towers['crossed_bytes']:,} in all; "
        f"{towers['expected_bytes']:,} as the towers of 2012 exchange."
    )
    if (shares := towers["at_once"]) is None:
        return f"{said} Whether both computed at once is not told by spans on cards: see a trace of the card."
    return (
        f"{said} Both towers computed at once {shares['both_share']['median']:.0%} of the step, "
        f"one alone {shares['one_share']['median']:.0%}, neither (optimiser, loss, exchange) "
        f"{shares['neither_share']['median']:.0%}."
    )


def ms_words(seconds: Mapping[str, Any]) -> str:
    """Milliseconds: the median and, in brackets, the least and the most."""
    median, least, most = (seconds[name] * 1e3 for name in ("median", "min", "max"))
    digits = 1 if abs(median) >= 10 else 3
    return f"{median:,.{digits}f} [{least:,.{digits}f}..{most:,.{digits}f}]"


def ratio_words(ratio: Mapping[str, Any]) -> str:
    """A ratio's median and, in brackets, its least and most."""
    return f"{factor(ratio['median'])} [{factor(ratio['min'])}..{factor(ratio['max'])}]"
