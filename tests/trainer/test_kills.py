"""A run that is killed again and again, anywhere, has the weights of one that was not, bit for bit."""

import random
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from alexshard.trainer import RunFolder

KILLED = Path(__file__).with_name("killed.py")
STEPS = 80  # 16 epochs of 5; rates change at 20, 44, 58, 62 and 67, jitter ends at 58, conv1 freezes at 62
BOUNDARIES = (20, 44, 58, 62, 67)
POINTS = ("before", "after", "line", "write", "rename", "named", "best")
EVERY = 3


def words(shards, out):
    recipe = ("--epochs", 16, "--width", 0.125, "-b", 32, "--order", "global")
    return ("run", "--shards", shards, "--out", out, *recipe, "--threads", 1, "--checkpoint-every", EVERY)


def run(*arguments):
    return subprocess.run([sys.executable, *map(str, arguments)], capture_output=True, text=True)


def figures(folder):
    return [(r.kind, r.step, r.loss, r.top1_error, r.rates) for r in RunFolder(folder).records()]


def kills():
    """25 points: each kind thrice and more, each boundary of the schedule hit on its step, the rest drawn."""
    draw = random.Random(13)
    steps = [*BOUNDARIES, *(boundary + 1 for boundary in BOUNDARIES)]
    steps += [draw.randrange(1, STEPS - 2) for _ in range(15)]
    points = list(POINTS) * 4
    draw.shuffle(points)
    found = list(zip(points, sorted(steps), strict=False))
    # A best state is not to come as late as that: the points of its kind are the earliest steps.
    return [("before" if point == "best" and step > 10 else point, step) for point, step in found]


@pytest.mark.slow
def test_a_run_killed_25_times_has_the_weights_and_figures_of_one_that_was_not(small_set, tmp_path):
    shards = small_set.path
    alone = run("-m", "alexshard.tools.cli_alextrain", *words(shards, tmp_path / "whole"))
    assert alone.returncode == 0, alone.stderr
    died = []
    for point, step in [("best", 0), ("write", 1), ("rename", 3), *kills()]:
        done = run(KILLED, point, step, *words(shards, tmp_path / "cut"))
        assert done.returncode in (0, -signal.SIGKILL), f"{point} {step}: {done.stderr}"
        if done.returncode == -signal.SIGKILL:
            died.append((point, step))
    last = run("-m", "alexshard.tools.cli_alextrain", *words(shards, tmp_path / "cut"))

    assert last.returncode == 0, last.stderr
    assert len(died) >= 25, died
    assert {point for point, _ in died} == set(POINTS)
    assert set(BOUNDARIES) <= {step for _, step in died}
    one, two = (RunFolder(tmp_path / name).load() for name in ("whole", "cut"))
    assert one.step == two.step == STEPS
    assert one.plateau == two.plateau
    assert one.loader == two.loader
    for name in one.network:
        assert torch.equal(one.network[name], two.network[name]), name
        assert torch.equal(one.optimiser["momentum"][name], two.optimiser["momentum"][name]), name
    assert figures(tmp_path / "cut") == figures(tmp_path / "whole")
    best = [RunFolder(tmp_path / name).load(best=True) for name in ("whole", "cut")]
    assert best[0].step == best[1].step
    assert all(torch.equal(best[0].network[name], best[1].network[name]) for name in best[0].network)
    assert not [path for path in (tmp_path / "cut").rglob("*") if ".part" in path.name or "damaged" in path.name]
