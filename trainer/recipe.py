"""Everything that decides a run's result, as one frozen value; the two presets, to the last constant.

`original` is what produced the paper's numbers (the released configuration 145-2010), `paper` is what the text
says. Every constant stands in fidelity.md: §0 (presets side by side, schedule), §2.1 (normalisers), §3.5 (jitter),
§6 (optimiser). Rates are per step on the mean gradient of a batch; pixels are 0..255 with the mean subtracted.
"""

from __future__ import annotations

import dataclasses
import math
import typing
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Literal

from ..shards import WrongCall
from .precision import Precision

LAYERS = ("conv1", "conv2", "conv3", "conv4", "conv5", "fc6", "fc7", "fc8")
INIT_BIAS = (0, 1, 0, 1, 1, 1, 1, 0)  # by layer, in both presets


@dataclass(frozen=True, slots=True)
class Segment:
    """The learning rates from one moment of the schedule to the next; None freezes a group: no step, no decay."""

    after_epochs: float  # completed epochs of a run as long as `Recipe.schedule_epochs`
    conv1_weights: float | None
    weights: float | None  # of all other layers
    biases: float | None  # of all other layers
    conv1_biases: float | None
    jitter: bool = True  # colour jitter, where the recipe's augmentation has one

    def scaled(self, factor: float) -> Segment:
        """The same moment with every rate multiplied by `factor`."""

        def times(rate: float | None) -> float | None:
            return None if rate is None else rate * factor

        return dataclasses.replace(
            self,
            conv1_weights=times(self.conv1_weights),
            weights=times(self.weights),
            biases=times(self.biases),
            conv1_biases=times(self.conv1_biases),
        )


RATE_GROUPS = ("conv1_weights", "weights", "biases", "conv1_biases")


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """One training run but for its data and its machine. Change fields with `dataclasses.replace`.

    Raises:
        WrongCall: a value is out of its range (at construction).
    """

    preset: Literal["original", "paper"]

    # network, §0–§2
    width: float = 1.0  # factor on every per-tower count, §1.3
    conv1_pad: Literal["bottom-right", "symmetric"] = "bottom-right"  # §1.2: the original's, or torchvision's 2
    layer1_order: Literal["lrn-pool-relu", "relu-lrn-pool"]  # `lrn-pool-relu` squares signed values
    lrn_n: int = 5
    lrn_k: float = 2.0
    lrn_a: float  # per square: already divided by n, §2.1; the exponent is 3/4 in both
    same_map_n: int = 5
    same_map_k: float = 1.0
    same_map_a: float | None  # None: no same-map normaliser after LRN 2
    init_std: tuple[float, ...]  # of the weights, by layer: conv1..conv5, fc6..fc8
    init_bias: tuple[float, ...] = INIT_BIAS
    init_fan_in: bool = False  # §1.3: std times sqrt(fan-in at width 1 / fan-in), for tiny test networks
    dropout: bool = True  # fc6 and fc7, mask 0/1 in training and ×0.5 at test, §6

    # data, §3
    augment: Literal["original", "paper"] | None
    mean: Literal["image", "channel"] = "image"
    mean_crop: Literal["own", "centre"]  # what is subtracted from a crop that is not the central one, §3.3
    order: Literal["global", "windowed", "stored"]  # `stored`: the order on disk in every epoch
    window: int | None = None  # shards that `windowed` mixes at a time; None: as many as the set's size asks for
    eigen: Literal["set", "published"] = "set"  # whose colour components the jitter uses, §3.5

    # optimiser, §6
    batch_size: int = 128  # of all devices together
    precision: Precision = "fp32"  # of convolutions and products; weights and velocity are fp32 in all three
    momentum: float = 0.9
    weight_decay: float = 0.0005  # on weights; biases have none
    schedule: tuple[Segment, ...]
    schedule_epochs: float  # the length the schedule is written for; other lengths scale it
    epochs: int
    max_steps: int | None = None  # ends the run early and changes nothing before that: the schedule stays

    seed: int = 0  # of initialisation, order, augmentation and dropout

    @classmethod
    def original(cls) -> Recipe:
        """The configuration that produced the paper's numbers: 145-2010 of the release (fidelity.md §0)."""
        return cls(
            preset="original",
            layer1_order="lrn-pool-relu",
            lrn_a=2e-5,
            same_map_a=4e-5,
            init_std=(0.01, 0.01, 0.03, 0.03, 0.03, 0.01, 0.01, 0.01),
            augment="original",
            mean_crop="centre",
            order="stored",
            schedule=(
                Segment(0, 0.01, 0.01, 0.02, 0.02),
                Segment(23, 0.001, 0.001, 0.002, 0.002),
                Segment(51, 0.0001, 0.0001, 0.002, 0.002),
                Segment(68, 0.00001, 0.0001, 0.002, 0.002, jitter=False),
                Segment(72, None, 0.0001, 0.002, None, jitter=False),
                Segment(78, None, 0.00001, 0.002, None, jitter=False),
            ),
            schedule_epochs=93,
            epochs=93,
        )

    @classmethod
    def paper(cls) -> Recipe:
        """The text of the 2012 paper (fidelity.md §0). Its initialisation stalls near ln(classes), §8."""
        drops = ((0, 0.01), (23, 0.001), (51, 0.0001), (78, 0.00001))
        return cls(
            preset="paper",
            layer1_order="relu-lrn-pool",
            lrn_a=1e-4,
            same_map_a=None,
            init_std=(0.01,) * 8,
            augment="paper",
            mean_crop="own",
            order="global",
            schedule=tuple(Segment(epoch, rate, rate, rate, rate) for epoch, rate in drops),
            schedule_epochs=90,
            epochs=90,
        )

    def __post_init__(self) -> None:
        for name, kind in _choices().items():
            if getattr(self, name) not in kind:
                raise BadRecipe(name, getattr(self, name), f"one of {', '.join(map(str, kind))}")
        for name, (wanted, holds) in _RANGES.items():
            value = getattr(self, name)
            absent = value is None and name in ("max_steps", "same_map_a", "window")
            if not (absent or holds(value)):
                raise BadRecipe(name, value, wanted)
        if self.window is not None and self.order != "windowed":
            raise BadRecipe("window", self.window, f"left out with the order {self.order}: it belongs to windowed")
        starts = [segment.after_epochs for segment in self.schedule]
        if (
            not starts
            or starts[0] != 0
            or starts != sorted(starts)
            or not all(start < math.inf for start in starts)
        ):
            raise BadRecipe("schedule", starts, "segments in order, the first after 0 epochs")
        if not all(0 < rate < math.inf for segment in self.schedule for rate in _rates(segment)):
            raise BadRecipe("schedule", self.schedule, "finite rates above 0 (None freezes)")

    @property
    def learning_rate(self) -> float:
        """The rate of the weights at the first step."""
        return next(
            rate for rate in (self.schedule[0].weights, self.schedule[0].conv1_weights, 0.0) if rate is not None
        )

    def with_learning_rate(self, rate: float) -> Recipe:
        """The schedule with every rate scaled so that the weights begin at `rate`."""
        if not 0 < rate < math.inf:
            raise BadRecipe("lr", rate, "a finite number above 0")
        factor = rate / self.learning_rate
        return dataclasses.replace(self, schedule=tuple(segment.scaled(factor) for segment in self.schedule))

    def with_initial_bias(self, bias: float) -> Recipe:
        """The biases that begin at 1 begin at `bias`: 0.1 is what others took to leave the plateau (§8)."""
        return dataclasses.replace(self, init_bias=tuple(bias if one == 1 else one for one in INIT_BIAS))

    def with_constant_rate(self) -> Recipe:
        """The first segment of the schedule for the whole run: no drop, no freeze, jitter to the end."""
        return dataclasses.replace(self, schedule=self.schedule[:1])

    def to_json(self) -> dict[str, Any]:
        """Plain dicts, lists, numbers and words; `from_json` gives an equal recipe back."""
        return typing.cast(dict[str, Any], _plain(dataclasses.asdict(self)))

    @classmethod
    def from_json(cls, fields: Mapping[str, Any]) -> Recipe:
        """The recipe that `to_json` wrote.

        Raises:
            WrongCall: fields are missing, unknown or out of range.
        """
        values = dict(fields)
        try:
            values["schedule"] = tuple(Segment(**segment) for segment in values["schedule"])
            values["init_std"], values["init_bias"] = tuple(values["init_std"]), tuple(values["init_bias"])
            return cls(**values)
        except (KeyError, TypeError) as error:
            raise WrongCall(
                f"this is no recipe of this version of alexshard: {error}",
                why="the run cannot be continued or evaluated by other rules than those that made it",
                remedy="use the version named in the run's config.json",
            ) from None


def _whole(most: int) -> tuple[str, Callable[[Any], bool]]:
    return f"a whole number in 1..{most}", lambda value: isinstance(value, int) and 1 <= value <= most


def _layers(least: float) -> tuple[str, Callable[[Any], bool]]:
    wanted = f"a number in {least:g}..1000 for each of {', '.join(LAYERS)}"
    return wanted, lambda values: len(values) == len(LAYERS) and all(least <= value <= 1000 for value in values)


# What a number must be; nothing is true of nan. A width of 8 has 4 billion weights.
_RANGES: Mapping[str, tuple[str, Callable[[Any], bool]]] = {
    "width": ("above 0 and at most 8", lambda value: 0 < value <= 8),
    **dict.fromkeys(("lrn_n", "same_map_n"), _whole(1000)),
    **dict.fromkeys(("lrn_k", "same_map_k"), ("a finite number above 0", lambda value: 0 < value < math.inf)),
    **dict.fromkeys(("lrn_a", "same_map_a"), ("a number in 0..1000", lambda value: 0 <= value <= 1000)),
    "init_std": _layers(0),
    "init_bias": _layers(-1000),
    **dict.fromkeys(("batch_size", "window"), _whole(2**31)),
    **dict.fromkeys(("momentum", "weight_decay"), ("at least 0 and below 1", lambda value: 0 <= value < 1)),
    "schedule_epochs": ("a finite number above 0", lambda value: 0 < value < math.inf),
    "epochs": _whole(1_000_000),
    "max_steps": _whole(2**63),
    "seed": ("a whole number in 0..4294967295", lambda v: isinstance(v, int) and 0 <= v < 2**32),
}

PRESETS: Mapping[str, Callable[[], Recipe]] = {"original": Recipe.original, "paper": Recipe.paper}


class BadRecipe(WrongCall):
    """A field of a recipe is out of its range."""

    def __init__(self, field: str, value: object, wanted: str) -> None:
        super().__init__(f"{field.replace('_', ' ')} is {value!r}, and must be {wanted}")


def differences(one: Recipe, other: Recipe) -> list[str]:
    """The fields in which two recipes differ, as `field: value → value`."""
    pairs = [
        (field.name, getattr(one, field.name), getattr(other, field.name)) for field in dataclasses.fields(Recipe)
    ]
    return [f"{name}: {mine} → {theirs}" for name, mine, theirs in pairs if mine != theirs]


def _rates(segment: Segment) -> list[float]:
    return [rate for group in RATE_GROUPS if (rate := getattr(segment, group)) is not None]


def _choices() -> dict[str, tuple[Any, ...]]:
    """The fields whose type is a choice of words, and the words."""
    choices = {}
    for name, kind in typing.get_type_hints(Recipe).items():
        words = [word for part in (kind, *typing.get_args(kind)) for word in _words(part)]
        if words:
            choices[name] = (*words, None) if type(None) in typing.get_args(kind) else tuple(words)
    return choices


def _words(kind: Any) -> tuple[Any, ...]:
    return typing.get_args(kind) if typing.get_origin(kind) is Literal else ()


def _plain(value: Any) -> Any:
    if isinstance(value, dict):
        return {name: _plain(item) for name, item in value.items()}
    return [_plain(item) for item in value] if isinstance(value, tuple | list) else value
