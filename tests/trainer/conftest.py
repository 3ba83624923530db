"""A shard set small enough to train on in seconds: drawn pictures of ten classes, crops of 64×64."""

from __future__ import annotations

import dataclasses
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from alexshard.shards import ShardSet
from alexshard.trainer import Recipe


@pytest.fixture(scope="module", autouse=True)
def _threads() -> Iterator[None]:
    """A run chooses how many torch takes; the next file of tests begins with as many as before."""
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="session")
def small_set(sample_source: Path, tmp_path_factory: pytest.TempPathFactory) -> ShardSet:
    """160 training and 40 validation images at 74×74."""
    return _built(sample_source, tmp_path_factory.mktemp("small") / "small", "--size", "74")


@pytest.fixture(scope="session")
def other_set(sample_source: Path, tmp_path_factory: pytest.TempPathFactory) -> ShardSet:
    """The same images in another order: another shard set."""
    return _built(sample_source, tmp_path_factory.mktemp("other") / "other", "--size", "74", "--seed", "1")


@pytest.fixture(scope="session")
def many_shards(sample_source: Path, tmp_path_factory: pytest.TempPathFactory) -> ShardSet:
    """The images of `small_set` in eight training shards."""
    dest = tmp_path_factory.mktemp("many") / "many"
    return _built(sample_source, dest, "--size", "74", "--samples-per-shard", "20")


@pytest.fixture(scope="session")
def tiny_set(sample_source: Path, tmp_path_factory: pytest.TempPathFactory) -> ShardSet:
    """Images as small as CIFAR's."""
    return _built(sample_source, tmp_path_factory.mktemp("tiny") / "tiny", "--size", "32")


@pytest.fixture(scope="session")
def recipe() -> Recipe:
    """`original`, an eighth wide: 4 epochs of 5 steps, which cross every boundary of its schedule."""
    return dataclasses.replace(Recipe.original(), width=0.125, batch_size=32, epochs=4)


def _built(source: Path, dest: Path, *options: str) -> ShardSet:
    command = [sys.executable, "-m", "alexshard.tools.cli_alexshard", "build", str(source), "--out", str(dest)]
    subprocess.run([*command, *options], check=True, capture_output=True)
    return ShardSet.open(dest)
