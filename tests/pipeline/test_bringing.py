"""Processes and threads that fetch shards: each shard once, and nothing is left however they end."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading

import pytest
from alexshard.pipeline import bringing, fetching, open_shard_set
from alexshard.pipeline.cache import Cache
from alexshard.pipeline.fetching import Stopped
from alexshard.shards import AlexshardError
from fsspec.implementations.local import LocalFileSystem

from tests.pipeline.far import opened, read, wait_until
from tests.s3_server import Hold


def test_processes_that_share_a_cache_fetch_each_shard_once(far):
    others = [
        far.beside("far_set.shelf.ahead(shards); say(*[read(far_set, s) == s.sha256 for s in shards])")
        for _ in range(2)
    ]

    for other in others:
        told, errors = other.communicate()
        assert told == "True True\n", errors
    parts = [(seen.path, seen.range) for seen in far.s3.proxy.seen("GET", ".tar")]
    assert len(parts) == len(set(parts)) == 8
    assert len(far.asked("samples.tsv")) == 1
    assert far.left() == []


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGKILL])
def test_who_is_ended_in_the_middle_of_a_shard_leaves_nothing_in_anybodys_way(far, number):
    hold = Hold(key="train-000000.tar", skip=1)
    far.s3.proxy.add(hold)
    other = far.beside("far_set.shelf.ahead(shards[1:]); say(read(far_set, shards[0]))")
    assert hold.reached.wait(60)

    other.send_signal(number)
    other.communicate()

    if number == signal.SIGINT:
        assert far.left() == []
        assert list((far.cache / "leases").iterdir()) == []
    hold.release()
    with opened(far) as shard_set:
        shard = shard_set.index("train").shards[0]
        assert read(shard_set, shard) == shard.sha256
    assert far.left() == []


def test_close_ends_a_download_in_the_middle_and_a_later_call_begins_anew(far, monkeypatch):
    monkeypatch.setattr(fetching, "PART_BYTES", 1 << 20)  # one request, so that nothing else ends it
    hold = Hold(key="train-000000.tar")
    far.s3.proxy.add(hold)
    with opened(far) as shard_set:
        shards = shard_set.index("train").shards
        shard_set.shelf.ahead(shards)
        told: list[BaseException] = []

        def wait() -> None:
            try:
                read(shard_set, shards[0])
            except AlexshardError as error:
                told.append(error)

        waiting = threading.Thread(target=wait)
        waiting.start()
        assert hold.reached.wait(60)
        shard_set.shelf.close()
        waiting.join(30)

        assert [type(error) for error in told] == [Stopped]
        assert [thread.name for thread in threading.enumerate() if thread.name == "alexshard-fetch"] == []
        assert far.left() == []
        hold.release()
        assert read(shard_set, shards[0]) == shards[0].sha256


def test_a_forked_process_fetches_for_itself(far):
    code = """
read(far_set, shards[0])
child = os.fork()
if not child:
    os._exit(0 if read(far_set, shards[1]) == shards[1].sha256 else 1)
say(os.waitpid(child, 0)[1], read(far_set, shards[1]) == shards[1].sha256)
"""
    told, errors = far.beside(code).communicate()

    assert told == "0 True\n", errors


def test_a_shard_is_never_held_whole(far):
    code = """
import os, sys, tracemalloc
from alexshard.pipeline.fetching import RemoteFiles
files = RemoteFiles(sys.argv[1])
size, come = int(sys.argv[2]), 0
def put(offset, data):
    global come
    assert offset == come
    come += len(data)
files.read("small")
tracemalloc.start()
files.download("large", size, put)
print(come, tracemalloc.get_traced_memory()[1])
"""
    size = 64 << 20
    far.s3.server.put("sets/b/large", os.urandom(1 << 20) * 64)
    far.s3.server.put("sets/b/small", b"x")
    done = subprocess.run(
        [sys.executable, "-c", code, far.s3.url("sets/b"), str(size)],
        env={**os.environ, **far.s3.environment},
        capture_output=True,
        text=True,
        check=True,
    )

    come, most = map(int, done.stdout.split())
    assert come == size
    assert most < 32 << 20


def test_a_thread_that_cannot_start_or_fails_is_not_counted(far, monkeypatch):
    with opened(far) as shard_set:
        shards = shard_set.index("train").shards
        with monkeypatch.context() as broken:
            broken.setattr(Cache, "holds", lambda *_: 1 / 0)
            shard_set.shelf.ahead(shards)
            assert wait_until(lambda: not fetching_threads())
            broken.setattr(threading.Thread, "start", lambda _: 1 / 0)
            with pytest.raises(ZeroDivisionError):
                shard_set.shelf.ahead(shards)

        shard_set.shelf.ahead(shards)
        assert wait_until(lambda: len(list((far.cache / "shards").glob("*.tar"))) == 2)


def fetching_threads() -> list[threading.Thread]:
    return [thread for thread in threading.enumerate() if thread.name == "alexshard-fetch"]


def test_closing_waits_no_longer_than_it_must_for_a_store_that_cannot_be_interrupted(far, monkeypatch):
    monkeypatch.setattr(bringing, "_END_S", 0.1)
    shard_set = open_shard_set(f"file://{far.here}", cache=far.cache)
    shards = shard_set.index("train").shards
    reached, released = threading.Event(), threading.Event()

    def hang(*_: object, **__: object) -> bytes:
        reached.set()
        released.wait()
        raise OSError("gone")

    monkeypatch.setattr(LocalFileSystem, "cat_file", hang)
    shard_set.shelf.ahead(shards)
    assert reached.wait(60)

    shard_set.shelf.close()

    assert fetching_threads()
    released.set()
    assert wait_until(lambda: not fetching_threads())
    assert far.left() == []


def test_a_training_run_ended_by_a_signal_in_the_middle_of_a_shard_leaves_nothing(far, tmp_path):
    hold = Hold(key="train-000001.tar")
    far.s3.proxy.add(hold)
    said = tmp_path / "said"
    options = "--out run --order stored --width 0.125 -b 8 --threads 1 --epochs 2 --log-every 1"
    command = f"alexshard.tools.cli_alextrain run --shards {far.address} --cache {far.cache} {options}"
    with (
        said.open("w") as stderr,
        subprocess.Popen(
            [sys.executable, "-m", *command.split()],
            cwd=tmp_path,
            env={**os.environ, **far.s3.environment},
            stderr=stderr,
            stdout=subprocess.DEVNULL,
        ) as run,
    ):
        # Of the five batches of the first shard one is done, and the second shard is on its way.
        assert wait_until(lambda: run.poll() is not None or "step 1 " in said.read_text())
        assert hold.reached.wait(60)
        run.send_signal(signal.SIGTERM)
        assert run.wait(60) == 128 + signal.SIGTERM, said.read_text()

    assert "alextrain run --resume run" in said.read_text()
    assert far.left() == []
    assert list((far.cache / "leases").iterdir()) == []
