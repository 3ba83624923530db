"""Where shards are opened: how many descriptors that takes, and what is said of one that cannot be."""

from __future__ import annotations

import errno
import os
import resource
import shutil
import subprocess
import sys
import threading
import time
import traceback
from contextlib import contextmanager
from pathlib import Path

import pytest
from alexshard.shards import AlexshardError, CorruptShardSet, LocalShelf, ShardFiles, ShardSet

from .conftest import Tiny

FEW_DESCRIPTORS = """
import os, resource, sys, threading
from pathlib import Path
import numpy as np
from alexshard.shards import LocalShelf, ShardEntry, ShardFiles, Split, SplitIndex
from alexshard.shards.table import Keys

folder = Path(sys.argv[1])
shards = tuple(ShardEntry(f"train-{number:06d}.tar", 1, 8, "", "") for number in range(200))
for number, shard in enumerate(shards):
    (folder / shard.name).write_bytes(number.to_bytes(8, "little"))
column = np.arange(200)
zero, keys = np.zeros(200, int), Keys.of(map(str, column))
index = SplitIndex(Split.TRAIN, shards, column, zero, zero + 8, column, column, keys)
resource.setrlimit(resource.RLIMIT_NOFILE, (64, 64))
most, wrong = [0], []
with ShardFiles(index, LocalShelf(folder)) as files:

    def read(seed):
        for number in np.random.default_rng(seed).permutation(np.tile(column, 3)).tolist():
            wrong.extend([number] * (int.from_bytes(files.bytes_of(number), "little") != number))
            most[0] = max(most[0], len(os.listdir("/proc/self/fd")))

    threads = [threading.Thread(target=read, args=(seed,)) for seed in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    maps = Path("/proc/self/maps").read_text().count(".tar")
left = [fd for fd in Path("/proc/self/fd").iterdir() if ".tar" in str(fd.resolve())]
print(len(wrong), most[0] < 64, maps, len(left))
"""


def open_files() -> int:
    return sum(1 for _ in Path("/proc/self/fd").iterdir())


def test_two_hundred_shards_are_read_with_less_than_64_descriptors_and_without_a_map(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-c", FEW_DESCRIPTORS, tmp_path], capture_output=True, text=True, check=False, timeout=120
    )

    assert (done.stdout, done.stderr) == ("0 True 0 0\n", "")


def test_a_shard_stays_open_as_long_as_it_is_held_whatever_else_is_opened(tiny: Tiny) -> None:
    shard_set = ShardSet.open(tiny.path)
    before = open_files()
    with ShardFiles(shard_set.index("train"), shard_set.shelf, max_open=1) as files:
        first = files.lease(0)
        files.lease(1)

        assert os.pread(first.fd, 9, 0) == b"train_0_0"
        assert open_files() == before + 2
        del first
        assert open_files() == before + 1
        assert files.lease(1) is files.lease(1)
    assert open_files() == before


def test_what_is_held_outlives_the_files_it_came_from(tiny: Tiny) -> None:
    shard_set = ShardSet.open(tiny.path)
    before = open_files()
    with ShardFiles(shard_set.index("val"), shard_set.shelf) as files:
        held = files.lease(0)

    assert os.pread(held.fd, 7, 0) == b"val_0_0"
    del held
    assert open_files() == before


def test_only_shards_that_are_wanted_are_kept_open(tiny: Tiny) -> None:
    shard_set = ShardSet.open(tiny.path)
    with ShardFiles(shard_set.index("train"), shard_set.shelf) as files:
        kept, dropped = files.lease(1), id(files.lease(0))
        before = open_files()
        files.keep_only([1])

        assert open_files() == before - 1
        assert files.lease(1) is kept
        del dropped


@contextmanager
def no_descriptor_left(spare: int = 0):
    """This process may open `spare` more files and no others."""
    limits = resource.getrlimit(resource.RLIMIT_NOFILE)
    taken: list[int] = []
    resource.setrlimit(resource.RLIMIT_NOFILE, (open_files() + 40, limits[1]))
    try:
        with pytest.raises(OSError, match="Too many open files"):
            while True:
                taken.append(os.open("/dev/null", os.O_RDONLY))
        for number in [taken.pop() for _ in range(spare)]:
            os.close(number)
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, limits)
        for number in taken:
            os.close(number)


def test_where_others_take_the_descriptors_fewer_are_kept_open(tiny: Tiny) -> None:
    shard_set = ShardSet.open(tiny.path)
    with ShardFiles(shard_set.index("train"), shard_set.shelf, max_open=100) as files:
        expected = [files.bytes_of(place) for place in (0, 6)]
        files.keep_only([])
        with no_descriptor_left(spare=1):
            read = [files.bytes_of(place) for place in (0, 6, 0, 6)]

        assert read == expected * 2
        assert files.max_open == 1


def test_where_not_one_descriptor_is_left_the_error_names_the_shard_and_the_limit(tiny: Tiny) -> None:
    shard_set = ShardSet.open(tiny.path)
    files = ShardFiles(shard_set.index("train"), shard_set.shelf)
    with no_descriptor_left(), pytest.raises(AlexshardError, match=r"train-000000\.tar .*Too many open") as told:
        files.lease(0)

    assert "ulimit -n" in told.value.remedy


def test_a_shard_is_opened_once_by_however_many_threads(tiny: Tiny) -> None:
    opened, leases, here = [], [], threading.Event()

    def is_inside(thread: threading.Thread) -> bool:
        frame = sys._current_frames().get(thread.ident or 0)
        stack = [] if frame is None else traceback.walk_stack(frame)
        return any(frame.f_code is ShardFiles.lease.__code__ for frame, _ in stack)

    class Slow(LocalShelf):
        """Gives nothing before all threads are asking."""

        def open(self, shard):
            opened.append(shard.name)
            deadline = time.monotonic() + 30
            while not here.is_set() and time.monotonic() < deadline:
                if all(map(is_inside, threads)):
                    here.set()
            return super().open(shard)

    files = ShardFiles(ShardSet.open(tiny.path).index("val"), Slow(tiny.path))
    threads = [threading.Thread(target=lambda: leases.append(files.lease(0))) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)

    assert opened == ["val-000000.tar"]
    assert len(leases) == 8
    assert len({id(lease) for lease in leases}) == 1


@pytest.mark.parametrize(
    ("harm", "told"),
    [
        (lambda path: path.unlink(), "cannot be opened: No such file or directory"),
        (lambda path: path.write_bytes(path.read_bytes()[:-512]), "has 6,656 bytes, the manifest says 7,168"),
        (lambda path: path.write_bytes(path.read_bytes() + b"\0"), "has 7,169 bytes, the manifest says 7,168"),
        (lambda path: (path.unlink(), os.mkfifo(path)), "cannot be opened: it is no regular file"),
        (lambda path: (path.unlink(), path.mkdir()), "cannot be opened: it is no regular file"),
        (lambda path: (path.unlink(), path.symlink_to(path.name)), "Too many levels of symbolic links"),
    ],
    ids=["missing", "cut", "longer", "pipe", "folder", "loop"],
)
def test_a_shard_that_is_not_as_promised_is_refused_when_the_set_is_opened_and_when_it_is_read(
    tiny: Tiny, tmp_path: Path, harm, told: str
) -> None:
    copy = shutil.copytree(tiny.path, tmp_path / "two words")
    opened = ShardSet.open(copy)
    harm(copy / "train-000001.tar")
    with pytest.raises(CorruptShardSet) as at_opening:
        ShardSet.open(copy)
    files = ShardFiles(opened.index("train"), opened.shelf)
    with pytest.raises(CorruptShardSet) as at_reading:
        files.lease(1)

    for error in (at_opening.value, at_reading.value):
        assert error.what.startswith("the shard train-000001.tar ")
        assert told in error.what
        assert f"alexshard verify '{copy}' --repair SOURCE" in error.remedy


def test_reading_ahead_ends_with_its_list_and_with_close_and_leaves_nothing_open(tiny: Tiny) -> None:
    shard_set = ShardSet.open(tiny.path)
    shards = shard_set.manifest.splits["train"].shards
    before = (open_files(), threading.active_count())
    for _ in range(3):  # close is not final
        shard_set.shelf.ahead(shards)
        shard_set.shelf.ahead(shards[::-1])
        shard_set.shelf.close()
        assert (open_files(), threading.active_count()) == before
    shard_set.shelf.ahead(shards)
    for thread in threading.enumerate():
        if thread.name == "alexshard-ahead":
            thread.join(60)
    assert (open_files(), threading.active_count()) == before


def test_reading_ahead_says_nothing_of_shards_that_are_not_there(tiny: Tiny, tmp_path: Path) -> None:
    shelf = LocalShelf(tmp_path)
    shelf.ahead(ShardSet.open(tiny.path).manifest.splits["train"].shards)
    shelf.close()

    assert list(tmp_path.iterdir()) == []


def test_the_advice_covers_every_byte_of_the_shards_in_their_order(tiny: Tiny, monkeypatch) -> None:
    asked = []

    def advise(fd: int, start: int, length: int, _advice: int) -> None:
        asked.append((Path(f"/proc/self/fd/{fd}").resolve().name, start, length))

    monkeypatch.setattr("alexshard.shards.shelf._PIECE", 4096)
    monkeypatch.setattr(os, "posix_fadvise", advise)
    shelf = LocalShelf(tiny.path)
    shelf.ahead(ShardSet.open(tiny.path).manifest.splits["train"].shards[::-1])
    for thread in threading.enumerate():
        if thread.name == "alexshard-ahead":
            thread.join(60)

    expected = [
        (shard.name, start, 4096)
        for shard in ShardSet.open(tiny.path).manifest.splits["train"].shards[::-1]
        for start in range(0, shard.bytes, 4096)
    ]
    assert len(expected) == 5
    assert asked == expected


def test_a_file_system_that_takes_no_advice_is_left_alone(tiny: Tiny, monkeypatch) -> None:
    def refuse(*_: int) -> None:
        raise OSError(errno.ENOSYS, "not here")

    monkeypatch.setattr(os, "posix_fadvise", refuse)
    shelf = LocalShelf(tiny.path)
    shelf.ahead(ShardSet.open(tiny.path).manifest.splits["train"].shards)
    shelf.close()
