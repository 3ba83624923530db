"""Learning rates over a run: lists of moments and rates, and those that are known by name.

A list is pairs of a moment, in completed epochs, and the rate from there on; None freezes: no step, no decay, as
the 2012 source does where a rate is 0. A run of another length scales the moments.

Source: fidelity.md §0 (presets; the table of what other runs did), §6 (later schedules); for runs 146-2012-2011
and 170 the comments at the end of layer-params-146-2012-2011.cfg and layer-params-170.cfg of the 2012 source, and
src/lr.cu there for the geometric steps.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

Rates = tuple[tuple[float, float | None], ...]  # (moment, rate) in order
LayerRates = tuple[tuple[str, Rates], ...]  # by parameter, such as conv1.weight
Fields = dict[str, Any]  # those of a recipe that a schedule sets


@dataclass(frozen=True, slots=True)
class Segment:
    """The learning rates from one moment of the schedule to the next; None freezes a group: no step, no decay."""

    after: float  # completed epochs of a run as long as `Recipe.schedule_epochs`, or drops
    rates: Mapping[str, float | None]  # by group: weights, biases, and parameters with rates of their own
    jitter: bool = True  # colour jitter, where the recipe's augmentation has one


def segments(lists: Mapping[str, Rates], *, jitter_epochs: float | None) -> tuple[Segment, ...]:
    """The lists of all groups as one: a segment begins where any rate changes, or the jitter ends."""
    moments = {moment for rates in lists.values() for moment, _ in rates}
    if jitter_epochs is not None:
        moments.add(jitter_epochs)
    return tuple(
        Segment(
            moment,
            {group: _rate_at(rates, moment) for group, rates in lists.items()},
            jitter_epochs is None or moment < jitter_epochs,
        )
        for moment in sorted(moments)
    )


def _rate_at(rates: Rates, moment: float) -> float | None:
    return [rate for start, rate in rates if start <= moment][-1]


def drops(*epochs: float, first: float = 0.01) -> Rates:
    """By ten after each of these epochs.

    >>> drops(23, 51)
    ((0.0, 0.01), (23, 0.001), (51, 0.0001))
    """
    return tuple((epoch, float(f"{first:g}e-{number}")) for number, epoch in enumerate((0.0, *epochs)))


def dexp(base: float, factor: float, steps: int, epochs: float) -> Rates:
    """`steps` equal segments in geometric steps from `base` to `base/factor`: `dexp` of src/lr.cu.

    >>> [(round(moment, 1), round(rate, 7)) for moment, rate in dexp(0.01, 250, 4, 90)]
    [(0.0, 0.01), (22.5, 0.0015874), (45.0, 0.000252), (67.5, 4e-05)]
    """
    return tuple(
        (epochs * number / steps, base * float(factor) ** (-number / (steps - 1))) for number in range(steps)
    )


def of_a_run(
    first: float,
    second: float,
    slowed: float | None,
    frozen: float,
    last: float,
    stop: int,
    *,
    low_biases: bool,
    slow: tuple[str, ...] = ("conv1",),
) -> Fields:
    """A run of the table in fidelity.md §0: drops by ten; `slow` layers slowed with the jitter's end, then frozen.

    Biases are at 0.02; with `low_biases`, whose last value in the release is 0.002, that from the first drop on
    (open question 1 there).
    """
    weights = drops(first, second, last)
    before = tuple((moment, rate) for moment, rate in weights if moment < (frozen if slowed is None else slowed))
    slowing: Rates = () if slowed is None else ((slowed, 0.00001),)
    biases: Rates = ((0, 0.02), (first, 0.002)) if low_biases else ((0, 0.02),)
    own: LayerRates = tuple(
        pair
        for layer in slow
        for pair in (
            (f"{layer}.weight", (*before, *slowing, (frozen, None))),
            (f"{layer}.bias", (*biases, (frozen, None))),
        )
    )
    return {
        "weight_rates": weights,
        "bias_rates": biases,
        "layer_rates": own,
        "jitter_epochs": slowed,
        "schedule_epochs": stop,
        "drop_on": "epochs",
        "epochs": stop,
    }


def _same_for_all(weights: Rates, *, epochs: int, drop_on: str = "epochs") -> Fields:
    return {
        "weight_rates": weights,
        "bias_rates": None,
        "layer_rates": (),
        "jitter_epochs": None,
        "schedule_epochs": epochs,
        "drop_on": drop_on,
        "epochs": epochs,
    }


_TWO = ("conv1", "conv2")
ORIGINAL = of_a_run(23, 51, 68, 72, 78, 93, low_biases=True)
PAPER = _same_for_all(drops(23, 51, 78), epochs=90)
RUN_170: Fields = {
    "weight_rates": dexp(0.01, 250, 4, 90),
    "bias_rates": dexp(0.02, 10, 2, 90),
    "layer_rates": (
        ("conv1.weight", (*dexp(0.01, 250, 4, 90), (74, None))),
        ("conv1.bias", (*dexp(0.02, 10, 2, 90), (74, None))),
    ),
    "jitter_epochs": 68,
    "schedule_epochs": 90,
    "drop_on": "epochs",
    "epochs": 90,
}
# The last layer has another class count, so it is new: slow for 300 batches of 10,010, then fast.
_FC8: Rates = ((0, 0.001), (300 / 10_010, 0.01), (9, 0.001), (22, 0.0001), (42, 0.00001))
RUN_146_2012_2011: Fields = {
    "weight_rates": ((0, 0.001), (22, 0.0001), (42, 0.00001)),
    "bias_rates": ((0, 0.02),),
    "layer_rates": (
        ("conv1.weight", ((0, 0.0001), (5, 0.00001), (7, None))),
        ("conv1.bias", ((0, 0.02), (7, None))),
        ("fc8.weight", _FC8),
    ),
    "jitter_epochs": 38,
    "schedule_epochs": 54,
    "drop_on": "epochs",
    "epochs": 54,
}


@dataclass(frozen=True, slots=True)
class NamedSchedule:
    """A schedule that has a name: the fields of a recipe that it sets, and what it is."""

    fields: Fields
    about: str


SCHEDULES: Mapping[str, NamedSchedule] = {
    "120": NamedSchedule(of_a_run(26, 47, 66, 72, 82, 106, low_biases=False, slow=_TWO), "ILSVRC-2010"),
    "120-2012": NamedSchedule(of_a_run(22, 49, 66, 73, 81, 95, low_biases=False, slow=_TWO), "ILSVRC-2012"),
    "131": NamedSchedule(of_a_run(22, 46, 66, 75, 81, 100, low_biases=True, slow=_TWO), "ILSVRC-2012"),
    "135": NamedSchedule(of_a_run(20, 47, 66, 75, 81, 96, low_biases=True, slow=_TWO), "ILSVRC-2012"),
    "137": NamedSchedule(
        # Conv1 and conv2 freeze where the last drop would be: 0.00001 from 81, nothing more from 85 on.
        of_a_run(25, 49, 81, 85, 85, 103, low_biases=True, slow=_TWO),
        "ILSVRC-2010",
    ),
    "145": NamedSchedule(of_a_run(25, 51, 67, 72, 79, 91, low_biases=False), "ILSVRC-2012: 1 CNN of Table 2"),
    "145-2010": NamedSchedule(ORIGINAL, "ILSVRC-2010: the CNN of Table 1; the preset original"),
    "145-half": NamedSchedule(
        # The last drop is not noted there; that of 145-2010 stands in for it.
        of_a_run(20, 48, 66, 72, 78, 96, low_biases=False),
        "ILSVRC-2010, one tower; last drop as 145-2010",
    ),
    "147": NamedSchedule(of_a_run(23, 51, None, 79, 79, 90, low_biases=True), "ILSVRC-2012, 2×2 pooling"),
    "148": NamedSchedule(of_a_run(22, 44, 69, 73, 86, 97, low_biases=False), "ILSVRC-2012, no normalisation"),
    "150": NamedSchedule(of_a_run(25, 49, 66, 72, 79, 92, low_biases=False), "ILSVRC-2012, towers apart"),
    "146-2012-2011": NamedSchedule(RUN_146_2012_2011, "fine-tuning: 1 CNN* of Table 2; the preset cnn-star"),
    "paper": NamedSchedule(PAPER, "the text: by ten after 23, 51 and 78 epochs of 90; the preset paper"),
    "plateau": NamedSchedule(
        _same_for_all(((0, 0.01), (1, 0.001), (2, 0.0001), (3, 0.00001)), epochs=90, drop_on="plateau"),
        "the text: by ten when validation stops improving, three times, at most 90 epochs",
    ),
    "dexp": NamedSchedule(RUN_170, "geometric steps, January 2013: run 170; the preset dexp"),
}
