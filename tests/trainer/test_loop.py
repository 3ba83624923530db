"""Runs on a real loader: what they write, that they repeat, and that stopping changes nothing."""

import dataclasses
import json
import math
import os
import signal
import sys
import threading

import pytest
import torch
from alexshard.shards import WrongCall
from alexshard.trainer import (
    BadCheckpoint,
    Checkpoint,
    DamagedRun,
    Diverged,
    Machine,
    Reporter,
    RunFolder,
    SaveEvery,
    train,
)
from alexshard.trainer.records import Figures

# One thread: on small networks more of them only wait for each other, and badly where other work runs beside.
CPU = Machine.choose("cpu", threads=1)
TOWERS = Machine.choose(devices=("cpu", "cpu"), threads=1)


class Told(Reporter):
    """Keeps what a run tells; sends this process a real signal when the figures of a given step are written.

    Step 0: when the run says its folder.
    """

    def __init__(self, *, stop_at=None, during="train", number=signal.SIGTERM):
        self.said, self.rates, self.stop_at, self.during, self.number = [], [], stop_at, during, number

    def say(self, line):
        self.said.append(line)
        if self.stop_at == 0 and line.startswith("run "):
            os.kill(os.getpid(), self.number)

    def rate(self, images_per_s, waiting, images_left):  # noqa: ARG002
        self.rates.append(images_left)

    def record(self, record, evaluation=None):  # noqa: ARG002
        if record.step == self.stop_at and record.kind == self.during:
            os.kill(os.getpid(), self.number)


def losses(folder):
    return [(r.kind, r.step, r.loss, r.top1_error) for r in RunFolder(folder).records()]


def same_state(one, other):
    a, b = RunFolder(one).load(), RunFolder(other).load()
    assert a.step == b.step
    assert a.loader == b.loader
    assert a.optimiser["rates"] == b.optimiser["rates"]
    assert a.network.keys() == b.network.keys() == a.optimiser["momentum"].keys()
    return all(
        torch.equal(a.network[name], b.network[name])
        and torch.equal(a.optimiser["momentum"][name], b.optimiser["momentum"][name])
        for name in a.network
    )


@pytest.fixture(scope="module")
def whole(small_set, recipe, tmp_path_factory):
    """One run from its first step to its last."""
    recipe = dataclasses.replace(recipe, seed=7)
    folder = tmp_path_factory.mktemp("runs") / "whole"
    outcome = train(recipe, small_set, folder, CPU, reporter=(told := Told()))
    return recipe, folder, outcome, told


def test_a_run_leaves_figures_of_every_step_and_every_epoch(whole, small_set):
    _, folder, outcome, _ = whole
    records = RunFolder(folder).records()

    assert [r.step for r in records if r.kind == "train"] == list(range(1, 21))
    assert [(r.step, r.epoch) for r in records if r.kind == "val"] == [(5, 1), (10, 2), (15, 3), (20, 4)]
    assert [r.lr for r in records if r.kind == "train"] == [0.01] * 5 + [0.001] * 6 + [0.0001] * 6 + [0.00001] * 3
    assert all(math.isfinite(r.loss) and 0 <= r.top5_error <= r.top1_error <= 1 for r in records)
    assert (outcome.step, outcome.total_steps, outcome.stopped_by) == (20, 20, None)
    assert outcome.evaluation.samples == small_set.manifest.splits["val"].samples


def test_a_run_leaves_its_recipe_its_set_and_its_machine(whole, small_set):
    recipe, folder, _, _ = whole
    config = json.loads((folder / "config.json").read_text())

    assert type(recipe).from_json(config["recipe"]) == recipe
    assert config["shard_set"]["digest"] == small_set.digest
    assert config["schedule_steps"] == [0, 5, 11, 15, 15, 17]
    assert [entry["synset"] for entry in config["classes"]] == [c.synset for c in small_set.manifest.classes]
    assert config["machine"]["devices"] == ["cpu"]
    assert config["versions"]["torch"] == torch.__version__


def test_a_run_says_first_what_it_will_do(whole):
    said = whole[3].said

    assert "4 epochs of 5 steps of 32: 20 steps, 640 images; rates change at steps 5, 11, 15, 15, 17" in said
    assert "evaluated on val, 40 images, after every epoch" in said


def test_the_curves_are_in_tensorboard_files(whole):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    _, folder, _, _ = whole
    events = EventAccumulator(str(folder / "tensorboard"))
    events.Reload()

    assert [point.step for point in events.Scalars("train/loss")] == list(range(1, 21))
    assert [point.value for point in events.Scalars("val/top1_error")] == pytest.approx(
        [r.top1_error for r in RunFolder(folder).records() if r.kind == "val"]
    )


def test_without_tensorboard_one_line_says_so_and_the_figures_are_the_same(
    whole, small_set, tmp_path, monkeypatch
):
    recipe, folder, _, _ = whole
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", None)

    train(dataclasses.replace(recipe, max_steps=2), small_set, tmp_path / "run", CPU, reporter=(told := Told()))

    assert [line for line in told.said if "TensorBoard is not installed" in line] == told.said[-1:]
    assert losses(tmp_path / "run")[:2] == losses(folder)[:2]
    assert not (tmp_path / "run" / "tensorboard").exists()


def test_without_a_labelled_val_or_test_split_one_line_says_so(recipe, small_set, tmp_path):
    manifest = small_set.manifest
    alone = {"train": manifest.splits["train"]}
    only_train = dataclasses.replace(small_set, manifest=dataclasses.replace(manifest, splits=alone))

    outcome = train(
        dataclasses.replace(recipe, max_steps=5), only_train, tmp_path / "run", CPU, reporter=(told := Told())
    )

    assert "no labelled val or test split: trained without evaluation" in told.said
    assert outcome.evaluation is None


def test_a_run_that_is_done_says_so_and_stays_as_it_is(whole, small_set):
    recipe, folder, _, _ = whole
    before = RunFolder(folder).newest.stat().st_mtime_ns, losses(folder)

    outcome = train(recipe, small_set, folder, CPU, reporter=(told := Told()))

    assert outcome.step == 20
    assert any("all its steps are done" in line for line in told.said)
    assert (RunFolder(folder).newest.stat().st_mtime_ns, losses(folder)) == before


def test_one_seed_gives_the_same_bits_twice_and_another_seed_others(whole, small_set, tmp_path):
    recipe, folder, _, _ = whole
    train(recipe, small_set, tmp_path / "again", CPU, reporter=Told())
    train(dataclasses.replace(recipe, seed=8), small_set, tmp_path / "other", CPU, reporter=Told())

    assert losses(tmp_path / "again") == losses(folder)
    assert same_state(tmp_path / "again", folder)
    assert losses(tmp_path / "other")[0] != losses(folder)[0]


@pytest.mark.parametrize(
    ("step", "during", "number"),
    [
        (0, "start", signal.SIGTERM),
        (1, "train", signal.SIGTERM),
        (7, "train", signal.SIGINT),  # in the middle of an epoch
        (5, "train", signal.SIGTERM),  # after an epoch, before its evaluation; the rates change here
        (10, "val", signal.SIGTERM),  # after an evaluation
        (15, "train", signal.SIGTERM),  # conv1 freezes at the next step
    ],
)
def test_a_stopped_run_resumes_to_the_bits_of_one_that_was_not(whole, small_set, tmp_path, step, during, number):
    recipe, folder, _, _ = whole
    stopped = train(
        recipe, small_set, tmp_path / "run", CPU, reporter=Told(stop_at=step, during=during, number=number)
    )

    train(recipe, small_set, tmp_path / "run", CPU, reporter=Told())

    assert (stopped.step, stopped.stopped_by) == (step, number)
    assert losses(tmp_path / "run") == losses(folder)
    assert same_state(tmp_path / "run", folder)


def test_a_stopped_run_in_windows_resumes_to_the_same_bits_and_in_no_other_window(many_shards, recipe, tmp_path):
    recipe = dataclasses.replace(recipe, order="windowed", window=2, epochs=2)
    train(recipe, many_shards, tmp_path / "whole", CPU, reporter=Told())
    train(recipe, many_shards, tmp_path / "cut", CPU, reporter=Told(stop_at=3))
    checkpoint = RunFolder(tmp_path / "cut").load()
    other = dataclasses.replace(recipe, window=None)
    with pytest.raises(WrongCall, match="window: 2 → None"):
        train(other, many_shards, tmp_path / "cut", CPU)
    train(recipe, many_shards, tmp_path / "cut", CPU, reporter=(told := Told()))
    train(dataclasses.replace(other, max_steps=1), many_shards, tmp_path / "other", CPU, reporter=Told())

    assert checkpoint.loader["window"] == 2
    assert same_state(tmp_path / "cut", tmp_path / "whole")
    assert any(line.endswith("order windowed of 2 shards") for line in told.said)
    assert losses(tmp_path / "other")[0] != losses(tmp_path / "whole")[0]  # another window, other batches


def test_lines_written_after_the_checkpoint_are_written_anew(whole, small_set, tmp_path):
    recipe, folder, _, _ = whole
    train(recipe, small_set, tmp_path / "run", CPU, reporter=Told(stop_at=8))
    run = RunFolder(tmp_path / "run")
    figures = Figures(run.metrics)
    figures.add(dataclasses.replace(run.records()[-1], step=9, loss=123.0))
    figures.add(dataclasses.replace(run.records()[-1], kind="val", step=8, loss=123.0))
    with run.metrics.open("a") as file:
        file.write('{"kind": "train", "ep')  # as a killed process leaves it

    train(recipe, small_set, tmp_path / "run", CPU, reporter=Told())

    assert losses(tmp_path / "run") == losses(folder)


def test_max_steps_ends_early_and_a_larger_one_goes_on_as_if_it_had_not(whole, small_set, tmp_path):
    recipe, folder, _, _ = whole
    outcome = train(dataclasses.replace(recipe, max_steps=12), small_set, tmp_path / "run", CPU, reporter=Told())

    train(recipe, small_set, tmp_path / "run", CPU, reporter=Told())

    assert outcome.step == 12
    assert outcome.evaluation is not None
    assert same_state(tmp_path / "run", folder)


def test_two_towers_have_the_losses_of_one_device(whole, small_set, tmp_path):
    recipe, folder, _, _ = whole
    train(recipe, small_set, tmp_path / "towers", TOWERS, reporter=(told := Told()))

    # At side 64 and width 1/8: 3² of 2·16 maps into conv3, 2·16 and 2·256 into fc6 and fc7, 256 into fc8, 4 bytes,
    # 32 images, there and back.
    each = 4 * 32 * (9 * 32 + 32 + 2 * 256 + 256)
    told_bytes = f"{each:,} bytes of activations, {each:,} of gradients, {2 * each:,} counted"
    assert any(told_bytes in line for line in told.said)
    assert any(f"; {2 * each:,} as the towers of 2012 exchange" in line for line in told.said)
    assert "batch 32, the same on both devices; half of it decoded by each" in told.said
    one, two = ([loss for _, _, loss, _ in losses(f)] for f in (folder, tmp_path / "towers"))
    assert two == pytest.approx(one, rel=1e-4)


def test_a_run_of_two_towers_goes_on_on_one_device(whole, small_set, tmp_path):
    recipe, folder, _, _ = whole
    train(recipe, small_set, tmp_path / "run", TOWERS, reporter=Told(stop_at=8))

    train(recipe, small_set, tmp_path / "run", CPU, reporter=Told())

    one, two = ([loss for _, _, loss, _ in losses(f)] for f in (folder, tmp_path / "run"))
    assert two == pytest.approx(one, rel=1e-4)


@pytest.mark.parametrize("log_every", [1, 4])
def test_a_loss_that_is_not_finite_stops_the_run_and_is_numbered_as_in_the_figures(
    small_set, tmp_path, recipe, log_every
):
    wild = recipe.with_learning_rate(1e9)
    with pytest.raises(Diverged, match=r"loss of step 2 is not finite[\s\S]*another --out and --lr 0.01"):
        train(wild, small_set, tmp_path / "run", CPU, log_every=log_every, reporter=Told())

    assert [r.step for r in RunFolder(tmp_path / "run").records()] == [1]
    assert RunFolder(tmp_path / "run").load().step == 0


def test_weights_that_are_not_finite_are_found_before_they_are_evaluated_or_saved(small_set, tmp_path, recipe):
    wild = dataclasses.replace(recipe.with_learning_rate(1e300), max_steps=1)
    with pytest.raises(Diverged, match=r"the weights after step 1 are not finite"):
        train(wild, small_set, tmp_path / "run", CPU, reporter=Told())

    assert [r.kind for r in RunFolder(tmp_path / "run").records()] == ["train"]
    assert RunFolder(tmp_path / "run").load().step == 0


def test_what_a_run_left_before_its_first_checkpoint_is_taken_by_a_new_one(whole, small_set, tmp_path):
    recipe, folder, _, _ = whole
    run = RunFolder(tmp_path / "run")
    run.path.mkdir()
    (run.path / "config.json").write_text("{")
    run.metrics.write_text("")
    (run.path / "checkpoints").mkdir()
    (run.path / "checkpoints" / "step-000000000.pt.part").write_bytes(b"PK")

    train(dataclasses.replace(recipe, max_steps=2), small_set, run.path, CPU, reporter=Told())

    assert losses(run.path)[:2] == losses(folder)[:2]


def test_a_folder_of_other_files_is_left_alone(recipe, small_set, tmp_path):
    (tmp_path / "thesis.tex").write_text("words")

    with pytest.raises(WrongCall, match=r"holds other files[\s\S]*another by --out"):
        train(recipe, small_set, tmp_path, CPU)

    assert [path.name for path in tmp_path.iterdir()] == ["thesis.tex"]


def test_figures_do_not_depend_on_when_checkpoints_are_written(whole, small_set, tmp_path):
    recipe, _, _, _ = whole
    train(recipe, small_set, tmp_path / "few", CPU, log_every=3, reporter=Told())
    always = SaveEvery(seconds=0)
    train(recipe, small_set, tmp_path / "many", CPU, log_every=3, save_every=always, reporter=Told())

    assert losses(tmp_path / "many") == losses(tmp_path / "few")


def test_no_step_waits_for_a_checkpoint_to_be_written(small_set, tmp_path, recipe, monkeypatch):
    save, far, seen = Checkpoint.save, threading.Event(), []

    def slow(checkpoint, path):
        if checkpoint.step == 1:
            seen.append(far.wait(timeout=60))
        save(checkpoint, path)

    class Far(Told):
        def record(self, record, evaluation=None):  # noqa: ARG002
            if record.step == 4:
                far.set()

    monkeypatch.setattr(Checkpoint, "save", slow)
    always = SaveEvery(seconds=0)
    train(recipe, small_set, tmp_path / "run", CPU, save_every=always, keep=99, reporter=Far())

    assert seen == [True]
    # What was due meanwhile by the clock is left out; what is written holds the state of its own step.
    steps = [Checkpoint.load(path).step for path in RunFolder(tmp_path / "run").checkpoints()]
    assert {0, 1, 20} <= set(steps)
    assert 2 not in steps


def test_the_speed_is_told_after_ten_steps_however_rare_lines_are(small_set, tmp_path, recipe):
    short = dataclasses.replace(recipe, batch_size=8, epochs=1)
    train(short, small_set, tmp_path / "run", CPU, log_every=1000, reporter=(told := Told()))

    assert told.rates == [(20 - 11) * 8]


def test_a_line_that_is_no_record_is_named(whole, small_set, tmp_path):
    recipe, _, _, _ = whole
    train(recipe, small_set, tmp_path / "run", CPU, reporter=Told(stop_at=2))
    run = RunFolder(tmp_path / "run")
    before = run.metrics.read_text()
    for wrong in (
        '{"kind": "train"}',
        "[]",
        "{",
        "[" * 200_000,
        '"\\ud800',
        before.splitlines()[0].replace("train", "dream"),
    ):
        run.metrics.write_text(before + wrong + "\n")
        with pytest.raises(DamagedRun, match=r"metrics.jsonl, line 3"):
            train(recipe, small_set, run.path, CPU, reporter=Told())


def test_a_batch_larger_than_the_set_is_refused_with_one_that_fits(small_set, tmp_path, recipe):
    with pytest.raises(WrongCall, match=r"batch of 161 is larger than the 160[\s\S]*-b 40"):
        train(dataclasses.replace(recipe, batch_size=161), small_set, tmp_path / "run", CPU)

    assert not (tmp_path / "run").exists()


def test_images_too_small_for_the_network_are_refused(tiny_set, tmp_path, recipe):
    with pytest.raises(WrongCall, match="nothing after the third pooling"):
        train(recipe, tiny_set, tmp_path / "run", CPU)

    assert not (tmp_path / "run").exists()


def test_the_same_call_goes_on_and_another_recipe_leaves_the_folder_alone(whole, small_set, recipe):
    mine, folder, _, _ = whole
    outcome = train(mine, small_set, folder, CPU, reporter=(told := Told()))
    before = sorted((path, path.stat().st_mtime_ns) for path in folder.rglob("*") if path.name != "lock")

    with pytest.raises(WrongCall, match=r"has another recipe\n  where: seed: 7 → 0"):
        train(recipe, small_set, folder, CPU)

    assert outcome.step == 20
    assert any("goes on after step 20" in line for line in told.said)
    assert sorted((p, p.stat().st_mtime_ns) for p in folder.rglob("*") if p.name != "lock") == before


def test_another_recipe_does_not_resume_and_the_difference_is_named(whole, small_set):
    recipe, folder, _, _ = whole

    with pytest.raises(WrongCall, match=r"another recipe[\s\S]*batch_size: 32 → 16"):
        train(dataclasses.replace(recipe, batch_size=16), small_set, folder, CPU)


def test_another_shard_set_does_not_resume(whole, other_set):
    recipe, folder, _, _ = whole

    with pytest.raises(BadCheckpoint, match="another shard set"):
        train(recipe, other_set, folder, CPU)
