"""docs/loader.md is run: each example in processes of its own, and what its loaders delivered is looked at."""

from __future__ import annotations

import importlib.util
import json
import os
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import alexshard
import pytest
from alexshard.pipeline import Loader, WholeEpochs

PAGE = (Path(alexshard.__file__).parent / "docs" / "loader.md").read_text(encoding="utf-8")
SNIPPETS = {
    re.findall(r"^##? (.+)", PAGE[: found.start()], re.MULTILINE)[-1]: found[1]
    for found in re.finditer(r"```python\n(.*?)```", PAGE, re.DOTALL)
}
FIRST = "Loading: from a shard set to batches"

# Put before each example: what every loader delivers is written down.
WATCH = """
import json as _json, sys as _sys
from alexshard.pipeline import Loader as _Loader
_told, _begin = [], _Loader.__iter__
def _iter(loader):
    batches = _begin(loader)
    def each():
        for batch in batches:
            _told.append((loader.split, batch.keys))
            yield batch
    return each()
_Loader.__iter__ = _iter
"""
# And after it. One write each, so that the lines of two ranks are not mixed.
TELL = "\n_sys.stdout.write('TOLD ' + _json.dumps(_told) + '\\n'); _sys.stdout.flush()\n"
# A thread of gloo may let go of a tensor while Python ends, which aborts (pytorch#179291): not looked at here.
LEAVE = "import os as _os; _os._exit(0)\n"


class Told(NamedTuple):
    """What an example's loaders delivered, by process; and what it printed."""

    by_rank: list[list[tuple[str, list[str]]]]
    said: str

    def keys(self, split: str = "train", rank: int = 0) -> list[list[str]]:
        return [keys for name, keys in self.by_rank[rank] if name == split]


@pytest.fixture
def home(sample_set: Path, tmp_path: Path) -> Path:
    """A folder with the set of 160 training and 40 validation images in shards/."""
    (tmp_path / "shards").mkdir()
    (tmp_path / "shards" / "mine").symlink_to(sample_set)
    return tmp_path


@pytest.fixture
def order(sample_set: Path) -> Callable[[int], list[str]]:
    """The keys of whole epochs of the training split, as one rank sees them."""

    def keys(epochs: int) -> list[str]:
        with Loader(sample_set, batch_size=32, output="uint8") as loader:
            return [key for _ in range(epochs) for batch in loader for key in batch.keys]

    return keys


def run(title: str, home: Path, *, ranks: int = 1, then: str = "") -> Told:
    """Run an example, and `then` after it, in one process or as `ranks` of torchrun."""
    leave = LEAVE if ranks > 1 else ""
    (home / "example.py").write_text(WATCH + SNIPPETS[title] + then + TELL + leave, encoding="utf-8")
    launch = [] if ranks == 1 else ["-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={ranks}"]
    done = subprocess.run(
        [sys.executable, *launch, "example.py"],
        cwd=home,
        env={**os.environ, "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": "", "ACCELERATE_USE_CPU": "1"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    told: list[Any] = [json.loads(line[5:]) for line in done.stdout.splitlines() if line.startswith("TOLD ")]
    assert len(told) == ranks
    return Told([[(split, keys) for split, keys in each] for each in told], done.stdout + done.stderr)


def flat(batches: list[list[str]]) -> list[str]:
    return [key for keys in batches for key in keys]


def needs(library: str) -> None:
    if importlib.util.find_spec(library) is None:
        pytest.skip(f"NOT INSTALLED: {library}, so its example in docs/loader.md is not run (extra: dev)")


def test_every_example_of_the_page_is_run_here() -> None:
    ours = Path(__file__).read_text(encoding="utf-8")

    assert set(SNIPPETS) == {FIRST, *re.findall(r"run\(\"([^\"]+)\"", ours)}


def test_ten_lines_train_on_two_epochs_in_other_orders(home: Path, order: Callable[[int], list[str]]) -> None:
    told = run(FIRST, home)

    assert len(SNIPPETS[FIRST].strip().splitlines()) <= 12
    assert flat(told.keys()) == order(2)
    assert sorted(flat(told.keys()[:5])) == sorted(flat(told.keys()[5:])) != flat(told.keys()[5:])


def test_two_ranks_go_on_where_one_was(home: Path, order: Callable[[int], list[str]]) -> None:
    then = "\n_told[:] = [('train', keys) for keys in (*seen, *rest)]\n"
    told = run("Resuming, on any number of ranks", home, then=then)

    assert flat(told.keys()) == order(1)


def test_ranks_of_torchrun_share_every_sample_out_once(home: Path, order: Callable[[int], list[str]]) -> None:
    told = run("torch's DistributedDataParallel", home, ranks=2)
    steps = list(zip(*sorted(told.keys(rank=rank) for rank in range(2)), strict=True))

    assert [len(keys) for keys in told.keys(rank=0)] == [len(keys) for keys in told.keys(rank=1)] == [16] * 5
    assert sorted(flat([*told.keys(rank=0), *told.keys(rank=1)])) == sorted(order(1))
    assert {frozenset(one + other) for one, other in steps} == {
        frozenset(order(1)[at : at + 32]) for at in range(0, 160, 32)
    }


def test_lightning_goes_on_from_the_middle_of_an_epoch_and_validates_on_all(
    home: Path, order: Callable[[int], list[str]]
) -> None:
    needs("lightning")
    told = run("Lightning", home)
    train, val = told.keys(), told.keys("val")

    assert flat(train[:3] + train[4:]) == order(2)  # the fourth came after the checkpoint, and is seen again
    assert [len(keys) for keys in val] == [32, 8] * 3  # Lightning's look, and after each epoch


def test_accelerate_does_not_share_out_again_and_saves_the_place(
    home: Path, order: Callable[[int], list[str]]
) -> None:
    needs("accelerate")
    then = """
assert accelerator.prepare(loader) is loader
_told.append(("place", [str(torch.load("checkpoint/custom_checkpoint_0.pkl")["position"])]))
"""
    told = run("Hugging Face Accelerate", home, ranks=2, then=then)

    assert sorted(flat([*told.keys(rank=0), *told.keys(rank=1)])) == sorted(order(1))
    assert told.keys("place") == [["64"]]


def test_pixels_finished_by_the_formula_are_those_of_float32(home: Path) -> None:
    then = """
whole = Loader("shards/", batch_size=32, augment="paper")
for finished in whole:
    pass
assert finished.keys == batch.keys and finished.images.shape == images.shape
assert (finished.images - images).abs().max() < 1e-3, (finished.images - images).abs().max()
"""
    run("Pixels to normalise oneself", home, then=then)


def test_the_sampler_goes_on_after_what_was_delivered_not_what_workers_asked_for(home: Path) -> None:
    needs("torchdata")
    then = """
labels_of = [batch.labels.tolist() for batch in _Loader("shards/", batch_size=32, output="uint8")]
assert pixels.shape == (32, 256, 256, 3) and [each.tolist() for each in rest] == labels_of[2:]
_told[:] = [("rest", [str(len(rest))])]
"""
    told = run("The order alone, without DALI", home, then=then)

    assert told.keys("rest") == [["3"]]


def test_the_slow_backend_warns_and_gives_the_same(home: Path) -> None:
    then = """
fast = next(iter(Loader("shards/", batch_size=32)))
assert fast.keys == batch.keys
assert (fast.images - batch.images).abs().max() < 1e-3
"""
    told = run("Without DALI and without a compiler", home, then=then)

    assert "UserWarning" in told.said


def test_a_whole_epoch_begins_at_the_beginning_wherever_the_last_one_ended(sample_set: Path) -> None:
    with Loader(sample_set, "val", 8, augment=None, output="uint8") as loader:
        whole = WholeEpochs(loader)
        looked = [batch.keys for _, batch in zip(range(2), whole, strict=False)]
        first, second = [batch.keys for batch in whole], [batch.keys for batch in whole]

    assert len(whole) == len(first) == 5
    assert first[:2] == looked
    assert sorted(flat(first)) == sorted(flat(second)) == sorted(set(flat(first)))
