"""Several ranks under torchrun are one run: real processes, gloo, on the CPU."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
from alexshard.trainer import RunFolder

SMALL = ("--width", "0.125", "-b", "32", "--log-every", "1")
ENV = os.environ | {"OMP_NUM_THREADS": "1"}  # else torchrun says that it sets this


def command(ranks: int, *arguments: object) -> list[str]:
    one = ["-m", "alexshard.tools.cli_alextrain", "run", *map(str, arguments)]
    if ranks == 1:
        return [sys.executable, *one]
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", str(ranks), "--standalone"]
    return [*torchrun, *one]


def two_ranks(script: Path, *arguments: object) -> list[str]:
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", "2", "--standalone"]
    return [*torchrun, *map(str, (script, *arguments))]


def alextrain(
    ranks: int, *arguments: object, env: dict[str, str] | None = None
) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        command(ranks, *arguments), capture_output=True, text=True, check=False, env=ENV | (env or {}), timeout=300
    )


@pytest.fixture(scope="module")
def shards(small_set) -> Path:
    return Path(small_set.shown)


@pytest.fixture(scope="module")
def runs(shards, tmp_path_factory) -> dict[int, Path]:
    """The same four epochs on one, two and four ranks, across every boundary of the schedule and its freeze."""
    home, found = tmp_path_factory.mktemp("ranks"), {}
    for ranks in (1, 2, 4):
        found[ranks] = home / f"on-{ranks}"
        done = alextrain(ranks, "--shards", shards, "--out", found[ranks], "--epochs", 4, *SMALL, "--threads", 1)
        assert done.returncode == 0, done.stderr
        (home / f"on-{ranks}.said").write_text(done.stderr)
    return found


def records(folder: Path) -> list[tuple[str, int, float, float]]:
    return [(r.kind, r.step, r.loss, r.top1_error) for r in RunFolder(folder).records()]


@pytest.mark.parametrize("ranks", [2, 4])
def test_every_loss_is_that_of_one_process_with_the_same_global_batch(runs, ranks):
    alone, spread = records(runs[1]), records(runs[ranks])

    assert [r[:2] for r in spread] == [r[:2] for r in alone]
    assert sum(r[0] == "val" for r in spread) == 4
    assert [r[2] for r in spread] == pytest.approx([r[2] for r in alone], rel=1e-4)
    assert spread[0][2] == pytest.approx(alone[0][2], rel=1e-6)
    assert [r[3] for r in spread if r[0] == "val"] == pytest.approx(
        [r[3] for r in alone if r[0] == "val"], abs=0.026
    )


@pytest.mark.parametrize("ranks", [2, 4])
def test_the_network_is_the_one_of_one_process_up_to_summation_order(runs, ranks):
    alone, spread = (RunFolder(runs[n]).load() for n in (1, ranks))

    assert spread.loader == alone.loader
    assert spread.network.keys() == alone.network.keys()
    for name, value in alone.network.items():
        torch.testing.assert_close(spread.network[name], value, rtol=1e-3, atol=1e-5)


@pytest.mark.parametrize("ranks", [2, 4])
def test_the_batch_is_told_of_all_ranks_and_of_each(runs, ranks):
    said = (runs[ranks].parent / f"on-{ranks}.said").read_text()

    assert f"batch 32 of all ranks together, {32 // ranks} on each" in said
    assert f"{ranks} ranks, data-parallel" in said
    assert said.count("160 training images") == 1  # the first rank speaks for all
    config = json.loads((runs[ranks] / "config.json").read_text())
    assert (config["machine"]["parallel"], config["machine"]["ranks"]) == ("ddp", ranks)


@pytest.mark.slow
def test_a_split_that_does_not_divide_is_evaluated_whole_on_three_ranks(shards, tmp_path):
    # 40 images on 3 ranks: 14, 13, 13; 160 in steps of 30 leave 10 at the end of an epoch, which is crossed.
    done = alextrain(3, "--shards", shards, "--out", tmp_path / "run", "--max-steps", 7, *SMALL, "-b", 30)

    assert done.returncode == 0, done.stderr
    *_, val = [r for r in RunFolder(tmp_path / "run").records() if r.kind == "val"]
    assert val.step == 7
    assert (val.top1_error * 40) % 1 == pytest.approx(0, abs=1e-6)  # fortieths: every image counted once


@pytest.mark.slow
def test_eval_on_three_ranks_says_once_what_it_says_alone(runs, shards):
    # 160 images on 3 ranks: 54, 53, 53.
    of = [str(word) for word in ("eval", runs[1], "--shards", shards, "--split", "train", "--json")]
    found = []
    for words in (command(1), command(3)):
        words[words.index("run") :] = of
        done = subprocess.run(words, capture_output=True, text=True, check=True, env=ENV)
        found.append(json.loads(done.stdout))

    alone, spread = found
    assert spread["samples"] == alone["samples"] == 160
    assert spread["loss"] == pytest.approx(alone["loss"], rel=1e-5)
    assert spread["top1_error"] == alone["top1_error"]


def test_a_folder_that_is_taken_is_refused_on_all_ranks(runs, shards):
    with RunFolder(runs[1]).lock():
        done = alextrain(2, "--shards", shards, "--out", runs[1], *SMALL)

    assert done.returncode != 0
    assert "error: " in done.stderr
    assert done.stderr.count("another process trains in") == 2


@pytest.mark.slow
def test_a_run_of_two_ranks_goes_on_as_one_and_as_four_with_the_same_steps(runs, shards, tmp_path):
    folder, whole = tmp_path / "run", records(runs[1])
    for ranks, steps in ((2, 7), (4, 12), (1, None)):
        how = (
            ("--resume", folder)
            if folder.exists()
            else ("--shards", shards, "--out", folder, "--epochs", 4, *SMALL)
        )
        until = ("--max-steps", steps) if steps else ("--max-steps", 20)
        done = alextrain(ranks, *how, *until, "--log-every", 1, "--threads", 1)
        assert done.returncode == 0, done.stderr

    again = {(kind, step): loss for kind, step, loss, _ in records(folder)}
    assert {(kind, step) for kind, step, *_ in whole} <= again.keys()
    for kind, step, loss, _ in whole:
        assert again[kind, step] == pytest.approx(loss, rel=1e-4)


def test_a_signal_to_one_rank_stops_all_after_the_same_step_with_everything_saved(shards, tmp_path):
    folder = tmp_path / "run"
    arguments = ("--shards", shards, "--out", folder, "--epochs", 4000, *SMALL, "--eval-every", 0)
    with training(2, *arguments, "--threads", 1) as (process, said):
        os.kill(rank_processes(process.pid)[1], signal.SIGTERM)
        said += process.stderr.readlines()

    text = "".join(said)
    assert "stopped by SIGTERM after step" in text
    assert "torchrun --nproc-per-node 2 --no-python alextrain run --resume" in text
    checkpoint = RunFolder(folder).load()
    assert checkpoint.step == RunFolder(folder).records()[-1].step > 10


@contextmanager
def training(ranks: int, *arguments: object) -> Iterator[tuple[Any, list[str]]]:
    """A run in the middle of its steps, and what it said so far; it must have ended when the block is left."""
    with subprocess.Popen(
        command(ranks, *arguments), stderr=subprocess.PIPE, stdout=subprocess.DEVNULL, text=True, env=ENV
    ) as process:
        assert process.stderr is not None
        said = []
        for line in process.stderr:
            said.append(line)
            if line.startswith("measured:"):
                break
        yield process, said


def rank_processes(parent: int) -> list[int]:
    """The processes that torchrun started, by rank."""
    found = {}
    for child in Path(f"/proc/{parent}/task/{parent}/children").read_text().split():
        words = Path(f"/proc/{child}/environ").read_bytes().split(b"\0")
        ranks = [int(word[5:]) for word in words if word.startswith(b"RANK=")]
        found |= {rank: int(child) for rank in ranks}
    return [found[rank] for rank in sorted(found)]


def test_a_rank_that_dies_ends_the_run_in_words(shards, tmp_path):
    folder = tmp_path / "run"
    arguments = ("--shards", shards, "--out", folder, "--epochs", 4000, *SMALL, "--eval-every", 0)
    with training(2, *arguments, "--threads", 1) as (process, _):
        os.kill(rank_processes(process.pid)[1], signal.SIGKILL)
        text = process.stderr.read()

    assert process.returncode != 0
    assert "error: rank 0 of 2 lost the others" in text
    assert "alextrain run --resume goes on from the last checkpoint" in text


@pytest.mark.parametrize(
    ("ranks", "arguments", "message"),
    [
        (1, ("--parallel", "ddp"), "--parallel ddp without torchrun"),
        (2, ("--parallel", "single"), "--parallel single under torchrun"),
        (2, ("--devices", "cpu,cpu"), "--devices under torchrun"),
        (3, ("-b", "32"), "a batch of 32 on 3 ranks"),
    ],
)
def test_wishes_that_contradict_the_ranks_are_refused_before_anything_is_written(
    shards, tmp_path, ranks, arguments, message
):
    done = alextrain(ranks, "--shards", shards, "--out", tmp_path / "run", "--width", "0.125", *arguments)

    assert done.returncode != 0
    assert message in done.stderr
    assert not (tmp_path / "run").exists()


@pytest.mark.slow
def test_ranks_that_find_different_states_are_refused_before_a_step(shards, tmp_path):
    # As machines without a disk that both share: each rank in a folder of its own, and one of them goes on.
    words = ["run", "--shards", shards.resolve(), "--out", "run", "--epochs", 4, *SMALL, "--threads", 1]
    (tmp_path / "n0").mkdir()
    (tmp_path / "n1").mkdir()
    begun = subprocess.run(
        [*command(1, *words[1:], "--max-steps", 3)], cwd=tmp_path / "n0", capture_output=True, text=True, env=ENV
    )
    assert begun.returncode == 0, begun.stderr
    script = tmp_path / "own_folder.py"
    script.write_text(
        "import os, sys; os.chdir('n' + os.environ['RANK'])\n"
        "from alexshard.tools.cli_alextrain import main; main(sys.argv[1:])\n"
    )
    done = subprocess.run(two_ranks(script, *words), cwd=tmp_path, capture_output=True, text=True, env=ENV)

    assert done.returncode != 0
    assert "rank 1 finds no state in run, and rank 0 finds step 3" in done.stderr
    assert "step 4" not in done.stderr


UNREADABLE = """
import errno, os, sys
from alexshard.tools.cli_alextrain import main
from alexshard.trainer import checkpoint_file

class Failing(checkpoint_file._File):
    def readinto(self, buffer):
        def fail():
            raise OSError(errno.EIO, "Input/output error")
        return self._asked(fail if os.environ["RANK"] == "1" else lambda: super(Failing, self).readinto(buffer))

checkpoint_file._File = Failing
main(sys.argv[1:])
"""


@pytest.mark.slow
def test_a_state_that_one_rank_cannot_read_is_told_by_all_ranks_and_stays(shards, tmp_path):
    words = ("run", "--shards", shards, "--out", tmp_path / "run", "--epochs", 4, *SMALL, "--threads", 1)
    begun = subprocess.run(command(1, *words[1:], "--max-steps", 3), capture_output=True, text=True, env=ENV)
    assert begun.returncode == 0, begun.stderr
    before = sorted(path.name for path in (tmp_path / "run" / "checkpoints").iterdir())
    script = tmp_path / "unreadable.py"
    script.write_text(UNREADABLE)
    done = subprocess.run(two_ranks(script, *words), capture_output=True, text=True, env=ENV, timeout=300)

    assert done.returncode != 0
    assert "error: the checkpoint cannot be read now: Input/output error" in done.stderr
    assert done.stderr.count("cannot be read now") == 2  # both ranks
    assert "/trainer/" not in done.stderr  # no traceback but torchrun's own
    assert sorted(path.name for path in (tmp_path / "run" / "checkpoints").iterdir()) == before


EVALUATED = """
import os, signal, sys, dataclasses
from pathlib import Path
from alexshard.shards import ShardSet
from alexshard.trainer import Machine, Ranks, Recipe, Reporter, train

class Stopping(Reporter):
    times = 0
    def say(self, line): pass
    def evaluating(self, split, samples):
        self.times += 1
        if self.times == int(sys.argv[3]):
            os.kill(os.getpid(), signal.SIGTERM)

ranks = Ranks.here("")
recipe = dataclasses.replace(Recipe.original(), width=0.125, batch_size=32, epochs=4)
machine = Machine.choose("cpu", ranks=ranks, threads=1)
outcome = train(recipe, ShardSet.open(Path(sys.argv[1])), Path(sys.argv[2]), machine, reporter=Stopping())
if ranks.first:
    print(outcome.step, outcome.stopped_by)
ranks.leave()
"""


@pytest.mark.slow
def test_an_evaluation_that_a_signal_cuts_short_on_two_ranks_is_made_when_the_run_goes_on(shards, tmp_path):
    script = tmp_path / "evaluated.py"
    script.write_text(EVALUATED)
    printed = [
        subprocess.run(
            two_ranks(script, shards, tmp_path / "run", number),
            capture_output=True,
            text=True,
            env=ENV,
            check=True,
        ).stdout
        for number in ("2", "0")
    ]

    assert printed[0].startswith("10 ")
    assert printed[1].startswith("20 ")
    steps = [record.step for record in RunFolder(tmp_path / "run").records() if record.kind == "val"]
    assert steps == [5, 10, 15, 20]


BY_THE_CLOCK = """
import dataclasses, sys
from pathlib import Path
from alexshard.shards import ShardSet
from alexshard.trainer import Machine, Ranks, Recipe, SaveEvery, keeper, saving, train

saving.LINE_S = 0.0
keeper.Keeper.busy = False  # however slow the disk is
ranks = Ranks.here("")
recipe = dataclasses.replace(Recipe.original(), width=0.125, batch_size=32, epochs=4)
machine = Machine.choose("cpu", ranks=ranks, threads=1)
train(
    recipe, ShardSet.open(Path(sys.argv[1])), Path(sys.argv[2]), machine,
    log_every=int(sys.argv[3]), save_every=SaveEvery(seconds=0.0), keep=99, eval_every=0,
)
ranks.leave()
"""


@pytest.mark.slow
@pytest.mark.parametrize("log_every", [1, 1000])
def test_states_by_the_clock_of_one_rank_bring_lines_of_all_and_change_nothing(runs, shards, tmp_path, log_every):
    script = tmp_path / "by_the_clock.py"
    script.write_text(BY_THE_CLOCK)
    words = two_ranks(script, shards, tmp_path / "run", log_every)
    done = subprocess.run(words, capture_output=True, text=True, env=ENV, timeout=300)

    assert done.returncode == 0, done.stderr
    run = RunFolder(tmp_path / "run")
    states = {int(path.stem.partition("-")[2]) for path in run.checkpoints()}
    lines = {record.step for record in run.records() if record.kind == "train"}
    # After every second step, since an answer travels for one, and where an epoch ends.
    assert states == {0, 2, 4, 5, 7, 9, 10, 12, 14, 15, 17, 19, 20}
    assert states - {0} <= lines
    whole = RunFolder(runs[2]).load().network
    assert all(torch.equal(value, whole[name]) for name, value in run.load().network.items())
