"""tools/bench_loader: its verdicts, its report, and the ways it is called."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from alexshard.tools.bench_loader import judge, own_us_per_image

SCRIPT = Path(__file__).resolve().parents[2] / "tools" / "bench_loader"
BASE_PYTHON = Path(sys.base_prefix) / "bin" / "python3"
QUICK = ("--seconds", "0.05", "--repeats", "2", "--batch-size", "16", "--width", "0.125")

RATES = {"bytes": 100_000.0, "decode": 8_000.0, "augment": 4_000.0, "device": 3_900.0}
LOADER = {
    "threads": 2,
    "cores": 2,
    "encoding": "jpeg",
    "device": "cpu",
    "decoder": "cores",
    "mean": "image",
    "output": "float32",
}
CARD = {"device": "cuda:0", "decoder": "card"}


def test_a_stages_own_cost_is_what_it_adds():
    own = own_us_per_image(RATES)

    assert list(own) == list(RATES)
    assert own == pytest.approx({"bytes": 10, "decode": 115, "augment": 125, "device": 6.41}, abs=0.01)


def test_a_stage_costs_no_more_than_one_that_contains_it():
    own = own_us_per_image({"bytes": 50_000.0, "decode": 1_000_000.0, "augment": 64_000.0, "device": 80_000.0})

    assert own == pytest.approx({"bytes": 1, "decode": 0, "augment": 11.5, "device": 0})


def test_reading_is_not_blamed_where_more_than_reading_was_faster():
    rates = {"bytes": 50_000.0, "decode": 1_000_000.0, "augment": 64_000.0, "device": 60_000.0}

    assert judge(rates, 80_000.0, **{**LOADER, "encoding": "raw", "threads": 16}).bottleneck == "augment"


def test_a_slow_disk_is_blamed_for_a_raw_set():
    rates = {"bytes": 900.0, "decode": 910.0, "augment": 880.0, "device": 890.0}
    verdict = judge(rates, 2_000.0, **{**LOADER, "encoding": "raw"})

    assert verdict.bottleneck == "bytes"
    assert verdict.text.endswith("Turn: a faster disk, or memory that holds the shards.")


def test_a_loader_that_outruns_the_trainer_needs_nothing_turned():
    verdict = judge(RATES, 31.0, **LOADER)

    assert (verdict.bottleneck, verdict.factor) == ("trainer", pytest.approx(125.8, abs=0.1))
    assert verdict.text == (
        "The trainer is the limit: it asks for 31 images/s, the loader gives 3,900, 125.8 times as many. "
        "A faster --device or a smaller --width uses more; --threads 1 would be enough."
    )


def test_a_loader_just_fast_enough_has_no_thread_to_spare():
    assert "no thread to spare" in judge(RATES, 3_000.0, **LOADER).text


@pytest.mark.parametrize(
    ("rates", "loader", "stage", "turn"),
    [
        ({}, {}, "augment", "more cores, or --mean channel."),
        ({}, {"mean": "channel"}, "augment", "Turn: more cores."),
        ({}, {"output": "uint8"}, "augment", "Turn: more cores."),
        ({}, CARD, "augment", "Turn: a faster card, or --mean channel."),
        ({}, {**CARD, "decoder": "cores", "cores": 16}, "augment", "Turn: a faster card, or --mean channel."),
        ({"decode": 5_000.0}, CARD, "decode", "Turn: a faster card, or alexshard build --format raw."),
        (
            {"decode": 5_000.0},
            {**CARD, "decoder": "cores"},
            "decode",
            "Turn: more cores, or alexshard build --format raw.",
        ),
        ({"augment": 7_900.0}, {}, "device", "Turn: a larger --batch-size."),
        ({"decode": 5_000.0}, {}, "decode", "more cores, or alexshard build --format raw."),
        ({"decode": 5_000.0}, {"cores": 16}, "decode", "--threads 16 (now 2), or alexshard build --format raw."),
        ({"bytes": 5_000.0, "decode": 4_500.0}, {}, "bytes", "a faster disk, or memory that holds the shards."),
    ],
)
def test_a_loader_too_slow_is_told_by_its_costliest_stage(rates, loader, stage, turn):
    verdict = judge({**RATES, **rates}, 7_800.0, **{**LOADER, **loader})

    assert (verdict.bottleneck, verdict.factor) == (stage, pytest.approx(2.0))
    assert verdict.text.startswith(
        f"The loader is the limit, and {stage} in it: the trainer asks for 7,800 images/s"
    )
    assert verdict.text.endswith(turn)


def test_without_a_demand_the_costliest_stage_is_named():
    verdict = judge(RATES, None, **LOADER)

    assert (verdict.bottleneck, verdict.factor) == ("augment", None)


def test_the_report_is_one_object_with_every_figure(sample_set, tmp_path):
    """By path, from another folder."""
    command = [sys.executable, SCRIPT, "--shards", sample_set, "--json", *QUICK]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=True)
    report = json.loads(done.stdout)

    assert report["schema"] == 1
    assert [row["stage"] for row in report["stages"]] == ["bytes", "decode", "augment", "device"]
    for rate in [row["images_per_s"] for row in report["stages"]] + [report["demand"]["images_per_s"]]:
        assert len(rate["runs"]) == 2
        assert 0 < rate["min"] <= rate["median"] <= rate["max"]
    assert report["verdict"]["bottleneck"] in ("trainer", "bytes", "decode", "augment", "device")
    assert report["machine"]["cores"] >= 1
    assert {"torch", "dali", "simplejpeg"} <= set(report["versions"])
    assert (report["batch_size"], report["samples"], report["side"]) == (16, 160, 224)


def test_the_text_ends_with_the_verdict(raw_sample_set):
    command = [SCRIPT, "--shards", raw_sample_set, "--no-demand", *QUICK]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    *_, last = done.stdout.splitlines()

    assert last.startswith("The loader gives ")
    for part in ("machine", "versions", "256x256 raw", "+ decode", "not measured (--no-demand)"):
        assert part in done.stdout


def test_it_finds_the_virtual_environment_of_its_clone(tmp_path):
    if not (SCRIPT.parents[1] / ".venv").is_dir():
        pytest.skip("this clone has no .venv")
    done = subprocess.run(
        [BASE_PYTHON, "-E", SCRIPT, "--version"], cwd=tmp_path, capture_output=True, text=True, check=True
    )

    assert done.stdout.startswith("bench_loader, version ")


def test_without_an_environment_it_says_what_to_do(tmp_path):
    clone = tmp_path / "clone"
    (clone / "tools").mkdir(parents=True)
    script = shutil.copy(SCRIPT, clone / "tools")
    done = subprocess.run([BASE_PYTHON, "-I", script], capture_output=True, text=True, check=False)

    assert done.returncode == 1
    assert f"make -C {clone} setup" in done.stderr


def test_a_folder_without_shards_is_a_wrong_call_in_json_too(tmp_path):
    command = [SCRIPT, "--shards", tmp_path, "--json"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)

    assert done.returncode == 2
    assert json.loads(done.stdout)["exit_code"] == 2
    assert "holds no shard set" in done.stderr
