"""tools/bench_loader from end to end, on a drawn set; verdicts, sweeps and page have their own files."""

from __future__ import annotations

import json
import os
import shutil
import socket
import subprocess
import sys
import xml.etree.ElementTree as ET
from dataclasses import fields
from pathlib import Path

import pytest
from alexshard.pipeline import STAGES, machine
from alexshard.shards import WrongCall
from alexshard.tools import loader_bench
from alexshard.tools.bench_loader import main
from alexshard.tools.loader_bench import Asked, Bench
from alexshard.trainer import Ranks
from click.testing import CliRunner

SCRIPT = Path(__file__).resolve().parents[2] / "tools" / "bench_loader"
BASE_PYTHON = Path(sys.base_prefix) / "bin" / "python3"
QUICK = ("--seconds", "0.02", "--repeats", "2", "--batch-size", "16", "--width", "0.125", "--threads", "2")


def bench(*arguments, code=0, env=None):
    command = [sys.executable, "-m", "alexshard.tools.bench_loader", *map(str, arguments)]
    done = subprocess.run(command, capture_output=True, text=True, check=False, env=env)
    assert done.returncode == code, done.stderr
    return done


@pytest.fixture(scope="module")
def everything(sample_set, raw_sample_set, tmp_path_factory):
    """One run with all that a report can hold, and the files that it wrote."""
    folder = tmp_path_factory.mktemp("bench")
    done = bench(
        *("--shards", sample_set, "--shards", raw_sample_set, *QUICK, "--json"),
        *("--sweep", "threads=1,2,order=windowed,format", "--against", "webdataset"),
        *("--html", folder / "r.html", "--picture", folder / "r.svg", "--profile", folder / "r.json"),
    )
    return json.loads(done.stdout), folder


def test_the_report_is_one_object_with_every_figure(everything):
    report, _ = everything

    assert report["schema"] == 2
    assert [row["stage"] for row in report["stages"]] == list(STAGES)
    for row in (*report["stages"], report["replay"], *report["training"].values(), *report["peers"]):
        rate = row["images_per_s"]
        assert 0 < rate["min"] <= rate["median"] <= rate["max"]
        assert len(rate["runs"]) == 2
    assert sum(row["own_us"] for row in report["stages"]) == pytest.approx(
        1e6 / report["stages"][-1]["images_per_s"]["median"]
    )
    assert all(row["rss_bytes"] > 10_000_000 for row in report["stages"])
    assert report["batch_bytes"] == 16 * 3 * 224 * 224 * 4
    assert report["settings"]["backend"] in ("threads", "dali")
    assert report["verdict"]["bottleneck"]
    assert report["verdict"]["text"]


def test_the_trainer_is_measured_resident_replayed_fed_and_beside_other_work(everything):
    training = everything[0]["training"]

    assert set(training) == {"resident", "replayed", "fed", "burnt"}
    assert training["resident"]["waited_share"] < training["fed"]["waited_share"] < 1
    for about in training.values():
        assert about["step_s"]["median"] > 0


def test_a_sweep_has_every_stage_of_every_setting(everything):
    swept = everything[0]["sweep"]

    assert [(each["knob"], each["value"]) for each in swept] == [
        ("threads", 1),
        ("threads", 2),
        ("order", "windowed"),
        ("format", "jpeg"),
        ("format", "raw"),
    ]
    for each in swept:
        assert [row["stage"] for row in each["stages"]] == list(STAGES)
        assert each["decoder"] == "cores"


def test_a_settings_turns_have_one_decoder_which_its_row_names(sample_set):
    """That which was measured when it was tried out: another measurement may choose another."""
    made = Bench(asked("--shards", sample_set, "--backend", "dali", "--sweep", "threads=1,2"), Ranks())
    made._decoders["threads 1"] = "card"
    chosen = []
    for setting in made.settings:
        with made.open(setting) as loader:
            chosen.append(loader.decoder)

    assert chosen == ["card", "cores"]


def test_a_sweep_of_threads_stays_within_the_quota_as_the_loader_does(sample_set, monkeypatch):
    monkeypatch.setattr(machine, "cpu_quota", lambda: 1.0)
    made = Bench(asked("--shards", sample_set, "--sweep", "threads"), Ranks())

    assert [setting.value for setting in made.settings] == [machine.default_threads()] == [1]


def test_more_ranks_than_samples_are_refused_on_every_rank(sample_set):
    for rank in (0, 199):
        with pytest.raises(WrongCall, match="200 ranks, and train has 160 samples"):
            Bench(asked("--shards", sample_set), Ranks(rank, 200, rank))


def asked(*arguments):
    """What the command line makes of its arguments."""
    given = main.make_context("bench_loader", [*map(str, arguments)]).params | {"cache_bytes": None}
    return Asked(**{field.name: given[field.name] for field in fields(Asked)})


def test_others_run_beside_ours_at_the_same_work_and_beside_what_limits_all(everything):
    names = [each["name"] for each in everything[0]["peers"]]

    assert names == ["alexshard, the same work", "webdataset", "decoding alone", "copying memory alone"]


def test_page_and_picture_show_what_was_measured(everything):
    report, folder = everything
    content = (folder / "r.html").read_text(encoding="utf-8")
    page = ET.fromstring(content.removeprefix("<!DOCTYPE html>\n"))
    picture = ET.fromstring((folder / "r.svg").read_text(encoding="utf-8"))

    assert report["verdict"]["text"] in "".join(page.itertext())
    assert picture.tag.endswith("svg")
    assert "Sweep of format" in "".join(picture.itertext())


def test_the_profile_is_a_trace_of_the_loaders_threads_and_the_trainers_steps(everything):
    events = json.loads((everything[1] / "r.json").read_text())["traceEvents"]
    threads = {event["tid"]: event["args"]["name"] for event in events if event["name"] == "thread_name"}
    spans = [event for event in events if event["ph"] == "X"]
    ran = {(threads[event["tid"]].rstrip("0123456789"), event["name"]) for event in spans}

    assert {("MainThread", "step"), ("MainThread", "wait"), ("alexshard-read-ahead", "batch")} <= ran
    assert ("alexshard-decode_", "decode") in ran
    assert [event["ts"] for event in spans] == sorted(event["ts"] for event in spans)
    assert len([event for event in spans if event["name"] == "step"]) == 12


def test_the_text_ends_with_the_verdict_in_one_line(raw_sample_set):
    done = bench("--shards", raw_sample_set, *QUICK, "--no-demand", "--output", "uint8", "--backend", "dali")
    last = done.stdout.splitlines()[-1]

    assert last.endswith("Whether training waits is not said: the trainer's demand was not measured.")
    for part in ("machine", "versions", "256x256 raw", "+ decode", "+ mirror", "not measured (--no-demand)"):
        assert part in done.stdout


def test_a_set_too_small_for_the_network_is_profiled_without_a_claim(tmp_path, sample_source):
    small = tmp_path / "small"
    subprocess.run(
        [
            sys.executable,
            "-m",
            "alexshard.tools.cli_alexshard",
            "build",
            sample_source,
            "--out",
            small,
            "--size",
            "32",
        ],
        check=True,
        capture_output=True,
    )
    report = json.loads(bench("--shards", small, *QUICK, "--repeats", "1", "--json").stdout)

    assert report["training"] is None
    assert report["training_note"].startswith("not measured: ")
    assert "is not said" in report["verdict"]["text"]


@pytest.mark.slow
def test_a_set_at_an_address_is_read_through_the_cache_and_its_arrivals_are_told(sample_set, tmp_path):
    where = ("--shards", sample_set.as_uri(), "--cache", tmp_path / "cache", "--order", "windowed", "--no-demand")
    cold = json.loads(bench(*where, *QUICK, "--json").stdout)
    warm = json.loads(bench(*where, *QUICK, "--json").stdout)
    shards = len(list(sample_set.glob("train-*.tar")))

    assert cold["store"]["shards"] == shards
    assert cold["store"]["bytes"] == sum(shard.stat().st_size for shard in sample_set.glob("train-*.tar"))
    assert cold["store"]["stalled_s"] >= warm["store"]["stalled_s"] == 0
    assert warm["store"]["shards"] == 0


@pytest.mark.slow
def test_two_ranks_measure_at_the_same_time_and_one_reports(sample_set, tmp_path):
    trace = tmp_path / "t.json"
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", "2", "--master-port", str(port)]
    command += ["-m", "alexshard.tools.bench_loader", "--shards", str(sample_set), *QUICK, "--repeats", "1"]
    command += ["--threads", "1", "--json", "--profile", str(trace)]
    env = os.environ | {"OMP_NUM_THREADS": "1"}  # else torchrun says that it sets this
    done = subprocess.run(command, capture_output=True, text=True, check=False, env=env)
    assert done.returncode == 0, done.stderr
    report = json.loads(done.stdout)
    events = json.loads(trace.read_text())["traceEvents"]

    assert [each["rank"] for each in report["ranks"]] == [0, 1]
    assert sum(each["share"] for each in report["ranks"]) == pytest.approx(1)
    assert report["stages"][-1]["images_per_s"]["median"] == pytest.approx(
        sum(each["images_per_s"]["median"] for each in report["ranks"])
    )
    assert "2 ranks of 1 thread" in report["verdict"]["text"]
    assert {e["args"]["name"] for e in events if e["name"] == "process_name"} == {"rank 0", "rank 1"}


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("--against", "ffvc"), "--against: 'ffvc' is none of"),
        (("--against", "torch", "--output", "float16"), "--against with --output float16 cannot be"),
        (("--sweep", "colour"), "'colour' is no knob"),
        (("--sweep", "format"), "needs sets of both formats; given: jpeg"),
        (("--sweep", "batch-size=100000"), "the split has 160 samples"),
        (("--html", "nowhere/r.html"), "there is no folder nowhere"),
        (("--picture", "r.png"), "does not end in .svg"),
        (("--profile", "nowhere/t.json"), "there is no folder nowhere"),
        (("--window", "2"), "--window is of --order windowed"),
        (("--cache-size", "much"), "is no size"),
        (("--split", "val", "-b", "8", "--backend", "threads", "--decoder", "card"), "decoder"),
        (("-b", "161"), "a batch of 161 is larger than the 160 images of train"),
        (("--against", "torch,torch"), "--against names torch twice"),
        (("--seconds", "nan"), "--seconds is nan"),
        (("--shards", "another"), "--shards is given 2 times"),
    ],
)
def test_what_cannot_be_is_refused_before_anything_is_measured(arguments, said, sample_set):
    refused(("--shards", sample_set, *arguments), said)


@pytest.mark.parametrize("seconds", ["1e9", "inf", "-1", "0"])
def test_a_run_takes_an_hour_at_most(seconds):
    done = CliRunner().invoke(main, ["--seconds", seconds])

    assert (done.exit_code, "is not in the range" in done.stderr) == (2, True)


def test_batches_that_memory_does_not_hold_are_refused(sample_set, monkeypatch):
    monkeypatch.setattr(loader_bench, "free_on", lambda _: 50_000_000)

    refused(
        ("--shards", sample_set, "-b", "100"), "three batches of 100 take 180.6 MB, and 50.0 MB are free on cpu"
    )


def test_a_sweep_of_windows_is_of_the_windowed_order(sample_set):
    made = Bench(asked("--shards", sample_set, "--sweep", "window=1,2", "--sweep", "threads=1"), Ranks())
    for setting, order in zip(made.settings, ("windowed", "windowed", "stored"), strict=True):
        with made.open(setting) as loader:
            assert loader.order == order
    assert [setting.options.get("window") for setting in made.settings] == [1, 2, None]


def test_several_sets_need_a_sweep_that_compares_them(sample_set, raw_sample_set):
    refused(("--shards", sample_set, "--shards", raw_sample_set), "--shards is given 2 times")


def refused(arguments, said):
    done = CliRunner().invoke(main, [str(part) for part in arguments])

    assert done.exit_code == 2, done.stderr
    assert said in done.stderr
    assert done.stderr.startswith("error: ")  # and no run was told of before it
    assert done.stdout == ""


def test_a_folder_without_shards_is_a_wrong_call_in_json_too(tmp_path):
    done = bench("--shards", tmp_path, "--json", code=2)

    assert json.loads(done.stdout)["exit_code"] == 2
    assert "holds no shard set" in done.stderr


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
