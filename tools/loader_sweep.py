"""`--sweep` of `tools/bench_loader`: which settings are tried, one knob at a time, the others as given."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..pipeline import ORDERS
from ..shards import MANIFEST_NAME, ShardSet, WrongCall

KNOBS = ("threads", "prefetch", "batch-size", "order", "window", "format")
FORMATS = ("jpeg", "raw")
_BOTH = "--shards JPEG_SET --shards RAW_SET (alexshard build SOURCE --format raw --out RAW_SET packs one)"
_MOST = {"threads": 1024, "prefetch": 64, "batch-size": 1_000_000, "window": 1_000_000}


@dataclass(frozen=True, slots=True)
class Setting:
    """One value of one knob."""

    knob: str
    value: int | str

    @property
    def label(self) -> str:
        return f"{self.knob} {self.value}"

    @property
    def options(self) -> dict[str, Any]:
        """What of the loader's arguments it changes; the format is another shard set."""
        if self.knob == "window":
            return {"order": "windowed", "window": self.value}
        return {} if self.knob == "format" else {self.knob.replace("-", "_"): self.value}


def parse_sweep(
    texts: Sequence[str], *, cores: int, batch_size: int, samples: int, formats: Sequence[str]
) -> list[Setting]:
    """The settings of `threads=1,2,4` or `threads,order`, in any mix; values left out are chosen here.

    Args:
        cores, batch_size, samples: of this machine, as given, of the split; the values chosen depend on them.
        formats: of the shard sets given.

    Raises:
        WrongCall: no such knob, or a value that it cannot have.
    """
    asked: dict[str, list[int | str]] = {}
    for text in texts:
        knob = ""
        for word in text.split(","):
            name, equals, first = (part.strip() for part in word.partition("="))
            if equals or name in KNOBS:
                if name not in KNOBS:
                    raise WrongCall(f"--sweep {name}: no such knob", remedy=f"one of {', '.join(KNOBS)}")
                if name in asked:
                    raise WrongCall(f"--sweep names {name} twice", remedy=f"--sweep {name}=VALUE,VALUE,…")
                knob, asked[name] = (name if equals else ""), []
                word = first
                if not equals:
                    continue
            if not knob:
                raise WrongCall(
                    f"--sweep {text}: {word.strip()!r} is no knob", remedy=f"one of {', '.join(KNOBS)}"
                )
            asked[knob].append(_value(knob, word.strip(), samples))
    if "format" in asked:
        _check_formats(asked["format"], formats)
    chosen: dict[str, list[int | str]] = {
        "threads": _doubling(1, cores),
        "prefetch": [1, 2, 4, 8],
        "batch-size": _doubling(min(32, samples), min(max(256, batch_size), samples)),
        "order": list(ORDERS),
        "window": [1, 2, 4, 8],
        "format": list(dict.fromkeys(formats)),
    }
    return [
        Setting(knob, value) for knob, values in asked.items() for value in dict.fromkeys(values or chosen[knob])
    ]


def _value(knob: str, word: str, samples: int) -> int | str:
    if knob in ("order", "format"):
        allowed = ORDERS if knob == "order" else FORMATS
        if word not in allowed:
            raise WrongCall(f"--sweep {knob}={word}: no such {knob}", remedy=f"one of {', '.join(allowed)}")
        return word
    if not word.isascii() or not word.isdigit() or not 1 <= int(word) <= _MOST[knob]:
        raise WrongCall(
            f"--sweep {knob}={word}: not a number from 1 to {_MOST[knob]:,}", remedy=f"--sweep {knob}=1,2,4"
        )
    if knob == "batch-size" and int(word) > samples:
        raise WrongCall(
            f"--sweep batch-size={word}: the split has {samples:,} samples", remedy=f"values up to {samples:,}"
        )
    return int(word)


def _check_formats(asked: Sequence[int | str], formats: Sequence[str]) -> None:
    if missing := [str(each) for each in asked if each not in formats]:
        raise WrongCall(
            f"--sweep format={','.join(missing)}: no set of that format is given, and nothing is packed here",
            remedy=_BOTH,
        )
    if len(set(formats)) < 2:
        raise WrongCall(
            f"--sweep format needs sets of both formats; given: {', '.join(formats)}. Nothing is packed here",
            remedy=_BOTH,
        )


def _doubling(first: int, last: int) -> list[int | str]:
    values = [first]
    while values[-1] * 2 < last:
        values.append(values[-1] * 2)
    return [*values, *([last] if last > values[-1] else [])]


def places_of_sets(given: Sequence[str], *, several: bool) -> list[str]:
    """Where the sets are; with `several`, a folder that holds sets stands for all of them.

    >>> places_of_sets(["s3://bucket/jpeg"], several=True)
    ['s3://bucket/jpeg']
    """
    found = []
    for place in given:
        inside: list[str] = []
        if several and "://" not in place and not (Path(place) / MANIFEST_NAME).is_file():
            inside = sorted(str(manifest.parent) for manifest in Path(place).glob(f"*/{MANIFEST_NAME}"))
        found += inside or [place]
    return found


def check_alike(sets: Sequence[ShardSet], split: str) -> None:
    """Sets whose figures stand beside each other hold the same images.

    Raises:
        WrongCall: they do not.
    """
    counts = {each.shown: each.manifest.splits[split].samples for each in sets if split in each.manifest.splits}
    sides = {each.manifest.image.side for each in sets}
    if len(set(counts.values())) > 1 or len(counts) < len(sets) or len(sides) > 1:
        told = "; ".join(
            f"{each.shown}: {counts.get(each.shown, 0):,} images of {each.manifest.image.side}x"
            f"{each.manifest.image.side} in {split}"
            for each in sets
        )
        raise WrongCall(
            "the shard sets are not of the same images",
            where=told,
            why="their figures stand beside each other in one table",
            remedy="build both from one source, with the same --size",
        )
