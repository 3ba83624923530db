"""`alextrain filters`: the first layer's kernels as a PNG, and how much of them is colour."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from alexshard.tools.filters_command import filters_command
from alexshard.tools.terminal import Cli
from alexshard.trainer import colourfulness, filters_picture, load_checkpoint
from click.testing import CliRunner
from PIL import Image

from tests.conftest import alexshard, run

cli = Cli("alextrain", commands={"filters": filters_command})


def drawn_filters(*arguments):
    return CliRunner().invoke(cli, ["filters", *map(str, arguments)])


@pytest.fixture(scope="module")
def trained(sample_source, tmp_path_factory) -> Path:
    """A run of an eighth of the width: 8 kernels a tower."""
    home = tmp_path_factory.mktemp("filters")
    run(*alexshard("build", sample_source, "--out", home / "set", "--size", 74))
    command = [sys.executable, "-m", "alexshard.tools.cli_alextrain", "run", "--shards", home / "set"]
    run(*command, "--out", home / "run", "--epochs", 1, "--width", 0.125, "-b", 32, "--threads", 1)
    return home / "run"


def test_the_png_is_the_picture_of_the_runs_kernels_four_times_enlarged(trained, tmp_path):
    weights = load_checkpoint(trained).network["conv1.weight"]
    done = drawn_filters(trained, "--out", tmp_path / "x.png")
    first, second = colourfulness(weights)

    assert done.exit_code == 0, done.stderr
    with Image.open(tmp_path / "x.png") as picture:
        assert (picture.mode, picture.size) == ("RGB", (4 * (8 * 12 + 1), 4 * (2 * 12 + 1)))
        assert np.array_equal(np.asarray(picture), filters_picture(weights, scale=4))
    lines = dict(line.split("  ", 1) for line in done.stdout.splitlines())
    yardstick = "(kernels of noise: 2/3, grey ones: 0)"
    assert lines["tower A"].strip() == f"{first:.3f} of the variance is colour {yardstick}"
    assert lines["tower B"].strip() == f"{second:.3f} of the variance is colour {yardstick}"
    assert lines["kernels"].strip() == "16 of 11×11, 8 of each tower"


def test_the_yardstick_holds_for_noise_and_grey():
    noise = torch.randn(96, 3, 11, 11, generator=torch.Generator().manual_seed(0))

    assert colourfulness(noise) == pytest.approx([2 / 3] * 2, abs=0.01)
    assert colourfulness(noise[:, :1].expand(-1, 3, -1, -1)) == pytest.approx([0.0] * 2)


def test_per_kernel_and_scale_reach_the_picture_and_json_says_the_rest(trained, tmp_path):
    done = drawn_filters(trained, "--out", tmp_path / "x.png", "--per-kernel", "--scale", 1, "--json")
    weights = load_checkpoint(trained).network["conv1.weight"]
    found = json.loads(done.stdout)

    with Image.open(tmp_path / "x.png") as picture:
        assert np.array_equal(np.asarray(picture), filters_picture(weights, per_kernel=True))
    assert found["colour_share"] == pytest.approx(colourfulness(weights))
    assert (found["schema"], found["kernels"], found["side"], found["step"]) == (1, 16, 11, 5)


def test_the_best_network_is_drawn_where_it_is_asked_for(trained, tmp_path):
    assert drawn_filters(trained, "--out", tmp_path / "x.png", "--best").exit_code == 0
    assert (tmp_path / "x.png").is_file()


@pytest.mark.parametrize(
    ("name", "message"),
    [("x.jpg", "does not end in .png"), ("none/x.png", "there is no folder"), (".", "is a folder")],
)
def test_a_place_where_no_png_can_be_is_a_wrong_call(trained, tmp_path, monkeypatch, name, message):
    monkeypatch.chdir(tmp_path)
    done = drawn_filters(trained, "--out", name)

    assert done.exit_code == 2
    assert message in done.stderr
    assert list(tmp_path.iterdir()) == []


def test_a_run_that_is_not_there_ends_with_2_in_json_too(tmp_path):
    done = drawn_filters(tmp_path / "none", "--out", tmp_path / "x.png", "--json")

    assert (done.exit_code, json.loads(done.stdout)["exit_code"]) == (2, 2)
    assert list(tmp_path.iterdir()) == []
