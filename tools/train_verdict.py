"""What the figures of `tools/bench_train` come to: ratios beside their goals, and which part is the limit."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from .loader_figures import factor, per_s
from .train_clock import spread

# Of the rate of `alexshard`, at the size of 2012: batches of 128, width 1, crops of 224×224.
GOALS_ANYWHERE = {("bare", "fp32"): 0.85, ("bare", "bf16"): 0.85}
GOALS_ON_CORES = {("stock", "fp32"): 1.8, ("stock", "bf16"): 2.5}
GOAL_SIZE = {"batch_size": 128, "width": 1.0, "side": 224}
WAITS = 0.03  # of the time: more is worth saying
GROUPS = {
    "convolutions": ("conv1", "conv2", "conv3", "conv4", "conv5"),
    "matrix products": ("fc6", "fc7", "fc8"),
    "chains": ("chain1", "chain2", "chain5"),
}


def ratios_of(
    rows: Sequence[Mapping[str, Any]], precision: str, settings: Mapping[str, Any]
) -> list[dict[str, Any]]:
    """alexshard's rate by that of each other, round by round, with the goal where there is one."""
    goals = {**GOALS_ANYWHERE, **(GOALS_ON_CORES if settings["device"] == "cpu" else {})}
    ours, found = rows[0]["images_per_s"]["runs"], []
    for row in rows[1:]:
        runs = [mine / others for mine, others in zip(ours, row["images_per_s"]["runs"], strict=True)]
        ratio, goal = spread(runs), goals.get((row["name"], precision))
        found.append(
            {
                "of": rows[0]["name"],
                "to": row["name"],
                "ratio": ratio,
                "goal": goal,
                "goal_is_for_this_size": all(settings[name] == value for name, value in GOAL_SIZE.items()),
                "reached": None if goal is None else ratio["median"] >= goal,
            }
        )
    return found


def goal_words(ratio: Mapping[str, Any]) -> str:
    """The goal and whether it is reached; at other sizes than the goal's, that it is another's."""
    if ratio["goal"] is None:
        return ""
    if not ratio["goal_is_for_this_size"]:
        return f"goal {ratio['goal']:g} is for batches of 128, width 1, crops of 224"
    return f"goal {ratio['goal']:g}: {'reached' if ratio['reached'] else 'missed'}"


def group_shares(parts: Mapping[str, Any]) -> dict[str, float]:
    """Shares of a watched step of AlexNet that add up to 1; empty where its layers were not seen."""
    shares = {layer["name"]: layer["share"] for layer in parts["layers"]}
    if not shares:
        return {}
    found = {group: sum(shares[name] for name in names) for group, names in GROUPS.items()}
    chains = found.pop("chains")
    own = max(0.0, min(chains, parts["normalisers"]["share"]))
    found |= {"normalisers": own, "pools and ReLUs behind them": chains - own}
    found["optimiser"] = parts["shares"]["optimiser"]
    return {**found, "the rest": max(0.0, 1 - sum(found.values()))}


def verdict_of(about: Mapping[str, Any], network: Mapping[str, Any], batch_size: int, device: str) -> str:
    """What one precision's figures come to, in a few sentences."""
    ours = about["networks"][0]
    rate, share = ours["images_per_s"]["median"], ours["peak_share"]
    said = [
        f"{about['precision']} on {device}, batches of {batch_size}: {per_s(rate)} images/s, "
        f"{share:.2f} of the measured peak of matrix products."
    ]
    said += _limit(about, network, batch_size)
    for ratio in about["ratios"]:
        words = goal_words(ratio)
        said.append(f"{factor(ratio['ratio']['median'])} times {ratio['to']}{f' ({words})' if words else ''}.")
    bad = [row["name"] for row in about["networks"] if not math.isfinite(row["loss"])]
    if bad:
        said.append(
            f"The loss of {', '.join(bad)} is not finite, so these times are of other values than training's."
        )
    return " ".join(said)


def _limit(about: Mapping[str, Any], network: Mapping[str, Any], batch_size: int) -> list[str]:
    fed = about["fed"]
    if fed is not None and fed["waited_share"]["median"] > WAITS:
        return [f"The limit is the loader: {fed['waited_share']['median']:.0%} of the time there is no batch."]
    parts = about["parts"].get("alexshard")
    shares = group_shares(parts) if parts else {}
    if not shares:
        return []
    largest = max(shares, key=lambda name: shares[name])
    verb = "is" if largest in ("optimiser", "the rest") else "are"
    single = max(parts["layers"], key=lambda layer: layer["share"])
    said = [
        f"Of a step, {', '.join(f'{name} {share:.0%}' for name, share in shares.items())}: {largest} {verb} the "
        f"limit; of single parts {single['name']}, {single['share']:.0%}."
    ]
    seconds = parts["step_s"]["median"] * (shares["convolutions"] + shares["matrix products"])
    speed = network["step_flop_per_image"] * batch_size / seconds / about["peak"]["flop_per_s"]
    said.append(f"While it multiplies, it does so at {speed:.2f} of the peak.")
    timed = about["networks"][0]
    if timed["way"] != "eager":
        saved = 1 - timed["step_s"]["median"] / parts["step_s"]["median"]
        said.append(f"As {timed['way']} a step takes {saved:.0%} less than operation by operation.")
    return said
