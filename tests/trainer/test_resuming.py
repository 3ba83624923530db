"""What a run keeps, and that whatever happens to it or its files costs no more than the steps since."""

import dataclasses
import json
import os
import resource
import signal
import subprocess
import sys
import threading
import warnings
from contextlib import contextmanager
from pathlib import Path

import pytest
import torch
from alexshard.shards import AlexshardError, WrongCall, holder_of
from alexshard.trainer import (
    LAYERS,
    BadCheckpoint,
    Checkpoint,
    Diverged,
    Machine,
    NotSaved,
    Reporter,
    RunFolder,
    SaveEvery,
    load_checkpoint,
    train,
    weights_digest,
)
from alexshard.trainer.keeper import Keeper
from alexshard.trainer.records import Figures, Record, TensorBoard

CPU = Machine.choose("cpu", threads=1)
EVERY_3 = SaveEvery(steps=3)


class Told(Reporter):
    """Keeps what a run tells; calls `then` when the figures of a step are written."""

    def __init__(self, then=None):
        self.said, self.warned, self.steps, self.then = [], [], [], then or {}

    def say(self, line):
        self.said.append(line)

    def warn(self, line):
        self.warned.append(line)

    def saved(self, step):
        self.steps.append(step)

    def record(self, record, evaluation=None):  # noqa: ARG002
        if record.kind == "train" and record.step in self.then:
            self.then[record.step]()


def figures(folder):
    return [(r.kind, r.step, r.loss, r.top1_error) for r in RunFolder(folder).records()]


def same_weights(one, other):
    mine, theirs = RunFolder(one).load(), RunFolder(other).load()
    assert mine.step == theirs.step
    assert mine.plateau == theirs.plateau
    return all(
        torch.equal(mine.network[name], theirs.network[name])
        and torch.equal(mine.optimiser["momentum"][name], theirs.optimiser["momentum"][name])
        for name in mine.network
    )


def stop(number=signal.SIGTERM):
    return lambda: os.kill(os.getpid(), number)


@pytest.fixture(scope="module")
def whole(small_set, recipe, tmp_path_factory):
    """A run of 20 steps with a checkpoint after every third, from its first step to its last."""
    folder = tmp_path_factory.mktemp("runs") / "whole"
    train(recipe, small_set, folder, CPU, save_every=EVERY_3, reporter=Told())
    return folder


@pytest.fixture
def cut(small_set, recipe, tmp_path):
    """The same run stopped after step 11, with checkpoints of steps 11, 9 and 6."""
    folder = tmp_path / "cut"
    train(recipe, small_set, folder, CPU, save_every=EVERY_3, keep=3, reporter=Told({11: stop()}))
    return folder


def names(folder):
    return sorted(path.name for path in (folder / "checkpoints").iterdir())


@pytest.mark.parametrize("keep", [1, 2, 5])
def test_the_newest_few_and_the_best_are_kept(small_set, recipe, tmp_path, keep):
    train(recipe, small_set, tmp_path / "run", CPU, save_every=EVERY_3, keep=keep, reporter=(told := Told()))
    run = RunFolder(tmp_path / "run")
    errors = {r.step: r.top1_error for r in run.records() if r.kind == "val"}
    best = min(errors, key=lambda step: (errors[step], step))

    bests = [step for step in errors if errors[step] < min((errors[e] for e in errors if e < step), default=2)]
    written = sorted({0, *range(3, 21, 3), *bests, 20})
    assert sorted(set(told.steps)) == written
    assert names(run.path) == ["best.pt", *(f"step-{step:09d}.pt" for step in written[-keep:])]
    assert (run.load(best=True).step, run.load().step) == (best, 20)
    assert run.load(best=True).evaluation["top1_error"] == errors[best]


def test_a_state_has_all_that_the_network_needs_to_be_used_elsewhere(whole, small_set, recipe):
    checkpoint = RunFolder(whole).load()

    assert checkpoint.recipe == recipe
    assert (checkpoint.side, checkpoint.stored_side, checkpoint.steps_per_epoch) == (64, 74, 5)
    assert [synset for synset, _ in checkpoint.classes] == [entry.synset for entry in small_set.manifest.classes]
    assert torch.equal(checkpoint.mean_image, torch.from_numpy(small_set.mean_image()))
    assert torch.equal(checkpoint.centre_mean(), checkpoint.mean_image.permute(2, 0, 1)[:, 5:69, 5:69])
    assert (checkpoint.set_name, checkpoint.shard_set) == (small_set.name, small_set.digest)
    means = dataclasses.replace(checkpoint, recipe=dataclasses.replace(recipe, mean="channel")).centre_mean()
    assert means[:, 3, 4].tolist() == pytest.approx(small_set.manifest.statistics.channel_mean, rel=1e-6)
    assert load_checkpoint(RunFolder(whole).best).step == RunFolder(whole).load(best=True).step


def test_every_line_has_rates_memory_and_the_size_of_the_update(whole):
    lines = [record for record in RunFolder(whole).records() if record.kind == "train"]

    assert set(lines[0].rates) == {"weights", "biases", "conv1.weight", "conv1.bias"}
    assert lines[-1].rates["conv1.weight"] is None
    assert all(set(line.updates) == set(LAYERS) for line in lines)
    assert 0 < lines[0].updates["conv3"] < 1
    assert lines[-1].updates["conv1"] == 0
    assert all(line.memory_bytes > 2**20 and line.seconds > 0 for line in lines)


@pytest.mark.parametrize("damage", ["cut", "flipped", "empty"])
def test_a_damaged_newest_state_falls_back_to_the_one_before_and_says_so(whole, cut, small_set, recipe, damage):
    newest = RunFolder(cut).newest
    data = newest.read_bytes()
    middle = len(data) // 2
    flipped = data[:middle] + bytes([data[middle] ^ 1]) + data[middle + 1 :]
    newest.write_bytes({"cut": data[:middle], "flipped": flipped, "empty": b""}[damage])

    train(recipe, small_set, cut, CPU, save_every=EVERY_3, reporter=(told := Told()))

    assert newest.name == "step-000000011.pt"
    assert any(f"{newest}: the checkpoint cannot be read" in line for line in told.warned)
    assert any("step-000000009.pt, after step 9" in line for line in told.warned)
    assert newest.with_name(newest.name + ".damaged").is_file()
    assert same_weights(cut, whole)
    assert [line for line in figures(cut) if line[1] != 11] == [line for line in figures(whole) if line[1] != 11]


def test_where_no_state_can_be_read_the_newest_is_named_and_nothing_changes(cut, small_set, recipe):
    for path in (cut / "checkpoints").iterdir():
        path.write_bytes(b"PK")
    before = sorted((path, path.stat().st_mtime_ns) for path in cut.rglob("*") if path.name != "lock")

    with pytest.raises(BadCheckpoint) as refused:
        train(recipe, small_set, cut, CPU, reporter=Told())

    assert "step-000000011.pt" in refused.value.where
    assert sorted((p, p.stat().st_mtime_ns) for p in cut.rglob("*") if p.name != "lock") == before


def test_the_best_state_serves_where_all_others_are_gone(cut, small_set, recipe, whole):
    for path in RunFolder(cut).checkpoints():
        path.unlink()

    train(recipe, small_set, cut, CPU, save_every=EVERY_3, reporter=Told())

    assert same_weights(cut, whole)


def test_what_a_killed_process_was_writing_is_removed(cut, small_set, recipe, whole):
    part = cut / "checkpoints" / "step-000000012.pt.part"
    part.write_bytes(b"PK")
    (cut / "checkpoints" / "best.pt").unlink()  # killed between the two names

    train(recipe, small_set, cut, CPU, save_every=EVERY_3, reporter=Told())

    assert not part.exists()
    assert same_weights(cut, whole)


def test_a_best_state_that_a_kill_left_unmarked_is_marked_when_the_run_goes_on(small_set, recipe, tmp_path):
    train(dataclasses.replace(recipe, max_steps=5), small_set, tmp_path / "run", CPU, reporter=Told())
    run = RunFolder(tmp_path / "run")
    run.best.unlink()

    train(dataclasses.replace(recipe, max_steps=6), small_set, run.path, CPU, reporter=Told())

    assert run.load(best=True).step == 5


def test_a_second_process_on_the_folder_is_refused_and_told_who_the_first_is(cut, small_set, recipe):
    with RunFolder(cut).lock():
        assert f"process {os.getpid()} on" in str(holder_of(cut))
        with pytest.raises(WrongCall, match=rf"another process trains[\s\S]*process {os.getpid()} on") as refused:
            train(recipe, small_set, cut, CPU, reporter=Told())

    assert f"alextrain watch {cut}" in str(refused.value)
    assert holder_of(cut) is None


@pytest.mark.parametrize("number", [signal.SIGUSR1, signal.SIGHUP])
def test_slurms_warning_and_a_lost_terminal_stop_a_run_in_order(whole, small_set, recipe, tmp_path, number):
    first = Told({7: stop(number)})
    outcome = train(recipe, small_set, tmp_path / "run", CPU, save_every=EVERY_3, reporter=first)
    saved = RunFolder(tmp_path / "run").load().step

    train(recipe, small_set, tmp_path / "run", CPU, save_every=EVERY_3, reporter=Told())

    assert (outcome.stopped_by, outcome.step, saved) == (number, 7, 7)
    assert same_weights(tmp_path / "run", whole)


def test_the_signal_that_follows_a_warning_does_not_cut_the_saving_short(small_set, recipe, tmp_path, monkeypatch):
    save = Checkpoint.save

    def interrupted(checkpoint, path):
        if checkpoint.step == 7:
            os.kill(os.getpid(), signal.SIGTERM)
        save(checkpoint, path)

    monkeypatch.setattr(Checkpoint, "save", interrupted)
    told = Told({7: stop(signal.SIGUSR1)})
    outcome = train(recipe, small_set, tmp_path / "run", CPU, reporter=told)

    assert outcome.stopped_by == signal.SIGUSR1
    assert RunFolder(tmp_path / "run").load().step == 7


@contextmanager
def files_of_at_most(size):
    """As on a disk that is full: the kernel refuses what goes beyond."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


def full(size=200_000):
    """No room for states, of about 1.3 MB each, and for all that is smaller."""
    hard = resource.getrlimit(resource.RLIMIT_FSIZE)[1]
    return lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))


def roomy():
    hard = resource.getrlimit(resource.RLIMIT_FSIZE)[1]
    return lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (hard, hard))


def test_a_full_disk_costs_states_and_not_the_run(whole, small_set, recipe, tmp_path):
    told = Told({4: full(), 14: roomy()})
    with files_of_at_most(resource.RLIM_INFINITY):
        train(recipe, small_set, tmp_path / "run", CPU, save_every=EVERY_3, reporter=told)

    assert any("a checkpoint could not be written: File too large" in line for line in told.warned)
    assert any("step-000000003.pt" in line for line in told.warned)
    assert told.steps[-1] == 20
    assert not any(path.name.endswith(".part") for path in (tmp_path / "run").rglob("*"))
    assert figures(tmp_path / "run") == figures(whole)
    assert same_weights(tmp_path / "run", whole)


def test_a_disk_that_is_full_to_the_end_says_where_the_run_goes_on_and_it_does(whole, small_set, recipe, tmp_path):
    with files_of_at_most(resource.RLIM_INFINITY), pytest.raises(NotSaved) as failed:
        train(recipe, small_set, tmp_path / "run", CPU, save_every=EVERY_3, reporter=Told({4: full()}))
    train(recipe, small_set, tmp_path / "run", CPU, save_every=EVERY_3, reporter=(told := Told()))

    assert failed.value.exit_code == 1
    assert "the state after step 20 could not be written: File too large" in failed.value.what
    assert "step-000000003.pt" in failed.value.where
    assert any("goes on after step 3" in line for line in told.said)
    assert same_weights(tmp_path / "run", whole)


class NoRoom:
    """A file on a disk with room for so many bytes."""

    def __init__(self, file, room):
        self.file, self.room = file, room

    def write(self, data):
        self.room -= len(data)
        if self.room < 0:
            raise OSError(28, os.strerror(28))
        return self.file.write(data)

    def flush(self):
        self.file.flush()


def with_room(monkeypatch, room_of):
    """States are written to a disk that has `room_of(path)` bytes left for them."""
    from alexshard.trainer import checkpoint

    whole = checkpoint.appearing_whole

    @contextmanager
    def appearing(path):
        with whole(path) as file:
            yield NoRoom(file, room_of(path))

    monkeypatch.setattr(checkpoint, "appearing_whole", appearing)


def test_old_states_make_room_for_a_new_one(cut, small_set, recipe, whole, monkeypatch):
    run = RunFolder(cut)
    with_room(monkeypatch, lambda _: 1e9 if len(run.checkpoints()) < 3 else 100)

    train(recipe, small_set, cut, CPU, save_every=EVERY_3, keep=9, reporter=(told := Told()))

    assert told.warned == []
    assert same_weights(cut, whole)


def test_a_best_state_that_found_no_room_is_written_when_there_is_some(small_set, recipe, tmp_path, monkeypatch):
    tries = []

    def room(path):
        tries.append(path.name)
        return 100 if tries.count("step-000000005.pt") == 1 and tries[-1] == "step-000000005.pt" else 1e9

    with_room(monkeypatch, room)
    train(recipe, small_set, tmp_path / "run", CPU, keep=1, reporter=(told := Told()))

    run = RunFolder(tmp_path / "run")
    assert any("No space left on device" in line for line in told.warned)
    assert run.load(best=True).step == run.load().plateau.best_step == 5
    assert run.load().step == 20


def test_a_writer_that_fails_in_any_way_is_not_taken_for_one_that_wrote(small_set, recipe, tmp_path, monkeypatch):
    save = Checkpoint.save

    def failing(checkpoint, path):
        if checkpoint.step:
            raise MemoryError
        save(checkpoint, path)

    monkeypatch.setattr(Checkpoint, "save", failing)
    with pytest.raises(NotSaved, match="MemoryError") as failed:
        train(recipe, small_set, tmp_path / "run", CPU, reporter=Told())

    assert "step-000000000.pt" in failed.value.where


def test_a_folder_whose_states_are_gone_keeps_its_figures(cut, small_set, recipe):
    for path in (cut / "checkpoints").iterdir():
        path.unlink()
    before = figures(cut)

    with pytest.raises(WrongCall, match="holds the figures of a run, and none of its states"):
        train(recipe, small_set, cut, CPU, reporter=Told())

    assert figures(cut) == before != []


def test_where_lines_are_rare_a_state_by_the_clock_brings_one(small_set, recipe, tmp_path, monkeypatch):
    monkeypatch.setattr("alexshard.trainer.saving.LINE_S", 0.0)
    monkeypatch.setattr(Keeper, "busy", False)  # however slow the disk is
    always = SaveEvery(seconds=0)
    short = dataclasses.replace(recipe, max_steps=4)
    train(short, small_set, tmp_path / "run", CPU, log_every=1000, save_every=always, keep=9, reporter=Told())

    steps = {record.step for record in RunFolder(tmp_path / "run").records()}
    assert {Checkpoint.load(path).step for path in RunFolder(tmp_path / "run").checkpoints()} - {0} <= steps
    assert steps == {1, 2, 3, 4}


def test_the_state_that_is_named_as_good_answers_with_finite_numbers(small_set, recipe, tmp_path):
    wild = recipe.with_learning_rate(2000.0)
    with pytest.raises(Diverged) as diverged:
        train(wild, small_set, tmp_path / "run", CPU, save_every=SaveEvery(steps=1), keep=9, reporter=Told())

    bad = int(diverged.value.what.split("step ")[1].split()[0])
    named = Path(diverged.value.where.removeprefix("the last good checkpoint is "))
    assert Checkpoint.load(named).step == bad - 2
    assert Checkpoint.load(RunFolder(tmp_path / "run").newest).step == bad - 1


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_that_comes_twice_at_once_stops_in_order(small_set, recipe, tmp_path, number):
    def twice():
        os.kill(os.getpid(), number)
        os.kill(os.getpid(), number)

    outcome = train(recipe, small_set, tmp_path / "run", CPU, reporter=Told({7: twice}))

    assert (outcome.stopped_by, RunFolder(tmp_path / "run").load().step) == (number, 7)


def test_the_same_signal_some_time_later_acts_at_once(small_set, recipe, tmp_path, monkeypatch):
    monkeypatch.setattr("alexshard.trainer.interrupt.REPEAT_S", -1.0)

    def twice():
        os.kill(os.getpid(), signal.SIGINT)
        os.kill(os.getpid(), signal.SIGINT)

    with pytest.raises(KeyboardInterrupt):
        train(recipe, small_set, tmp_path / "run", CPU, reporter=Told({7: twice}))


HOSTILE = {
    "momentum of another shape": lambda c: {"optimiser": changed(c, "momentum", {"conv2.weight": torch.zeros(3)})},
    "momentum of no parameter": lambda c: {"optimiser": changed(c, "momentum", {"conv9.bias": torch.zeros(3)})},
    "no rates": lambda c: {"optimiser": c.optimiser | {"rates": {}}},
    "a rate of 0": lambda c: {"optimiser": changed(c, "rates", {"weights": 0.0})},
    "another place in the epoch": lambda _: {"step": 7},
    "an endless step": lambda _: {"step": 10**30},
    "no side": lambda _: {"side": 0},
    "no steps in an epoch": lambda _: {"steps_per_epoch": 0},
    "too large a mean image": lambda _: {"stored_side": 100_000},
    "no mean": lambda _: {"channel_mean": None},
    "an evaluation of words": lambda _: {"evaluation": {"split": "val"}},
}


def changed(checkpoint, name, values):
    return checkpoint.optimiser | {name: {**checkpoint.optimiser[name], **values}}


@pytest.mark.parametrize("what", HOSTILE)
def test_a_state_whose_values_do_not_go_together_is_passed_over(whole, cut, small_set, recipe, what):
    run = RunFolder(cut)
    newest = run.load()
    dataclasses.replace(newest, **HOSTILE[what](newest)).save(run.newest)

    train(recipe, small_set, cut, CPU, save_every=EVERY_3, reporter=(told := Told()))

    assert any("step-000000009.pt, after step 9" in line for line in told.warned), told.warned
    assert same_weights(cut, whole)


def test_a_state_by_a_recipe_out_of_range_is_passed_over(cut, small_set, recipe, whole):
    fields = torch.load(RunFolder(cut).newest, weights_only=True)
    torch.save(fields | {"recipe": fields["recipe"] | {"width": -1.0}}, RunFolder(cut).newest)

    train(recipe, small_set, cut, CPU, save_every=EVERY_3, reporter=(told := Told()))

    assert any("its recipe: width is -1.0" in line for line in told.warned)
    assert same_weights(cut, whole)


def test_lines_that_find_no_room_are_held_back_and_no_half_of_one_is_left(tmp_path):
    def record(step):
        return Record("train", step / 5, step, 2.0, 0.9, 0.5, 0.01, 100.0, 0.0)

    lines = Figures(tmp_path / "metrics.jsonl")
    assert lines.add(record(1)) is None
    size = (tmp_path / "metrics.jsonl").stat().st_size
    with files_of_at_most(size + 20):
        errors = [lines.add(record(step)) for step in (2, 3)]
        between = (tmp_path / "metrics.jsonl").stat().st_size
    assert lines.held == 2
    assert lines.add(record(4)) is None

    assert [error.strerror for error in errors] == ["File too large"] * 2
    assert between == size
    written = (tmp_path / "metrics.jsonl").read_text().splitlines()
    assert [json.loads(line)["step"] for line in written] == [1, 2, 3, 4]


@pytest.mark.parametrize("trouble", ["a full disk", "a file in its place"])
def test_a_disk_that_takes_no_files_of_tensorboard_is_one_warning(tmp_path, capfd, trouble):
    if trouble == "a file in its place":
        (tmp_path / "tensorboard").write_text("")
    hook = threading.excepthook
    with files_of_at_most(200), warnings.catch_warnings(record=True, action="always") as warned:
        board = TensorBoard(tmp_path, from_step=1)
        for step in range(1, 50):
            board.add(Record("train", 1.0, step, 2.0, 0.9, 0.5, 0.01, 100.0, 0.0), chance_loss=2.3)
        board.close()

    (said,) = warned
    assert str(said.message).startswith("no more figures for TensorBoard: File ")
    assert capfd.readouterr().err == ""
    assert threading.excepthook is hook


OUT_OF_MEMORY = """
import dataclasses, resource, sys
from pathlib import Path
import torch
from alexshard.shards import AlexshardError, ShardSet
from alexshard.trainer import Machine, Recipe, Stepper, machine, train

shards, out, batch, margin = sys.argv[1:]
step = Stepper.step

def limited(self, number, *batch):
    if number == 0:  # from here on, so much more
        size = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
        resource.setrlimit(resource.RLIMIT_AS, (size + int(margin) * 2**20,) * 2)
    return step(self, number, *batch)

Stepper.step = limited
machine._keep_memory = lambda: None  # what is kept in pieces could not be given to another size of batch
recipe = dataclasses.replace(Recipe.original(), width=0.5, batch_size=int(batch), max_steps=1)
try:
    train(recipe, ShardSet.open(Path(shards)), Path(out), Machine.choose("cpu", threads=1))
except AlexshardError as error:
    sys.exit(str(error))
"""


@pytest.mark.slow
def test_out_of_memory_says_which_batch_was_tried_and_fits(tmp_path):
    def run(batch, out):
        words = (sys.executable, "-c", OUT_OF_MEMORY, tmp_path / "set", tmp_path / out, batch, 250)
        return subprocess.run([*map(str, words)], capture_output=True, text=True)

    alexshard = (sys.executable, "-m", "alexshard.tools.cli_alexshard")
    for words in (
        ("sample", tmp_path / "in", "--train", 1600),
        ("build", tmp_path / "in", "--out", tmp_path / "set"),
    ):
        size = () if words[0] == "sample" else ("--size", 74)
        subprocess.run([*map(str, (*alexshard, *words, *size))], check=True, capture_output=True)
    done = run(1500, "run")

    assert done.returncode == 1
    assert "out of memory on cpu with a batch of 1,500\n" in done.stderr
    assert "Traceback" not in done.stderr
    assert f"the last good checkpoint is {tmp_path / 'run' / 'checkpoints' / 'step-000000000.pt'}" in done.stderr
    fits = int(done.stderr.partition("what to do: -b ")[2].partition(" fits")[0])
    assert 0 < fits < 1500
    assert run(fits, "smaller").returncode == 0


def test_a_run_that_is_deterministic_says_so_and_asks_torch_for_it(small_set, recipe, tmp_path):
    short = dataclasses.replace(recipe, max_steps=3)
    machine = Machine.choose("cpu", threads=1, deterministic=True)
    try:
        for name in ("one", "two"):
            train(short, small_set, tmp_path / name, machine, reporter=Told())
            assert torch.are_deterministic_algorithms_enabled()
    finally:
        CPU.prepare()

    assert not torch.are_deterministic_algorithms_enabled()
    assert RunFolder(tmp_path / "one").configuration()["machine"]["deterministic"] is True
    assert same_weights(tmp_path / "one", tmp_path / "two")


def test_rates_that_follow_validation_drop_and_end_the_run_and_a_stopped_one_ends_the_same(
    small_set, recipe, tmp_path
):
    # With rates near 0 nothing improves: drops after the 3rd, 5th and 7th epoch, the end after the 8th.
    asked = {"patience": 1, "epochs": 12, "weight_rates": [[0, 1e-9], [1, 1e-10], [2, 1e-11], [3, 1e-12]]}
    recipe = recipe.with_schedule("plateau").with_fields(asked)
    ended = train(recipe, small_set, tmp_path / "whole", CPU, reporter=(told := Told()))
    for step in (16, 31):
        train(recipe, small_set, tmp_path / "cut", CPU, reporter=Told({step: stop()}))
    train(recipe, small_set, tmp_path / "cut", CPU, reporter=Told())
    again = train(recipe, small_set, tmp_path / "cut", CPU, reporter=(last := Told()))

    assert (ended.step, ended.total_steps) == (40, 40)
    assert RunFolder(tmp_path / "whole").load().plateau.drops == (15, 25, 35)
    assert any("rates drop 3 times, when the best validation error is over 1 epochs old" in s for s in told.said)
    assert sum(line.startswith("rates drop after step") for line in told.said) == 3
    assert any(line.startswith("the run ends after step 40: the best validation error") for line in told.said)
    rates = {r.step: r.rates["weights"] for r in RunFolder(tmp_path / "whole").records() if r.kind == "train"}
    assert (rates[15], rates[16], rates[26], rates[36]) == (1e-9, 1e-10, 1e-11, 1e-12)
    assert same_weights(tmp_path / "cut", tmp_path / "whole")
    assert figures(tmp_path / "cut") == figures(tmp_path / "whole")
    assert again.step == 40
    assert any("validation stopped improving: the run is over" in line for line in last.said)


def test_rates_that_follow_validation_need_one_after_every_epoch(small_set, recipe, tmp_path):
    with pytest.raises(WrongCall, match="--eval-every 2"):
        train(recipe.with_schedule("plateau"), small_set, tmp_path / "run", CPU, eval_every=2)

    assert not (tmp_path / "run").exists()


def beginning(checkpoint, recipe):
    return dataclasses.replace(recipe, init_from=weights_digest(checkpoint.network))


@pytest.fixture
def fewer_classes(small_set):
    """As a set of the first nine classes and one other."""
    manifest = small_set.manifest
    other = dataclasses.replace(manifest.classes[-1], synset="n99999999")
    classes = (*manifest.classes[:-1], other)
    return dataclasses.replace(small_set, manifest=dataclasses.replace(manifest, classes=classes))


def test_fine_tuning_takes_the_layers_that_fit_and_begins_others_anew(whole, fewer_classes, recipe, tmp_path):
    source = RunFolder(whole).load()
    recipe = beginning(source, dataclasses.replace(recipe, conv6=True, max_steps=1).with_learning_rate(1e-30))

    train(recipe, fewer_classes, tmp_path / "run", CPU, init_from=source, reporter=(told := Told()))

    found = RunFolder(tmp_path / "run").load().network
    assert any("conv1, conv2, conv3, conv4, conv5, fc6, fc7 of a network" in line for line in told.said)
    assert any(line.endswith("new: conv6, fc8") for line in told.said)
    for name in source.network:
        assert torch.equal(found[name], source.network[name]) is not name.startswith("fc8"), name
    assert "conv6.weight" in found


def test_a_fine_tuned_run_goes_on_without_its_source(whole, small_set, recipe, tmp_path):
    source = RunFolder(whole).load()
    recipe = beginning(source, recipe)
    train(recipe, small_set, tmp_path / "whole", CPU, init_from=source, reporter=Told())
    train(recipe, small_set, tmp_path / "cut", CPU, init_from=source, reporter=Told({8: stop()}))

    train(recipe, small_set, tmp_path / "cut", CPU, reporter=Told())

    assert same_weights(tmp_path / "cut", tmp_path / "whole")


def test_fine_tuning_from_another_width_or_without_the_source_is_refused(whole, small_set, recipe, tmp_path):
    source = RunFolder(whole).load()
    wider = beginning(source, dataclasses.replace(recipe, width=0.25))

    with pytest.raises(WrongCall, match=r"conv1 of the network to begin with does not fit[\s\S]*--width 0.125"):
        train(wider, small_set, tmp_path / "run", CPU, init_from=source, reporter=Told())
    with pytest.raises(WrongCall, match="by --init-from"):
        train(beginning(source, recipe), small_set, tmp_path / "run", CPU, reporter=Told())
    assert not (tmp_path / "run").exists()


def test_a_set_of_another_class_count_does_not_go_on(cut, fewer_classes, recipe):
    with pytest.raises(AlexshardError) as refused:
        RunFolder(cut).load().check_fits(
            dataclasses.replace(
                fewer_classes,
                manifest=dataclasses.replace(fewer_classes.manifest, classes=fewer_classes.manifest.classes[:9]),
            )
        )

    assert "the network was trained for 10 classes" in str(refused.value)
    assert "has 9 classes" in str(refused.value)


def test_a_checkpoint_of_another_network_is_refused(cut, small_set, recipe):
    run = RunFolder(cut)
    newest = run.load()
    wrong = {**newest.network, "conv1.weight": torch.zeros(3, 3)}
    for path in (cut / "checkpoints").iterdir():
        path.unlink()
    optimiser = changed(newest, "momentum", {"conv1.weight": torch.zeros(3, 3)})
    dataclasses.replace(newest, network=wrong, optimiser=optimiser).save(run.checkpoint_of(newest.step))

    with pytest.raises(BadCheckpoint, match=r"of another network[\s\S]*conv1.weight"):
        train(recipe, small_set, cut, CPU, reporter=Told())


def ended(folder):
    return json.loads(RunFolder(folder).end.read_text()) if RunFolder(folder).end.is_file() else None


def test_a_folder_says_how_the_last_part_of_the_run_ended(whole, cut, small_set, recipe, tmp_path):
    wild = recipe.with_learning_rate(1e9)
    with pytest.raises(Diverged):
        train(wild, small_set, tmp_path / "wild", CPU, reporter=Told())
    stopped, during = ended(cut), []
    train(recipe, small_set, cut, CPU, reporter=Told({12: lambda: during.append(ended(cut))}))

    failed = ended(tmp_path / "wild")
    assert (failed["state"], failed["signal"]) == ("failed", None)
    assert failed["what"] == "the loss of step 2 is not finite"
    assert "another --out" in failed["remedy"]
    assert (stopped["state"], stopped["step"], stopped["signal"]) == ("stopped", 11, "SIGTERM")
    assert during == [None]
    assert (ended(whole)["state"], ended(cut)["state"]) == ("done", "done")


def test_a_folder_that_is_no_run_is_told_as_such(tmp_path):
    for best in (False, True):
        with pytest.raises(WrongCall, match=r"no run .*nowhere\n  why it matters: there is no such folder"):
            load_checkpoint(tmp_path / "nowhere", best=best)
    with pytest.raises(WrongCall, match="no checkpoint"):
        load_checkpoint(tmp_path)


def test_the_best_state_is_marked_once_and_leaves_no_second_name(cut):
    run = RunFolder(cut)
    run.mark_best(run.newest)
    run.mark_best(run.newest)

    assert run.best.samefile(run.newest)
    assert "best.pt.part" not in names(cut)
