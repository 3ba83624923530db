"""`alextrain run` and `recipes`: what decides a result can be said in four ways, and a run goes on anywhere."""

import json
import math
import re
import shutil
import signal
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
import torch
from alexshard.tools.cli_alextrain import main
from alexshard.trainer import PRESETS, SCHEDULES, Recipe, RunFolder
from click.testing import CliRunner

SMALL = ("--width", "0.125", "-b", "32", "--threads", "1")
ALEXTRAIN = (sys.executable, "-m", "alexshard.tools.cli_alextrain")


def alextrain(*arguments, cwd):
    return subprocess.run([*ALEXTRAIN, *map(str, arguments)], cwd=cwd, capture_output=True, text=True)


@pytest.fixture(scope="module")
def home(sample_source, tmp_path_factory):
    """A folder with a shard set in shards/ and a run of two epochs in runs/first."""
    home = tmp_path_factory.mktemp("home")
    build = [sys.executable, "-m", "alexshard.tools.cli_alexshard", "build", str(sample_source), "--size", "74"]
    subprocess.run([*build, "--out", str(home / "shards" / "drawn")], check=True, capture_output=True)
    done = alextrain("run", "--out", "runs/first", "--epochs", 2, *SMALL, cwd=home)
    assert done.returncode == 0, done.stderr
    return home


def recipe_of(home, *options, monkeypatch):
    """The recipe that the options come to: that of a run of one step."""
    monkeypatch.chdir(home)
    out = Path("runs") / "asked"
    shutil.rmtree(out, ignore_errors=True)
    done = CliRunner().invoke(main, ["run", "--out", str(out), *SMALL, "--max-steps", "1", "--quiet", *options])
    assert done.exit_code == 0, done.output
    return Recipe.from_json(RunFolder(out).configuration()["recipe"])


def test_set_is_above_other_options_which_are_above_the_file_which_is_above_the_preset(
    home, tmp_path, monkeypatch
):
    file = tmp_path / "mine.toml"
    file.write_text('preset = "paper"\nmomentum = 0.8\nepochs = 7\nweight_decay = 0.1\nsame_map_a = "none"\n')

    recipe = recipe_of(
        home, "--config", str(file), "--epochs", "9", "--set", "weight_decay=0.25", monkeypatch=monkeypatch
    )

    assert (recipe.preset, recipe.momentum, recipe.epochs, recipe.weight_decay) == ("paper", 0.8, 9, 0.25)
    assert recipe.lrn_a == Recipe.paper().lrn_a


@pytest.mark.parametrize(
    ("words", "field", "value"),
    [
        ("jitter_epochs=60", "jitter_epochs", 60.0),
        ("jitter_epochs=none", "jitter_epochs", None),
        ("mean=channel", "mean", "channel"),
        ('mean="channel"', "mean", "channel"),
        ("dropout=false", "dropout", False),
        ("bias_rates=[[0, 0.02], [5, 0]]", "bias_rates", ((0.0, 0.02), (5.0, None))),
        ('layer_rates={"fc8.weight" = [[0, 0.1]]}', "layer_rates", (("fc8.weight", ((0.0, 0.1),)),)),
        ("conv6 = true", "conv6", True),
    ],
)
def test_any_field_can_be_set(home, monkeypatch, words, field, value):
    assert getattr(recipe_of(home, "--set", words, monkeypatch=monkeypatch), field) == value


def test_a_preset_that_is_set_is_the_preset_and_not_its_name_alone(home, monkeypatch):
    recipe = recipe_of(home, "--set", "preset=paper", monkeypatch=monkeypatch)

    assert recipe == Recipe.paper().with_fields({"width": 0.125, "batch_size": 32, "max_steps": 1})


@pytest.mark.parametrize("preset", ["original", "paper", "dexp"])
def test_what_recipes_prints_of_a_preset_is_a_file_that_gives_it_back(home, tmp_path, monkeypatch, preset):
    printed = CliRunner().invoke(main, ["recipes", preset])
    (tmp_path / "preset.toml").write_text(printed.stdout)

    recipe = recipe_of(home, "--config", str(tmp_path / "preset.toml"), monkeypatch=monkeypatch)

    expected = PRESETS[preset]().with_fields({"width": 0.125, "batch_size": 32, "max_steps": 1})
    assert printed.exit_code == 0
    assert recipe == expected
    assert set(tomllib.loads(printed.stdout)) == set(Recipe.original().to_json())


def test_recipes_lists_presets_with_cost_and_published_error_and_every_schedule(home):
    listed = ("recipes", "--width", 0.125, "--shards", "shards/drawn", "--device", "cpu")
    text, found = alextrain(*listed, cwd=home), json.loads(alextrain(*listed, "--json", cwd=home).stdout)

    assert text.returncode == 0, text.stderr
    presets = {each["preset"]: each for each in found["presets"]}
    assert presets.keys() == PRESETS.keys()
    assert presets["original"]["images"] == 93 * 160
    speed = presets["original"]["images_per_s"]
    assert presets["original"]["hours"] == pytest.approx(93 * 160 / speed["median"] / 3600)
    assert (speed["n"], speed["least"] <= speed["median"] <= speed["most"]) == (3, True)
    assert presets["cnn-star"]["published"] == {
        "top1_error": 0.39,
        "top5_error": 0.166,
        "views": 10,
        "of": "ILSVRC-2012 val",
    }
    assert {each["schedule"] for each in found["schedules"]} == {*SCHEDULES, "constant"}
    assert re.search(r"^original .* 37.5 / 17.0 %  ILSVRC-2010 test$", text.stdout, re.MULTILINE)


def test_recipes_without_measuring_names_no_hours():
    found = json.loads(CliRunner().invoke(main, ["recipes", "--no-measure", "--json"]).stdout)

    assert [each["hours"] for each in found["presets"]] == [None] * len(PRESETS)
    assert [each["training_images"] for each in found["presets"]] == [1_261_406] * 2 + [1_281_167] * 2


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("run", "--set", "widht=0.5"), "did you mean width?"),
        (("run", "--set", "width"), "--set width"),
        (("run", "--set", "width=wide"), "width is 'wide', and must be a number"),
        (("run", "--set", "preset=vgg"), "no preset 'vgg'"),
        (("run", "--set", "init_from=none"), "--init-from RUN"),
        (("run", "--schedule", "plateaux"), "did you mean plateau?"),
        (("run", "--schedule", "plateau", "--eval-every", "2"), "rates that drop when validation stops improving"),
        (("run", "--config", "nowhere.toml"), "nowhere.toml cannot be read"),
        (("run", "--config", "bad.toml"), "bad.toml is no TOML"),
        (("run", "--config", "unknown.toml"), "no field 'learning_rates'"),
        (("run", "--config", "preset.toml"), "no preset 'papper'"),
        (("run", "--preset", "cnn-star"), "the preset cnn-star without --init-from"),
        (("run", "--init-from", "nowhere"), "no run nowhere"),
        (("run", "--checkpoint-every", "often"), "--checkpoint-every often"),
        (("run", "--checkpoint-every", "0"), "--checkpoint-every 0"),
        (("run", "--checkpoint-every", "1.5"), "--checkpoint-every 1.5"),
        (("run", "--keep", "0"), "0 is not in the range"),
        (("recipes", "orginal"), "did you mean original?"),
    ],
    ids=lambda value: " ".join(value[1:]) if isinstance(value, tuple) else "",
)
def test_a_wrong_call_ends_with_2_and_writes_nothing(home, monkeypatch, arguments, message):
    monkeypatch.chdir(home)
    Path("bad.toml").write_text("width: 3")
    Path("unknown.toml").write_text("learning_rates = 3")
    Path("preset.toml").write_text('preset = "papper"')
    before = sorted(Path("runs").iterdir())
    done = CliRunner().invoke(main, arguments)

    assert done.exit_code == 2, done.output
    assert message in done.stderr
    assert sorted(Path("runs").iterdir()) == before


def test_quiet_says_nothing_and_json_says_every_event_as_a_line(home, tmp_path):
    quiet = alextrain("run", "--out", tmp_path / "q", "--epochs", 1, *SMALL, "--quiet", cwd=home)
    told = alextrain("run", "--out", tmp_path / "j", "--epochs", 1, *SMALL, "--json", cwd=home)
    events = [json.loads(line) for line in told.stdout.splitlines()]

    assert (quiet.returncode, quiet.stdout, quiet.stderr) == (0, "", "")
    assert (told.returncode, told.stderr) == (0, "")
    assert {"begin", "say", "train", "val", "saved", "end"} <= {event["event"] for event in events}
    assert [event["event"] for event in events[:2]] == ["begin", "saved"]
    assert events[-1]["event"] == "end"
    assert (events[-1]["step"], events[-1]["stopped_by"]) == (5, None)
    assert [event["step"] for event in events if event["event"] == "train"] == [1, 2, 3, 4, 5]


def test_a_failure_with_json_is_an_object_too(home, tmp_path):
    done = alextrain("run", "--out", tmp_path / "r", "--lr", "1e9", *SMALL, "--json", cwd=home)

    failure = json.loads(done.stdout.splitlines()[-1])
    assert done.returncode == failure["exit_code"] == 1
    assert failure["event"] == "error"
    assert "is not finite" in failure["error"]["what"]
    assert "the last good checkpoint is" in failure["error"]["where"]


@pytest.mark.parametrize(("number", "code"), [(signal.SIGUSR1, 138), (signal.SIGHUP, 129)])
def test_a_signal_ends_a_run_with_its_code_and_the_same_command_goes_on(home, tmp_path, number, code):
    command = [*ALEXTRAIN, "run", "--shards", "shards", "--out", str(tmp_path / "r"), "--epochs", "2", *SMALL]
    with subprocess.Popen([*command, "--log-every", "1"], cwd=home, stderr=subprocess.PIPE, text=True) as process:
        for line in process.stderr:
            if "step 1 " in line:
                process.send_signal(number)
                break
        said = process.stderr.read()
    again = subprocess.run([*command, "--log-every", "1"], cwd=home, capture_output=True, text=True)

    assert process.returncode == code, said
    assert f"stopped by {number.name} after step" in said
    assert again.returncode == 0, again.stderr
    one, two = (RunFolder(folder).load() for folder in (home / "runs" / "first", tmp_path / "r"))
    assert all(torch.equal(one.network[name], two.network[name]) for name in one.network)


def test_a_second_process_on_a_run_is_refused_while_the_first_goes_on(home, tmp_path):
    command = [*ALEXTRAIN, "run", "--out", str(tmp_path / "r"), "--epochs", "4000", *SMALL, "--eval-every", "0"]
    with subprocess.Popen(command, cwd=home, stderr=subprocess.PIPE, text=True) as first:
        for line in first.stderr:
            if line.startswith("measured:"):
                break
        second = subprocess.run(command, cwd=home, capture_output=True, text=True)
        still_there = first.poll() is None
        first.send_signal(signal.SIGTERM)
        first.stderr.read()

    assert second.returncode == 2
    assert f"another process trains in {tmp_path / 'r'}\n  where: process {first.pid} on " in second.stderr
    assert still_there
    assert first.returncode == 143


def test_a_run_folder_and_a_shard_set_elsewhere_go_on_are_evaluated_and_predicted_with(home, tmp_path):
    moved, shards = tmp_path / "moved", tmp_path / "set"
    first = alextrain("run", "--out", tmp_path / "r", "--epochs", 2, *SMALL, "--max-steps", 6, cwd=home)
    shutil.copytree(tmp_path / "r", moved)
    shutil.copytree(home / "shards" / "drawn", shards)
    shutil.rmtree(tmp_path / "r")
    rest = alextrain("run", "--resume", moved, "--shards", shards, "--max-steps", 10, "--threads", 1, cwd=tmp_path)
    found = alextrain("eval", moved, "--shards", shards, "--best", "--json", cwd=tmp_path)
    shutil.move(shards, tmp_path / "elsewhere")
    lost = alextrain("eval", moved, cwd=tmp_path)

    assert (first.returncode, rest.returncode, found.returncode) == (0, 0, 0), first.stderr + rest.stderr
    one, two = (RunFolder(folder).load() for folder in (home / "runs" / "first", moved))
    assert all(torch.equal(one.network[name], two.network[name]) for name in one.network)
    assert json.loads(found.stdout)["step"] == RunFolder(moved).load(best=True).step
    assert lost.returncode == 2
    assert f"the shard set that {moved} was trained on is not at {shards}" in lost.stderr
    assert "say by --shards where it is now" in lost.stderr


def test_fine_tuning_with_six_convolutions_begins_with_what_fits_and_goes_on_without_its_source(home, tmp_path):
    shutil.copytree(home / "runs" / "first", tmp_path / "first")
    words = ("run", "--preset", "cnn-star", "--init-from", tmp_path / "first", "--out", tmp_path / "star", *SMALL)
    done = alextrain(*words, "--epochs", 1, "--max-steps", 2, cwd=home)
    shutil.rmtree(tmp_path / "first")
    again = alextrain(*words, "--epochs", 1, "--max-steps", 3, cwd=home)

    assert done.returncode == 0, done.stderr
    assert "begins with conv1, conv2, conv3, conv4, conv5, fc6, fc7, fc8 of a network of 10 classes" in done.stderr
    assert "new: conv6" in done.stderr
    assert again.returncode == 0, again.stderr
    digest = RunFolder(tmp_path / "star").recipe().init_from
    assert f"began with the weights of network {digest[:12]}…, which is not read again" in again.stderr
    assert RunFolder(tmp_path / "star").load().step == 3


def test_tensorboard_has_rates_the_size_of_updates_and_pictures_of_the_filters(home):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(str(home / "runs" / "first" / "tensorboard"))
    events.Reload()

    scalars, records = events.Tags()["scalars"], RunFolder(home / "runs" / "first").records()
    assert {"train/rate/weights", "train/rate/conv1.bias", "train/memory_bytes", "train/waiting"} <= set(scalars)
    ratios = [point.value for point in events.Scalars("train/update_to_weight/fc7")]
    assert ratios == pytest.approx([r.updates["fc7"] for r in records if r.kind == "train"])
    assert [picture.step for picture in events.Images("conv1/filters")] == [0, 5, 10]
    assert events.Scalars("train/chance_loss")[0].value == pytest.approx(math.log(10))


@pytest.mark.parametrize("value", ["[" * 5_000, "{a" + ".a" * 5_000 + " = 1}"], ids=["brackets", "names"])
def test_toml_that_is_nested_without_end_is_a_wrong_call(home, tmp_path, monkeypatch, value):
    monkeypatch.chdir(home)
    (tmp_path / "deep.toml").write_text(f"width = {value}")
    in_file = CliRunner().invoke(main, ("run", "--config", str(tmp_path / "deep.toml")))
    in_option = CliRunner().invoke(main, ("run", "--set", f"width={value}"))

    assert (in_file.exit_code, in_option.exit_code) == (2, 2), (in_file.exception, in_option.exception)
    assert "deep.toml is no TOML: nested too deeply" in in_file.stderr
    assert f"error: width is '{value[:9]}" in in_option.stderr
