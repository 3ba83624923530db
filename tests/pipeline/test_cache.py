"""The cache of shards: least recently used under a cap, shared by processes, nothing left by those that end."""

from __future__ import annotations

import errno
import hashlib
import os
import signal
import subprocess
import sys
import threading
from pathlib import Path

import pytest
from alexshard.pipeline.cache import Cache, default_folder
from alexshard.pipeline.cache_files import NoRoom
from alexshard.shards import WrongCall

SIZE = 10_000


def data_of(number: int) -> bytes:
    return bytes([number]) * SIZE


def name_of(number: int) -> str:
    return hashlib.sha256(data_of(number)).hexdigest()


def store(cache: Cache, *numbers: int, now: bool = False) -> None:
    """Shards that arrive in this order, and are then open nowhere."""
    for number in numbers:
        arriving = cache.begin(name_of(number), SIZE, now=now)
        assert arriving is not None
        arriving.put(0, data_of(number))
        os.close(arriving.finish())


def touch(cache: Cache, *numbers: int) -> None:
    for number in numbers:
        fd = cache.open(name_of(number), SIZE)
        assert fd is not None
        os.close(fd)


def held(cache: Cache) -> set[int]:
    return {number for number in range(256) if cache.holds(name_of(number))}


def files_in(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.rglob("*") if path.is_file())


def run_beside(folder: Path, code: str) -> subprocess.Popen[str]:
    """Another process with a cache over the same folder; `code` sees `cache`, `store`, `touch` and `say`."""
    head = f"""
import os, sys
from pathlib import Path
from alexshard.pipeline.cache import Cache
from tests.pipeline.test_cache import SIZE, data_of, name_of, store, touch
cache = Cache(Path({str(folder)!r}), 3 * SIZE)
def say(word):
    print(word, flush=True)
"""
    return subprocess.Popen(
        [sys.executable, "-c", head + code],
        cwd=Path(__file__).parents[2],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )


def hear(process: subprocess.Popen[str]) -> str:
    assert process.stdout is not None
    return process.stdout.readline().strip()


def test_what_was_used_last_stays_and_the_cap_holds(tmp_path):
    cache = Cache(tmp_path, 3 * SIZE)

    store(cache, 1, 2, 3)
    touch(cache, 1)
    store(cache, 4)
    assert held(cache) == {1, 3, 4}
    touch(cache, 3)
    store(cache, 5, 6)
    assert held(cache) == {3, 5, 6}


def test_the_bytes_come_back_as_they_arrived_in_parts_and_a_second_start_forgets_the_first(tmp_path):
    cache = Cache(tmp_path)
    arriving = cache.begin(name_of(7), SIZE, now=True)

    arriving.put(0, b"nonsense")
    arriving.put(0, data_of(7)[:6000])
    with pytest.raises(OSError, match="1 bytes came for byte 7,000 of 10,000"):
        arriving.put(7000, b"x")
    arriving.put(6000, data_of(7)[6000:])

    assert arriving.sha256 == name_of(7)
    fd = arriving.finish()
    assert os.pread(fd, SIZE + 1, 0) == data_of(7)
    os.close(fd)


def test_what_is_open_stays_however_long_ago_it_was_used(tmp_path):
    cache = Cache(tmp_path, 2 * SIZE)
    store(cache, 1, 2)
    fd = cache.open(name_of(1), SIZE)

    store(cache, 3)

    assert held(cache) == {1, 3}
    second = cache.open(name_of(3), SIZE)
    with pytest.raises(NoRoom, match="--cache-size") as refused:
        cache.begin(name_of(4), SIZE, now=True)
    assert refused.value.errno == errno.EMFILE
    assert files_in(tmp_path / "shards") == sorted(f"{name_of(n)}.tar" for n in (1, 3))
    os.close(fd)
    os.close(second)


def test_what_is_announced_stays_and_goes_for_what_is_waited_for_the_last_first(tmp_path):
    cache = Cache(tmp_path, 3 * SIZE)
    store(cache, 1, 2, 3)
    cache.need([name_of(3), name_of(2), name_of(1)])

    with pytest.raises(NoRoom):
        cache.begin(name_of(4), SIZE, now=False)
    store(cache, 4, now=True)

    assert held(cache) == {2, 3, 4}
    cache.need([])
    store(cache, 5, 6)
    assert held(cache) == {4, 5, 6}


def test_what_another_process_announced_stays_as_long_as_it_lives(tmp_path):
    cache = Cache(tmp_path, 3 * SIZE)
    store(cache, 1, 2, 3)
    other = run_beside(tmp_path, "cache.need([name_of(1), name_of(2)]); say('ready'); sys.stdin.read()")
    assert hear(other) == "ready"

    store(cache, 4, now=True)
    assert held(cache) == {1, 2, 4}
    other.kill()
    other.communicate()
    store(cache, 5)

    assert len(held(cache) & {1, 2}) == 1
    assert files_in(tmp_path / "leases") == []


def test_a_shard_that_arrives_in_one_process_is_begun_by_no_other(tmp_path):
    cache = Cache(tmp_path, 3 * SIZE)
    arriving = cache.begin(name_of(1), SIZE, now=True)
    other = run_beside(tmp_path, "say(cache.begin(name_of(1), SIZE, now=True)); say(cache.open(name_of(1), SIZE))")

    assert (hear(other), hear(other)) == ("None", "None")
    other.communicate()
    arriving.put(0, data_of(1))
    os.close(arriving.finish())

    assert cache.begin(name_of(1), SIZE, now=True) is None
    assert held(cache) == {1}


def test_a_shard_that_arrives_while_another_process_begins_it_is_not_fetched_again(tmp_path, monkeypatch):
    ours, theirs = Cache(tmp_path), Cache(tmp_path)
    arriving = theirs.begin(name_of(1), SIZE, now=True)
    arriving.put(0, data_of(1))
    open_file = os.open

    def just_now(path, *how):
        if str(path).endswith(".part"):
            monkeypatch.setattr("os.open", open_file)
            os.close(arriving.finish())
        return open_file(path, *how)

    monkeypatch.setattr("os.open", just_now)

    assert ours.begin(name_of(1), SIZE, now=True) is None
    assert [path.name for path in (tmp_path / "shards").iterdir()] == [f"{name_of(1)}.tar"]


def test_what_a_killed_process_left_is_taken_over_or_swept(tmp_path):
    other = run_beside(
        tmp_path,
        "a, b = (cache.begin(name_of(n), SIZE, now=True) for n in (1, 2)); a.put(0, b'half'); cache.need(['x']);"
        "say('ready'); sys.stdin.read()",
    )
    assert hear(other) == "ready"
    cache = Cache(tmp_path, 3 * SIZE)
    left = [f"{name_of(n)}.part" for n in (1, 2)]
    assert files_in(tmp_path / "shards") == sorted(left)

    other.send_signal(signal.SIGKILL)
    other.communicate()
    store(cache, 1)

    assert held(cache) == {1}
    assert files_in(tmp_path / "shards") == [f"{name_of(1)}.tar"]
    assert files_in(tmp_path / "leases") == []


def test_a_forked_child_keeps_no_lock_of_its_parent(tmp_path):
    cache = Cache(tmp_path, 3 * SIZE)
    arriving = cache.begin(name_of(1), SIZE, now=True)
    told, tell = os.pipe()
    child = os.fork()
    if not child:  # lives on while the parent lets go
        os.close(tell)
        os.read(told, 1)
        os._exit(0)
    os.close(told)

    arriving.abandon()
    store(cache, 1)

    assert held(cache) == {1}
    os.close(tell)
    assert os.waitpid(child, 0)[1] == 0


def test_threads_and_processes_that_fill_a_small_cache_at_once_keep_it_whole(tmp_path):
    code = """
for turn in range(20):
    number = (turn * 7 + int(sys.argv[0] == '-c')) % 6
    arriving = cache.begin(name_of(number), SIZE, now=True)
    if arriving is not None:
        arriving.put(0, data_of(number))
        os.close(arriving.finish())
    fd = cache.open(name_of(number), SIZE)
    if fd is not None:
        assert os.pread(fd, SIZE + 1, 0) == data_of(number)
        os.close(fd)
"""
    others = [run_beside(tmp_path, code) for _ in range(2)]

    assert [(other.communicate()[0], other.returncode) for other in others] == [("", 0)] * 2
    names = files_in(tmp_path / "shards")
    assert 1 <= len(names) <= 3
    assert all(hashlib.sha256((tmp_path / "shards" / name).read_bytes()).hexdigest() in name for name in names)


def test_a_shard_that_was_cut_in_the_cache_is_not_opened(tmp_path):
    cache = Cache(tmp_path)
    store(cache, 1)
    os.truncate(tmp_path / "shards" / f"{name_of(1)}.tar", 5)

    assert cache.open(name_of(1), SIZE) is None
    assert held(cache) == set()


def test_a_set_that_nobody_needs_goes_like_a_shard(tmp_path):
    cache = Cache(tmp_path, 3 * SIZE)
    for digest in ("a" * 64, "b" * 64):
        (cache.set_folder(digest) / "samples.tsv").write_bytes(bytes(SIZE))
    cache.need(["a" * 64])

    store(cache, 1, 2)

    assert held(cache) == {1, 2}
    assert [path.name for path in (tmp_path / "sets").iterdir()] == ["a" * 64]


def test_the_default_is_half_of_what_could_be_had_and_does_not_shrink_as_the_cache_fills(tmp_path):
    before = Cache(tmp_path)
    store(before, *range(50))
    free = os.statvfs(tmp_path).f_bavail * os.statvfs(tmp_path).f_frsize

    # Others write to this disk meanwhile; half a million bytes of ours would be seen if they counted against it.
    assert before.most_bytes == pytest.approx((free + 50 * SIZE) / 2, rel=0.1)


def test_a_folder_that_cannot_be_one_is_refused_in_words(tmp_path, monkeypatch):
    (tmp_path / "file").write_text("")
    for folder in (tmp_path / "file" / "cache", Path("/proc/alexshard")):
        with pytest.raises(WrongCall, match="the cache cannot be used") as refused:
            Cache(folder)
        assert "--cache DIR" in str(refused.value)

    monkeypatch.setenv("XDG_CACHE_HOME", "relative")
    assert default_folder() == Path.home() / ".cache/alexshard/shards"
    monkeypatch.setenv("XDG_CACHE_HOME", "/x")
    assert default_folder() == Path("/x/alexshard/shards")


def test_a_full_disk_makes_room_among_the_shards_and_is_told_when_that_is_not_enough(tmp_path):
    script = 'mount -t tmpfs -o size=256k none "$1" && exec "$2" -c "$3" "$1"'
    code = """
import sys, os
from pathlib import Path
from alexshard.pipeline.cache import Cache
from alexshard.shards import AlexshardError
from tests.pipeline.test_cache import SIZE, held, store
cache = Cache(Path(sys.argv[1]), 10**9)
store(cache, *range(40))
print(len(held(cache)), 39 in held(cache))
try:
    cache.begin("f" * 64, 300_000, now=True)
except AlexshardError as error:
    print(error)
print(sorted(path.name for path in Path(sys.argv[1]).rglob("*.part")))
"""
    command = ["unshare", "--user", "--map-root-user", "--mount", "sh", "-c", script, "sh", tmp_path]
    if os.geteuid() == 0:
        command[1:3] = []
    try:
        done = subprocess.run(
            [*map(str, command), sys.executable, code],
            cwd=Path(__file__).parents[2],
            capture_output=True,
            text=True,
            check=False,
        )
    except FileNotFoundError:
        pytest.skip("NOT TESTED: this machine has no unshare")
    if "mount" in done.stderr or "unshare" in done.stderr:
        pytest.skip(f"NOT TESTED: this machine lets nobody mount a small disk: {done.stderr.strip()}")

    first, *told, last = done.stdout.splitlines()
    assert (int(first.split()[0]) in range(15, 27), first.split()[1]) == (True, "True"), done
    assert told[0] == "the disk of the cache is full: No space left on device"
    assert last == "[]"


def test_many_threads_of_one_process_may_ask_at_once(tmp_path):
    cache = Cache(tmp_path, 100 * SIZE)
    begun, start = [], threading.Barrier(8)

    def ask() -> None:
        start.wait()
        begun.append(cache.begin(name_of(1), SIZE, now=True))

    threads = [threading.Thread(target=ask) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()

    first = [arriving for arriving in begun if arriving is not None]
    assert (len(begun), len(first)) == (8, 1)
    first[0].abandon()
    assert files_in(tmp_path / "shards") == []
