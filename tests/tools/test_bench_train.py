"""tools/bench_train from end to end, in seconds; the stock network and arithmetic have their own file."""

from __future__ import annotations

import json
import shutil
import statistics
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
from alexshard.shards import WrongCall
from alexshard.tools import train_asked
from alexshard.tools.bench_train import main
from alexshard.tools.train_asked import Asked, Checked
from alexshard.tools.train_bench import bench
from alexshard.tools.train_report import to_text
from alexshard.tools.train_verdict import ratios_of
from alexshard.trainer import LAYERS, Recipe, crossing_bytes
from click.testing import CliRunner

SCRIPT = Path(__file__).resolve().parents[2] / "tools" / "bench_train"
BASE_PYTHON = Path(sys.base_prefix) / "bin" / "python3"
TINY = ("--width", "0.125", "-b", "8", "--repeats", "2", "--steps", "1")
DRAWN = ("--side", "64", "--classes", "10")


@pytest.fixture(autouse=True)
def small_products(monkeypatch):
    """The peak of small products: a real one takes seconds."""
    monkeypatch.setattr("alexshard.tools.train_work.CORES_SIDES", (128,))
    monkeypatch.setattr("alexshard.tools.train_work.LONGEST_S", 0.01)


def run(*arguments, code=0):
    done = CliRunner().invoke(main, [str(each) for each in (*TINY, *arguments)])
    assert done.exit_code == code, done.output
    return done


@pytest.fixture(scope="module")
def everything(tmp_path_factory):
    """One run with all that is measured on the cores without a shard set, and its trace."""
    trace = tmp_path_factory.mktemp("bench") / "t.json"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("alexshard.tools.train_work.CORES_SIDES", (128,))
        done = run(*DRAWN, "--json", "--profile", trace)
    return json.loads(done.stdout), json.loads(trace.read_text())


@pytest.fixture(scope="module")
def small_shards(sample_source, tmp_path_factory):
    """160 training images at 74×74."""
    dest = tmp_path_factory.mktemp("small") / "small"
    command = [sys.executable, "-m", "alexshard.tools.cli_alexshard", "build", sample_source, "--out", dest]
    subprocess.run([*map(str, command), "--size", "74"], check=True, capture_output=True)
    return dest


def spread_of(figure):
    assert figure["min"] <= figure["median"] <= figure["max"]
    assert figure["median"] == statistics.median(figure["runs"])
    assert len(figure["runs"]) == 2
    return figure


def test_every_network_has_a_rate_a_time_and_a_share_of_the_peak(everything):
    report, _ = everything

    assert report["schema"] == 1
    assert [about["precision"] for about in report["precisions"]] == ["fp32", "bf16"]
    for about in report["precisions"]:
        assert [row["name"] for row in about["networks"]][:3] == ["alexshard", "bare", "stock"]
        for row in about["networks"]:
            rate, step = spread_of(row["images_per_s"]), spread_of(row["step_s"])
            assert rate["min"] > 0
            assert rate["runs"] == pytest.approx([8 / seconds for seconds in step["runs"]])
            assert 0 < row["loss"] < 20
        ours = about["networks"][0]
        flop = report["network"]["step_flop_per_image"]
        assert ours["peak_share"] == pytest.approx(
            flop * ours["images_per_s"]["median"] / about["peak"]["flop_per_s"]
        )


def test_ratios_are_those_of_the_rates_round_by_round_with_their_goals(everything):
    goals = {"fp32": {"bare": 0.85, "stock": 1.8}, "bf16": {"bare": 0.85, "stock": 2.5}}
    for about in everything[0]["precisions"]:
        rates = {row["name"]: row["images_per_s"]["runs"] for row in about["networks"]}
        for ratio in about["ratios"]:
            pairs = zip(rates["alexshard"], rates[ratio["to"]], strict=True)

            assert spread_of(ratio["ratio"])["runs"] == pytest.approx([ours / other for ours, other in pairs])
            assert ratio["goal"] == goals[about["precision"]].get(ratio["to"])
            assert ratio["goal_is_for_this_size"] is False
        assert {ratio["to"] for ratio in about["ratios"]} >= {"bare", "stock"}


def test_a_step_is_taken_apart_into_phases_layers_and_normalisers(everything):
    for about in everything[0]["precisions"]:
        ours, stock = about["parts"]["alexshard"], about["parts"]["stock"]
        names = [layer["name"] for layer in ours["layers"]]

        assert [name for name in names if not name.startswith("chain")] == list(LAYERS)
        assert [name for name in names if name.startswith("chain")] == ["chain1", "chain2", "chain5"]
        assert names.index("chain5") == names.index("conv5") + 1
        assert {layer["name"] for layer in stock["layers"]} == {*LAYERS, "norm1", "norm2"}
        for parts in (ours, stock):
            phases = sum(parts[f"{name}_s"]["runs"][0] for name in ("forward", "backward", "optimiser", "rest"))
            assert phases == pytest.approx(parts["step_s"]["runs"][0])
            for way in ("forward", "backward"):
                each = [layer[f"{way}_s"]["runs"][0] for layer in parts["layers"]]
                assert min(each) > 0
                assert sum(each) <= parts[f"{way}_s"]["runs"][0]
        own = ours["normalisers"]
        assert set(own["chains"]) == {"chain1", "chain2"}
        difference = sum(
            chain["forward_s"]["runs"][1] - chain["forward_without_s"]["runs"][1]
            for chain in own["chains"].values()
        )
        assert own["forward_s"]["runs"][1] == pytest.approx(difference)
        assert stock["normalisers"]["share"] > 0


def test_the_report_says_on_what_it_was_measured(everything):
    report, _ = everything

    assert report["network"]["parameters"] == 328_170  # fidelity.md §1.3
    assert report["settings"]["side"] == 64
    assert report["machine"]["devices"] == ["cpu"]
    assert report["resident_bytes"] > 50_000_000
    assert report["versions"]["torch"]
    assert "LocalResponseNorm" in report["meanings"]["stock"]


def test_the_trace_holds_steps_as_timed_and_steps_taken_apart(everything):
    spans = [event["name"] for event in everything[1]["traceEvents"] if event["ph"] == "X"]

    assert spans.count("step, as timed") == spans.count("step") == spans.count("conv3 backward") == 6
    assert {"forward", "backward", "optimiser", "chain1 forward", "fc8 backward"} <= set(spans)


def test_the_text_has_every_table_and_ends_with_the_verdict(everything):
    text = to_text(everything[0])

    for said in (
        "fp32: steps on batches that stay on the device",
        "bf16: where a step of alexshard goes",
        "where a step of stock goes",
        "normalisers alone",
        "Peak: ",
        "goal 0.85 is for batches of 128, width 1, crops of 224",
        "goal 1.8 is for",
        "goal 2.5 is for",
    ):
        assert said in text
    assert text.splitlines()[-1] == everything[0]["precisions"][1]["verdict"]
    assert " the limit; of single parts " in text.splitlines()[-1]


def test_a_goal_at_its_own_size_is_reached_or_missed(everything):
    row = {"name": "alexshard", "images_per_s": {"runs": [9.0, 9.0]}}
    size = {"device": "cpu", "batch_size": 128, "width": 1.0, "side": 224}
    others = [{"name": name, "images_per_s": {"runs": [10.0, 10.0]}} for name in ("bare", "stock", "torchvision")]
    bare, stock, other = ratios_of([row, *others], "fp32", size)
    on_card = ratios_of([row, *others], "fp32", {**size, "device": "cuda:0"})

    assert (bare["reached"], stock["reached"], other["reached"]) == (True, False, None)
    assert [ratio["goal"] for ratio in on_card] == [0.85, None, None]


def test_with_a_shard_set_the_network_is_fed_too_and_the_waiting_is_told(small_shards):
    done = run("--shards", small_shards, "--precision", "fp32", "--against", "none", "--no-parts", "--json")
    report = json.loads(done.stdout)
    about = report["precisions"][0]
    rates = zip(about["fed"]["images_per_s"]["runs"], about["networks"][0]["images_per_s"]["runs"], strict=True)

    assert (report["settings"]["side"], report["settings"]["classes"]) == (64, 10)
    assert 0 < spread_of(about["fed"]["waited_share"])["median"] < 1
    assert spread_of(about["fed"]["of_resident"])["runs"] == pytest.approx([fed / alone for fed, alone in rates])
    assert "waiting for data" in to_text(report)


def test_of_two_towers_the_bytes_that_cross_are_counted_and_what_they_do_at_once():
    report = json.loads(run(*DRAWN, "--devices", "cpu,cpu", "--precision", "bf16", "--json").stdout)
    about = report["precisions"][0]
    towers = about["towers"]
    recipe = replace(Recipe.original(), width=0.125, precision="bf16")

    assert [row["name"] for row in about["networks"]][:2] == ["alexshard", "one device"]
    assert towers["crossed_bytes"] == towers["expected_bytes"] == crossing_bytes(recipe, 64, 8)
    shares = [spread_of(share)["runs"][0] for share in towers["at_once"].values()]
    assert sum(shares) == pytest.approx(1)
    assert min(shares) >= 0
    assert about["parts"]["alexshard"]["layers"] == []
    assert "Both towers computed at once" in to_text(report)


def test_torchvision_is_run_where_it_is_and_else_said_to_be_missing(everything):
    report = everything[0]

    assert "torchvision" in report["left_out"]
    assert f"torchvision: {report['left_out']['torchvision']}" in to_text(report)


def test_another_tool_may_ask_for_a_single_rate_and_finds_fp32_as_it_was(capsys):
    asked = Asked(width=0.125, side=64, classes=10, batch_size=4, precisions=("bf16",), repeats=1, steps=1)
    report = bench(replace(asked, against=(), parts=False, preset="paper"))

    assert [row["name"] for row in report["precisions"][0]["networks"]] == ["alexshard"]
    assert report["precisions"][0]["parts"] == {}
    assert capsys.readouterr() == ("", "")


def test_runs_are_as_long_as_seconds_ask_for_and_of_one_step_at_least():
    asked = Asked(width=0.125, side=64, classes=10, batch_size=4, precisions=("fp32",), repeats=1, against=())
    rows = [bench(replace(asked, seconds=each, parts=False)) for each in (1e-9, 0.2)]
    one, many = (row["precisions"][0]["networks"][0]["steps_per_run"] for row in rows)

    assert one == 1
    assert many > 1


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("--precision", "tf32"), "--precision tf32 on the cores"),
        (("--precision", "fp8"), "'fp8' is no precision"),
        (("--precision", "fp32,fp32"), "names one twice"),
        (("--against", "stok"), "--against: 'stok' is none of bare, stock, torchvision"),
        (("--against", "stock,stock"), "names one twice"),
        (("--side", "20"), "leave nothing after the third pooling"),
        (("--seconds", "1"), "--steps and --seconds"),
        (("--device", "cpu", "--devices", "cpu,cpu"), "at once"),
        (("--devices", "cpu"), "--devices names 1 devices"),
        (("--device", "tpu"), "no device"),
        (("--graphs", "--device", "cpu"), "--graphs without a single card"),
        (("--compile", "--devices", "cpu,cpu"), "--compile with the network as two towers"),
        (("--shards", "nowhere"), "is no shard set"),
        (("--shards", "nowhere", "--side", "64"), "--side 64 with --shards"),
        (("--profile", "nowhere/t.json"), "there is no folder nowhere"),
        (("--profile", "t.txt"), "does not end in .json"),
        (("--width", "nan"), "width is nan"),
    ],
)
def test_what_cannot_be_is_refused_before_anything_is_measured(arguments, said):
    done = run(*arguments, code=2)

    assert said in done.stderr
    assert done.stderr.startswith("error: ")
    assert done.stdout == ""


def test_a_batch_larger_than_the_set_is_refused(small_shards):
    assert "larger than the 160 training images" in run("--shards", small_shards, "-b", "161", code=2).stderr


def test_networks_that_memory_does_not_hold_are_refused(monkeypatch):
    monkeypatch.setattr(train_asked, "free_on", lambda _: 10_000_000)
    with pytest.raises(WrongCall, match="networks of width 1 and batches of 128 take"):
        Checked(Asked(device="cpu"))


def test_under_torchrun_it_is_refused(monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(WrongCall, match="under torchrun"):
        Checked(Asked(device="cpu"))


def test_a_wrong_call_is_an_object_in_json_too():
    done = run("--against", "stok", "--json", code=2)

    assert json.loads(done.stdout)["exit_code"] == 2


def test_it_finds_the_virtual_environment_of_its_clone(tmp_path):
    if not (SCRIPT.parents[1] / ".venv").is_dir():
        pytest.skip("this clone has no .venv")
    done = subprocess.run(
        [BASE_PYTHON, "-E", SCRIPT, "--version"], cwd=tmp_path, capture_output=True, text=True, check=True
    )

    assert done.stdout.startswith("bench_train, version ")


def test_without_an_environment_it_says_what_to_do(tmp_path):
    clone = tmp_path / "clone"
    (clone / "tools").mkdir(parents=True)
    script = shutil.copy(SCRIPT, clone / "tools")
    done = subprocess.run([BASE_PYTHON, "-I", script], capture_output=True, text=True, check=False)

    assert done.returncode == 1
    assert f"make -C {clone} setup" in done.stderr
