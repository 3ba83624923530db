"""`tools/gpu_check` on the cores: every question is answered, none stops the others, and its checks can fail."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
import sysconfig
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from alexshard.tools import (
    gpu_agreement,
    gpu_alike,
    gpu_handover,
    gpu_repeating,
    gpu_sets,
    gpu_training,
    gpu_visit,
)
from alexshard.tools.gpu_check import main
from alexshard.tools.gpu_report import Report, Row
from alexshard.tools.gpu_scene import Part, Question, Scene, Sizes
from alexshard.trainer import Chain, composed
from click.testing import CliRunner

from tests.conftest import ROOT

SMALL = ["--small", "--device", "cpu"]
CHAIN = Chain(2, n=5, k=2.0, a=2e-5, relu="after", pool=True)
QUESTIONS = ["ceilings", *(f"G{number}" for number in range(1, 9)), "headline"]


def gpu_check(*arguments: object, **options: object) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, str(ROOT / "tools" / "gpu_check"), *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, check=False, **options)


def table(markdown: str) -> list[list[str]]:
    """The cells of the rows below the heads."""
    lines = markdown[markdown.index("| | what |") :].splitlines()[2:]
    return [[cell.strip() for cell in line.replace("\\|", "¦").strip("|").split("|")] for line in lines]


def _made(folder: Path) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    return folder


@pytest.fixture
def scene(tmp_path) -> Scene:
    return Scene(torch.device("cpu"), Sizes.small(), None, tmp_path)


@pytest.mark.slow
def test_all_is_answered_at_small_size_on_the_cores(tmp_path):
    done = gpu_check(*SMALL, "--out", tmp_path / "gpu.md", "--json", tmp_path / "gpu.json", cwd=tmp_path)
    assert done.returncode == 0, done.stdout + done.stderr
    report = json.loads((tmp_path / "gpu.json").read_text())
    rows = table((tmp_path / "gpu.md").read_text())

    assert list(dict.fromkeys(row["question"] for row in report["rows"])) == QUESTIONS
    assert [row["figure"] for row in report["rows"] if row["verdict"] not in ("told", "right")] == []
    words = ("none", "aten.", "equal", "nothing")  # what may stand where others have a number
    assert all(re.search(r"\d", row["figure"]) or row["figure"].startswith(words) for row in report["rows"])
    assert (report["schema"], report["exit_code"]) == (1, 0)
    assert {"date", "device", "driver", "cuda", "torch", "dali", "triton", "commit"} <= report["about"].keys()
    assert [(row[0], row[1]) for row in rows] == [
        (row["question"], " ".join(row["what"].split())) for row in report["rows"]
    ]
    assert all(len(row) == 6 and row[5].startswith("`tools/gpu_check --device cpu --small") for row in rows)
    headline = report["rows"][-1]
    assert "no headline without a card" in headline["figure"]
    assert headline["values"]["minutes"] == pytest.approx(1_261_406 * 90 / 60 / headline["values"]["images_per_s"])
    # Told at once: every row is a line of stdout.
    assert all(row["what"] in done.stdout for row in report["rows"])


@pytest.mark.slow
def test_towers_and_ceilings_alone(tmp_path):
    done = gpu_check(*SMALL, "--only", "ceilings,G6", "--json", tmp_path / "gpu.json", cwd=tmp_path)
    assert done.returncode == 0, done.stdout + done.stderr
    rows = json.loads((tmp_path / "gpu.json").read_text())["rows"]

    assert {row["question"] for row in rows} == {"ceilings", "G6"}
    crossed = next(row["values"] for row in rows if "bytes that cross" in row["what"])
    assert crossed["counted_bytes"] == crossed["expected_bytes"] > 0
    assert all(min(row["values"]["runs"]) > 0 for row in rows if "runs" in row["values"])


@pytest.fixture
def checkout(tmp_path) -> Path:
    """The code without its environment, as it is copied to a host where nobody ran pip."""
    folder = tmp_path / "checkout"
    for name in ("shards", "pipeline", "trainer", "tools"):
        shutil.copytree(ROOT / name, folder / name, ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copy(ROOT / "__init__.py", folder)
    return folder


@pytest.mark.slow
def test_a_checkout_that_is_not_installed_finds_itself(checkout):
    """Packages lie on PYTHONPATH; with -S no .pth file of theirs or ours is read."""
    environment = {**os.environ, "PYTHONPATH": sysconfig.get_path("purelib")}
    command = [sys.executable, "-S", checkout / "tools" / "gpu_check", *SMALL, "--only", "ceilings"]
    done = subprocess.run(command, env=environment, cwd=checkout, capture_output=True, text=True, check=False)

    assert done.returncode == 0, done.stdout + done.stderr
    assert "copies on the device" in done.stdout
    assert "(no git here)" in done.stdout


def test_what_is_missing_is_said_in_words(checkout):
    command = [sys.executable, "-S", "-I", checkout / "tools" / "gpu_check"]
    done = subprocess.run(command, cwd=checkout, capture_output=True, text=True, check=False)

    assert done.returncode == 1
    assert re.match(r"error: No module named '\w+'", done.stderr)
    assert "what to do: put what is missing on PYTHONPATH" in done.stderr


def test_a_question_that_fails_and_one_that_is_wrong_leave_the_others_their_turn(tmp_path, monkeypatch):
    def fails(_scene: Scene) -> Iterator[Row]:
        yield Row("before", "3")
        raise RuntimeError("CUDA error: an illegal memory access\nand more lines")

    def parts(*measures):
        return lambda _scene: iter([Part(f"part {place}", measure) for place, measure in enumerate(measures)])

    def right(_scene: Scene) -> list[Row]:
        return [Row.held("a sum", "4 of 4", True)]

    def wrong(_scene: Scene) -> list[Row]:
        return [Row.held("a difference", "0.5 (bound 0.1) | of two", False)]

    def no_parts(_scene: Scene) -> Iterator[Part]:
        raise ValueError("what card is this?")

    asked = [("G1", parts(fails, right)), ("G2", no_parts), ("G3", parts(wrong)), ("G5", parts(right))]
    monkeypatch.setattr(gpu_visit, "QUESTIONS", tuple(Question(name, 1, each) for name, each in asked))
    out, file = tmp_path / "gpu.md", tmp_path / "gpu.json"
    done = CliRunner().invoke(main, [*SMALL, "--out", str(out), "--json", str(file)])
    report = json.loads(file.read_text())

    assert done.exit_code == report["exit_code"] == 1
    assert [(row["question"], row["what"], row["verdict"]) for row in report["rows"]] == [
        ("G1", "before", "told"),
        ("G1", "part 0", "failed"),
        ("G1", "a sum", "right"),
        ("G2", "what there is to ask", "failed"),
        ("G3", "a difference", "wrong"),
        ("G5", "a sum", "right"),
        ("headline", "90 epochs of ILSVRC-2010 (1,261,406 images)", "left out"),
    ]
    assert table(out.read_text())[1][2] == "failed: RuntimeError: CUDA error: an illegal memory access"
    assert table(out.read_text())[4][2] == "WRONG: 0.5 (bound 0.1) ¦ of two"
    assert "and more lines" in report["rows"][1]["trace"]
    assert "Traceback" in done.stderr


def test_a_budget_of_nothing_leaves_everything_out_in_words(tmp_path):
    file = tmp_path / "gpu.json"
    done = CliRunner().invoke(main, [*SMALL, "--minutes", "0", "--json", str(file)])
    rows = json.loads(file.read_text())["rows"]

    assert done.exit_code == 0
    assert list(dict.fromkeys(row["question"] for row in rows)) == QUESTIONS
    assert {row["verdict"] for row in rows} == {"left out"}
    assert {row["figure"] for row in rows[:-1]} == {"the budget of 0 minutes was over"}


def test_a_question_without_time_leaves_its_to_those_behind_it(scene, monkeypatch):
    asked = []

    def measure(there: Scene) -> list[Row]:
        asked.append(round(there.left_s))
        there.until = 0.0  # all of the share is used up
        return [Row("a", "1")]

    one = Question("G1", 1, lambda _scene: iter([Part("first", measure), Part("second", measure)]))
    two = Question("G2", 3, lambda _scene: iter([Part("third", measure)]))
    monkeypatch.setattr(gpu_visit, "QUESTIONS", (one, two))
    report = Report({}, command="")
    gpu_visit.visit(scene, report, minutes=4)

    assert asked == [60, 240]
    assert [row.verdict for _, row in report.rows] == ["told", "left out", "told", "left out"]
    assert report.rows[1][1].figure == "of the 4 minutes too few were left for it in the share of G1"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--only", "G1,G9"], "--only G9: no such question"),
        (["--out", "nowhere/gpu.md"], "there is no folder nowhere"),
        (["--device", "cuda:7"], "the device cuda:7 is not there"),
    ],
)
def test_a_wrong_call_is_told_before_anything_is_measured(arguments, message):
    done = CliRunner().invoke(main, arguments)

    assert done.exit_code == 2
    assert message in done.stderr
    assert done.stdout == ""


@pytest.mark.parametrize("off", [0.01, float("nan")])
def test_pixels_that_are_off_are_a_wrong_answer(off):
    pixels = torch.zeros(2, 3, 4, 4)
    right, wrong = gpu_agreement.Difference(), gpu_agreement.Difference()
    for difference in (right, wrong):
        difference.add(pixels, pixels, scale=1.0)
    wrong.add(pixels.clone().index_fill_(3, torch.tensor([2]), off), pixels, scale=1.0)
    wrong.add(pixels, pixels, scale=1.0)

    assert gpu_agreement._row("DALI, raw", right, raw=True).verdict == "right"
    assert gpu_agreement._row("DALI, raw", wrong, raw=True).verdict == "wrong"


def test_a_batch_that_is_overwritten_later_is_seen(scene):
    buffer = torch.empty(2, 3, 8, 8)
    work = gpu_handover._Beside(scene)

    def batches(own: bool) -> Iterator[torch.Tensor]:
        for value in range(20):
            yield torch.full_like(buffer, value) if own else buffer.fill_(value)

    first = gpu_handover._read_at_once(scene, batches(own=True))
    came, later = gpu_handover._read_twice(batches(own=False), work)
    sound = gpu_handover._read_twice(batches(own=True), work)

    assert gpu_handover._differ(came, first) == 0
    assert gpu_handover._differ(later, first) == 19  # the last one is still what it was
    assert sound == (first, first)


def test_copies_are_seen_and_views_are_not():
    images = torch.rand(4, 3, 8, 8)
    with gpu_handover.Watched(images.nbytes) as views:
        images.movedim(-1, -3).unsqueeze(0)[..., ::2].detach()
    with gpu_handover.Watched(images.nbytes) as copies:
        torch.empty_like(images).copy_(images)
        torch.cat([images[:2], images[2:]])
        images[:1].clone()  # a quarter of it

    assert views.names == []
    assert copies.names == ["aten.empty_like.default", "aten.copy_.default", "aten.cat.default"]


def test_weights_that_differ_are_told_and_those_that_are_no_numbers_are_wrong():
    expected = {"fc8.bias": torch.tensor([1.0, 2.0]), "conv1.bias": torch.zeros(2)}
    apart = {**expected, "fc8.bias": torch.tensor([1.0, 2.5])}
    lost = {**expected, "fc8.bias": torch.tensor([1.0, float("nan")])}

    assert gpu_repeating._same("a", expected, expected).figure == "equal, every bit"
    assert gpu_repeating._same("a", apart, expected).figure == (
        "not equal: 1 of 2 tensors differ, at most by 0.5 in fc8.bias, 0.25 of its largest value"
    )
    assert gpu_repeating._same("a", lost, expected).verdict == "wrong"


def test_of_a_folder_per_class_a_tenth_is_held_out_unless_it_has_a_val(tmp_path):
    for label in ("cat", "dog"):
        for number in range(20):
            (_made(tmp_path / "plain" / label) / f"{number:02}.jpg").touch()
        (_made(tmp_path / "split" / "train" / label) / "a.jpg").touch()
        (_made(tmp_path / "split" / "val" / label) / "b.jpg").touch()
    plain = [f"{place}/{path.name}" for place, path in gpu_sets._listed(tmp_path / "plain")]
    split = [f"{place}/{path.name}" for place, path in gpu_sets._listed(tmp_path / "split")]

    assert len(plain) == 40
    assert [name for name in plain if name.startswith("val")] == [
        f"val/{label}/{number}.jpg" for label in ("cat", "dog") for number in ("09", "19")
    ]
    assert split == ["train/cat/a.jpg", "train/dog/a.jpg", "val/cat/b.jpg", "val/dog/b.jpg"]


def test_the_headline_is_of_a_card_at_full_size_alone(scene):
    scene.found["fed"] = 31_535.15
    assert "no headline without a card" in gpu_visit.headline(scene).figure
    scene.device = torch.device("cuda", 0)
    assert "no headline at another size than 2012's" in gpu_visit.headline(scene).figure
    scene.sizes = Sizes()
    assert gpu_visit.headline(scene).figure == (
        "60 minutes at G4's 31,535 images/s, beside five to six days on two GTX 580 (2012)"
    )


def test_a_kernel_that_is_off_is_a_wrong_answer(monkeypatch):
    x = torch.randn(2, 16, 9, 9, generator=torch.Generator().manual_seed(0)) * 11
    right = gpu_alike._chain("chain", x, CHAIN)
    monkeypatch.setattr(gpu_alike, "normalise", lambda x, chain: composed(x, replace(chain, a=2.1e-5)))

    assert right.verdict == "right"
    assert gpu_alike._chain("chain", x, CHAIN).verdict == "wrong"


def test_on_a_card_every_batch_precision_and_way_has_its_turn_and_compilers_come_last(scene):
    scene.device, scene.sizes = torch.device("cuda", 0), Sizes()
    ways = [part.what for part in gpu_training.parts(scene) if part.what.startswith("batch")]

    assert ways[0] == "batch 128, bf16, graph"
    assert sorted(ways) == sorted(
        f"batch {batch}, {precision}, {way}"
        for batch in (128, 1024)
        for precision in ("fp32", "tf32", "bf16")
        for way in ("eager", "graph", "compiled", "compiled + graph")
    )
    assert all("compiled" in way for way in ways[12:])
