"""`alexshard info` tells what a shard set holds, in text and as one object."""

from __future__ import annotations

import csv
import json
import os
import pty
import re
import shutil
import subprocess
from collections import Counter
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from alexshard.shards import CorruptShardSet, Manifest, ShardFiles, ShardSet, count_labels
from alexshard.tools.info import text
from alexshard.tools.swatches import mean_colour, nearest_of_256, ramp

from tests.conftest import alexshard, run


@pytest.fixture(scope="module")
def told(sample_set):
    return json.loads(run(*alexshard("info", sample_set, "--json")))


def test_the_object_counts_what_the_source_held(told):
    splits = told["splits"]

    assert told["schema"] == 1
    assert {name: split["samples"] for name, split in splits.items()} == {"train": 160, "val": 40, "test": 40}
    assert {name: split["patched"] for name, split in splits.items()} == {"train": 3, "val": 1, "test": 1}
    assert {split["quarantined"] for split in splits.values()} == {0}
    assert all(split["found"] == split["samples"] and split["labelled"] for split in splits.values())
    assert told["samples"] == 240


def test_the_object_says_the_bytes_that_lie_on_disk(told, sample_set):
    assert told["bytes"] == sum(path.stat().st_size for path in sample_set.glob("*.tar"))
    assert told["splits"]["val"]["bytes"] == sum(path.stat().st_size for path in sample_set.glob("val-*.tar"))


def test_the_object_lists_every_class_with_its_label_words_and_devkit_id(told, sample_source):
    expected = json.loads((sample_source / "EXPECTED.json").read_text(encoding="utf-8"))

    assert [entry["synset"] for entry in told["classes"]] == expected["classes"]
    assert [entry["label"] for entry in told["classes"]] == list(range(10))
    assert {entry["synset"]: entry["devkit_id"] for entry in told["classes"]} == expected["devkit_ids"]
    assert told["classes"][0]["words"] == "striped disc"


def test_every_class_is_told_with_its_samples_of_each_split(told, sample_set):
    with (sample_set / "samples.tsv").open(encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file, delimiter="\t", quoting=csv.QUOTE_NONE))
    counted = Counter((int(row["label"]), row["split"]) for row in rows)

    assert {
        (entry["label"], split): number for entry in told["classes"] for split, number in entry["samples"].items()
    } == counted
    assert "    9  n90081694  2             16    4     4  plain ring" in run(*alexshard("info", sample_set))


@pytest.mark.parametrize("line", ["a\t10\ttrain\tx", "a\tone\ttrain\tx", "a\t-1\ttrain\tx", "a"])
def test_a_line_without_a_label_of_the_set_is_an_error(tmp_path, line):
    (tmp_path / "samples.tsv").write_text(f"header\n{line}\n", encoding="utf-8")

    with pytest.raises(CorruptShardSet, match="has a line with label and split"):
        count_labels(tmp_path / "samples.tsv", 10)


def test_shards_are_told_as_one_pattern(sample_source, tmp_path):
    run(
        *alexshard(
            "build", sample_source, "--out", tmp_path / "set", "--splits", "train", "--samples-per-shard", 50
        )
    )
    patterns = json.loads(run(*alexshard("info", tmp_path / "set", "--json")))["splits"]["train"]["files"]

    assert patterns == "train-{000000..000003}.tar"
    assert sorted(path.name for path in (tmp_path / "set").glob("*.tar")) == [
        f"train-{number:06d}.tar" for number in range(4)
    ]
    assert "  train-{000000..000003}.tar\n" in run(*alexshard("info", tmp_path / "set"))


def in_terminal(*command: str, **environment: str) -> str:
    """What a command writes where its stdout is a terminal."""
    ours, theirs = pty.openpty()
    done = subprocess.Popen(command, stdout=theirs, env={**os.environ, **environment})
    os.close(theirs)
    written = b""
    try:
        while piece := os.read(ours, 65536):
            written += piece
    except OSError:  # how Linux says that the other end was closed
        pass
    os.close(ours)
    assert done.wait() == 0
    return written.decode().replace("\r\n", "\n")


COLOURFUL = {"TERM": "xterm-256color", "COLORTERM": "truecolor", "NO_COLOR": ""}


def test_a_terminal_of_many_colours_shows_the_mean_and_the_components(sample_set):
    out = in_terminal(*alexshard("info", sample_set), **COLOURFUL)
    statistics = ShardSet.open(sample_set).manifest.statistics

    red, green, blue = (round(value) for value in statistics.channel_mean)
    assert f"\x1b[48;2;{red};{green};{blue}m  " in out
    assert out.count("\x1b[48;2;") == 2 + 3 * 15
    assert out.count("\x1b[0m") == 4


@pytest.mark.parametrize("term", ["xterm", "xterm-256color", "screen", "tmux-256color"])
def test_without_colorterm_as_over_ssh_the_nearest_of_256_colours_are_shown(sample_set, term):
    out = in_terminal(*alexshard("info", sample_set), TERM=term, COLORTERM="", NO_COLOR="")
    mean = mean_colour(ShardSet.open(sample_set).manifest.statistics)
    shown = [int(number) for number in re.findall("\x1b\\[48;5;([0-9]+)m  ", out)]

    assert len(shown) == 2 + 3 * 15
    assert shown[0] == shown[1] == nearest_of_256(mean)
    assert "\x1b[48;2;" not in out


def test_what_stands_of_colours_fits_into_80_columns(sample_set):
    out = re.sub("\x1b\\[[0-9;]*m", "", in_terminal(*alexshard("info", sample_set), **COLOURFUL))
    lines = out[out.index("  channel mean") : out.index("\nlabel")].splitlines()

    assert len(lines) == 5 + 3
    assert max(map(len, lines)) <= 80


@pytest.mark.parametrize(
    "environment",
    [{"NO_COLOR": "1"}, {"COLORTERM": "", "TERM": "vt220"}, {"TERM": "dumb"}],
    ids=["NO_COLOR", "few colours", "dumb"],
)
def test_other_terminals_show_numbers_alone(sample_set, environment):
    out = in_terminal(*alexshard("info", sample_set), **{**COLOURFUL, **environment})

    assert "\x1b" not in out
    assert "channel mean" in out


def with_escapes(sample_set: Path, dest: Path) -> Path:
    """A copy whose words and facts would act on a terminal; a table of synsets can hold such."""
    shutil.copytree(sample_set, dest)
    manifest = Manifest.load(dest)
    first = replace(manifest.classes[0], words="cat\x1b]0;owned\x07", synset="n0\x1b[2J")
    build = {**manifest.build, "packed\x1b[8m": "by\r\x9b2J"}
    statistics = replace(manifest.statistics, source="s\x1b[1A")
    spoilt = replace(manifest, classes=(first, *manifest.classes[1:]), build=build, statistics=statistics).sealed()
    (dest / "manifest.json").write_text(spoilt.to_json(), encoding="utf-8")
    return dest


def test_words_cannot_act_on_the_terminal(sample_set, tmp_path):
    out = run(*alexshard("info", with_escapes(sample_set, tmp_path / "set\x1b[31m")))

    assert not set("\x1b\x07\x9b\r") & set(out)
    for shown in (
        r"cat\x1b]0;owned\x07",
        r"n0\x1b[2J",
        r"  packed\x1b[8m",
        r"by\r\x9b2J",
        r"shard set s\x1b[1A",
        r"set\x1b[31m",
    ):
        assert shown in out


def test_in_a_terminal_of_many_colours_only_our_own_escapes_are_left(sample_set, tmp_path):
    out = in_terminal(*alexshard("info", with_escapes(sample_set, tmp_path / "set")), **COLOURFUL)

    assert out.count("\x1b") == out.count("\x1b[48;2;") + out.count("\x1b[0m") == 2 + 3 * 15 + 4


def test_nothing_of_colour_goes_into_a_pipe(sample_set):
    environment = {**os.environ, **COLOURFUL}
    out = subprocess.run(
        alexshard("info", sample_set), env=environment, capture_output=True, text=True, check=True
    )

    assert "\x1b" not in out.stdout
    assert "eigenvalue 1" in out.stdout


def test_a_component_leads_from_below_the_mean_to_above_it(sample_set):
    statistics = ShardSet.open(sample_set).manifest.statistics
    colours = np.array(ramp(statistics, 1), float)
    direction = np.array([row[1] for row in statistics.eigenvectors])
    between = colours[-1] - colours[0]

    assert tuple(colours[7]) == mean_colour(statistics)
    assert between @ direction / np.linalg.norm(between) > 0.999
    np.testing.assert_allclose(np.linalg.norm(between), 4 * statistics.eigenvalues[1] ** 0.5, atol=2)


def test_the_object_gives_eigenvectors_in_columns(told):
    covariance = np.array(told["statistics"]["covariance"])
    vectors = np.array(told["statistics"]["eigenvectors"])
    values = np.array(told["statistics"]["eigenvalues"])

    np.testing.assert_allclose(covariance @ vectors, vectors * values, rtol=1e-9)
    assert list(values) == sorted(values, reverse=True)


def test_the_text_says_what_a_person_asks_for(sample_set):
    out = run(*alexshard("info", sample_set))

    for said in (
        ShardSet.open(sample_set).digest,
        "256×256 RGB, JPEG, quality 90, 4:2:0",
        "train      160",
        "resampler",
        "channel mean",
        "eigenvalue 3",
        "checkered star",
    ):
        assert said in out


def test_of_many_classes_the_first_and_last_are_shown_unless_all_are_asked_for(assembled, tmp_path):
    run(*alexshard("build", assembled("full"), "--out", tmp_path / "set", "--max-bad", "100%"))
    shard_set = ShardSet.open(tmp_path / "set")
    some, every = text(shard_set).splitlines(), text(shard_set, all_classes=True).splitlines()

    assert f"  … 74 more: alexshard info {tmp_path / 'set'} --classes" in some
    assert len(every) - len(some) == 73
    assert some[-1] == every[-1]


def test_of_folders_the_names_alone_are_told_aligned_by_what_they_take_in_a_terminal(sample_set, tmp_path):
    shard_set = ShardSet.open(sample_set)
    index = shard_set.index("train")
    with ShardFiles(index, shard_set.shelf) as stored:
        for name in ("cat", "犬の写真", *(f"x{number:02d}" for number in range(10))):
            (tmp_path / "source" / name).mkdir(parents=True)
            (tmp_path / "source" / name / "it.JPEG").write_bytes(stored.bytes_of(0))
    run(*alexshard("build", tmp_path / "source", "--out", tmp_path / "my set"))
    lines = run(*alexshard("info", tmp_path / "my set")).splitlines()
    at = lines.index("label  class     train")

    assert lines[at + 1 : at + 3] == ["    0  cat           1", "    1  x00           1"]
    assert "   11  犬の写真      1" in lines
    assert f"  … 2 more: alexshard info '{tmp_path / 'my set'}' --classes" in lines


def test_a_folder_that_holds_one_shard_set_stands_for_it(told, sample_set, tmp_path):
    (tmp_path / "set").symlink_to(sample_set)

    assert json.loads(run(*alexshard("info", tmp_path, "--json")))["digest"] == told["digest"]


def test_a_folder_without_a_shard_set_is_a_wrong_call_told_in_words_and_as_an_object(tmp_path):
    done = subprocess.run(alexshard("info", tmp_path, "--json"), capture_output=True, text=True, check=False)

    assert done.returncode == 2
    assert "Traceback" not in done.stderr
    assert "what to do" in done.stderr
    failure = json.loads(done.stdout)
    assert failure["exit_code"] == 2
    assert "manifest.json" in failure["error"]["what"]
