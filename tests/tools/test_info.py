"""`alexshard info` tells what a shard set holds, in text and as one object."""

from __future__ import annotations

import json
import subprocess

import numpy as np
import pytest
from alexshard.shards import ShardSet
from alexshard.tools.info import text

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

    assert "  … 74 more: alexshard info DIR --classes" in some
    assert len(every) - len(some) == 73
    assert some[-1] == every[-1]


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
