"""The order for torch's own DataLoader: samples and states of `Loader`; what was delivered is what counts."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import alexshard
import numpy as np
import pytest
import torch
from alexshard.pipeline import Loader, OrderSampler, OtherState, ShardImages, UndecodableSample
from alexshard.shards import NoSuchSplit, ShardSet, WrongCall
from hypothesis import HealthCheck, given, settings
from hypothesis.strategies import integers, sampled_from
from PIL import Image
from torch.utils.data import DataLoader

from tests.pipeline.test_loader import spoiled

ORDERS = ["global", "windowed", "stored"]
# Of torchdata 0.11's own calls into torch 2.13.
torchdatas_own = pytest.mark.filterwarnings("ignore:'set_vital' is deprecated")


def keys_of(pictures, places, split="train"):
    return [pictures.keys[split][place] for place in places]


@pytest.mark.parametrize("order", ORDERS)
def test_a_rank_of_the_sampler_gets_what_that_rank_of_the_loader_gets(raw_set, order):
    for rank in range(3):
        options = {"batch_size": 5, "seed": 3, "epoch": 2, "rank": rank, "world_size": 3, "order": order}
        with Loader(raw_set.path, **options) as loader:
            expected = [batch.keys for batch in loader]
        sampler = OrderSampler(raw_set.path, **options)
        places = list(sampler)

        assert keys_of(raw_set, places) == [key for keys in expected for key in keys]
        assert len(sampler) == len(places) == 20


@settings(max_examples=30, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(world_size=integers(1, 8), batch_size=integers(1, 20), split=sampled_from(["train", "val", "test"]))
def test_the_ranks_together_get_each_sample_at_most_once_and_as_many_as_they_say(
    raw_set, world_size, batch_size, split
):
    ranks = [
        OrderSampler(raw_set.path, split, batch_size, rank=rank, world_size=world_size)
        for rank in range(world_size)
    ]
    given_out = [list(rank) for rank in ranks]
    together = sorted(place for places in given_out for place in places)
    all_of_them = len(raw_set.keys[split])
    dropped = all_of_them % (world_size * batch_size) if split == "train" else 0

    assert [len(places) for places in given_out] == [len(rank) for rank in ranks]
    assert len(set(together)) == len(together) == all_of_them - dropped


def test_an_epoch_follows_an_epoch(raw_set):
    sampler = OrderSampler(raw_set.path, batch_size=10)
    epochs = [list(sampler) for _ in range(3)]

    assert sampler.epoch == 3
    assert len({tuple(places) for places in epochs}) == 3
    assert epochs == [list(OrderSampler(raw_set.path, batch_size=10, epoch=epoch)) for epoch in range(3)]


def test_the_state_counts_whole_batches_and_survives_json(raw_set):
    sampler = OrderSampler(raw_set.path, batch_size=4, seed=9)
    places = iter(sampler)
    taken = [next(places) for _ in range(10)]
    state = json.loads(json.dumps(sampler.state_dict()))
    resumed = OrderSampler(raw_set.path, batch_size=4, seed=9)
    resumed.load_state_dict(state)

    assert state["position"] == 8
    assert taken[8:] + list(places) == list(resumed)


def test_with_the_last_sample_the_epoch_is_over(raw_set):
    sampler = OrderSampler(raw_set.path, batch_size=36)
    places = iter(sampler)
    for _ in range(72):
        next(places)

    assert (sampler.state_dict()["epoch"], sampler.state_dict()["position"]) == (1, 0)


@pytest.mark.parametrize("order", ORDERS)
def test_loader_and_sampler_go_on_from_each_others_states(raw_set, order):
    options = {"batch_size": 6, "seed": 5, "order": order}
    with Loader(raw_set.path, **options) as loader:
        batches = iter(loader)
        for _ in range(3):
            next(batches)
        sampler = OrderSampler(raw_set.path, **{**options, "batch_size": 11})
        sampler.load_state_dict(loader.state_dict())
        places = iter(sampler)
        taken = keys_of(raw_set, [next(places) for _ in range(11)])
        loader.load_state_dict(sampler.state_dict())
        rest = [key for batch in loader for key in batch.keys]
    whole = keys_of(raw_set, OrderSampler(raw_set.path, **options))

    assert taken + rest == whole[18 : 18 + 11 + 42]


def test_an_iteration_left_early_begins_again_where_it_began(raw_set):
    """Since a DataLoader may have asked for more than it delivered."""
    sampler = OrderSampler(raw_set.path, batch_size=10, seed=1)
    whole = list(OrderSampler(raw_set.path, batch_size=10, seed=1))
    early = iter(sampler)
    for _ in range(25):
        next(early)

    assert list(sampler) == whole
    sampler = OrderSampler(raw_set.path, batch_size=10, seed=1)
    sampler.load_state_dict({**sampler.state_dict(), "position": 30})
    next(iter(sampler))
    assert list(sampler) == whole[30:]


@pytest.mark.parametrize("workers", [0, 2])
def test_beside_a_plain_loader_the_state_after_so_many_batches_is_told_by_their_number(raw_set, workers):
    """Its workers are asked for batches ahead, which the sampler has handed out and nobody has seen."""
    sampler = OrderSampler(raw_set.path, batch_size=5, seed=2)
    images = ShardImages(raw_set.path, transform=np.array)
    batches = iter(DataLoader(images, batch_size=5, sampler=sampler, num_workers=workers))
    for _ in range(3):
        next(batches)
    ahead = sampler.state_dict()["position"]
    state = sampler.state_after(3)
    resumed = OrderSampler(raw_set.path, batch_size=5, seed=2)
    resumed.load_state_dict(state)

    assert ahead == (15 if workers == 0 else 35)  # 2 workers, 2 batches each in flight
    assert state["position"] == 15
    assert list(resumed) == list(OrderSampler(raw_set.path, batch_size=5, seed=2))[15:]


@torchdatas_own
@pytest.mark.parametrize(
    "options",
    [
        {},
        {"num_workers": 2},
        {"num_workers": 2, "persistent_workers": True, "snapshot_every_n_steps": 4},
    ],
)
@pytest.mark.parametrize("taken", [0, 3, 13, 14])
def test_torchdatas_loader_goes_on_at_the_batch_that_it_delivered(raw_set, options, taken):
    """What its workers have asked for ahead is given again: 14 batches of 5, resumed after each of these."""
    torchdata = pytest.importorskip(
        "torchdata.stateful_dataloader", reason="NO TORCHDATA: its protocol is untested"
    )

    def made():
        images = ShardImages(raw_set.path, transform=np.array)
        sampler = OrderSampler(raw_set.path, batch_size=5, seed=2)
        return torchdata.StatefulDataLoader(images, batch_size=5, sampler=sampler, **options)

    first, second = made(), made()
    batches = iter(first)
    seen = [pixels for pixels, _ in (next(batches) for _ in range(taken))]
    second.load_state_dict(json.loads(json.dumps(first.state_dict())))
    rest = [pixels for _ in range(2) for pixels, _ in second]
    epochs = [
        raw_set.pixels["train"][place]
        for epoch in range(3)
        for place in OrderSampler(raw_set.path, batch_size=5, seed=2, epoch=epoch)
    ]

    # After the last batch the rest of the epoch is nothing, or the next epoch: then there are three.
    delivered = torch.cat(seen + rest).numpy()
    assert len(delivered) in ((140, 210) if taken == 14 else (140,))
    assert np.array_equal(delivered, np.stack(epochs)[: len(delivered)])


@torchdatas_own
def test_torchdatas_loader_gives_epoch_after_epoch(raw_set):
    torchdata = pytest.importorskip(
        "torchdata.stateful_dataloader", reason="NO TORCHDATA: its protocol is untested"
    )
    images = ShardImages(raw_set.path, transform=np.array)
    sampler = OrderSampler(raw_set.path, batch_size=36)
    batches = torchdata.StatefulDataLoader(images, batch_size=36, sampler=sampler, num_workers=2)
    labels = [torch.cat([labels for _, labels in batches]).tolist() for _ in range(2)]

    assert labels == [
        [int(raw_set.labels["train"][place]) for place in OrderSampler(raw_set.path, batch_size=36, epoch=epoch)]
        for epoch in range(2)
    ]


@pytest.mark.parametrize("start", ["fork", "spawn"])
def test_images_reach_workers_whichever_way_they_are_started(raw_set, start):
    images = ShardImages(raw_set.path, "val", transform=np.array)
    pixels_of_first, _ = images[0]  # opened here already: that does not go along
    batches = DataLoader(images, batch_size=21, num_workers=1, multiprocessing_context=start)
    ((pixels, labels),) = batches

    assert np.array_equal(pixels.numpy(), raw_set.pixels["val"])
    assert np.array_equal(pixels[0].numpy(), pixels_of_first)
    assert labels.tolist() == raw_set.labels["val"].tolist()


def test_a_jpeg_set_gives_pictures(jpeg_set):
    image, label = ShardImages(jpeg_set.path)[4]

    assert isinstance(image, Image.Image)
    assert (image.mode, image.size, label) == ("RGB", (74, 74), 4)
    # JPEG of quality 90 with halved chroma: edges ring, areas agree.
    assert np.abs(np.asarray(image).astype(int) - jpeg_set.pixels["train"][4]).mean() < 4


def test_a_split_without_labels_has_the_label_minus_one(raw_set):
    assert [label for _, label in (ShardImages(raw_set.path, "test")[place] for place in range(5))] == [-1] * 5


def test_damaged_bytes_are_named_with_their_place(jpeg_set, tmp_path):
    spoiled(jpeg_set, tmp_path / "spoiled", at=300, by=bytes(2000))
    images = ShardImages(tmp_path / "spoiled")
    with pytest.raises(UndecodableSample) as refused:
        for place in range(len(images)):
            images[place]

    assert "at byte" in refused.value.where


@pytest.mark.parametrize(
    ("options", "told"),
    [
        ({"rank": 2, "world_size": 2}, "rank 2 is not one of a world of 2"),
        ({"batch_size": 0}, "batch_size must be at least 1"),
        ({"order": "random"}, "order is one of 'global', 'windowed', 'stored'"),
        ({"window": 2}, "is of the order 'windowed'"),
        ({"window": 0, "order": "windowed"}, "window must be at least 1"),
        ({"seed": -1}, "a seed has 64 bits"),
    ],
)
def test_a_wrong_call_is_refused(raw_set, options, told):
    with pytest.raises(WrongCall) as refused:
        OrderSampler(raw_set.path, **options)

    assert told in str(refused.value)


def test_a_split_that_is_not_there_and_a_state_of_another_seed_are_refused(raw_set):
    with pytest.raises(NoSuchSplit):
        OrderSampler(raw_set.path, "validation")
    sampler = OrderSampler(ShardSet.open(raw_set.path), seed=1)
    with pytest.raises(OtherState, match="seed 2, this loader has 1"):
        sampler.load_state_dict(OrderSampler(raw_set.path, seed=2).state_dict())


def test_the_sampler_works_where_dali_and_the_kernels_are_not(raw_set):
    """In a fresh process that cannot import either."""
    code = """
import sys
for name in ("nvidia", "nvidia.dali", "alexshard.pipeline._kernels"):
    sys.modules[name] = None
import numpy as np
from torch.utils.data import DataLoader
from alexshard.pipeline import OrderSampler, ShardImages
images = ShardImages(sys.argv[1], transform=np.array)
loader = DataLoader(images, batch_size=10, sampler=OrderSampler(sys.argv[1], batch_size=10))
print(sum(len(labels) for _, labels in loader))
"""
    done = subprocess.run(
        [sys.executable, "-c", code, str(raw_set.path)],
        capture_output=True,
        text=True,
        env=os.environ,
        check=False,
    )

    assert (done.returncode, done.stdout) == (0, "70\n"), done.stderr


def test_the_example_of_the_page_runs(raw_set, tmp_path, monkeypatch):
    page = (Path(alexshard.__file__).parent / "docs" / "order.md").read_text(encoding="utf-8")
    (code,) = (block for block in re.findall(r"```python\n(.*?)```", page, re.DOTALL) if "OrderSampler" in block)
    (tmp_path / "shards").symlink_to(raw_set.path)
    monkeypatch.chdir(tmp_path)
    names = {}
    exec(code, names)

    assert names["pixels"].shape == (32, 74, 74, 3)


def test_importing_the_package_brings_no_dali_along():
    code = "import sys, alexshard.pipeline; print(any(name.startswith('nvidia') for name in sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)

    assert done.stdout == "False\n"
