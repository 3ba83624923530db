"""`alextrain compare`: what the table says of runs, and where the picture has them."""

from __future__ import annotations

import copy
import itertools
import json
import math
import subprocess
import sys

import numpy as np
import pytest
from alexshard.tools import curves
from alexshard.tools.axes import Axis
from alexshard.tools.compare_command import compare
from alexshard.tools.curves import Curve, Panel, _cut, draw, points
from alexshard.tools.pen import COLOURS, paled
from alexshard.tools.terminal import Cli
from alexshard.tools.watch_command import watch
from click.testing import CliRunner
from PIL import Image

from tests.conftest import alexshard, run

RECIPE = {
    "preset": "original",
    "width": 1.0,
    "batch_size": 100,
    "seed": 0,
    "max_steps": None,
    "weight_rates": [[0.0, 0.01], [2.0, 0.001]],
    "layer_rates": {"conv1.weight": [[0.0, 0.01], [3.0, None]]},
}
MAIN = Cli("alextrain", commands={"compare": compare, "watch": watch})
CLASSES = 10
CHANCE = math.log(CLASSES)


def alextrain(*arguments, code=0):
    """What `alextrain compare` prints on stdout, and on stderr where it fails."""
    done = CliRunner().invoke(MAIN, ["compare", *map(str, arguments)])
    assert done.exit_code == code, done.output
    return done.stdout if code == 0 else done.stderr


def train(epoch, loss, **fields):
    """A line after so many epochs of 100 steps."""
    rate = 0.01 if epoch <= 2 else 0.001
    figures = {"top1_error": 0.5, "top5_error": 0.25, "lr": rate, "images_per_s": 100.0, "wait_s": 90.0}
    rates = {"seconds": 900.0, "rates": {"weights": rate}, "memory_bytes": 1, "updates": {}}
    return {
        "kind": "train",
        "epoch": epoch,
        "step": round(100 * epoch),
        "loss": loss,
        **figures,
        **rates,
        **fields,
    }


def val(epoch, top1, top5=0.1, **fields):
    return train(epoch, 2.0, **{"kind": "val", "top1_error": top1, "top5_error": top5, "seconds": 36.0, **fields})


def written(folder, lines, *, recipe=None, classes=CLASSES, digest="a" * 64, name="drawn", **config):
    """A run's folder as `alextrain run` leaves it."""
    folder.mkdir(parents=True)
    about = {
        "recipe": {**RECIPE, **(recipe or {})},
        "steps_per_epoch": 100,
        "total_steps": 1000,
        "last_step": 1000,
        "schedule_steps": [0, 200, 300],
        "shard_set": {"path": "/data/drawn", "digest": digest, "name": name},
        "classes": [{"synset": f"n{number}", "words": ""} for number in range(classes)],
        "machine": {"parallel": "single", "ranks": 1, "devices": ["cpu"], "names": ["a processor"]},
        "versions": {"alexshard": "1", "torch": "2"},
        **config,
    }
    (folder / "config.json").write_text(json.dumps(about))
    (folder / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    return folder


@pytest.fixture
def one(tmp_path):
    lines = [train(1, 2.25), val(1, 0.75), train(2, 1.5, images_per_s=300.0), val(2, 0.5, 0.125), train(3, 1.25)]
    return written(tmp_path / "one", [*lines, val(3, 0.625)])


@pytest.fixture
def other(tmp_path):
    lines = [train(1, 2.0, images_per_s=50.0), val(1, 0.5)]
    return written(tmp_path / "other", lines, recipe={"width": 0.5, "weight_rates": [[0.0, 0.01]]})


def told(*arguments):
    return json.loads(alextrain(*arguments, "--json"))


class TestTable:
    def test_the_object_has_every_figure_of_a_run(self, one):
        (found,) = told(one)["runs"]

        assert found | {"shard_set": None, "chance_loss": None} == {
            "name": "one",
            "path": str(one),
            "preset": "original",
            "shard_set": None,
            "classes": 10,
            "chance_loss": None,
            "step": 300,
            "last_step": 1000,
            "done": False,
            "epoch": 3.0,
            "train": {"step": 300, "epoch": 3.0, "loss": 1.25, "top1_error": 0.5, "top5_error": 0.25},
            "best": {"step": 200, "epoch": 2.0, "loss": 2.0, "top1_error": 0.5, "top5_error": 0.125},
            "last": {"step": 300, "epoch": 3.0, "loss": 2.0, "top1_error": 0.625, "top5_error": 0.1},
            "images_per_s": 100.0,
            "waiting_share": 0.1,
            "training_hours": 0.75,
            "evaluation_hours": 0.03,
        }
        assert found["shard_set"] == {"name": "drawn", "path": "/data/drawn", "digest": "a" * 64}
        assert found["chance_loss"] == pytest.approx(CHANCE)

    def test_the_table_has_a_row_for_each_run_with_its_figures(self, one, other):
        rows = {}
        for line in filter(None, alextrain(one, other).splitlines()):
            name, *cells = line.split()
            rows.setdefault(name, []).append(cells)

        about, figures = rows["one"][:2]
        assert about == [
            *("original", "drawn", "300", "of", "1,000"),
            "3",
            *("45", "min", "0", "s", "100.0", "10", "%"),
        ]
        assert figures == [
            *("1.2500", "50.00", "%", "25.00", "%"),
            *("50.00", "%", "12.50", "%", "2"),
            *("62.50", "%", "10.00", "%", "3"),
        ]
        assert rows["other"][0][2:] == ["100", "of", "1,000", "1", *("15", "min", "0", "s"), "50.0", "10", "%"]

    def test_of_equal_evaluations_the_first_is_best(self, tmp_path):
        lines = [train(1, 2), val(1, 0.6), val(2, 0.4, 0.3), val(3, 0.4, 0.2)]

        assert told(written(tmp_path / "equal", lines))["runs"][0]["best"]["epoch"] == 2

    def test_only_what_differs_is_told_each_value_with_its_runs(self, one, other, tmp_path):
        third = written(tmp_path / "third", [train(1, 2)], recipe={"width": 0.5})
        machine = {"parallel": "single", "ranks": 1, "devices": ["cuda:0"], "names": ["a card"]}
        fourth = written(
            tmp_path / "fourth", [train(1, 2)], machine=machine, versions={"alexshard": "1", "torch": "3"}
        )
        report = told(one, other, third, fourth)

        assert {each["field"]: [value["runs"] for value in each["values"]] for each in report["differences"]} == {
            "width": [["one", "fourth"], ["other", "third"]],
            "weight_rates": [["one", "third", "fourth"], ["other"]],
            "devices": [["one", "other", "third"], ["fourth"]],
            "torch": [["one", "other", "third"], ["fourth"]],
        }
        lines = [" ".join(line.split()) for line in alextrain(one, other, third, fourth).splitlines()]
        told_of_width = lines.index("width 1 one, fourth")
        assert lines[told_of_width + 1] == "0.5 other, third"
        assert "weight rates 0.01, from 2: 0.001 one, third, fourth" in lines
        assert "cuda:0 (a card) fourth" in lines
        assert not any(line.startswith("seed") for line in lines)

    def test_runs_of_other_images_are_compared_and_it_is_said(self, one, tmp_path):
        of_others = written(tmp_path / "others", [train(1, 4), val(1, 0.9)], digest="b" * 64, classes=100)
        text = alextrain(one, of_others)

        assert "different shard sets: their errors and losses are of different images" in text
        assert "2.303 with 10, 4.605 with 100" in " ".join(text.split())
        assert "drawn, aaaaaaaaaaaa  one" in text
        assert "different" not in alextrain(one)

    def test_seconds_of_training_are_seconds(self, tmp_path):
        assert "  4.5 s  " in alextrain(written(tmp_path / "short", [train(1, 2, seconds=4.5)]))

    def test_a_finished_run_tells_its_steps_once(self, tmp_path):
        assert "  1,000  10 " in alextrain(written(tmp_path / "done", [train(10, 2)]))

    def test_a_run_that_its_rule_ended_has_no_more_steps_to_come(self, tmp_path):
        folder = written(tmp_path / "plateau", [train(8, 2)])
        (folder / "end.json").write_text(json.dumps({"schema": 1, "state": "done", "step": 800}))

        assert "  800    8 " in alextrain(folder)
        (found,) = told(folder)["runs"]
        assert (found["step"], found["last_step"], found["done"]) == (800, 1000, True)

    @pytest.mark.parametrize("state", ["stopped", "failed"])
    def test_a_run_that_was_left_has_steps_to_come(self, tmp_path, state):
        folder = written(tmp_path / "left", [train(8, 2)])
        (folder / "end.json").write_text(json.dumps({"schema": 1, "state": state, "step": 800}))

        assert "  800 of 1,000  8 " in alextrain(folder)

    def test_sets_differ_by_their_digest_and_are_told_by_their_names(self, one, tmp_path):
        same = written(tmp_path / "same", [train(1, 2)], name="elsewhere")
        other = written(tmp_path / "photographs", [train(1, 2)], name="photographs", digest="b" * 64)

        assert told(one, same)["differences"] == []
        (found,) = told(one, other)["differences"]
        assert found["field"] == "shard set"
        assert [each["shown"] for each in found["values"]] == ["drawn", "photographs"]
        assert [each["value"] for each in found["values"]] == ["a" * 64, "b" * 64]

    def test_no_line_is_longer_than_100_columns(self, tmp_path):
        runs = []
        for number in range(6):
            own = {f"fc{layer}.weight": [[at, 0.01 / (number + at + 1)] for at in range(9)] for layer in (6, 7, 8)}
            recipe = {"seed": number % 2, "layer_rates": {**RECIPE["layer_rates"], **own}, f"field{number}": 1}
            lines = [train(93.25, 1e27 if number else 123.4567, seconds=4e6, images_per_s=12_345.6), val(93.25, 1)]
            options = {"name": "photographs-of-ten-kinds", "last_step": 1_172_420, "digest": f"{number}" * 64}
            runs.append(written(tmp_path / f"run-of-length-{number}", lines, recipe=recipe, **options))
        text = alextrain(*runs)

        assert max(map(len, text.splitlines())) <= 100
        assert "1.0e+27" in text
        assert "conv1.weight" not in text  # which is the same in all
        assert [line.split()[0] for line in text.splitlines() if "weight:" in line] == [
            *("layer", "fc7.weight:", "fc8.weight:"),
            *["fc6.weight:", "fc7.weight:", "fc8.weight:"] * 5,
        ]

    def test_rates_of_a_layer_that_one_run_alone_has_are_told(self, one, tmp_path):
        rates = {**RECIPE["layer_rates"], "fc8.weight": [[0.0, 0.1]]}
        more = written(tmp_path / "more", [train(1, 2)], recipe={"layer_rates": rates})
        lines = [" ".join(line.split()) for line in alextrain(one, more).splitlines()]

        at = lines.index("layer rates fc8.weight: none of its own one")
        assert lines[at + 1] == "fc8.weight: 0.1 more"

    @pytest.mark.parametrize("values", [(1, 1.0), (1, True), (None, "")])
    def test_values_that_python_takes_for_equal_are_told_apart(self, tmp_path, values):
        rates = [{} if value == "" else {"fc8.weight": value} for value in values]
        folders = [written(tmp_path / f"{at}", [train(1, 2)], recipe={"layer_rates": rates[at]}) for at in (0, 1)]

        assert "layer rates" in alextrain(*folders)

    def test_long_names_are_told_once_and_stand_as_numbers(self, tmp_path):
        names = [f"a-run-with-quite-a-long-name-of-its-own-{number}" for number in (1, 2)]
        folders = [
            written(tmp_path / name, [train(1, 2), val(1, 0.5)], recipe={"seed": at})
            for at, name in enumerate(names)
        ]
        text = alextrain(*folders)

        assert text.startswith(f"1  {names[0]}\n2  {names[1]}\n\nrun ")
        assert text.count(names[0]) == 1
        assert "seed          0      1\n              1      2" in text

    def test_a_run_of_an_earlier_version_is_shown_without_what_it_does_not_tell(self, one, tmp_path):
        lines = [train(1, 2.0), val(1, 0.5)]
        for line, name in itertools.product(lines, ("seconds", "rates", "memory_bytes", "updates")):
            del line[name]
        old = written(tmp_path / "old", lines)
        config = json.loads((old / "config.json").read_text())
        del config["last_step"], config["shard_set"]["name"], config["recipe"]["width"]
        (old / "config.json").write_text(json.dumps(config))
        report = told(one, old)
        found = report["runs"][1]

        assert [found[name] for name in ("training_hours", "waiting_share", "last_step")] == [None, None, 1000]
        assert found["shard_set"]["name"] == "drawn"
        assert report["differences"] == []
        assert report["notes"] == ["old, of another version, says nothing of width."]
        assert "–" in alextrain(old)

    def test_figures_that_are_no_numbers_are_not_known(self, tmp_path):
        lines = [train(1, 2.0), train(2, math.nan, images_per_s=math.inf, wait_s=10**400), val(2, math.nan)]
        folder = written(tmp_path / "diverged", lines)
        printed = alextrain(folder, "--json", "--out", tmp_path / "diverged.png")
        (found,) = json.loads(printed, parse_constant=pytest.fail)["runs"]

        assert (found["train"]["loss"], found["best"], found["images_per_s"]) == (None, None, 100.0)

    def test_a_run_without_figures_is_named(self, one, tmp_path):
        empty = written(tmp_path / "empty", [])
        (empty / "metrics.jsonl").unlink()

        assert told(one, empty)["notes"] == ["Without figures so far: empty."]
        assert "0 of 1,000" in alextrain(empty)


class TestRuns:
    def test_a_run_named_twice_is_shown_once(self, one, monkeypatch):
        monkeypatch.chdir(one.parent)

        assert [found["name"] for found in told(one, "one", "./one/")["runs"]] == ["one"]

    def test_runs_of_one_name_are_told_apart_by_the_folders_above(self, tmp_path):
        folders = [written(tmp_path / each, [train(1, 2)]) for each in ("a/x/run", "b/x/run", "b/y/other")]

        assert [found["name"] for found in told(*folders)["runs"]] == ["a/x/run", "b/x/run", "other"]

    def test_a_half_written_last_line_is_passed_over(self, one):
        with (one / "metrics.jsonl").open("a") as file:
            file.write('{"kind": "train", "epoch": 4.0, "st')

        assert told(one)["runs"][0]["step"] == 300

    @pytest.mark.parametrize(
        "line",
        [
            *('{"kind": "tr', "[]", '{"kind": "other", "epoch": 1, "step": 1}', "{}", "[" * 200_000),
            f'{{"kind": "train", "epoch": 1, "step": 1, "odd": {"[" * 500}{"]" * 500}}}',
        ],
    )
    def test_a_damaged_line_is_named_with_its_file(self, one, other, line):
        lines = (other / "metrics.jsonl").read_text().splitlines()
        (other / "metrics.jsonl").write_text("\n".join([lines[0], line, lines[1]]) + "\n")

        assert f"where: {other}/metrics.jsonl, line 2\n" in alextrain(one, other, code=1)

    @pytest.mark.parametrize(
        "content", ["{", "[]", "[" * 200_000, '{"recipe": []}', f'{{"recipe": {{"odd": {"[" * 500}{"]" * 500}}}}}']
    )
    def test_a_damaged_configuration_is_named(self, one, content):
        (one / "config.json").write_text(content)

        assert f"where: {one}/config.json, line 1\n" in alextrain(one, code=1)

    @pytest.mark.parametrize("which", ["nowhere", "folder", "one/metrics.jsonl"])
    def test_what_is_no_run_is_refused(self, one, tmp_path, which):
        (tmp_path / "folder").mkdir()
        said = alextrain(one, tmp_path / which, code=2)

        assert f"error: {tmp_path / which} is no run" in said
        assert "what to do: name folders that alextrain run made" in said

    def test_neither_torch_nor_pillow_is_needed_for_a_table(self, one):
        code = (
            "import sys, alexshard.tools.compare_command as command\n"
            f"command.compare([{str(one)!r}], standalone_mode=False)\n"
            "assert not {'torch', 'nvidia'} & set(sys.modules)"
        )
        done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)

        assert (done.returncode, done.stderr) == (0, "")
        assert "300 of 1,000" in done.stdout


def keys_of(mapping, above=()):
    for key, value in mapping.items():
        yield (*above, key)
        if isinstance(value, dict):
            yield from keys_of(value, (*above, key))


class TestOddValues:
    """What a program may find in a file that somebody edited, or that was made to harm."""

    RECIPE = RECIPE | {"epochs": 10, "precision": "fp32"}
    ACTING = "\x1b]0;x\x07"  # gives a terminal's window another name
    VALUES = (5, -1, 1.5, True, "x", ACTING, [], [1], [ACTING], {}, {ACTING: ACTING}, None, 10**400, math.nan)

    @pytest.fixture
    def sound(self, tmp_path):
        lines = [train(1, 2.25), val(1, 0.75), train(2, 1.5), val(2, 0.5), train(3, 1.25)]
        return written(tmp_path / "sound", lines, recipe=self.RECIPE)

    @pytest.fixture
    def config(self, sound):
        return json.loads((sound / "config.json").read_text())

    def test_a_config_is_shown_or_refused_and_acts_on_nothing(self, sound, config, tmp_path, monkeypatch):
        monkeypatch.setattr(curves, "draw", lambda *_, **__: Image.new("RGB", (1, 1)))
        odd = written(tmp_path / "odd", [train(1, 2), val(1, 0.5), train(3, 2)])
        commands = [
            ("compare", odd, sound),
            ("compare", odd, sound, "--json"),
            ("compare", odd, "--out", tmp_path / "odd.png", "--against", "images"),
            ("watch", odd, "--once"),
            ("watch", odd, "--once", "--json"),
        ]
        codes = set()
        for (*above, key), value in itertools.product(keys_of(config), self.VALUES):
            changed = part = copy.deepcopy(config)
            for name in above:
                part = part[name]
            part[key] = value
            (odd / "config.json").write_text(json.dumps(changed))
            for command in commands:
                done = CliRunner().invoke(MAIN, list(map(str, command)))
                codes.add(done.exit_code)
                called = f"{command[0]} with {'.'.join((*above, key))} = {str(value)[:20]!r}"
                assert done.exception is None or isinstance(done.exception, SystemExit), called
                assert done.output.replace("\n", "").isprintable(), called
                if "--json" in command:
                    json.loads(done.stdout, parse_constant=pytest.fail)

        assert codes == {0, 1, 2}

    @pytest.mark.parametrize(
        "name", ["shard_set.name", "shard_set.path", "shard_set.digest", "machine.names", "recipe.max_steps"]
    )
    def test_what_is_not_of_its_type_is_named(self, config, tmp_path, name):
        part, key = name.split(".")
        folder = written(tmp_path / "odd", [train(1, 2)], **{part: config[part] | {key: 1.5}})

        assert f"config.json of the run cannot be read: {name} is 1.5, not a" in alextrain(folder, code=1)

    def test_fields_called_as_the_settings_that_compare_adds_change_nothing_of_these(self, sound, tmp_path):
        fields = {"shard set": [], "classes": {}, "devices": 3}
        recipe = self.RECIPE | fields
        named = written(tmp_path / "named", [train(1, 2)], recipe=recipe, versions=fields)
        of_no_set = written(tmp_path / "other", [train(1, 2)], recipe=recipe, versions=fields, digest=None)

        assert told(sound, named, of_no_set)["differences"] == []

    def test_a_name_acts_neither_on_the_terminal_nor_on_the_picture(self, sound, tmp_path, monkeypatch):
        drawn = []
        monkeypatch.setattr(curves, "draw", lambda each, **_: drawn.extend(each) or Image.new("RGB", (1, 1)))
        rates = {"rates": {self.ACTING: 0.1}, "updates": {self.ACTING: 0.1}}
        lines = [train(1, 2, **rates), val(1, 0.5, **rates)]
        folder = written(tmp_path / f"{self.ACTING}\nrun", lines, recipe={self.ACTING: 1}, name=self.ACTING)
        text = alextrain(folder, sound, "--out", tmp_path / "names.png")

        assert text.endswith(f"\npicture  {tmp_path}/names.png\n")
        assert text.count(r"\x1b]0;x\x07") >= 3
        assert text.replace("\n", "").isprintable()
        assert drawn[0].name == r"\x1b]0;x\x07\nrun"
        assert CliRunner().invoke(MAIN, ["watch", str(folder), "--once"]).output.replace("\n", "").isprintable()

    def test_an_error_above_all_is_drawn_at_the_edge(self, tmp_path):
        picture = Picture(drawn(level_run(tmp_path / "run", 1.0, 1e308), out=tmp_path / "above.png"))

        assert len(picture.places(0, "error")[0])


LEGEND = 90  # pixels from the top, below which no legend of up to four runs reaches


class Picture:
    """A picture, by the exact colours of runs below the legend."""

    def __init__(self, image: Image.Image) -> None:
        self.pixels = np.asarray(image.convert("RGB"))
        self.half = self.pixels.shape[0] // 2  # between the panels

    def places(self, number: int, panel: str) -> tuple[np.ndarray, np.ndarray]:
        """Rows and columns of the run's pixels."""
        rows = slice(LEGEND, self.half) if panel == "loss" else slice(self.half, None)
        found = np.nonzero((self.pixels[rows] == COLOURS[number]).all(axis=2))
        return found[0] + rows.start, found[1]

    def level(self, number: int, panel: str, between: tuple[float, float] = (0.0, 1.0)) -> float:
        """The row of a level line, in a part of the width."""
        rows, columns = self.places(number, panel)
        low, high = (share * self.pixels.shape[1] for share in between)
        return float(np.median(rows[(columns >= low) & (columns < high)]))

    def right(self, number: int, panel: str = "loss") -> int:
        return int(self.places(number, panel)[1].max())


def drawn(*arguments, out):
    alextrain(*arguments, "--out", out)
    with Image.open(out) as image:
        image.load()
    return image


def level_run(folder, loss, error, epochs=10.0, **options):
    """Forty lines at one loss, and as many evaluations with one error."""
    at = [epochs * number / 40 for number in range(1, 41)]
    lines = [line for epoch in at for line in (train(epoch, loss, rates={}), val(epoch, error, rates={}))]
    return written(folder, lines, **options)


class TestPicture:
    def test_levels_lie_as_far_apart_as_the_figures(self, tmp_path):
        runs = [
            level_run(tmp_path / f"{number}", loss, error)
            for number, (loss, error) in enumerate(((1.0, 0.8), (2.0, 0.6), (4.0, 0.3)))
        ]
        picture = Picture(drawn(*runs, out=tmp_path / "levels.png"))
        losses, errors = ([picture.level(number, panel) for number in range(3)] for panel in ("loss", "error"))

        assert losses[0] - losses[1] == pytest.approx((losses[1] - losses[2]) / 2, abs=2)
        assert losses[0] - losses[1] > 50
        assert errors[1] - errors[0] == pytest.approx((errors[2] - errors[1]) * 2 / 3, abs=2)
        assert errors[1] - errors[0] > 50

    def test_levels_lie_on_the_grid_line_of_their_value_beside_its_number(self, tmp_path):
        """The first run ends halfway, and its line goes on in grey."""
        runs = [level_run(tmp_path / "half", 2.0, 0.6, 5.0), level_run(tmp_path / "whole", 4.0, 0.3)]
        picture = Picture(drawn(*runs, out=tmp_path / "grid.png"))
        for panel in ("loss", "error"):
            row = round(picture.level(0, panel))
            behind = picture.pixels[row - 2 : row + 3, 1100:1500].reshape(5, -1, 3)

            assert ((behind < 240).all(axis=2).mean(axis=1) > 0.9).any(), panel
            written_rows = np.flatnonzero(
                (picture.pixels[row - 15 : row + 16, 40:84] < 160).all(axis=2).any(axis=1)
            )
            assert 8 < np.ptp(written_rows) < 16
            assert (written_rows.min() + written_rows.max()) / 2 == pytest.approx(15, abs=2.5)

    def test_the_loss_of_a_constant_answer_is_drawn_at_its_value(self, tmp_path):
        runs = [level_run(tmp_path / "half", CHANCE, 0.9, 5.0), level_run(tmp_path / "whole", 1.0, 0.5)]
        picture = Picture(drawn(*runs, out=tmp_path / "chance.png"))
        row = round(picture.level(0, "loss"))
        dashed = (picture.pixels[row - 1 : row + 2, 1000:1300] < 160).all(axis=2).any(axis=0)

        assert 0.4 < dashed.mean() < 0.8

    @pytest.mark.parametrize(
        ("against", "share"), [("epoch", 0.5), ("step", 0.5), ("images", 0.25), ("hours", 0.5 * 0.9)]
    )
    def test_the_axis_is_what_was_asked_for(self, tmp_path, against, share):
        """The first run has half the steps with half the batch, and was faster."""
        short = level_run(tmp_path / "short", 1.0, 0.5, 5.0, recipe={"batch_size": 50})
        whole = level_run(tmp_path / "whole", 2.0, 0.4)
        for folder, seconds in ((short, 45.0), (whole, 100.0)):
            lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
            kept = [{**line, "seconds": seconds if line["kind"] == "train" else 1e6} for line in lines]
            (folder / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in kept))
        picture = Picture(drawn(short, whole, "--against", against, out=tmp_path / "axis.png"))
        left = 92  # of the panels
        for panel in ("loss", "error"):
            found = (picture.right(0, panel) - left) / (picture.right(1, panel) - left)

            assert found == pytest.approx(share, abs=0.01), panel

    def test_losses_far_apart_are_on_a_logarithmic_axis(self, tmp_path):
        runs = [level_run(tmp_path / f"{loss:g}", loss, 0.5) for loss in (0.02, 0.2, 2.0)]
        picture = Picture(drawn(*runs, out=tmp_path / "log.png"))
        least, middle, most = (picture.level(number, "loss") for number in range(3))

        assert least - middle == pytest.approx(middle - most, abs=2)

    def test_a_run_that_diverged_leaves_the_axis_and_the_others_their_room(self, tmp_path):
        steady = [level_run(tmp_path / f"{loss:g}", loss, 0.5) for loss in (0.5, 2.0)]
        lines = [train(each / 10, 2.2 if each <= 50 else 1e27, rates={}) for each in range(1, 101)]
        diverged = written(tmp_path / "diverged", lines)
        image = drawn(*steady, diverged, out=tmp_path / "diverged.png")
        picture = Picture(image)
        rows, columns = picture.places(2, "loss")
        panel = 430  # pixels of height

        assert picture.level(0, "loss") - picture.level(1, "loss") > panel / 6
        assert picture.right(2) == pytest.approx(92 + 0.5 * (picture.right(0) - 5 - 92), abs=15)
        assert np.ptp(rows) > panel / 2  # up to the edge
        assert columns.max() - columns[rows == rows.min()].mean() < 15  # where it leaves for good
        plain = drawn(*steady, out=tmp_path / "plain.png")
        assert image.size[1] > plain.size[1] + 15  # a line that says so

    def test_what_is_cut_is_said_with_its_end_and_its_runs(self):
        curves = [Curve("calm", points([0, 1], [2.3, 1.0]), points([], []))]
        wild = Curve("wild", points([0, 1], [2.3, 1.3e27]), points([], []))

        assert _cut(curves, ("3 × ln(10)", 6.9)) is None
        assert _cut([*curves, wild], ("3 × ln(10)", 6.9)) == (
            "the axis of the loss ends at 6.9, 3 × ln(10); above it, up to 1.3e+27: wild",
            6.9,
        )
        assert _cut([*curves, wild], None)[1] == pytest.approx(3 * 2.3)

    def test_a_spike_is_cut_at_both_sides_where_it_crosses_the_edge(self):
        panel = Panel("loss", Axis(0, 4, 0, 400), Axis(0, 10, 100, 0), (), (), cut=True)
        parts = panel.inside(points([0, 1, 2, 3], [5, 5, 15, 5]))

        assert [part.tolist() for part in parts] == [[[0, 50], [100, 50], [150, 0]], [[250, 0], [300, 50]]]

    @pytest.mark.parametrize("low", [1e-27, 1e-9, 1e-5, 0.01, 0.4])
    def test_a_logarithmic_axis_has_few_labels_of_one_form(self, low):
        words = [word for _, word in Axis(low, 20.0, 100, 0, log=True).ticks()]

        assert 3 <= len(words) <= 9
        assert len({"e" in word for word in words}) == 1

    def test_means_over_one_epoch_are_said_in_the_singular(self):
        from alexshard.tools.curves import _key

        line = points([1, 2], [1, 1])
        for high, words in ((240, "means over 1 epoch,"), (480, "means over 2 epochs,")):
            panel = Panel("", Axis(0, high, 0, 1), Axis(0, 1, 0, 1), (), [line])
            assert words in _key(panel, panel, "epochs")[0]

    def test_a_run_never_evaluated_has_its_training_error_there(self, tmp_path):
        lines = [train(each / 10, 2.0, top1_error=0.7, rates={}) for each in range(1, 31)]
        never = written(tmp_path / "never", lines)
        known = level_run(tmp_path / "known", 1.0, 0.7, 3.0)
        picture = Picture(drawn(never, known, out=tmp_path / "never.png"))

        assert picture.level(0, "error") == pytest.approx(picture.level(1, "error"), abs=2)
        assert "Never evaluated so far: never." in alextrain(never, known)

    def test_rates_change_where_the_schedule_says(self, tmp_path):
        """Between lines that are far apart: after 200 of 1,000 steps, not after 150 or 250."""
        lines = [
            train(epoch, 2.0, rates={"weights": rate}) for epoch, rate in ((1.5, 0.01), (2.5, 0.001), (10, 0.001))
        ]
        image = drawn(written(tmp_path / "run", lines), out=tmp_path / "change.png")
        pixels = np.asarray(image)[LEGEND:].astype(int)
        # Dotted, in the paled colour of the run: more blue than red.
        bluish = ((pixels[..., 2] - pixels[..., 0]) > 60).sum(axis=0)
        columns = np.flatnonzero(bluish > 200)
        picture = Picture(image)
        right = picture.right(0) - 5  # the last marker's middle

        assert 1 <= len(columns) <= 4
        assert (columns.mean() - 92) / (right - 92) == pytest.approx(0.2, abs=0.005)

    def test_a_single_point_is_a_dot(self, tmp_path):
        picture = Picture(drawn(written(tmp_path / "dot", [train(1, 2.0), val(1, 0.5)]), out=tmp_path / "dot.png"))
        for panel in ("loss", "error"):
            rows, columns = picture.places(0, panel)

            assert 50 < len(rows) < 200
            assert np.ptp(rows) == pytest.approx(np.ptp(columns), abs=1)

    def test_markers_lie_on_their_line(self, tmp_path):
        picture = Picture(drawn(level_run(tmp_path / "run", 1.0, 0.5), out=tmp_path / "markers.png"))
        for panel in ("loss", "error"):
            rows, _ = picture.places(0, panel)

            assert np.ptp(rows) > 8
            assert (rows.min() + rows.max()) / 2 == pytest.approx(np.median(rows), abs=1)

    def test_many_noisy_figures_have_their_mean_in_bold(self):
        number = 20_000
        xs, noise = np.linspace(0, 10, number), np.random.default_rng(0).normal(0, 0.3, number)
        noisy = draw_of(points(xs, 2.0 + noise))
        plain = draw_of(points(np.linspace(0, 10, 40), np.full(40, 2.0)))

        assert noisy.level(0, "loss") == pytest.approx(plain.level(0, "loss"), abs=3)
        rows, _ = noisy.places(0, "loss")
        faint, _ = np.nonzero((noisy.pixels[LEGEND : noisy.half] == paled(COLOURS[0], 0.28)).all(axis=2))
        assert np.ptp(rows) < np.ptp(faint) / 4

    def test_eight_runs_have_eight_colours_and_nine_are_refused(self, tmp_path):
        runs = [level_run(tmp_path / f"{number}", 1 + number / 4, 0.9 - number / 10) for number in range(9)]
        picture = Picture(drawn(*runs[:8], out=tmp_path / "eight.png"))
        rows = [picture.level(number, "error", (0.3, 0.9)) for number in range(8)]

        assert rows == sorted(rows)
        assert min(b - a for a, b in itertools.pairwise(rows)) > 20
        assert "a picture of 9 runs" in alextrain(*runs, "--out", tmp_path / "nine.png", code=2)
        assert not (tmp_path / "nine.png").exists()

    def test_the_description_holds_the_table_and_the_object_the_pictures_name(self, one, other, tmp_path):
        out = tmp_path / "both.png"

        assert told(one, other, "--out", out)["picture"] == str(out)
        with Image.open(out) as image:
            assert image.size[0] == 1600
            assert image.text["Description"] + "\n" == alextrain(one, other)
        assert {path.name for path in tmp_path.iterdir()} == {"one", "other", "both.png"}

    @pytest.mark.parametrize(
        ("out", "said"), [("curves.jpg", "does not end in .png"), ("nowhere/curves.png", "there is no folder")]
    )
    def test_where_no_picture_can_be_is_said_before_runs_are_read(self, tmp_path, out, said):
        assert said in alextrain(tmp_path / "no run", "--out", tmp_path / out, code=2)

    def test_an_axis_without_a_picture_is_refused(self, one):
        assert "--against step without --out" in alextrain(one, "--against", "step", code=2)

    def test_hours_of_a_run_that_kept_no_seconds_are_refused(self, tmp_path):
        line = train(1, 2.0)
        del line["seconds"]
        old = written(tmp_path / "old", [line])
        said = alextrain(old, "--out", tmp_path / "old.png", "--against", "hours", code=2)

        assert "old cannot be drawn against hours" in said

    def test_runs_without_any_figure_are_no_picture(self, tmp_path):
        empty = written(tmp_path / "empty", [])

        assert "nothing to draw" in alextrain(empty, "--out", tmp_path / "empty.png", code=2)


def draw_of(loss):
    return Picture(draw([Curve("run", loss, points([], []))], against="epochs", chance=("ln(20)", 3.0)))


def test_two_real_runs_are_side_by_side(sample_source, tmp_path):
    shards = tmp_path / "shards"
    run(*alexshard("build", sample_source, "--size", "74", "--out", shards))
    for name, seed in (("first", 0), ("second", 1)):
        command = (sys.executable, "-m", "alexshard.tools.cli_alextrain", "run", "--shards", shards, "--epochs", 2)
        options = ("--width", 0.125, "-b", 32, "--threads", 1, "--log-every", 1, "--seed", seed)
        run(*command, *options, "--out", tmp_path / name)
    out = tmp_path / "both.png"
    report = told(tmp_path / "first", tmp_path / "second", "--out", out)
    picture = Picture(Image.open(out))

    assert [each["field"] for each in report["differences"]] == ["seed"]
    assert report["notes"] == []
    for found in report["runs"]:
        assert (found["step"], found["last_step"], found["epoch"], found["classes"]) == (10, 10, 2.0, 10)
        assert 0 < found["best"]["top1_error"] <= 1
        assert found["training_hours"] > 0
        assert 0 <= found["waiting_share"] <= 1
    assert all(len(picture.places(number, panel)[0]) for number in (0, 1) for panel in ("loss", "error"))
