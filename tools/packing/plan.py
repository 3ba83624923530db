"""The plan of a build: which sample goes into which shard, under which key.

A pure function of listing, seed and sizes.

Samples of a split are put in the order of their keys, then a seeded permutation gives each its place. So the
plan depends neither on the order inside the archives nor on whether they were extracted, and every shard is a
unit of work that any process can do, and do again with the same bytes.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from ...shards import KEY_LENGTH, ImageFormat, ShardName, Split, WrongCall, is_key, safe_key, stored_size
from .sources import Images, Listing, Names

MOST_SHARDS = 1_000_000  # of a split: numbers have six digits
SHARD_BYTES = 128_000_000  # what a shard is to have by default
FEWEST_SHARDS = 4  # of a split by default, so that small sets too keep several workers busy …
FEWEST_SAMPLES = 250  # … as long as shards have this many samples

# Bytes of a JPEG per pixel at 4:2:0, by quality, without its 623 bytes of tables: mean over the 84 full-size
# images of `assemble.py full` at 256×256. Smaller pictures take more: 0.43 at 64×64 and quality 90.
_JPEG_QUALITIES = (50, 75, 85, 90, 95, 100)
_JPEG_BYTES_PER_PIXEL = (0.120, 0.181, 0.243, 0.306, 0.439, 0.844)
_JPEG_TABLES = 623
_ORDER_PURPOSE = 0x706C616E  # "plan": keeps these draws apart from any others made from the same seed


@dataclass(frozen=True, slots=True)
class PlannedSample:
    """One image, where it lies and what it becomes."""

    key: str
    label: int
    name: str  # in the source
    container: int  # index into the listing's containers
    offset: int
    size: int
    patched: bool
    changed: int  # of a file in a folder, see sources.images.change_of


@dataclass(frozen=True, slots=True)
class ShardPlan:
    """One shard: its name and its samples in the order in which they are written."""

    name: ShardName
    labelled: bool
    samples: tuple[PlannedSample, ...]
    exact: bool = False  # True: all pixels of large JPEGs are decoded too


@dataclass(frozen=True, slots=True)
class SplitPlan:
    """One split: the order of its samples and how many of them a shard takes."""

    split: Split
    images: Images
    keys: Sequence[str]  # by position in `images`
    order: NDArray[np.int64]  # position in `images` of the sample at each place
    samples_per_shard: int
    exact: bool = False

    @property
    def num_shards(self) -> int:
        return -(-len(self.order) // self.samples_per_shard)

    def shard(self, number: int) -> ShardPlan:
        """The plan of one shard."""
        start = number * self.samples_per_shard
        images = self.images
        samples = tuple(
            PlannedSample(
                key=self.keys[i],
                label=images.label[i],
                name=images.names[i],
                container=images.container[i],
                offset=images.offset[i],
                size=images.size[i],
                patched=i in images.patched,
                changed=images.changed[i],
            )
            for i in self.order[start : start + self.samples_per_shard].tolist()
        )
        return ShardPlan(ShardName(self.split, number), images.labelled, samples, self.exact)


def plan_splits(
    listing: Listing, image_format: ImageFormat, *, seed: int, samples_per_shard: int | None, exact: bool = False
) -> dict[Split, SplitPlan]:
    """The plan of every split of a listing.

    Args:
        seed: 0 to 2**64 - 1; decides the order and nothing else.
        samples_per_shard: None: what gives 50 to 300 MB, see `default_samples_per_shard`.
        exact: decode all pixels of large JPEGs too, see decode.py.

    Raises:
        WrongCall: so few samples a shard need more shards than there are names.
    """
    plans = {}
    for split, images in listing.splits.items():
        per_shard = samples_per_shard or default_samples_per_shard(len(images), image_format)
        if len(images) > per_shard * MOST_SHARDS:
            raise WrongCall(
                f"{per_shard:,} samples a shard make more than {MOST_SHARDS:,} shards of {split}",
                why="the number in a shard's name has six digits",
                remedy=f"--samples-per-shard {math.ceil(len(images) / MOST_SHARDS)} or more",
            )
        keys = unique_keys(images.names, images.label)
        plans[split] = SplitPlan(
            split=split,
            images=images,
            keys=keys,
            order=seeded_order(keys, split=split, seed=seed),
            samples_per_shard=per_shard,
            exact=exact,
        )
    return plans


def seeded_order(keys: Sequence[str], *, split: Split, seed: int) -> NDArray[np.int64]:
    """Position in `keys` of the sample at each place: a permutation by the set of keys and the seed alone.

    The words come from Philox itself, whose stream NumPy promises to keep, not from `Generator.permutation`,
    whose result may change between versions.
    """
    by_key = _positions_by_key(keys)
    purpose = _ORDER_PURPOSE * 8 + list(Split).index(split)
    words = np.random.Philox(key=np.array([seed, purpose], dtype=np.uint64)).random_raw(len(keys))
    return by_key[np.argsort(words, kind="stable")]


def _positions_by_key(keys: Sequence[str]) -> NDArray[np.int64]:
    # Keys are ASCII without NUL, so arrays of bytes sort as strings do, in a third of the time and memory.
    width = max(map(len, keys), default=1)
    return np.fromiter(keys, dtype=f"S{width}", count=len(keys)).argsort(kind="stable")


def unique_keys(names: Sequence[str], labels: Sequence[int]) -> Sequence[str]:
    """A valid key for every name of a split, no two equal, not even where case does not count.

    Names are BARE.JPEG or CLASS/BARE.JPEG. The bare name makes the key where that is unique, else class and
    bare name; where even these meet, all but the first by name and label get a number.

    >>> names = ["cat/1.jpg", "dog/1.jpg", "dog/two words.jpg", "dog/two-words.jpg", "dog/two;words.jpg"]
    >>> list(unique_keys(names, labels=[0, 1, 1, 1, 1]))
    ['cat-1', 'dog-1', 'dog-two_words', 'two-words', 'dog-two_words-2']
    """
    lean = Names(_bare_key(name) for name in names)
    if _all_differ(lean):
        return lean
    keys = list(lean)
    uses = Counter(key.lower() for key in keys)
    for i, name in enumerate(names):
        if uses[keys[i].lower()] > 1 and "/" in name:
            keys[i] = safe_key("-".join(_stem(name).split("/")))
    uses = Counter(key.lower() for key in keys)
    meeting = [i for i, key in enumerate(keys) if uses[key.lower()] > 1]
    taken = {key.lower() for i, key in enumerate(keys) if uses[key.lower()] == 1}
    last: dict[str, int] = {}  # number given to each base: without it a million names that meet would take days
    for i in sorted(meeting, key=lambda i: (names[i], labels[i])):  # no two are equal in both
        base, number = keys[i], last.get(keys[i].lower(), 1)
        while keys[i].lower() in taken:
            number += 1
            suffix = f"-{number}"
            keys[i] = base[: KEY_LENGTH - len(suffix)] + suffix
        last[base.lower()] = number
        taken.add(keys[i].lower())
    return keys


def _bare_key(name: str) -> str:
    stem = _stem(name.rpartition("/")[2])
    return stem if is_key(stem) else safe_key(stem)


def _all_differ(keys: Sequence[str]) -> bool:
    """Whether no two keys are equal where case does not count; where hashes differ, so do the keys."""
    hashes = np.fromiter((hash(key.lower()) for key in keys), dtype=np.int64, count=len(keys))
    hashes.sort()
    return bool((hashes[1:] != hashes[:-1]).all()) or len({key.lower() for key in keys}) == len(keys)


def _stem(name: str) -> str:
    """A file name without its ending."""
    stem, dot, _ = name.rpartition(".")
    return stem if dot and stem else name


def default_samples_per_shard(num_samples: int, image_format: ImageFormat) -> int:
    """So many that a shard has up to 128 MB; small sets have four shards, or one for every 250 samples.

    >>> jpeg = ImageFormat(256, "jpeg", 90, "4:2:0")
    >>> [default_samples_per_shard(n, jpeg) for n in (0, 64, 2_000, 13_394, 1_261_406)]
    [1, 64, 500, 3349, 5657]
    """
    most = max(1, SHARD_BYTES // sample_bytes(image_format))
    by_bytes = math.ceil(num_samples / most)
    for_workers = min(FEWEST_SHARDS, math.ceil(num_samples / FEWEST_SAMPLES))
    return max(1, math.ceil(num_samples / max(by_bytes, for_workers, 1)))


def sample_bytes(image_format: ImageFormat) -> int:
    """What a sample takes in a shard, headers and label included: exact for raw sets, a mean for JPEG."""
    pixels = image_format.side**2
    if image_format.encoding == "raw":
        image_bytes = 3 * pixels + len(b"P6\n%d %d\n255\n" % (image_format.side, image_format.side))
    else:
        per_pixel = np.interp(image_format.quality or 90, _JPEG_QUALITIES, _JPEG_BYTES_PER_PIXEL)
        image_bytes = _JPEG_TABLES + round(float(per_pixel) * pixels)
    return stored_size(image_bytes) + stored_size(3)
