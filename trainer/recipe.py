"""Everything that decides a run's result, as one frozen value; the presets, to the last constant.

`original` is what produced the paper's numbers (the released configuration 145-2010), `paper` is what the text
says. Files that fields name as their source are those of the 2012 source, and of cuda-convnet2, the author's
successor. All constants stand in fidelity.md: §0 (presets side by side, schedule), §2.1 (normalisers), §3.5
(jitter), §6 (optimiser), and what else the 2012 source says in schedules.py. Rates are per step on the mean
gradient of a batch; pixels are 0..255 with the mean subtracted.
"""

# ruff: noqa: RUF009  (`told` makes fields)

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Mapping
from itertools import pairwise
from typing import Any, Literal

from ..shards import WrongCall
from .fields import choices, nearest, plain, told, typed
from .precision import Precision
from .schedules import ORIGINAL, PAPER, RUN_146_2012_2011, RUN_170, SCHEDULES, LayerRates, Rates, Segment, segments

LAYERS = ("conv1", "conv2", "conv3", "conv4", "conv5", "fc6", "fc7", "fc8")
INIT_BIAS = (0.0, 1.0, 0.0, 1.0, 1.0, 1.0, 1.0, 0.0)  # by layer, in all presets


@dataclasses.dataclass(frozen=True, kw_only=True)
class Recipe:
    """One training run but for its data and its machine. Change fields with `dataclasses.replace`.

    Values may come as JSON and TOML have them (lists, whole numbers); they are kept as tuples and floats.

    Raises:
        WrongCall: a value is of the wrong kind or out of its range (at construction).
    """

    preset: Literal["original", "paper", "dexp", "cnn-star"] = told("what the fields began as", "a choice")

    # network
    width: float = told("factor on every per-tower count", "a choice", 1.0)
    conv1_pad: Literal["bottom-right", "symmetric"] = told(
        "as the original, or torchvision's 2 on every side", "layer.py of the 2012 source", "bottom-right"
    )
    layer1_order: Literal["lrn-pool-relu", "relu-lrn-pool"] = told(
        "the first squares signed values", "paper §3.3, §3.5; layers-145.cfg"
    )
    lrn_n: int = told("maps that a response is normalised over", "paper §3.3; layer-params-145.cfg", 5)
    lrn_k: float = told(
        "LRN: d = k + a · sum of squares; the exponent is 3/4", "paper §3.3; layer-params-145.cfg", 2.0
    )
    lrn_a: float = told("per square: already divided by n", "paper §3.3; layer.py divides by n")
    same_map_n: int = told("side of the second normaliser's window, within a map", "layers-145.cfg", 5)
    same_map_k: float = told("", "layer-params-145.cfg", 1.0)
    same_map_a: float | None = told("none: no same-map normaliser behind LRN 2", "layer-params-145.cfg")
    conv6: bool = told(
        "a sixth convolution behind pool5, of both towers' maps: 1 CNN* of Table 2",
        "paper §6; layers-146-2012-2011.cfg",
        False,
    )
    conv6_std: float = told("of its first weights", "layers-146-2012-2011.cfg", 0.03)
    conv6_bias: float = told("its first biases", "layers-146-2012-2011.cfg", 1.0)
    init_std: tuple[float, ...] = told(f"of the first weights of {', '.join(LAYERS)}", "paper §5; layers-145.cfg")
    init_bias: tuple[float, ...] = told("first biases of the same layers", "paper §5; layers-145.cfg", INIT_BIAS)
    init_fan_in: bool = told("std times sqrt(fan-in at width 1 / fan-in), for tiny networks", "a choice", False)
    init_from: str | None = told(
        "digest of the network whose weights it begins with (--init-from)", "paper §6", None
    )
    dropout: bool = told("fc6 and fc7: mask 0/1 in training, outputs ×0.5 at test", "paper §4.2; layer.cu", True)

    # data
    augment: Literal["original", "paper"] | None = told(
        "crops, mirror, jitter; none: the centre alone", "paper §4.1; convdata_jpeg.py"
    )
    mean: Literal["image", "channel"] = told("what is subtracted", "paper §2", "image")
    mean_crop: Literal["own", "centre"] = told(
        "of the mean image, from crops elsewhere than the centre", "convdata_jpeg.py"
    )
    order: Literal["global", "windowed", "stored"] = told(
        "stored: the order on disk in every epoch", "paper: a choice; original: data.py of cuda-convnet2"
    )
    window: int | None = told("shards that `windowed` mixes at a time; none: by the set's size", "a choice", None)
    eigen: Literal["set", "published"] = told(
        "whose colour components the jitter uses", "paper §4.1; input_meta of cuda-convnet2", "set"
    )

    # optimiser
    batch_size: int = told("of all devices together", "paper §5", 128)
    precision: Precision = told("of convolutions and products; weights and velocity are fp32", "a choice", "fp32")
    momentum: float = told("", "paper §5", 0.9)
    weight_decay: float = told("on weights, times the rate; biases have none", "paper §5; layer.cu", 0.0005)

    # schedule: pairs of a moment and the rate from there on; a rate of 0 (or none) freezes
    weight_rates: Rates = told("moments in epochs of `schedule_epochs`", "paper §5; layer-params-145-2010.cfg")
    bias_rates: Rates | None = told("none: as the weights", "layer-params-145-2010.cfg", None)
    layer_rates: LayerRates = told(
        "of parameters with rates of their own, as conv1's freeze", "layer-params-145-2010.cfg", ()
    )
    jitter_epochs: float | None = told(
        "when the colour jitter ends; none: never", "layer-params-145-2010.cfg", None
    )
    schedule_epochs: float = told(
        "the length that the moments are written for; other lengths scale", "paper §5; layer-params-145-2010.cfg"
    )
    drop_on: Literal["epochs", "plateau"] = told(
        "plateau: moments count drops, made when validation stops improving",
        "paper §5, which gives no rule",
        "epochs",
    )
    patience: int = told("of `plateau`, in epochs: the best value may be so old", "a choice", 5)
    epochs: int = told("", "paper §5; layer-params-145-2010.cfg")
    max_steps: int | None = told("ends the run early and changes nothing before that", "", None)

    seed: int = told("of initialisation, order, augmentation and dropout", "a choice", 0)

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
            **ORIGINAL,
        )

    @classmethod
    def paper(cls) -> Recipe:
        """The text of the 2012 paper (fidelity.md §0). Its initialisation stalls near ln(classes), §8."""
        return cls(
            preset="paper",
            layer1_order="relu-lrn-pool",
            lrn_a=1e-4,
            same_map_a=None,
            init_std=(0.01,) * 8,
            augment="paper",
            mean_crop="own",
            order="global",
            **PAPER,
        )

    @classmethod
    def dexp(cls) -> Recipe:
        """`original` with the author's later rates, of January 2013: run 170 of the release (fidelity.md §6)."""
        return dataclasses.replace(cls.original(), preset="dexp", **RUN_170)

    @classmethod
    def cnn_star(cls) -> Recipe:
        """1 CNN* of Table 2: six convolutions, fine-tuned from a larger set: run 146-2012-2011 of the release."""
        return dataclasses.replace(cls.original(), preset="cnn-star", conv6=True, **RUN_146_2012_2011)

    def __post_init__(self) -> None:
        for field in dataclasses.fields(self):
            object.__setattr__(self, field.name, typed(Recipe, field.name, getattr(self, field.name)))
        for name, (wanted, holds) in _RANGES.items():
            value = getattr(self, name)
            if value is not None and not holds(value):
                raise BadRecipe(name, value, wanted)
        if self.window is not None and self.order != "windowed":
            raise BadRecipe("window", self.window, f"left out with the order {self.order}: it belongs to windowed")
        for name, rates in self._rate_lists().items():
            _check_rates(name, rates)
        if self.weight_rates[0][1] is None:
            raise BadRecipe("weight_rates", self.weight_rates, "above 0 at the beginning")
        if self.drop_on == "plateau":
            moments = [moment for moment, _ in self.weight_rates]
            if moments != list(range(len(moments))):
                raise BadRecipe("weight_rates", moments, "at the moments 0, 1, 2, … (drops) with drop_on plateau")
            if self.jitter_epochs is not None:
                raise BadRecipe(
                    "jitter_epochs", self.jitter_epochs, "left out with drop_on plateau: no epoch is known ahead"
                )

    @property
    def schedule(self) -> tuple[Segment, ...]:
        """The rates of all parameters from each moment to the next."""
        return segments(self._rate_lists(), jitter_epochs=self.jitter_epochs)

    @property
    def learning_rate(self) -> float:
        """The rate of the weights at the first step."""
        rate = self.weight_rates[0][1]
        assert rate is not None
        return rate

    def with_fields(self, fields: Mapping[str, Any]) -> Recipe:
        """The same with other values, as `dataclasses.replace`.

        Raises:
            WrongCall: a name is unknown; the message names the nearest.
        """
        names = [field.name for field in dataclasses.fields(self)]
        for name in fields:
            if name not in names:
                raise WrongCall(
                    f"a recipe has no field {name!r}",
                    why="what it was meant to change would stay as it is",
                    remedy=f"did you mean {nearest(name, names)}? alextrain recipes {self.preset} lists all",
                )
        return dataclasses.replace(self, **fields)

    def with_schedule(self, name: str) -> Recipe:
        """The rates, their moments and the length of a schedule by its name (schedules.py)."""
        return dataclasses.replace(self, **SCHEDULES[name].fields)

    def with_learning_rate(self, rate: float) -> Recipe:
        """The schedule with every rate scaled so that the weights begin at `rate`; twice is as once."""
        if not 0 < rate < math.inf:
            raise BadRecipe("lr", rate, "a finite number above 0")
        if rate == (first := self.learning_rate):
            return self
        factor = rate / first

        def scaled(rates: Rates) -> Rates:
            return tuple((moment, one and (rate if one == first else one * factor)) for moment, one in rates)

        return dataclasses.replace(
            self,
            weight_rates=scaled(self.weight_rates),
            bias_rates=None if self.bias_rates is None else scaled(self.bias_rates),
            layer_rates=tuple((name, scaled(rates)) for name, rates in self.layer_rates),
        )

    def with_initial_bias(self, bias: float) -> Recipe:
        """The biases that begin at 1 begin at `bias`: 0.1 is what others took to leave the plateau (§8)."""
        known = zip(INIT_BIAS, self.init_bias, strict=True)
        return dataclasses.replace(self, init_bias=tuple(bias if one == 1 else mine for one, mine in known))

    def with_constant_rate(self) -> Recipe:
        """The first rates of the schedule for the whole run: no drop, no freeze, jitter to the end."""
        return dataclasses.replace(
            self,
            weight_rates=self.weight_rates[:1],
            bias_rates=None if self.bias_rates is None else self.bias_rates[:1],
            layer_rates=tuple((name, rates[:1]) for name, rates in self.layer_rates),
            jitter_epochs=None,
            drop_on="epochs",
        )

    def to_json(self) -> dict[str, Any]:
        """Plain dicts, lists, numbers and words; `from_json` gives an equal recipe back."""
        fields = {field.name: plain(getattr(self, field.name)) for field in dataclasses.fields(self)}
        return fields | {"layer_rates": {name: plain(rates) for name, rates in self.layer_rates}}

    @classmethod
    def from_json(cls, fields: Mapping[str, Any]) -> Recipe:
        """The recipe that `to_json` wrote; fields that it did not know yet have their defaults.

        Raises:
            WrongCall: fields are missing, unknown or out of range.
        """
        try:
            return cls(**fields)
        except TypeError as error:
            raise WrongCall(
                f"this is no recipe of this version of alexshard: {error}",
                why="the run cannot be continued or evaluated by other rules than those that made it",
                remedy="use the version named in the run's config.json",
            ) from None

    def _rate_lists(self) -> dict[str, Rates]:
        """By rate group: weights, biases, and every parameter with rates of its own."""
        own = {} if self.bias_rates is None else {"biases": self.bias_rates}
        return {"weights": self.weight_rates, "biases": self.weight_rates} | own | dict(self.layer_rates)


def _check_rates(name: str, rates: Rates) -> None:
    field = {"weights": "weight_rates", "biases": "bias_rates"}.get(name, "layer_rates")
    moments = [moment for moment, _ in rates]
    in_order = all(one < other for one, other in pairwise([*moments, math.inf]))  # which nan never is
    if not moments or moments[0] != 0 or not in_order:
        raise BadRecipe(field, moments, "pairs [moment, rate] in order, the first at moment 0")
    if not all(rate is None or 0 < rate < math.inf for _, rate in rates):
        raise BadRecipe(field, rates, "finite rates, above 0 or 0, which freezes")
    if field == "layer_rates" and name not in _PARAMETERS:
        raise BadRecipe(field, name, f"of parameters as conv1.weight; did you mean {nearest(name, _PARAMETERS)}?")


_PARAMETERS = tuple(f"{layer}.{kind}" for layer in (*LAYERS, "conv6") for kind in ("weight", "bias"))


def _whole(most: int) -> tuple[str, Callable[[Any], bool]]:
    return f"a whole number in 1..{most}", lambda value: 1 <= value <= most


def _layers(least: float) -> tuple[str, Callable[[Any], bool]]:
    wanted = f"a number in {least:g}..1000 for each of {', '.join(LAYERS)}"
    return wanted, lambda values: len(values) == len(LAYERS) and all(least <= value <= 1000 for value in values)


# What a number must be; nothing is true of nan. A width of 8 has 4 billion weights.
_RANGES: Mapping[str, tuple[str, Callable[[Any], bool]]] = {
    "width": ("above 0 and at most 8", lambda value: 0 < value <= 8),
    **dict.fromkeys(
        ("lrn_n", "same_map_n"), ("an odd number in 1..999", lambda value: 1 <= value < 1000 and value % 2 == 1)
    ),
    **dict.fromkeys(("lrn_k", "same_map_k"), ("a finite number above 0", lambda value: 0 < value < math.inf)),
    **dict.fromkeys(
        ("lrn_a", "same_map_a", "conv6_std"), ("a number in 0..1000", lambda value: 0 <= value <= 1000)
    ),
    "conv6_bias": ("a number in -1000..1000", lambda value: -1000 <= value <= 1000),
    "init_std": _layers(0),
    "init_bias": _layers(-1000),
    **dict.fromkeys(("batch_size", "window"), _whole(2**31)),
    **dict.fromkeys(("momentum", "weight_decay"), ("at least 0 and below 1", lambda value: 0 <= value < 1)),
    "jitter_epochs": ("a finite number, at least 0", lambda value: 0 <= value < math.inf),
    "schedule_epochs": ("a finite number above 0", lambda value: 0 < value < math.inf),
    **dict.fromkeys(("epochs", "patience"), _whole(1_000_000)),
    "max_steps": _whole(2**63),
    "seed": ("a whole number in 0..4294967295", lambda value: 0 <= value < 2**32),
}

PRESETS: Mapping[str, Callable[[], Recipe]] = {
    "original": Recipe.original,
    "paper": Recipe.paper,
    "dexp": Recipe.dexp,
    "cnn-star": Recipe.cnn_star,
}
assert tuple(PRESETS) == choices(Recipe, "preset")


class BadRecipe(WrongCall):
    """A field of a recipe is of the wrong kind or out of its range."""

    def __init__(self, field: str, value: object, wanted: str) -> None:
        super().__init__(f"{field.replace('_', ' ')} is {value!r}, and must be {wanted}")


def differences(one: Recipe, other: Recipe) -> list[str]:
    """The fields in which two recipes differ, as `field: value → value`."""
    mine, theirs = one.to_json(), other.to_json()
    return [f"{name}: {mine[name]} → {theirs[name]}" for name in mine if mine[name] != theirs[name]]
