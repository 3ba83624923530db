"""A tiny shard set made by the writer alone, and what went into it."""

from __future__ import annotations

import hashlib
import json
import shutil
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
from alexshard.shards import (
    ClassEntry,
    ImageFormat,
    Sample,
    SampleRow,
    ShardName,
    ShardWriter,
    Split,
    SplitEntry,
    Statistics,
    finish_shard_set,
    ppm_bytes,
)

SIDE = 8


@dataclass(frozen=True)
class Tiny:
    path: Path
    samples: dict[str, list[Sample]]  # by split, in order


def make_tiny(folder: Path) -> Tiny:
    """Two train shards of four and three raw 8×8 images, one val shard of two."""
    folder.mkdir(parents=True)
    rng = np.random.default_rng(0)
    counts = {Split.TRAIN: (4, 3), Split.VAL: (2,)}
    rows, splits, samples = [], {}, {}
    pixels_of_train = []
    for split, sizes in counts.items():
        entries, samples[split.value] = [], []
        for number, size in enumerate(sizes):
            with ShardWriter(folder, ShardName(split, number)) as writer:
                for place in range(size):
                    pixels = rng.integers(0, 256, (SIDE, SIDE, 3), dtype=np.uint8)
                    if split is Split.TRAIN:
                        pixels_of_train.append(pixels)
                    sample = Sample(f"{split}_{number}_{place}", place % 3, ppm_bytes(pixels), "ppm")
                    crc32 = writer.write(sample)
                    samples[split.value].append(sample)
                    rows.append(
                        SampleRow(sample.key, place % 3, split, str(writer.name), f"original {place}", "", crc32)
                    )
            entries.append(writer.entry)
        total = sum(sizes)
        splits[split.value] = SplitEntry(
            total, True, 0, 1 if split is Split.VAL else 0, total + (split is Split.VAL), tuple(entries)
        )
    stack = np.stack(pixels_of_train).astype(np.float64)
    covariance = np.cov(stack.reshape(-1, 3).T, bias=True)
    values, vectors = np.linalg.eigh(covariance)
    finish_shard_set(
        folder,
        image=ImageFormat(SIDE, "raw"),
        splits=splits,
        classes=[ClassEntry("a", "first", 3), ClassEntry("b", "zweite, été", 1), ClassEntry("c", "三", 2)],
        statistics=Statistics(
            pixels=stack.size // 3,
            channel_mean=tuple(stack.mean((0, 1, 2)).tolist()),
            covariance=tuple(map(tuple, covariance.tolist())),
            eigenvalues=tuple(values.tolist()),
            eigenvectors=tuple(map(tuple, vectors.tolist())),
        ),
        mean_image=stack.mean(0),
        build={"seed": 0},
        rows=rows,
        quarantine=[{"split": "val", "source": "x.tar", "name": "bad\udcff.JPEG", "reason": "is empty"}],
    )
    return Tiny(folder, samples)


@pytest.fixture(scope="session")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Tiny:
    return make_tiny(tmp_path_factory.mktemp("tiny") / "tiny")


def early_set(path: Path, dest: Path) -> Path:
    """A copy of a set as early builds wrote it: the manifest has neither `files` nor a CRC-32 of its own."""
    shutil.copytree(path, dest)
    fields = json.loads((dest / "manifest.json").read_bytes())
    del fields["files"], fields["crc32"]
    fields["digest"] = "0" * 64
    blank = json.dumps(fields, indent=1, ensure_ascii=False) + "\n"
    digest = hashlib.sha256(blank.encode()).hexdigest()
    (dest / "manifest.json").write_text(blank.replace("0" * 64, digest), encoding="utf-8")
    return dest
