"""The command `alextrain` as a person runs it: real processes, real signals, exit codes."""

import json
import os
import shlex
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from alexshard.shards import ShardSet
from alexshard.tools.cli_alextrain import main
from alexshard.trainer import RunFolder
from click.testing import CliRunner

SMALL = ("--width", "0.125", "-b", "32", "--threads", "1")


def alextrain(*arguments, cwd):
    command = [sys.executable, "-m", "alexshard.tools.cli_alextrain", *map(str, arguments)]
    return subprocess.run(command, cwd=cwd, capture_output=True, text=True, check=False)


@pytest.fixture(scope="module")
def home(sample_source, tmp_path_factory) -> Path:
    """A folder to work in, with one shard set in shards/ and a run of it in runs/, as by a newcomer."""
    home = tmp_path_factory.mktemp("home")
    build = (sys.executable, "-m", "alexshard.tools.cli_alexshard", "build", str(sample_source), "--size", "74")
    subprocess.run([*build, "--out", str(home / "shards" / "drawn")], check=True, capture_output=True)
    done = alextrain("run", "--epochs", 2, *SMALL, cwd=home)
    assert done.returncode == 0, done.stderr
    assert "alextrain eval runs/drawn-original-s0 --shards shards/drawn" in done.stdout
    return home


def test_a_run_without_a_name_is_named_by_set_preset_and_seed(home):
    folder = home / "runs" / "drawn-original-s0"

    assert {path.name for path in folder.iterdir()} >= {"config.json", "metrics.jsonl", "checkpoints"}
    assert {path.name for path in (folder / "checkpoints").iterdir()} == {
        "step-000000010.pt",
        "step-000000005.pt",
        "best.pt",
    }
    assert json.loads((folder / "metrics.jsonl").read_text().splitlines()[0]).keys() == {
        *("kind", "epoch", "step", "loss", "top1_error", "top5_error", "lr", "images_per_s", "wait_s", "seconds"),
        *("rates", "memory_bytes", "updates"),
    }


def test_the_same_command_again_finds_the_run_done_and_another_one_is_refused(home):
    again = alextrain("run", "--epochs", 2, *SMALL, cwd=home)
    other = alextrain("run", "--epochs", 3, *SMALL, cwd=home)

    assert again.returncode == 0
    assert "runs/drawn-original-s0 goes on after step 10\n" in again.stderr
    assert "all its steps are done" in again.stderr
    assert other.returncode == 2
    assert "where: epochs: 2 → 3" in other.stderr
    assert "another --out" in other.stderr


@pytest.mark.parametrize("views", [1, 10])
def test_eval_prints_the_errors_and_the_same_as_json(home, views):
    command = ("eval", "runs/drawn-original-s0", "--shards", "shards", "--views", views)
    text, found = alextrain(*command, cwd=home), json.loads(alextrain(*command, "--json", cwd=home).stdout)

    assert text.returncode == 0
    assert f"top-1 error  {100 * found['top1_error']:.2f} %" in text.stdout
    assert f"loss         {found['loss']:.4f}  (ln(10) = 2.3026 is chance)" in text.stdout
    assert (found["schema"], found["split"], found["samples"], found["views"]) == (1, "val", 40, views)
    assert found["trained_on_this_set"] is True


def test_eval_agrees_with_the_runs_own_last_evaluation(home):
    found = json.loads(alextrain("eval", "runs/drawn-original-s0", "--json", cwd=home).stdout)
    last = [record for record in RunFolder(home / "runs/drawn-original-s0").records() if record.kind == "val"][-1]

    assert found["loss"] == pytest.approx(last.loss, rel=1e-6)
    assert (found["step"], found["top1_error"]) == (last.step, last.top1_error)


STEPS = 80


def sixteen_epochs(home):
    return ("--shards", home / "shards", "--epochs", 16, "--log-every", 1, "--eval-every", 0, *SMALL)


@pytest.fixture(scope="module")
def whole(home):
    done = alextrain("run", "--out", "whole", *sixteen_epochs(home), cwd=home)
    assert done.returncode == 0, done.stderr
    return RunFolder(home / "whole")


@pytest.mark.parametrize(
    ("number", "code", "line_before", "stored"),
    [
        (signal.SIGTERM, 143, "step 1 ", ""),
        (signal.SIGINT, 130, "step 1 ", " --cache here --cache-size 1GB"),
        (signal.SIGTERM, 143, "run cut", ""),
    ],
)
def test_a_process_stopped_by_a_signal_resumes_to_the_weights_of_one_that_was_not(
    home, whole, tmp_path, number, code, line_before, stored
):
    command = sixteen_epochs(home)
    if stored:
        command = ("--shards", (home / "shards" / "drawn").as_uri(), *command[2:], *stored.split())
    process = subprocess.Popen(
        [sys.executable, "-m", "alexshard.tools.cli_alextrain", "run", "--out", "cut", *map(str, command)],
        cwd=tmp_path,
        stderr=subprocess.PIPE,
        stdout=subprocess.DEVNULL,
        text=True,
    )
    with process:
        for line in process.stderr:  # the first figures are printed after the first step
            if line_before in line:
                process.send_signal(number)
                break
        said = process.stderr.read()
    stopped = RunFolder(tmp_path / "cut").load().step
    way_on = said.splitlines()[-1]
    resumed = alextrain(*shlex.split(way_on)[1:], cwd=tmp_path)

    assert (process.returncode, resumed.returncode) == (code, 0), said + resumed.stderr
    assert 0 <= stopped < STEPS
    assert way_on == f"  alextrain run --resume cut --threads 1{stored} --eval-every 0 --log-every 1"
    one, two = (run.load() for run in (whole, RunFolder(tmp_path / "cut")))
    assert one.step == two.step == STEPS
    assert all(torch.equal(one.network[name], two.network[name]) for name in one.network)
    one, two = ([record.loss for record in run.records()] for run in (whole, RunFolder(tmp_path / "cut")))
    assert one == two


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("run", "--shards", "nowhere"), "nowhere"),
        (("run", "-b", "500"), "a batch of 500 is larger than the 160 training images"),
        (("run", "--device", "cuda:77"), "the device cuda:77 is not there"),
        (("run", "--devices", "cpu"), "--devices names 1 devices"),
        (("run", "--width", "-1"), "width is -1.0"),
        (("run", "--lr", "0"), "lr is 0.0"),
        (("run", "--lr", "inf"), "lr is inf"),
        (("run", "--lr", "1e308"), "and must be finite rates"),
        (("run", "--width", "inf"), "width is inf"),
        (("run", "--width", "1e12"), "width is 1000000000000.0, and must be above 0 and at most 8"),
        (("run", "--bias", "nan"), "init bias is (0.0, nan"),
        (("run", "--device", "cpu", "--devices", "cpu,cpu"), "--device cpu and --devices cpu,cpu at once"),
        (("run", "--resume", "runs/none"), "no run runs/none"),
        (("run", "--resume", "runs/drawn-original-s0", "--out", "x"), "leave one out"),
        (("run", "--resume", "runs/drawn-original-s0", "--width", "0.5"), "width: 0.125 → 0.5"),
        (("run", "--resume", "runs/drawn-original-s0", "--preset", "paper"), "preset: original → paper"),
        (("run", "--window", "4"), "window is 4, and must be left out with the order stored"),
        (("run", "--order", "windowed", "--window", "0"), "0 is not in the range x>=1"),
        (("run", "--order", "random"), "'random' is not one of"),
        (("run", "--seed", "1", "--decoder", "card"), "--decoder card decodes on a card"),
        (
            ("run", "--seed", "2", "--backend", "reference", "--decoder", "split"),
            "--decoder split decodes on a card, and batches go to the cpu",
        ),
        (("run", "--prefetch", "0"), "0 is not in the range"),
        (("run", "--prefetch", "65"), "65 is not in the range"),
        (("run", "--cache-size", "a lot"), "'a lot' is no size"),
        (("run", "--cache-size", "0GB"), "'0GB' is no size"),
        (("run", "--cache", "here"), "--cache is for sets at an address, and shards is a folder"),
        (("run", "--cache-size", "1GB"), "--cache-size is for sets at an address"),
        (("run", "--shards", "file:///nowhere/at/all"), "file:///nowhere/at/all"),
        (("run", "--shards", "elsewhere://bucket/set"), "elsewhere"),
        (("run", "--resume", "runs/drawn-original-s0", "--order", "global"), "order: stored → global"),
        (
            ("run", "--resume", "runs/drawn-original-s0", "--order", "windowed", "--window", "2"),
            "order: stored → windowed; window: None → 2",
        ),
        (("eval", "runs/none"), "no run runs/none"),
        (("eval", "runs/drawn-original-s0", "--cache", "here"), "--cache is for sets at an address"),
        (("eval", "runs/drawn-original-s0", "--views", "5"), "'5' is not one of"),
    ],
    ids=lambda value: " ".join(value[:3]) if isinstance(value, tuple) else "",
)
def test_a_wrong_call_ends_with_2_and_says_why(home, monkeypatch, arguments, message):
    monkeypatch.chdir(home)
    before = sorted(Path("runs").iterdir())
    done = CliRunner().invoke(main, arguments)

    assert done.exit_code == 2, done.output
    assert message in done.stderr
    assert sorted(Path("runs").iterdir()) == before


def test_eval_with_json_tells_a_failure_as_json_too(home):
    done = alextrain("eval", "runs/none", "--json", cwd=home)

    assert done.returncode == 2
    assert "no run runs/none" in json.loads(done.stdout)["error"]["what"]


def test_a_cut_checkpoint_ends_with_1_and_names_the_file(home, tmp_path):
    cut = tmp_path / "run"
    cut.mkdir()
    (cut / "checkpoints").mkdir()
    data = RunFolder(home / "runs/drawn-original-s0").newest.read_bytes()
    path = cut / "checkpoints" / "step-000000010.pt"
    path.write_bytes(data[: len(data) // 2])

    done = alextrain("eval", cut, "--shards", "shards", cwd=home)

    assert done.returncode == 1
    assert f"where: {path}" in done.stderr


@pytest.mark.parametrize("content", ["{", '{"recipe": 1}', '{"shard_set": "here"}', "[]"])
def test_a_broken_configuration_ends_with_1_and_names_file_and_line(home, tmp_path, content):
    broken = tmp_path / "run"
    shutil.copytree(home / "runs/drawn-original-s0", broken)
    (broken / "config.json").write_text(content)

    done = CliRunner().invoke(main, ("eval", str(broken)))

    assert done.exit_code == 1
    assert f"where: {broken / 'config.json'}, line 1" in done.stderr
    assert "name the run's shard set by --shards" in done.stderr


def test_a_loss_that_is_not_finite_ends_with_1_and_the_likely_cause(home, tmp_path):
    done = alextrain("run", "--out", tmp_path / "r", "--lr", "1e9", "--epochs", 2, *SMALL, cwd=home)

    assert done.returncode == 1
    assert "is not finite" in done.stderr
    assert "likely cause: a rate of 1e+09, where the preset has 0.01" in done.stderr
    assert "Traceback" not in done.stderr


def test_every_option_of_the_recipe_reaches_the_configuration(home, tmp_path):
    options = (
        *("--order", "windowed", "--window", 2, "--backend", "dali", "--decoder", "cores", "--prefetch", 3),
        *(
            "--preset",
            "paper",
            "--epochs",
            1,
            "--max-steps",
            1,
            "-b",
            40,
            "--width",
            0.25,
            "--lr",
            0.02,
            "--seed",
            9,
        ),
        *(
            "--augment",
            "none",
            "--mean",
            "channel",
            "--no-dropout",
            "--init",
            "original",
            "--bias",
            0.1,
            "--init-fan-in",
            "--constant-rate",
        ),
    )
    done = alextrain("run", "--out", tmp_path / "r", *options, "--devices", "cpu,cpu", "--threads", 1, cwd=home)
    config = json.loads((tmp_path / "r" / "config.json").read_text())
    recipe = config["recipe"]

    assert done.returncode == 0, done.stderr
    assert (recipe["preset"], recipe["epochs"], recipe["max_steps"], recipe["batch_size"]) == ("paper", 1, 1, 40)
    assert (recipe["width"], recipe["seed"], recipe["augment"], recipe["dropout"]) == (0.25, 9, None, False)
    assert recipe["mean"] == "channel"
    assert recipe["init_std"][2:5] == [0.03] * 3
    assert recipe["init_bias"] == [0, 0.1, 0, 0.1, 0.1, 0.1, 0.1, 0]
    assert recipe["init_fan_in"] is True
    assert recipe["weight_rates"] == [[0.0, 0.02]]
    assert config["machine"]["devices"] == ["cpu", "cpu"]
    assert config["machine"]["threads"] == 1
    assert (recipe["order"], recipe["window"]) == ("windowed", 2)
    assert config["loader"] == {
        "backend": "dali",
        "decoder": "cores",
        "split_share": None,
        "threads": 1,
        "prefetch": 3,
        "order": "windowed",
        "window": 1,  # the set has no more shards
    }
    line = "loader: backend dali, decoder cores, threads 1, prefetch 3, order windowed of 1 shard"
    assert line in done.stderr.splitlines()


def test_how_batches_are_made_may_change_between_the_parts_of_a_run(home, tmp_path):
    first = alextrain("run", "--out", tmp_path / "r", "--epochs", 1, "--max-steps", 2, *SMALL, cwd=home)
    chosen = json.loads((tmp_path / "r" / "config.json").read_text())["loader"]
    rest = ("--max-steps", 5, "--backend", "dali", "--prefetch", 1, "--threads", 2)
    second = alextrain("run", "--resume", tmp_path / "r", *rest, cwd=home)
    changed = json.loads((tmp_path / "r" / "config.json").read_text())["loader"]

    assert (first.returncode, second.returncode) == (0, 0), first.stderr + second.stderr
    assert (changed["backend"], changed["prefetch"], changed["threads"]) == ("dali", 1, 2)
    assert chosen != changed
    assert RunFolder(tmp_path / "r").load().step == 5


def test_the_slow_backend_is_warned_of_in_one_line(home, tmp_path):
    slow = ("--backend", "reference", "--epochs", 1, "--max-steps", 1, *SMALL)
    run = alextrain("run", "--out", tmp_path / "r", *slow, cwd=home)
    judged = alextrain("eval", tmp_path / "r", "--backend", "reference", "--json", cwd=home)

    assert (run.returncode, judged.returncode) == (0, 0), run.stderr + judged.stderr
    for told in (run.stderr, judged.stderr):
        assert told.count("backend='reference' makes batches in plain NumPy") == 1
        assert "\nwarning: backend='reference'" in f"\n{told}"
        assert "UserWarning" not in told
        assert "\nloader: backend reference, prefetch" in told
        assert "install" not in told
    assert json.loads(judged.stdout)["loader"]["backend"] == "reference"


def test_a_set_at_an_address_is_trained_on_resumed_and_evaluated(home, tmp_path):
    address = (home / "shards" / "drawn").as_uri()
    cache = ("--cache", tmp_path / "cache", "--cache-size", "1GB")
    steps = ("--order", "windowed", "--window", 1, "--epochs", 1, "--max-steps")
    first = alextrain("run", "--shards", address, *cache, *steps, 2, *SMALL, cwd=tmp_path)
    folder = tmp_path / "runs" / "drawn-original-s0"
    rest = alextrain("run", "--resume", folder, *cache, "--max-steps", 5, "--threads", 1, cwd=tmp_path)
    found = alextrain("eval", folder, *cache, "--json", cwd=tmp_path)

    assert (first.returncode, rest.returncode, found.returncode) == (0, 0, 0), first.stderr + rest.stderr
    assert f"alextrain eval runs/drawn-original-s0 --shards {address} --cache {tmp_path / 'cache'}" in first.stdout
    assert f"came from {address}" in first.stderr
    assert f"came from {address}" not in rest.stderr  # all that it needs is in the cache
    assert json.loads((folder / "config.json").read_text())["shard_set"]["path"] == address
    assert json.loads(found.stdout)["shard_set"] == address
    assert json.loads(found.stdout)["samples"] == 40
    assert any((tmp_path / "cache").rglob("*"))


def test_evaluating_another_set_says_so(home, sample_source, tmp_path):
    build = (sys.executable, "-m", "alexshard.tools.cli_alexshard", "build", str(sample_source), "--size", "74")
    subprocess.run([*build, "--seed", "1", "--out", str(tmp_path / "other")], check=True, capture_output=True)
    assert ShardSet.open(tmp_path / "other").digest != ShardSet.open(home / "shards").digest

    done = alextrain("eval", "runs/drawn-original-s0", "--shards", tmp_path / "other", cwd=home)

    assert done.returncode == 0
    assert "not the set it was trained on" in done.stdout


def test_help_is_there_without_loading_torch():
    code = "import sys, alexshard.tools.cli_alextrain; print(int('torch' in sys.modules))"

    assert (
        subprocess.run([sys.executable, "-c", code], capture_output=True, check=True, env=os.environ).stdout
        == b"0\n"
    )
