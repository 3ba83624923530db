"""A shard set in a store, for the tests of reading it from there."""

from __future__ import annotations

import hashlib
import os
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from alexshard.pipeline import Loader, open_shard_set
from alexshard.shards import ShardEntry, ShardSet

from tests.pipeline import conftest
from tests.s3_server import S3

QUICK = (0.01,) * 8
ROOT = Path(__file__).parents[2]


def upload(s3: S3, folder: Path, prefix: str = "sets/a") -> None:
    for path in folder.iterdir():
        if path.is_file():
            s3.server.put(f"{prefix}/{path.name}", path.read_bytes())


@dataclass(frozen=True)
class Far:
    """A set in the test's bucket, and the folder of the same set on this machine."""

    s3: S3
    here: Path
    cache: Path

    @property
    def address(self) -> str:
        return self.s3.url("sets/a")

    def open(
        self, cache_bytes: int | None = 10**8, pauses: tuple[float, ...] = QUICK, offline: bool = False
    ) -> ShardSet:
        return open_shard_set(
            self.address, cache=self.cache, cache_bytes=cache_bytes, pauses=pauses, offline=offline
        )

    def asked(self, name: str = "") -> list[str]:
        """Files that were asked for, each as often as it was."""
        return [seen.path.rpartition("/")[2] for seen in self.s3.proxy.seen("GET") if name in seen.path]

    def left(self) -> list[str]:
        """What is in the cache that is neither a whole shard nor a file of a set."""
        names = [path.name for path in self.cache.rglob("*") if path.is_file()]
        return [name for name in names if name.endswith(".part")]

    def beside(self, code: str) -> subprocess.Popen[str]:
        """A process that sees `far_set` (this set, by the same cache), its `shards` and `read(shard)`."""
        head = f"""
import os, sys
from pathlib import Path
from alexshard.pipeline import fetching, open_shard_set
from tests.pipeline.far import QUICK, read
fetching.PART_BYTES = 40_000
def say(*words):
    print(*words, flush=True)
far_set = open_shard_set({self.address!r}, cache=Path({str(self.cache)!r}), cache_bytes=10**8, pauses=QUICK)
shards = far_set.index("train").shards
"""
        return subprocess.Popen(
            [sys.executable, "-c", head + code],
            cwd=ROOT,
            env={**os.environ, **self.s3.environment},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )


def read(shard_set: ShardSet, shard: ShardEntry) -> str:
    """The SHA-256 of a shard's bytes, read from its shelf."""
    fd = shard_set.shelf.open(shard)
    try:
        return hashlib.sha256(os.pread(fd, shard.bytes + 1, 0)).hexdigest()
    finally:
        os.close(fd)


@contextmanager
def opened(far: Far, **options: Any) -> Iterator[ShardSet]:
    shard_set = far.open(**options)
    try:
        yield shard_set
    finally:
        shard_set.shelf.close()


def batches_of(shards: Any, **options: Any) -> list[tuple[list[str], list[int], bytes]]:
    """Keys, labels and pixels of an epoch."""
    with Loader(shards, batch_size=8, output="uint8", seed=3, drop_last=False, **options) as loader:
        return [(list(batch.keys), batch.labels.tolist(), batch.images.numpy().tobytes()) for batch in loader]


def many_shards(s3: S3, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Far:
    """Eight shards of four samples each in the bucket."""
    for name, value in s3.environment.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(conftest, "SHARDS", {conftest.Split.TRAIN: (4,) * 8, conftest.Split.VAL: (5,)})
    conftest.make_pictures(tmp_path / "many", "jpeg")
    upload(s3, tmp_path / "many")
    return Far(s3, tmp_path / "many", tmp_path / "cache")


def wait_until(holds: Callable[[], object], timeout: float = 60) -> bool:
    pause = threading.Event()
    for _ in range(int(timeout / 0.01)):
        if holds():
            return True
        pause.wait(0.01)
    return False
