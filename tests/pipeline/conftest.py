"""Two small shard sets of the same pictures, raw and JPEG, made by the writer alone."""

from __future__ import annotations

import hashlib
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pytest
import simplejpeg
import torch
from alexshard.pipeline import fetching
from alexshard.shards import (
    ClassEntry,
    ImageFormat,
    Sample,
    SampleRow,
    ShardName,
    ShardSet,
    ShardWriter,
    Split,
    SplitEntry,
    Statistics,
    finish_shard_set,
    ppm_bytes,
)
from numpy.typing import NDArray

from tests.s3_server import S3

if TYPE_CHECKING:
    from tests.pipeline.far import Far

SIDE = 74  # crops of 64, slack 10
SHARDS = {Split.TRAIN: (40, 33), Split.VAL: (21,), Split.TEST: (5,)}  # samples of each shard; test has no labels


@dataclass(frozen=True)
class Pictures:
    """A shard set and what went into it."""

    path: Path
    pixels: dict[str, NDArray[np.uint8]]  # by split: (n, SIDE, SIDE, 3), before JPEG encoding
    labels: dict[str, NDArray[np.int64]]
    keys: dict[str, list[str]]
    statistics: Statistics
    mean_image: NDArray[np.float64]


def picture(number: int) -> NDArray[np.uint8]:
    """A smooth coloured texture with edges, another for each number: noise would hide decoder and crop errors."""
    y, x = np.mgrid[0:SIDE, 0:SIDE] / SIDE
    rng = np.random.default_rng(number)
    waves = [np.sin(2 * np.pi * (a * y + b * x + c)) for a, b, c in rng.uniform(0, 3, (3, 3))]
    edge = (y * rng.uniform(0.5, 2) + x > rng.uniform(0.3, 1.5)) * 60.0
    mix = rng.uniform(-60, 60, (3, 3)) + 40
    return np.clip(110 + np.stack(waves, -1) @ mix * 0.7 + edge[..., None], 0, 255).astype(np.uint8)


def make_pictures(folder: Path, encoding: str) -> Pictures:
    """A shard set of `picture`s; `encoding` is "raw" or "jpeg"."""
    folder.mkdir(parents=True)
    extension = "ppm" if encoding == "raw" else "jpg"
    pixels, labels, keys, rows, splits = {}, {}, {}, [], {}
    number = 0
    for split, sizes in SHARDS.items():
        entries, all_pixels, all_labels, all_keys = [], [], [], []
        for shard, size in enumerate(sizes):
            with ShardWriter(folder, ShardName(split, shard)) as writer:
                for _ in range(size):
                    image = picture(number)
                    encoded = (
                        ppm_bytes(image)
                        if encoding == "raw"
                        else simplejpeg.encode_jpeg(image, quality=90, colorsubsampling="420")
                    )
                    label = None if split is Split.TEST else number % 7
                    key = f"{split}_{number:03d}"
                    crc32 = writer.write(Sample(key, label, encoded, extension))
                    shown = -1 if label is None else label
                    rows.append(SampleRow(key, shown, split, str(writer.name), f"{number}.png", "", crc32))
                    all_pixels.append(image)
                    all_labels.append(shown)
                    all_keys.append(key)
                    number += 1
            entries.append(writer.entry)
        splits[split.value] = SplitEntry(sum(sizes), split is not Split.TEST, 0, 0, sum(sizes), tuple(entries))
        pixels[split.value], labels[split.value] = np.stack(all_pixels), np.array(all_labels)
        keys[split.value] = all_keys
    train = pixels["train"].reshape(-1, 3).astype(np.float64)
    covariance = np.cov(train.T, bias=True)
    values, vectors = np.linalg.eigh(covariance)
    values, vectors = values[::-1], vectors[:, ::-1]
    vectors = vectors * np.sign(vectors[np.abs(vectors).argmax(0), range(3)])
    statistics = Statistics(
        pixels=len(train),
        channel_mean=tuple(train.mean(0).tolist()),
        covariance=tuple(map(tuple, covariance.tolist())),
        eigenvalues=tuple(values.tolist()),
        eigenvectors=tuple(map(tuple, vectors.tolist())),
    )
    mean_image = pixels["train"].mean(0)
    finish_shard_set(
        folder,
        image=ImageFormat(SIDE, encoding, *((90, "4:2:0") if encoding == "jpeg" else ())),
        splits=splits,
        classes=[ClassEntry(f"class{i}", f"class {i}", None) for i in range(7)],
        statistics=statistics,
        mean_image=mean_image,
        build={"seed": 0},
        rows=rows,
        quarantine=[],
    )
    return Pictures(folder, pixels, labels, keys, statistics, mean_image)


@pytest.fixture(scope="session")
def raw_set(tmp_path_factory: pytest.TempPathFactory) -> Pictures:
    return make_pictures(tmp_path_factory.mktemp("pipeline") / "raw", "raw")


@pytest.fixture(scope="session")
def jpeg_set(tmp_path_factory: pytest.TempPathFactory) -> Pictures:
    return make_pictures(tmp_path_factory.mktemp("pipeline") / "jpeg", "jpeg")


@pytest.fixture(scope="session")
def digest() -> Callable[[torch.Tensor], str]:
    """`digest(tensor)` of its bytes."""

    def of(tensor: torch.Tensor) -> str:
        return hashlib.sha256(tensor.contiguous().view(torch.uint8).numpy().tobytes()).hexdigest()

    return of


@pytest.fixture(scope="session")
def spoiled() -> Callable[..., str]:
    """`spoiled(pictures, folder, sample=, at=, by=)`: a set with other bytes in an image of train.

    A folder that is there already is spoiled further. Returns the key of the sample.
    """

    def spoil(pictures: Pictures, folder: Path, *, sample: int, at: int, by: bytes) -> str:
        if not folder.exists():
            shutil.copytree(pictures.path, folder)
        index = ShardSet.open(folder).index("train")
        shard = folder / index.shards[index.shard[sample]].name
        data = bytearray(shard.read_bytes())
        start = int(index.offset[sample]) + at
        data[start : start + len(by)] = by
        shard.write_bytes(data)
        return index.keys[sample]

    return spoil


@pytest.fixture
def far(s3: S3, jpeg_set: Pictures, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Far:
    """The JPEG set in a bucket; its shards come in parts of 40,000 bytes."""
    from tests.pipeline.far import Far, upload

    for name, value in s3.environment.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(fetching, "PART_BYTES", 40_000)
    upload(s3, jpeg_set.path)
    return Far(s3, jpeg_set.path, tmp_path / "cache")
