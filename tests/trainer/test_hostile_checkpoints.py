"""A checkpoint may hold anything, and the disk may say no: one clear error each, and no sound state is lost."""

import dataclasses
import errno
import shutil
import subprocess
import sys
import warnings
import zipfile
from collections import OrderedDict

import pytest
import torch
from alexshard.pipeline import crop_side
from alexshard.trainer import (
    AlexNet,
    BadCheckpoint,
    Machine,
    Reporter,
    RunFolder,
    SaveEvery,
    checkpoint_file,
    load_checkpoint,
    train,
)
from alexshard.trainer.checkpoint_file import CannotReadNow, LaterFormat, NoCheckpoint, contents
from PIL import Image

CPU = Machine.choose("cpu", threads=1)


class Told(Reporter):
    """Keeps the warnings of a run."""

    def __init__(self):
        self.warned = []

    def say(self, line):
        """Nobody listens."""

    def warn(self, line):
        self.warned.append(line)


@pytest.fixture(scope="module")
def short(recipe):
    return dataclasses.replace(recipe, max_steps=2)


@pytest.fixture(scope="module")
def whole(small_set, short, tmp_path_factory):
    """A run of two steps, with the states after each."""
    folder = tmp_path_factory.mktemp("runs") / "whole"
    train(short, small_set, folder, CPU, save_every=SaveEvery(steps=1), reporter=Told())
    return folder


@pytest.fixture
def run(whole, tmp_path):
    """A copy of it."""
    shutil.copytree(whole, tmp_path / "run")
    return RunFolder(tmp_path / "run")


def files(run):
    return {path.name: path.read_bytes() for path in run.path.rglob("*") if path.is_file() and path.name != "lock"}


def same_weights(run, whole):
    mine, theirs = run.load(), RunFolder(whole).load()
    assert mine.step == theirs.step
    return all(torch.equal(mine.network[name], theirs.network[name]) for name in theirs.network)


def setting(*path):
    """A change of the value at that place: by a function of the one before, or to another one."""

    def change(to):
        def changed(fields):
            for name in path[:-1]:
                fields = fields[name]
            fields[path[-1]] = to(fields[path[-1]]) if callable(to) else to

        return changed

    return change


weight, momentum = setting("network", "fc7.weight"), setting("optimiser", "momentum", "fc7.weight")
mean, evaluation = setting("mean_image"), setting("evaluation")
PAIR = torch.tensor([1.0, 2.0])  # whose truth nobody knows


def on_meta(tensor):
    return tensor.to("meta")


def by_rows(tensor):
    with warnings.catch_warnings(action="ignore"):  # torch calls them a beta
        return tensor.to_sparse_csr()


def endless(tensor):
    return torch.full_like(tensor, torch.inf)


def huge_mean(fields):
    side = 300_000
    image = torch.zeros(1).expand(side, side, 3)
    fields.update(stored_side=side, side=crop_side(side), mean_image=image)


def nested(fields):
    for _ in range(300):
        fields["recipe"] = {"width": fields["recipe"]}


def doubling(fields):
    for _ in range(60):
        fields["recipe"]["width"] = [fields["recipe"]["width"]] * 2


class _Memory:
    """What asks for so many bytes when it is read."""

    def __init__(self, count):
        self.count = count

    def __reduce__(self):
        return bytearray, (self.count,)


def numbers_for_methods(fields):
    fields["plateau"] = OrderedDict(fields["plateau"])
    fields["plateau"].pop = 5


HOSTILE = {
    "a format that is a tensor": setting("format")(PAIR),
    "a format of five thousand digits": setting("format")(10**5000),
    "an evaluated step that is a tensor": setting("evaluated_step")(PAIR),
    "an evaluated step that is a fraction": setting("evaluated_step")(-1.0),
    "a rate of the recipe that is a tensor": setting("recipe", "weight_rates")([[0.0, PAIR]]),
    "rates of the recipe that are a tensor on meta": setting("recipe", "weight_rates")(
        torch.ones(2, 2, device="meta")
    ),
    "a recipe without end": nested,
    "a recipe that doubles sixty times": doubling,
    "a gigabyte out of ten bytes": setting("loader")(_Memory(10**9)),
    "more memory than there is out of ten bytes": setting("loader")(_Memory(9 * 10**13)),
    "a rate that is a tensor": setting("optimiser", "rates", "weights")(PAIR),
    "a rate that is no number": setting("optimiser", "rates", "weights")(float("nan")),
    "weights on meta": weight(on_meta),
    "weights that are sparse": weight(lambda tensor: tensor.to_sparse()),
    "weights that are sparse by rows": weight(by_rows),
    "weights with a gradient": weight(lambda tensor: tensor.clone().requires_grad_()),
    "weights that are a parameter": weight(lambda tensor: torch.nn.Parameter(tensor, requires_grad=False)),
    "weights that are one number": weight(lambda tensor: torch.zeros(1).expand(tensor.shape)),
    "weights that are negated when looked at": weight(torch._neg_view),
    "weights that are not finite": weight(endless),
    "weights that are none": weight(torch.zeros(0)),
    "weights of another shape": weight(torch.zeros(3, 3)),
    "weights of a layer that there is not": setting("network", "fc9.weight")(torch.zeros(3, 3)),
    "momentum on meta": momentum(on_meta),
    "momentum that is not finite": momentum(endless),
    "a mean image on meta": mean(on_meta),
    "a mean image that is sparse": mean(lambda tensor: tensor.to_sparse()),
    "a mean image that is not finite": mean(endless),
    "a mean image of a terabyte in one number": huge_mean,
    "channel means that are not finite": setting("channel_mean")((1.0, 2.0, float("nan"))),
    "a plateau that no rule foresees": numbers_for_methods,
    "no class": setting("classes")([]),
    "an error above 1": evaluation(lambda seen: seen | {"top1_error": 1.5}),
    "an error that is no number": evaluation(lambda seen: seen | {"top5_error": float("nan")}),
    "a loss that is no number": evaluation(lambda seen: seen | {"loss": float("nan")}),
}


def make_hostile(path, change):
    fields = torch.load(path, weights_only=True)
    change(fields)
    torch.save(fields, path)


@pytest.mark.parametrize("what", HOSTILE)
def test_a_state_of_hostile_values_is_refused_in_words(run, what):
    make_hostile(run.newest, HOSTILE[what])

    with pytest.raises(BadCheckpoint, match=r"cannot be read: |of another network than its") as refused:
        load_checkpoint(run.newest)

    assert refused.value.where == str(run.newest)
    assert len(refused.value.what) < 400


def test_what_the_table_changes_is_sound_before(run):
    make_hostile(run.newest, lambda _: None)

    assert load_checkpoint(run.newest).step == 2


IN_A_RUN = [
    "a format that is a tensor",
    "weights on meta",
    "weights that are sparse by rows",
    "weights with a gradient",
    "momentum on meta",
]


@pytest.mark.parametrize("what", IN_A_RUN)
def test_a_run_passes_a_hostile_state_over_and_takes_its_steps_again(run, whole, small_set, short, what):
    newest = run.newest
    make_hostile(newest, HOSTILE[what])

    train(short, small_set, run.path, CPU, reporter=(told := Told()))

    assert told.warned[0].startswith(f"{newest}: the checkpoint cannot be read: it")
    assert newest.with_name(newest.name + ".damaged").is_file()
    assert same_weights(run, whole)


def test_a_recipe_of_a_giant_network_is_refused_before_memory_is_taken_for_it(run, monkeypatch):
    make_hostile(run.newest, setting("recipe", "width")(8.0))
    monkeypatch.setattr(AlexNet, "_initialise", lambda _: pytest.fail("the network was made"))

    with pytest.raises(BadCheckpoint, match=r"conv1\.weight is 16×3×11×11, not 768×3×11×11"):
        load_checkpoint(run.newest)


def test_a_file_that_would_become_more_than_it_is_is_refused(run):
    path = run.newest
    with zipfile.ZipFile(path, "a") as archive:
        largest = max(archive.infolist(), key=lambda entry: entry.file_size)
        archive.filelist += [largest] * 50  # the same bytes by fifty more entries
        archive._didModify = True

    with pytest.raises(BadCheckpoint, match="its parts are larger than itself"):
        load_checkpoint(path)


def test_a_file_that_torch_would_read_otherwise_than_it_was_looked_at_is_refused(run):
    sound = run.newest.read_bytes()
    torch.save(_Memory(9 * 10**13), run.newest, _use_new_zipfile_serialization=False)
    run.newest.write_bytes(run.newest.read_bytes() + sound)

    with pytest.raises(BadCheckpoint, match="cannot be read: it does not begin as one"):
        load_checkpoint(run.newest)


def test_values_under_a_name_in_other_letters_are_looked_at_too(run):
    make_hostile(run.newest, setting("loader")(_Memory(9 * 10**13)))
    run.newest.write_bytes(run.newest.read_bytes().replace(b"/data.pkl", b"/DATA.pkl"))

    with pytest.raises(BadCheckpoint, match="its values are made by"):
        load_checkpoint(run.newest)


def test_whatever_byte_of_a_files_list_of_parts_is_damaged_no_other_numbers_come_of_it(tmp_path):
    path = tmp_path / "small.pt"
    torch.save({"one": torch.arange(4.0)}, path)
    data = path.read_bytes()
    with zipfile.ZipFile(path) as archive:
        start = archive.start_dir
    refused = 0
    for place in range(start, len(data)):
        path.write_bytes(data[:place] + bytes([data[place] ^ 0xFF]) + data[place + 1 :])
        try:
            found = contents(path)
        except BadCheckpoint:  # and never as one that cannot be read now
            refused += 1
        else:  # a date, or a version
            assert found["one"].tolist() == [0, 1, 2, 3]

    assert refused > (len(data) - start) / 2


def command(*words):
    alextrain = (sys.executable, "-m", "alexshard.tools.cli_alextrain")
    return subprocess.run([*map(str, (*alextrain, *words))], capture_output=True, text=True, check=False)


def test_commands_end_with_one_error_and_no_traceback(run, small_set, tmp_path):
    image = tmp_path / "red.png"
    Image.new("RGB", (90, 80), (200, 30, 40)).save(image)
    hostile = tmp_path / "hostile.pt"
    shutil.copy(run.newest, hostile)
    make_hostile(hostile, huge_mean)
    predicted = command("predict", hostile, image, "--device", "cpu")
    make_hostile(hostile, setting("format")(PAIR))
    for path in (*run.checkpoints(), run.best):
        shutil.copy(hostile, path)
    gone_on = command("run", "--resume", run.path, "--shards", small_set.path, "--device", "cpu")

    words = ("its mean_image is not what a run writes", "it is not a checkpoint of format 2 but of a Tensor")
    for done, reason in zip((predicted, gone_on), words, strict=True):
        assert done.returncode == 1
        assert f"error: the checkpoint cannot be read: {reason}" in done.stderr
        assert done.stderr.count("error: ") == 1
        assert "Traceback" not in done.stderr


class Refusing:
    """Opens files whose read number `at` is refused, or the opening where it is None; counts the reads."""

    def __init__(self, monkeypatch, error=None, at=None):
        self.reads, real = 0, checkpoint_file._File
        outer = self

        class File(real):
            def _asked(self, call):
                outer.reads += 1

                def refused():
                    raise error

                return super()._asked(refused if outer.reads - 1 == at else call)

        def opening(path):
            if error is not None and at is None:
                raise error
            return File(path)

        monkeypatch.setattr(checkpoint_file, "_File", opening)


def reads_of(path, monkeypatch):
    with monkeypatch.context() as patch:
        counting = Refusing(patch)
        contents(path)
    return counting.reads


@pytest.mark.parametrize(
    ("number", "when", "words"),
    [
        (errno.EMFILE, "opening", "Too many open files"),
        (errno.ESTALE, "first read", "Stale file handle"),
        (errno.EIO, "last read", "Input/output error"),
    ],
)
def test_a_state_that_the_disk_does_not_give_now_ends_the_run_and_costs_it_nothing(
    run, whole, small_set, short, monkeypatch, number, when, words
):
    before = files(run)
    at = {"opening": None, "first read": 0, "last read": reads_of(run.newest, monkeypatch) - 1}[when]
    with monkeypatch.context() as patch:
        Refusing(patch, OSError(number, words), at)
        with pytest.raises(CannotReadNow, match=f"cannot be read now: {words}") as refused:
            train(short, small_set, run.path, CPU, reporter=(told := Told()))

    assert refused.value.exit_code == 1
    assert refused.value.where == str(run.newest)
    assert told.warned == []
    assert files(run) == before
    train(short, small_set, run.path, CPU, reporter=(told := Told()))
    assert told.warned == []
    assert same_weights(run, whole)


def test_whichever_read_is_refused_the_file_is_not_called_damaged(tmp_path, monkeypatch):
    path = tmp_path / "small.pt"
    torch.save({"one": torch.arange(4.0)}, path)
    reads = reads_of(path, monkeypatch)

    assert reads > 10
    for at in range(reads):
        Refusing(monkeypatch, OSError(errno.ESTALE, "Stale file handle"), at)
        with pytest.raises(CannotReadNow):
            contents(path)
        monkeypatch.undo()


@pytest.mark.parametrize("error", [MemoryError(), RuntimeError("DefaultCPUAllocator: can't allocate memory")])
@pytest.mark.parametrize("where", ["torch.load", "alexshard.trainer.checkpoint.parameter_shapes"])
def test_a_state_that_there_is_no_memory_for_is_not_passed_over(run, small_set, short, monkeypatch, error, where):
    def failing(*_, **__):
        raise error

    before = files(run)
    with monkeypatch.context() as patch:
        patch.setattr(where, failing)
        with pytest.raises(CannotReadNow, match=r"cannot be read now: there is not enough memory\n"):
            train(short, small_set, run.path, CPU, reporter=(told := Told()))

    assert told.warned == []
    assert files(run) == before


def test_a_folder_that_cannot_be_listed_now_is_no_empty_one(run, small_set, short, monkeypatch):
    def failing(_):
        raise OSError(errno.ESTALE, "Stale file handle")

    with monkeypatch.context() as patch:
        patch.setattr(type(run.path), "iterdir", failing)
        with pytest.raises(CannotReadNow, match="the run's folder cannot be read now: Stale file handle"):
            train(short, small_set, run.path, CPU, reporter=Told())
        words = run.newest_words

    assert words == f"in {run.best.parent}, which cannot be looked into now"


def test_a_state_that_goes_away_while_it_is_opened_is_looked_for_again(run, monkeypatch):
    newest, newer, real = run.newest, run.checkpoint_of(3), checkpoint_file._File

    def pruning(path):
        if path == newest:  # as a run does that goes on meanwhile
            newest.rename(newer)
        return real(path)

    monkeypatch.setattr(checkpoint_file, "_File", pruning)
    found = run.load(say=(said := []).append)

    assert (found.step, said) == (2, [])
    assert not newest.exists()


def test_where_states_go_away_for_ever_the_looking_ends(run, monkeypatch):
    def gone(path):
        raise FileNotFoundError(errno.ENOENT, "No such file or directory", str(path))

    monkeypatch.setattr(checkpoint_file, "_File", gone)

    with pytest.raises(NoCheckpoint, match="no checkpoint"):
        run.load()


def test_a_state_of_a_later_alexshard_is_refused_and_stays(run, small_set, short):
    make_hostile(run.newest, lambda fields: fields.update(format=3, versions={"alexshard": "9.1\x1b"}, more=[]))
    before = files(run)

    with pytest.raises(LaterFormat) as refused:
        train(short, small_set, run.path, CPU, reporter=(told := Told()))

    assert refused.value.exit_code == 1
    assert "of format 3, written by a later alexshard 9.1\\x1b; this one reads format 2" in str(refused.value)
    assert str(run.newest) in str(refused.value)
    assert told.warned == []
    assert files(run) == before


def test_where_only_the_best_state_is_left_messages_name_it(run):
    run.mark_best(run.newest)
    for path in run.checkpoints():
        path.unlink()

    assert run.newest_words == str(run.best)
    run.best.unlink()
    assert run.newest_words == "none"
