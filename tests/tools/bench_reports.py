"""Made-up figures of `tools/bench_loader`: what its verdicts, tables, picture and page are tested on."""

from __future__ import annotations

import copy
from typing import Any

from alexshard.tools.loader_figures import own_us_per_image
from alexshard.tools.loader_verdict import Findings, Together

RATES = {
    "bytes": 100_000.0,
    "decode": 8_000.0,
    "crop": 7_500.0,
    "finish": 4_000.0,
    "device": 3_950.0,
    "loader": 3_900.0,
}


def findings(**other: Any) -> Findings:
    """A JPEG set on two cores, without a demand; `rates` replaces some of RATES."""
    about: dict[str, Any] = {
        "busy": dict.fromkeys(RATES, 2.0),
        "demand": None,
        "together": None,
        "threads": 2,
        "cores": 2,
        "encoding": "jpeg",
        "device": "cpu",
        "backend": "threads",
        "decoder": "cores",
        "mean": "image",
        "output": "float32",
        "order": "global",
    }
    return Findings(**{**about, **other, "rates": {**RATES, **other.get("rates", {})}})


def together(**other: Any) -> Together:
    """A trainer of 31 images/s that neither waits nor slows down."""
    about: dict[str, Any] = {
        "images_per_s": 31.0,
        "waited_share": 0.001,
        "alone_s": 4.0,
        "beside_s": 4.04,
        "burnt_s": 4.03,
        "spread": 0.02,
    }
    return Together(**{**about, **other})


def figures(rate: float, **other: Any) -> dict[str, Any]:
    return {
        "images_per_s": {
            "median": rate,
            "min": rate * 0.9,
            "max": rate * 1.1,
            "runs": [rate * 0.9, rate, rate * 1.1],
        },
        "user_cores": 1.75,
        "system_cores": 0.125,
        "cpu_us_per_image": 480.0,
        "store_share": 0.0,
        "rss_bytes": 900_000_000,
        "own_bytes": 700_000_000,
        "device_bytes": 0,
        **other,
    }


def stages(rates: dict[str, float] | None = None) -> list[dict[str, Any]]:
    rates = rates or RATES
    own = own_us_per_image(rates)
    return [
        {"stage": stage, "meaning": f"+ {stage}", "own_us": own[stage], **figures(rate)}
        for stage, rate in rates.items()
    ]


def training(demand: float, waited: float = 0.0) -> dict[str, Any]:
    step = 128 / demand
    about = {"step_s": {"median": step, "min": step * 0.98, "max": step * 1.03}, "waited_share": 0.0}
    modes = {mode: figures(demand) | about for mode in ("resident", "replayed", "fed", "burnt")}
    modes["fed"]["waited_share"] = waited
    return modes


def report(**other: Any) -> dict[str, Any]:
    """The report of one run, without training, sweep, peers or ranks unless given."""
    return copy.deepcopy(
        {
            "shard_set": "shards/made-up",
            "digest": "0" * 64,
            "split": "train",
            "samples": 4000,
            "stored": {"side": 256, "encoding": "jpeg", "quality": 90, "subsampling": "4:2:0"},
            "side": 224,
            "batch_bytes": 77_070_336,
            "store": None,
            "settings": {
                "batch_size": 128,
                "device": "cpu",
                "backend": "threads",
                "decoder": "cores",
                "split_share": None,
                "threads": 2,
                "prefetch": 3,
                "order": "global",
                "window": None,
                "output": "float32",
                "channels_last": False,
                "mean": "image",
                "preset": "original",
                "width": 1.0,
                "repeats": 5,
                "seconds": 1.0,
            },
            "stages": stages(),
            "replay": figures(250_000.0),
            "training": None,
            "training_note": "not measured (--no-demand)",
            "peers": [],
            "peers_left_out": {},
            "sweep": [],
            "ranks": [],
            "verdict": {
                "bottleneck": "finish",
                "factor": None,
                "turn": ["more cores"],
                "text": "A made-up verdict.",
            },
            "machine": {"names": ["A made-up CPU"], "cores": 2, "memory_bytes": 8 * 2**30},
            "versions": {"alexshard": "0", "torch": "0"},
            **other,
        }
    )
