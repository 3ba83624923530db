"""The shard sets of `tools/gpu_check`: given, or built from images that are given or drawn.

    pictures (folder per class) ─┬► images   JPEG, each once             agreement, learning
                                 ├► many     JPEG, each several times    throughput: few epochs begin meanwhile
                                 └► raw      pixels, each several times  agreement to 1e-3, throughput

Drawn pictures are those of `alexshard sample`, in folders: the archives' development kit would need SciPy.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from ..pipeline import open_shard_set
from ..shards import AlexshardError, ShardSet, usable_cores
from .sample_archive import Member, plan_sample, sound_bytes

EVERY = 10  # so manieth picture of a class is for validation, where a folder has none


@dataclass(frozen=True, slots=True)
class Making:
    """What is drawn and built where nothing is given."""

    side: int = 256  # stored
    train: int = 2000
    val: int = 200
    classes: int = 10
    times: int = 16  # each picture in `many`
    raw_times: int = 4

    @classmethod
    def small(cls) -> Making:
        """For the cores."""
        return cls(side=74, train=160, val=20, times=1, raw_times=1)


class Sets:
    """Made when first asked for, in `folder`.

    Args:
        given: a shard set to measure instead, for what is stored in its manner.
        pictures: a folder of images per class, with or without train/ and val/ above; or a set of such.
    """

    def __init__(self, folder: Path, making: Making, *, given: ShardSet | None, pictures: Path | None) -> None:
        self._folder, self._making, self._given, self._pictures = folder, making, given, pictures

    @cached_property
    def images(self) -> ShardSet:
        """JPEGs, each once."""
        if self._pictures is not None and (self._pictures / "manifest.json").exists():
            return open_shard_set(str(self._pictures))
        return self._given_as("jpeg") or self._built("images", times=1)

    @cached_property
    def many(self) -> ShardSet:
        """JPEGs, enough of them to measure speed."""
        given = self._given_as("jpeg")
        if given is not None or self._making.times == 1:
            return given or self.images
        return self._built("many", times=self._making.times)

    @cached_property
    def raw(self) -> ShardSet:
        """Pixels."""
        return self._given_as("raw") or self._built("raw", "--format", "raw", times=self._making.raw_times)

    def about(self, shard_set: ShardSet) -> str:
        """What a reader of a figure wants to know of a set."""
        samples = shard_set.manifest.splits["train"].samples
        if shard_set is self._given:
            return f"{samples:,} images of {shard_set.shown}"
        kind = "images" if self._pictures is not None else "drawn pictures"
        side = shard_set.manifest.image.side
        times = {"many": self._making.times, "raw": self._making.raw_times}.get(shard_set.name, 1)
        each = f", each {times} times" if times > 1 else ""
        return f"{samples:,} {kind} of {side}×{side}{each}, read again and again"

    def _given_as(self, encoding: str) -> ShardSet | None:
        given = self._given
        return given if given is not None and given.manifest.image.encoding == encoding else None

    def _built(self, name: str, *options: str, times: int) -> ShardSet:
        source, out = self._folder / f"source-{name}", self._folder / name
        _repeat(self._source, source, times)
        _run(
            "build", str(source), "--out", str(out), "--size", str(self._making.side), "--max-bad", "5%", *options
        )
        return open_shard_set(str(out))

    @cached_property
    def _source(self) -> list[tuple[str, Path]]:
        """Each picture, with its place as SPLIT/CLASS."""
        if self._pictures is not None:
            return _listed(self._pictures)
        return _drawn(self._folder / "drawn", self._making)


def _listed(folder: Path) -> list[tuple[str, Path]]:
    """The pictures of a folder per class; without a val/ every tenth of a class is put there."""
    train = folder / "train" if (folder / "train").is_dir() else folder
    splits = {"train": train, **({"val": folder / "val"} if (folder / "val").is_dir() else {})}
    found = []
    for split, above in splits.items():
        for label in sorted(path for path in above.iterdir() if path.is_dir()):
            for place, picture in enumerate(sorted(path for path in label.iterdir() if path.is_file())):
                held = split == "train" and "val" not in splits and place % EVERY == EVERY - 1
                found.append((f"{'val' if held else split}/{label.name}", picture))
    if not found:
        raise AlexshardError(
            f"{folder} holds no images in folders per class",
            why="the folders are the classes",
            remedy="--images with CLASS/NAME.jpg below, or train/CLASS/NAME.jpg and val/CLASS/NAME.jpg",
        )
    return found


def _drawn(folder: Path, making: Making) -> list[tuple[str, Path]]:
    plan = plan_sample({"train": making.train, "val": making.val, "test": 1}, making.classes, seed=0)
    members = [*plan.members["train"], *plan.members["val"]]

    def draw(member: Member) -> tuple[str, Path]:
        place = f"{member.split}/{plan.classes[member.label].wnid}"
        path = folder / place / member.name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(sound_bytes(plan, member))
        return place, path

    with ThreadPoolExecutor(usable_cores()) as pool:
        return list(pool.map(draw, members))


def _repeat(pictures: Sequence[tuple[str, Path]], folder: Path, times: int) -> None:
    """The pictures, those for training several times under names of their own; links where these can be."""
    for place, picture in pictures:
        (folder / place).mkdir(parents=True, exist_ok=True)
        for copy in range(times if place.startswith("train/") else 1):
            name = folder / place / f"{picture.stem}_{copy}{picture.suffix}"
            try:
                os.link(picture, name)
            except OSError:  # another file system
                shutil.copyfile(picture, name)


def _run(*arguments: str) -> None:
    """An `alexshard` command that must succeed."""
    command = [sys.executable, "-m", "alexshard.tools.cli_alexshard", *arguments]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        raise AlexshardError(
            f"alexshard {' '.join(arguments)} exited {done.returncode}: {done.stderr.strip()[-2000:]}"
        )
