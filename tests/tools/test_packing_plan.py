"""Keys are safe and unique, places come from the seed, shards share out every sample once."""

from __future__ import annotations

import hashlib
import os

import numpy as np
import pytest
from alexshard.shards import AlexshardError, ImageFormat, Sample, ShardName, ShardWriter, Split, WrongCall, is_key
from alexshard.tools.packing import plan
from alexshard.tools.packing.image import encoded
from alexshard.tools.packing.plan import (
    default_samples_per_shard,
    plan_splits,
    sample_bytes,
    seeded_order,
    unique_keys,
)
from alexshard.tools.packing.sources import list_source
from hypothesis import given
from hypothesis import strategies as st

from tests.tools.drawn import SMALL, folders, jpeg, pack

NAMES = st.lists(
    st.text(st.sampled_from("aAéß ._-'/1ゴ"), min_size=1, max_size=6).map(lambda text: text + ".JPEG"),
    unique=True,
    max_size=40,
)
KEYS = [f"n{number:08d}" for number in range(1000)]


@given(names=NAMES)
def test_keys_are_valid_and_unique_even_where_case_does_not_count(names):
    keys = unique_keys(names, [0] * len(names))

    assert all(map(is_key, keys))
    assert len({key.lower() for key in keys}) == len(names)


@given(names=NAMES, seed=st.randoms(use_true_random=False))
def test_keys_do_not_depend_on_the_order_of_listing_even_of_one_name_in_two_classes(names, seed):
    images = [(name, label) for name in names for label in (0, 1)]
    shuffled = images.copy()
    seed.shuffle(shuffled)

    def keys(order):
        return dict(
            zip(order, unique_keys([name for name, _ in order], [label for _, label in order]), strict=True)
        )

    assert keys(images) == keys(shuffled)


def test_one_name_in_several_classes_takes_the_class_into_the_key():
    assert unique_keys(["cat/1.jpg", "dog/1.jpg", "dog/2.jpg"], [0, 1, 1]) == ["cat-1", "dog-1", "2"]


def test_long_names_that_meet_after_shortening_stay_unique():
    names = ["x" * 200 + end for end in ("a.jpg", "b.jpg", "c.jpg")]

    keys = unique_keys(names, [0, 0, 0])

    assert len(set(keys)) == 3
    assert all(map(is_key, keys))


def test_one_order_is_pinned():
    """Golden: sha256 of the order of 1,000 keys, seed 7. It must not change with versions of NumPy."""
    order = seeded_order(KEYS, split=Split.TRAIN, seed=7)

    assert order[:6].tolist() == [571, 622, 458, 667, 515, 509]
    assert hashlib.sha256(order.astype("<i8").tobytes()).hexdigest()[:16] == "4e6b7e5307267a23"


def test_the_order_is_a_permutation_that_differs_by_seed_and_split():
    orders = [
        tuple(seeded_order(KEYS, split=split, seed=seed).tolist()) for split in Split for seed in (0, 1, 2**32 - 1)
    ]

    assert all(sorted(order) == list(range(1000)) for order in orders)
    assert len(set(orders)) == len(orders)


def test_the_order_depends_on_keys_not_on_places():
    shuffled = np.random.default_rng(0).permutation(KEYS).tolist()

    first = [KEYS[i] for i in seeded_order(KEYS, split=Split.VAL, seed=3)]
    second = [shuffled[i] for i in seeded_order(shuffled, split=Split.VAL, seed=3)]

    assert first == second


def test_every_image_is_in_exactly_one_shard(tmp_path):
    source = folders(tmp_path, {c: {f"{i}.jpg": jpeg(i) for i in range(7)} for c in ("cat", "dog")})

    train = plan_splits(list_source(source), SMALL, seed=0, samples_per_shard=4)[Split.TRAIN]
    shards = [train.shard(number) for number in range(train.num_shards)]

    assert [str(shard.name) for shard in shards] == [f"train-{number:06d}.tar" for number in range(4)]
    assert [len(shard.samples) for shard in shards] == [4, 4, 4, 2]
    names = [sample.name for shard in shards for sample in shard.samples]
    assert sorted(names) == sorted(f"{c}/{i}.jpg" for c in ("cat", "dog") for i in range(7))
    assert names != sorted(names)


def test_more_shards_than_there_are_names_are_a_wrong_call(tmp_path, monkeypatch):
    monkeypatch.setattr(plan, "MOST_SHARDS", 3)
    listing = list_source(folders(tmp_path, {"cat": {f"{i}.jpg": jpeg(i) for i in range(7)}}))

    assert plan_splits(listing, SMALL, seed=0, samples_per_shard=3)[Split.TRAIN].num_shards == 3
    with pytest.raises(WrongCall, match="more than 3 shards") as caught:
        plan_splits(listing, SMALL, seed=0, samples_per_shard=2)
    assert caught.value.remedy == "--samples-per-shard 3 or more"


def test_a_split_whose_every_image_is_refused_has_no_shard_and_the_build_says_why(tmp_path):
    source = folders(tmp_path / "source", {"cat": {}})
    for number in range(3):
        os.mkfifo(source / "cat" / f"{number}.jpg")

    train = plan_splits(list_source(source), SMALL, seed=0, samples_per_shard=None)[Split.TRAIN]

    assert train.num_shards == 0
    with pytest.raises(AlexshardError, match="holds no image") as caught:
        pack(source, tmp_path / "set")
    assert caught.value.why == "3 were refused, first train: SOURCE: cat/0.jpg: no regular file"
    assert not (tmp_path / "set").exists()


@given(num_samples=st.integers(1, 2_000_000), side=st.sampled_from([32, 64, 256, 512]), raw=st.booleans())
def test_default_shards_have_50_to_300_mb_wherever_there_are_that_many_samples(num_samples, side, raw):
    image = ImageFormat(side, "raw") if raw else ImageFormat(side, "jpeg", 90, "4:2:0")

    per_shard = default_samples_per_shard(num_samples, image)

    assert 1 <= per_shard <= num_samples
    assert per_shard * sample_bytes(image) <= 300e6
    if num_samples * sample_bytes(image) >= 4 * 50e6:
        assert per_shard * sample_bytes(image) >= 50e6


@pytest.mark.parametrize(("num_samples", "shards"), [(1, 1), (250, 1), (251, 2), (2000, 4), (20_000, 4)])
def test_small_sets_have_shards_for_several_workers(num_samples, shards):
    assert -(-num_samples // default_samples_per_shard(num_samples, SMALL)) == shards


def test_the_size_of_a_raw_sample_is_exact(tmp_path):
    image = ImageFormat(40, "raw")
    pixels = np.zeros((40, 40, 4), np.uint8)
    with ShardWriter(tmp_path, ShardName(Split.TRAIN, 0)) as writer:
        for key in KEYS[:10]:
            writer.write(Sample(key, 1, encoded(pixels, image), "ppm"))

    assert writer.entry.bytes == 10 * sample_bytes(image) + 1024
