"""A loader that is closed, left or forked while its threads wait for something that does not come."""

from __future__ import annotations

import os
import subprocess
import sys
import threading

import pytest
from alexshard.pipeline import Loader, StaleIteration
from alexshard.pipeline.ahead import ReadAhead
from alexshard.shards import LocalShelf, ShardSet, WrongCall

DEADLINE_S = 30.0


class DistantShelf(LocalShelf):
    """Its shards do not come, as from a store that hangs, until it is closed."""

    def __init__(self, folder):
        super().__init__(folder)
        self.asked, self.closed = threading.Event(), threading.Event()

    def open(self, shard):
        self.asked.set()
        self.closed.wait(DEADLINE_S)
        raise WrongCall(f"{shard.name} did not come before the shelf was closed")

    def close(self):
        self.closed.set()


@pytest.fixture
def distant(jpeg_set):
    opened = ShardSet.open(jpeg_set.path)
    shelf = DistantShelf(jpeg_set.path)
    yield ShardSet(opened.path, opened.manifest, shelf)
    shelf.close()
    for thread in threading.enumerate():
        if thread.name.startswith("alexshard"):
            thread.join(DEADLINE_S)


def taking(loader):
    """A thread that takes a batch, and what became of it."""
    told = []

    def take():
        try:
            told.append(next(iter(loader)))
        except Exception as error:
            told.append(error)

    thread = threading.Thread(target=take)
    thread.start()
    return thread, told


@pytest.mark.parametrize("backend", ["threads", "dali"])
def test_closing_does_not_wait_for_a_shard_that_does_not_come(distant, backend):
    loader = Loader(distant, batch_size=8, backend=backend)
    thread, told = taking(loader)
    assert distant.shelf.asked.wait(DEADLINE_S)
    loader.close()
    thread.join(DEADLINE_S)

    assert [type(each) for each in told] == [StaleIteration]
    assert not distant.shelf.closed.is_set()  # another loader may use what was handed in


@pytest.mark.parametrize("backend", ["threads", "dali"])
def test_what_the_shelf_says_is_what_the_consumer_hears(distant, backend):
    loader = Loader(distant, batch_size=8, backend=backend)
    thread, told = taking(loader)
    assert distant.shelf.asked.wait(DEADLINE_S)
    distant.shelf.close()
    thread.join(DEADLINE_S)
    loader.close()

    assert "did not come before the shelf was closed" in str(told[0])


def test_a_loader_closes_the_shelf_that_it_opened_and_no_other(jpeg_set, monkeypatch):
    closed = []
    monkeypatch.setattr(LocalShelf, "close", lambda self: closed.append(self))
    shard_set = ShardSet.open(jpeg_set.path)
    with Loader(shard_set, batch_size=8) as loader:
        next(iter(loader))
    assert closed == []

    with Loader(jpeg_set.path, batch_size=8) as loader:
        next(iter(loader))
    assert closed == [loader.shard_set.shelf]


EXIT = """
import sys, threading
from pathlib import Path
from alexshard.pipeline import Loader
from alexshard.shards import LocalShelf, ShardSet

asked = threading.Event()

class Distant(LocalShelf):
    def open(self, shard):
        asked.set()
        threading.Event().wait()  # for ever

opened = ShardSet.open(sys.argv[1])
loader = Loader(ShardSet(opened.path, opened.manifest, Distant(opened.path)), batch_size=8, backend=sys.argv[2])
threading.Thread(target=lambda: next(iter(loader), None), daemon=True).start()
asked.wait()
"""


@pytest.mark.parametrize("backend", ["threads", "dali"])
def test_a_process_ends_though_a_shard_never_comes(jpeg_set, backend):
    command = [sys.executable, "-W", "error", "-c", EXIT, str(jpeg_set.path), backend]
    done = subprocess.run(command, timeout=60, capture_output=True, text=True, env=os.environ, check=False)

    assert (done.returncode, done.stderr) == (0, "")


FORK = """
import os, sys, warnings
warnings.simplefilter("ignore", DeprecationWarning)  # of Python 3.12 on, which warns of forks with threads
from alexshard.pipeline import Loader

loader = Loader(sys.argv[1], batch_size=8, backend=sys.argv[2])
batches = iter(loader)
next(batches)
child = os.fork()
if child == 0:
    code = 0
    for take in (lambda: next(batches), lambda: iter(loader)):
        try:
            take()
        except Exception as error:
            print(type(error).__name__, "process forked" in str(error), flush=True)
    loader.close()
    os._exit(5)  # as multiprocessing ends its forks: the end of DALI (2.4.0) does not survive one
_, status = os.waitpid(child, 0)
print(os.waitstatus_to_exitcode(status), 1 + sum(1 for _ in batches))
"""


@pytest.mark.parametrize("backend", ["threads", "dali"])
def test_a_fork_is_told_to_make_its_own_loader_and_the_parent_goes_on(jpeg_set, backend):
    command = [sys.executable, "-c", FORK, str(jpeg_set.path), backend]
    done = subprocess.run(command, timeout=60, capture_output=True, text=True, env=os.environ, check=False)

    assert done.returncode == 0, done.stderr
    assert done.stdout.split("\n") == ["WrongCall True", "WrongCall True", "5 9", ""]


class Broken:
    """Items that can neither be made nor be let go."""

    def __next__(self):
        raise OSError("making failed")

    def close(self):
        raise OSError("letting go failed")


def test_nobody_waits_for_an_end_that_does_not_come_since_letting_go_failed():
    running, told = ReadAhead(Broken(), 1), []

    def take():
        with pytest.raises(OSError, match="failed") as raised:
            next(running)
        told.append(str(raised.value))

    consumer = threading.Thread(target=take, daemon=True)
    consumer.start()
    consumer.join(DEADLINE_S)

    assert told == ["making failed"]


def test_who_closes_is_not_told_that_letting_go_failed():
    """And nor is the interpreter, at the end of the thread: warnings are errors here."""

    def items():
        try:
            yield from range(9)
        finally:
            raise OSError("letting go failed")

    running = ReadAhead(items(), 1)
    assert next(running) == 0
    running.close()
