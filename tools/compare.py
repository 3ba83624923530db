"""`alextrain compare`: what runs came to side by side, and in what they differ."""

from __future__ import annotations

import io
import json
import math
import statistics
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from ..shards import WrongCall, appearing_whole, printable
from .compared import Against, Line, Run, mapping
from .show import check_out
from .terminal import table

UNKNOWN = "–"
AXES = {"epoch": "epochs", "step": "steps", "hours": "hours of training", "images": "training images"}
_LONGEST_NAME = 32  # that stands in every table
_LONGEST = 4  # of a list that is shown as it is; in longer ones equal neighbours are counted


def side_by_side(runs: Sequence[Run]) -> dict[str, Any]:
    """Everything that is said of the runs beside each other: units in the names, errors and shares in 0..1."""
    settings = [_settings(run) for run in runs]
    return {
        "runs": [_figures(run) for run in runs],
        "differences": _differences(runs, settings),
        "notes": _notes(runs, settings),
    }


def in_words(report: Mapping[str, Any]) -> str:
    """The same for people. Long names are told once, and then stand as numbers."""
    runs = report["runs"]
    names = [run["name"] for run in runs]
    short = max(map(len, names)) <= _LONGEST_NAME or len(runs) == 1
    keys = dict(zip(names, names if short else map(str, range(1, len(runs) + 1)), strict=True))
    blocks = [] if short else ["\n".join(f"{key}  {printable(name)}" for name, key in keys.items())]
    about = [
        (
            keys[run["name"]],
            run["preset"] or UNKNOWN,
            run["shard_set"]["name"] or UNKNOWN,
            _steps(run),
            _plain(run["epoch"]),
            _fixed(run["training_hours"], "11,.2f"),
            _fixed(run["images_per_s"], "8,.1f"),
            _percent(run["waiting_share"], 0),
        )
        for run in runs
    ]
    header = ["run", "preset", "shard set", "steps", "epochs", "train hours", "images/s", "waiting"]
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
    header = ["run", "train loss", "top-1", "top-5", "best val top-1", "top-5", "epoch", "last val top-1", "top-5"]
    blocks.append(table(figures, header=[*header, "epoch"]))
    if report["differences"]:
        rows = [
            ("" if number else field["field"].replace("_", " "), value["shown"], _listed(value["runs"], keys))
            for field in report["differences"]
            for number, value in enumerate(field["values"])
        ]
        blocks.append(table(rows, header=("what differs", "value", "in")))
    blocks += map(printable, report["notes"])
    return "\n\n".join(blocks)


def _listed(names: Sequence[str], keys: Mapping[str, str]) -> str:
    return ", ".join(keys[name] for name in names)


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
    sheet = draw(
        curves,
        against=AXES[against],
        error_title="training top-1 error, %" if not any(run.val for run in runs) else "validation top-1 error, %",
        chance=(f"ln({count:,}) = {math.log(count):.3f}", math.log(count)) if count else None,
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
    errors = [(line, 100 * line.top1_error) for line in run.val or run.train if line.top1_error is not None]
    return Curve(
        run.name,
        drawn(losses),
        drawn(errors),
        run.rate_changes(against),
        f"best {100 * best['top1_error']:.2f} %" if best else "training error" if errors else "no figures so far",
    )


def _figures(run: Run) -> dict[str, Any]:
    last = run.lines[-1] if run.lines else None
    train = run.train[-1] if run.train else None
    best = min(run.val, key=lambda line: line.top1_error or 0.0, default=None)  # the first of equal ones
    speeds = [line.images_per_s for line in run.train if line.images_per_s is not None]
    timed = [line for line in run.train if line.seconds is not None and line.wait_s is not None]
    seconds, waited = sum(line.seconds or 0 for line in timed), sum(line.wait_s or 0 for line in timed)
    return {
        "name": run.name,
        "path": str(run.path),
        "preset": run.recipe.get("preset"),
        "shard_set": run.shard_set,
        "classes": run.classes,
        "chance_loss": math.log(run.classes) if run.classes else None,
        "step": max((line.step for line in run.lines), default=0),
        "last_step": run.last_step,
        "epoch": last.epoch if last else 0.0,
        "train": _line(train),
        "best": _line(best),
        "last": _line(run.val[-1] if run.val else None),
        "images_per_s": statistics.median(speeds) if speeds else None,
        "waiting_share": min(1.0, waited / seconds) if seconds else None,
        "training_hours": _hours(run.train),
        "evaluation_hours": _hours(run.val),
    }


def _line(line: Line | None) -> dict[str, Any] | None:
    if line is None:
        return None
    names = ("step", "epoch", "loss", "top1_error", "top5_error")
    return {name: getattr(line, name) for name in names}


def _hours(lines: Sequence[Line]) -> float | None:
    """Of these lines together; None where any has no seconds: a part of them would look like all."""
    seconds = [line.seconds for line in lines]
    return sum(each or 0.0 for each in seconds) / 3600 if seconds and None not in seconds else None


def _settings(run: Run) -> dict[str, Any]:
    """What runs may differ in, by name: the recipe, then set, devices and versions."""
    machine, told = mapping(run.config.get("machine")), run.shard_set
    around = {
        "shard set": f"{told['name'] or 'unnamed'}, {str(told['digest'])[:12]}" if told["digest"] else None,
        "classes": run.classes,
        "parallel": machine.get("parallel"),
        "ranks": machine.get("ranks"),
        "devices": _devices(machine),
        **mapping(run.config.get("versions")),
    }
    return {**run.recipe, **{name: value for name, value in around.items() if value is not None}}


def _devices(machine: Mapping[str, Any]) -> str | None:
    devices, names = machine.get("devices"), machine.get("names")
    if not isinstance(devices, list):
        return None
    if not isinstance(names, list) or len(names) != len(devices):
        return ", ".join(map(str, devices))
    return ", ".join(f"{device} ({name})" for device, name in zip(devices, names, strict=True))


def _differences(runs: Sequence[Run], settings: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Where those runs differ that say anything: by field, each value with its runs."""
    found = []
    for field in dict.fromkeys(name for each in settings for name in each):
        values: dict[str, dict[str, Any]] = {}
        for run, each in zip(runs, settings, strict=True):
            if field in each:
                key = json.dumps(each[field], sort_keys=True)
                about = {"value": each[field], "shown": shown(each[field]), "runs": []}
                values.setdefault(key, about)["runs"].append(run.name)
        if len(values) > 1:
            found.append({"field": field, "values": list(values.values())})
    return found


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
    return (_fixed(line["loss"], ".4f"), *errors) if with_loss else (*errors, _plain(line["epoch"]))


def _steps(run: Mapping[str, Any]) -> str:
    return f"{run['step']:,}" + (f" of {run['last_step']:,}" if run["last_step"] else "")


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
