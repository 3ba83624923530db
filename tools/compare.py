"""`alextrain compare`: what runs came to side by side, and in what they differ."""

from __future__ import annotations

import io
import json
import math
import textwrap
from collections.abc import Mapping, Sequence
from itertools import zip_longest
from pathlib import Path
from typing import Any

from ..shards import WrongCall, appearing_whole, printable
from .compared import Against, Line, Run, figures_of
from .show import check_out
from .shown import finite
from .terminal import duration, table

UNKNOWN = "–"
_SET = "shard set"  # a setting, compared by its digest
AXES = {"epoch": "epochs", "step": "steps", "hours": "hours of training", "images": "training images"}
COLUMNS = 100  # of a terminal, at the most
_LONGEST_NAME = 16  # that stands in every table
_LONGEST_SET = 14  # of a shard set's name, there
_LONGEST_VALUE, _LEAST_LIST = 60, 20  # of a line of what differs: its value, and the runs that have it
_MOST_LOSS = 1e4  # above it a loss is written by its power of ten
_CUT = 3  # times the loss of a constant answer: where the picture's axis ends, if a loss is above
_LONGEST = 4  # of a list that is shown as it is; in longer ones equal neighbours are counted


def side_by_side(runs: Sequence[Run]) -> dict[str, Any]:
    """Everything that is said of the runs beside each other: units in the names, errors and shares in 0..1."""
    settings = [_settings(run) for run in runs]
    return {
        "runs": [figures_of(run) for run in runs],
        "differences": finite(_differences(runs, settings)),
        "notes": _notes(runs, settings),
    }


def in_words(report: Mapping[str, Any]) -> str:
    """The same for people. Long names are told once, and then stand as numbers."""
    runs = report["runs"]
    names = [run["name"] for run in runs]
    short = max(map(len, names)) <= _LONGEST_NAME
    keys = dict(zip(names, names if short else map(str, range(1, len(runs) + 1)), strict=True))
    blocks = [] if short else ["\n".join(f"{key}  {printable(name)}" for name, key in keys.items())]
    about = [
        (
            keys[run["name"]],
            run["preset"] or UNKNOWN,
            _short(run["shard_set"]["name"] or UNKNOWN),
            _steps(run),
            _plain(run["epoch"]),
            UNKNOWN if run["training_hours"] is None else duration(3600 * run["training_hours"]),
            _fixed(run["images_per_s"], "8,.1f"),
            _percent(run["waiting_share"], 0),
        )
        for run in runs
    ]
    header = ["run", "preset", "shard set", "steps", "epochs", "train time", "images/s", "waiting"]
    blocks.append(table(about, header=header))
    figures = [
        (
            keys[run["name"]],
            *_three(run["train"], with_loss=True),
            *_three(run["best"]),
            *_three(run["last"]),
        )
        for run in runs
    ]
    above = ["", "train", "", "", "best val", "", "", "last val"]
    header = ["run", "loss", "top-1", "top-5", "top-1", "top-5", "epoch", "top-1", "top-5", "epoch"]
    blocks.append(table([header, *figures], header=above))
    if report["differences"]:
        rows = _rows_of_differences(report["differences"], keys)
        blocks.append(table(rows, header=("what differs", "value", "in")))
    blocks += [textwrap.fill(printable(note), COLUMNS, break_on_hyphens=False) for note in report["notes"]]
    return "\n\n".join(blocks)


def _rows_of_differences(
    differences: Sequence[Mapping[str, Any]], keys: Mapping[str, str]
) -> list[tuple[str, str, str]]:
    """Field, value and runs, each broken into lines so that all fit in COLUMNS."""
    found = []
    for field in differences:
        name = field["field"].replace("_", " ")
        for value, lines in zip(field["values"], _lines_of_values(field["values"]), strict=True):
            found.append((name, lines, ", ".join(keys[run] for run in value["runs"])))
            name = ""
    taken = max(len(name) for name, _, _ in found) + max(len(line) for _, lines, _ in found for line in lines)
    room = max(_LEAST_LIST, COLUMNS - taken - 4)
    return [
        row
        for name, lines, listed in found
        for row in zip_longest([name], lines, _broken(printable(listed), room), fillvalue="")
    ]


def _lines_of_values(values: Sequence[Mapping[str, Any]]) -> list[list[str]]:
    """Each value in lines; of rates by parameter those that differ, a parameter a line."""
    contents = [value["value"] for value in values]
    if not all(isinstance(content, Mapping) for content in contents):
        return [_broken(printable(value["shown"]), _LONGEST_VALUE) for value in values]
    names = dict.fromkeys(name for content in contents for name in content)
    differing = [
        name for name in names if len({_as_text(each[name]) if name in each else "" for each in contents}) > 1
    ]
    told = [
        [f"{name}: {shown(each[name]) if name in each else 'none of its own'}" for name in differing]
        for each in contents
    ]
    return [[line for text in each for line in _broken(printable(text), _LONGEST_VALUE)] for each in told]


def _broken(text: str, width: int) -> list[str]:
    return textwrap.wrap(text, width, subsequent_indent="  ", break_on_hyphens=False) or [""]


def check_picture(out: Path | None, against: Against | None) -> None:
    """See that a picture can be drawn there, before anything is read.

    Raises:
        WrongCall: it is no PNG or in no folder; or an axis is asked for, and no picture.
        AlexshardError: nothing can be written there.
    """
    if out is not None:
        check_out("--out", out, ".png", why="the picture is a PNG, whose lines stay sharp")
    elif against is not None:
        raise WrongCall(
            f"--against {against} without --out", why="it is the picture's axis", remedy="--out FILE.png"
        )


def write_picture(out: Path, runs: Sequence[Run], report: Mapping[str, Any], against: Against) -> None:
    """Draw the runs into a PNG, which appears whole or not at all; its description says the table in words.

    Raises:
        WrongCall: more runs than can be told apart, none has figures, or one does not say where it is on the axis.
    """
    from PIL.PngImagePlugin import PngInfo

    from .curves import draw
    from .pen import MOST

    if len(runs) > MOST:
        raise WrongCall(
            f"a picture of {len(runs)} runs", why=f"{MOST} lines can be told apart", remedy="leave some out"
        )
    if not any(run.lines for run in runs):
        raise WrongCall("there is nothing to draw: no run has figures so far", remedy="leave --out out")
    curves = [_curve(run, figures, against) for run, figures in zip(runs, report["runs"], strict=True)]
    classes = {run.classes for run in runs}
    count = classes.pop() if len(classes) == 1 else None
    notes = [note for note in report["notes"] if note.startswith("The runs are of different shard sets")]
    known = [run.classes for run in runs if run.classes and run.classes > 1]
    sheet = draw(
        curves,
        against=AXES[against],
        error_title="training top-1 error, %" if not any(run.val for run in runs) else "validation top-1 error, %",
        chance=(f"ln({count:,}) = {math.log(count):.3f}", math.log(count)) if count else None,
        ceiling=(f"{_CUT} × ln({max(known):,})", _CUT * math.log(max(known))) if known else None,
        notes=notes,
    )
    about = PngInfo()
    about.add_itxt("Description", in_words(report))
    content = io.BytesIO()
    sheet.save(content, "png", pnginfo=about)
    with appearing_whole(out) as target:
        target.write(content.getvalue())


def _curve(run: Run, figures: Mapping[str, Any], against: Against) -> Any:
    """What is drawn of one run: its training error where it was never evaluated."""
    from .curves import Curve, points

    def drawn(figures: Sequence[tuple[Line, float]]) -> Any:
        return points(run.places([line for line, _ in figures], against), [figure for _, figure in figures])

    best = figures["best"]
    losses = [(line, line.loss) for line in run.train if line.loss is not None]
    every = run.val or run.train
    errors = [(line, 100 * min(line.top1_error, 1.0)) for line in every if line.top1_error is not None]
    return Curve(
        printable(run.name),
        drawn(losses),
        drawn(errors),
        run.rate_changes(against),
        f"best {100 * best['top1_error']:.2f} %" if best else "training error" if errors else "no figures so far",
    )


def _settings(run: Run) -> dict[str, Any]:
    """What runs may differ in, by name: the recipe, then set, devices and versions."""
    machine = run.part("machine")
    around = {
        _SET: run.shard_set["digest"],
        "classes": run.classes,
        "parallel": machine.get("parallel"),
        "ranks": machine.get("ranks"),
        "devices": _devices(machine),
    }
    versions = {name: version for name, version in run.part("versions").items() if name not in around}
    recipe = {name: value for name, value in run.recipe.items() if name not in around}
    return {**recipe, **{name: value for name, value in (around | versions).items() if value is not None}}


def _devices(machine: Mapping[str, Any]) -> str | None:
    devices, names = machine.get("devices"), machine.get("names")
    if devices is None:
        return None
    if names is None or len(names) != len(devices):
        return ", ".join(devices)
    return ", ".join(f"{device} ({name})" for device, name in zip(devices, names, strict=True))


def _differences(runs: Sequence[Run], settings: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Where those runs differ that say anything: by field, each value with its runs."""
    found = []
    sets = {run.shard_set["digest"]: run.shard_set["name"] or "unnamed" for run in runs}
    for field in dict.fromkeys(name for each in settings for name in each):
        values: dict[str, dict[str, Any]] = {}
        for run, each in zip(runs, settings, strict=True):
            if field in each:
                key = _as_text(each[field])
                told = _named(each[field], sets) if field == _SET else shown(each[field])
                about = {"value": each[field], "shown": told, "runs": []}
                values.setdefault(key, about)["runs"].append(run.name)
        if len(values) > 1:
            found.append({"field": field, "values": list(values.values())})
    return found


def _as_text(value: Any) -> str:
    """What values are told apart by: to Python 1, 1.0 and True are equal."""
    return json.dumps(value, sort_keys=True)


def _named(digest: str, sets: Mapping[str | None, str]) -> str:
    """The name of a shard set, with its digest where another one is called the same."""
    name = sets[digest]
    return name if list(sets.values()).count(name) == 1 else f"{name}, {digest[:12]}"


def _notes(runs: Sequence[Run], settings: Sequence[Mapping[str, Any]]) -> list[str]:
    """What a reader must know to compare the figures."""
    notes = []
    if len({digest for run in runs if (digest := run.shard_set["digest"])}) > 1:
        notes.append("The runs are of different shard sets: their errors and losses are of different images.")
    if len(counts := sorted({run.classes for run in runs if run.classes})) > 1:
        words = ", ".join(f"{math.log(count):.3f} with {count:,}" for count in counts)
        notes.append(f"They tell other numbers of classes apart; a constant answer has a loss of {words}.")
    if never := [run.name for run in runs if run.train and not run.val]:
        notes.append(f"Never evaluated so far: {', '.join(never)}.")
    if empty := [run.name for run in runs if not run.lines]:
        notes.append(f"Without figures so far: {', '.join(empty)}.")
    fields = dict.fromkeys(name for run in runs for name in run.recipe)
    for run, own in zip(runs, settings, strict=True):
        if untold := [name for name in fields if name not in own]:
            notes.append(f"{run.name}, of another version, says nothing of {', '.join(untold)}.")
    return notes


def shown(value: Any) -> str:
    """A field's value in one line.

    >>> shown([[0.0, 0.01], [23.0, 0.001], [72.0, None]])
    '0.01, from 23: 0.001, from 72: frozen'
    >>> shown([0.01, 0.01, 0.03, 0.03, 0.03, 0.01, 0.01, 0.01]), shown(None), shown(True)
    ('0.01 ×2, 0.03 ×3, 0.01 ×3', 'none', 'yes')
    """
    if value is None or isinstance(value, bool):
        return {None: "none", True: "yes", False: "no"}[value]
    if isinstance(value, Mapping):
        return "; ".join(f"{name} {shown(part)}" for name, part in value.items()) or "none"
    if isinstance(value, list):
        if value and all(isinstance(pair, list) and len(pair) == 2 for pair in value):
            return ", ".join(
                f"{'' if start == 0 else f'from {shown(start)}: '}{_rate(rate)}" for start, rate in value
            )
        parts = [shown(part) for part in value]
        return ("; " if any(isinstance(part, list | dict) for part in value) else ", ").join(
            _counted(parts)
        ) or "none"
    return f"{value:g}" if isinstance(value, float) else str(value)


def _rate(rate: Any) -> str:
    return "frozen" if rate is None else shown(rate)


def _counted(parts: Sequence[str]) -> list[str]:
    """Equal neighbours of a long list once, with their number."""
    if len(parts) <= _LONGEST:
        return list(parts)
    counted: list[tuple[str, int]] = []
    for part in parts:
        if counted and counted[-1][0] == part:
            counted[-1] = part, counted[-1][1] + 1
        else:
            counted.append((part, 1))
    return [part if number == 1 else f"{part} ×{number}" for part, number in counted]


def _three(line: Mapping[str, Any] | None, *, with_loss: bool = False) -> tuple[str, str, str]:
    if line is None:
        return (UNKNOWN,) * 3
    errors = _percent(line["top1_error"]), _percent(line["top5_error"])
    if not with_loss:
        return *errors, _plain(line["epoch"])
    loss = line["loss"]
    return _fixed(loss, ".4f" if loss is None or loss < _MOST_LOSS else ".1e"), *errors


def _short(name: str) -> str:
    """The name of a shard set, for a column.

    >>> _short("ilsvrc2012"), _short("ilsvrc2012-without-borders")
    ('ilsvrc2012', 'ilsvrc2012-wi…')
    """
    return name if len(name) <= _LONGEST_SET else name[: _LONGEST_SET - 1] + "…"


def _steps(run: Mapping[str, Any]) -> str:
    """Steps so far, and of how many where there are more to come."""
    told = f"{run['step']:,}"
    return told if run["done"] or run["last_step"] is None else f"{told} of {run['last_step']:,}"


def _percent(share: float | None, digits: int = 2) -> str:
    return UNKNOWN if share is None else f"{100 * share:{digits + 4 if digits else 5}.{digits}f} %"


def _fixed(value: float | None, form: str) -> str:
    return UNKNOWN if value is None else format(value, form)


def _plain(value: float) -> str:
    """Two decimals at the most.

    >>> _plain(93.0), _plain(0.25)
    ('93', '0.25')
    """
    return f"{value:,.2f}".rstrip("0").rstrip(".")
