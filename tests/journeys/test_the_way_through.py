"""From archives to a trained and profiled network, in the words of the README and from a folder of one's own."""

from __future__ import annotations

import json
import math
import re
from pathlib import Path

import pytest


def lines_of_json(path: Path) -> list[dict[str, object]]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


@pytest.fixture(scope="module")
def trained(drawn_desk):
    """The desk after the shortest of trainings; stderr and stdout of it."""
    done = drawn_desk.type(
        "alextrain run --shards shards/ --width 0.125 -b 32 --max-steps 6 --device cpu --seed 5"
    )
    return drawn_desk, done


def test_build_writes_a_shard_set_named_after_the_source_and_ends_with_the_next_command(make_desk):
    desk = make_desk("build")
    desk.type("alexshard sample my-source --train 40 --val 10 --test 10")
    done = desk.type("alexshard build my-source")

    assert (desk.folder / "shards" / "my-source" / "manifest.json").is_file()
    assert done.stdout.rstrip().endswith("alextrain run --shards shards/my-source")
    assert sorted(path.name for path in desk.folder.iterdir()) == ["my-source", "shards"]


def test_the_next_commands_that_are_printed_survive_a_name_with_a_space(make_desk):
    desk = make_desk("next")
    drawn = desk.type("alexshard sample 'a source' --train 40 --val 10 --test 10").stdout
    built = desk.type(drawn.rstrip().splitlines()[-1]).stdout

    assert (desk.folder / "shards" / "a source" / "manifest.json").is_file()
    assert built.rstrip().endswith("alextrain run --shards 'shards/a source'")


def test_the_built_set_is_sound_to_the_last_pixel(drawn_desk):
    assert "sound; 170 samples" in drawn_desk.type("alexshard verify shards/ilsvrc").stdout
    assert "every image decoded" in drawn_desk.type("alexshard verify --deep shards/").stdout


def test_info_agrees_with_what_the_source_expects(drawn_desk):
    told = json.loads(drawn_desk.type("alexshard info shards/ --json").stdout)
    expected = json.loads((drawn_desk.folder / "ilsvrc" / "EXPECTED.json").read_text(encoding="utf-8"))

    for split, content in expected["splits"].items():
        assert told["splits"][split]["samples"] == content["images"]
        assert told["splits"][split]["patched"] == content["patched"]
        assert told["splits"][split]["quarantined"] == content["quarantined"]
    assert [entry["synset"] for entry in told["classes"]] == expected["classes"]


def test_training_leaves_a_run_folder_that_tells_all(trained):
    desk, _ = trained
    run = desk.folder / "runs" / "ilsvrc-original-s5"
    config = json.loads((run / "config.json").read_text(encoding="utf-8"))
    metrics = lines_of_json(run / "metrics.jsonl")

    assert "original" in json.dumps(config)
    digest = json.loads(desk.type("alexshard info shards/ --json").stdout)["digest"]
    assert digest in json.dumps(config)
    train = [line for line in metrics if line["kind"] == "train"]
    val = [line for line in metrics if line["kind"] == "val"]
    assert train
    assert val
    for line in train:
        assert {"epoch", "step", "loss", "top1_error", "top5_error", "lr", "images_per_s", "wait_s"} <= set(line)
        assert math.isfinite(line["loss"])
    assert all(0 <= line["top5_error"] <= line["top1_error"] <= 1 for line in val)


def test_training_says_at_the_start_what_it_will_do(trained):
    _, done = trained
    said = done.stdout + done.stderr

    assert re.search(r"\b120\b", said)  # images
    assert re.search(r"\bsteps\b", said)


@pytest.mark.parametrize("views", [1, 10])
def test_evaluation_gives_both_errors_over_every_validation_image(trained, views):
    desk, _ = trained
    line = f"alextrain eval runs/ilsvrc-original-s5 --shards shards/ --views {views} --json"
    told = json.loads(desk.type(line).stdout)

    assert told["schema"] == 1
    assert (told["split"], told["samples"], told["views"]) == ("val", 30, views)
    assert 0 <= told["top5_error"] <= told["top1_error"] <= 1
    assert told["loss"] == pytest.approx(math.log(10), rel=0.2)  # six steps teach nothing yet


def test_the_next_command_that_training_prints_works(trained):
    desk, done = trained
    told = desk.type(done.stdout.rstrip().splitlines()[-1])

    assert "top-1" in told.stdout


def test_an_ended_run_goes_on_where_it_ended(trained):
    desk, _ = trained
    desk.type("alextrain run --shards shards/ --resume runs/ilsvrc-original-s5 --max-steps 8")
    lines = lines_of_json(desk.folder / "runs" / "ilsvrc-original-s5" / "metrics.jsonl")
    steps = [line["step"] for line in lines if line["kind"] == "train"]

    assert steps == sorted(set(steps))
    assert steps[-1] == 8


SHORT = "--repeats 2 --seconds 0.05 --width 0.125 -b 32"


@pytest.mark.parametrize("call", ["tools/bench_loader", "python tools/bench_loader"])
def test_the_loader_is_profiled_by_stage_with_a_verdict(drawn_desk, call):
    told = json.loads(drawn_desk.type(f"{call} {SHORT} --json").stdout)

    assert told["schema"] == 2
    stages = ["bytes", "decode", "crop", "finish", "device", "loader"]
    assert [stage["stage"] for stage in told["stages"]] == stages
    for measured in [*told["stages"], *told["training"].values()]:
        rate = measured["images_per_s"]
        assert 0 < rate["min"] <= rate["median"] <= rate["max"]
        assert len(rate["runs"]) == 2
    assert told["verdict"]["bottleneck"] in {*stages, "trainer", "cores", "none", "lock"}
    assert told["versions"]["dali"]


def test_the_profile_ends_with_one_line_of_verdict(drawn_desk):
    last = drawn_desk.type(f"tools/bench_loader --shards shards/ilsvrc {SHORT}").stdout.rstrip().splitlines()[-1]

    assert re.search(r"asks for [\d,.]+ images/s|images/s.* asks for [\d,.]+", last), last


def test_two_shard_sets_under_shards_are_listed_and_refused(make_desk):
    desk = make_desk("two")
    desk.type("alexshard sample one --train 20 --val 4 --test 4")
    desk.type("alexshard build one")
    desk.type("alexshard build one --out shards/other")
    for line in ("alextrain run --shards shards/", "alexshard info shards/", "tools/bench_loader"):
        done = desk.type(line, expect=2)

        assert "shards/one" in done.stderr
        assert "shards/other" in done.stderr


def test_a_source_that_is_none_is_a_wrong_call(make_desk):
    desk = make_desk("none")
    done = desk.type("alexshard build nowhere", expect=2)

    assert "nowhere" in done.stderr
    assert not (desk.folder / "shards").exists()


@pytest.mark.slow  # the whole of it takes six minutes on two cores
def test_the_demo_goes_all_the_way_and_its_network_has_learnt(make_desk, monkeypatch):
    desk = make_desk("demo")
    monkeypatch.setenv("DEMO_DIR", str(desk.folder / "demo"))
    said = desk.type("tools/demo").stdout

    commands = [words.split()[:2] for words in re.findall(r"\$ (\S+ \S+)", said)]
    assert [command[1] for command in commands[:-1]] == [
        *("sample", "build", "verify", "info", "info", "show", "run", "eval", "filters", "export"),
    ]
    assert commands[-1][0].endswith("tools/bench_loader")
    error = re.search(r"top-1 error +(\S+) %", said)
    assert error is not None
    assert float(error[1]) < 40  # chance is 90
    places = re.findall(r"(?<!\S)(/\S+?)(?:,|$)", said.partition("Where to look:")[2], re.MULTILINE)
    assert [Path(place).suffix for place in places] == ["", ".html", ".png", "", ".png"]
    for place in map(Path, places):
        assert any(place.iterdir()) if place.is_dir() else place.stat().st_size


def test_the_demo_removes_nothing_that_it_did_not_make(make_desk, monkeypatch):
    desk = make_desk("mine")
    (desk.folder / "thesis.tex").write_text("years of work")
    monkeypatch.setenv("DEMO_DIR", str(desk.folder))
    done = desk.type("tools/demo", expect=2)

    assert "is not a demo's" in done.stderr
    assert (desk.folder / "thesis.tex").read_text() == "years of work"
