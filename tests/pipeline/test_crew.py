"""Threads that do pieces of work, and the memory that they write to."""

from __future__ import annotations

import gc
import os
import threading
import time
import tracemalloc

import numpy as np
import pytest
import torch
from alexshard.pipeline import Loader
from alexshard.pipeline.buffers import BufferRing
from alexshard.pipeline.crew import Abandoned, Crew

DEADLINE_S = 30.0


@pytest.fixture
def crew():
    crew = Crew(3, list, name="crew-of-test")
    yield crew
    crew.close()


def threads_of_test():
    return [thread for thread in threading.enumerate() if thread.name.startswith("crew-of-test")]


def gone_in_time():
    for thread in threads_of_test():
        thread.join(DEADLINE_S)
    return not threads_of_test()


def test_every_piece_is_done_once_each_with_what_its_thread_keeps(crew):
    done = []

    def piece(number, own):
        own.append(number)
        done.append((number, id(own)))

    task = crew.begin([lambda own, number=number: piece(number, own) for number in range(100)])
    task.wait()

    assert sorted(number for number, _ in done) == list(range(100))
    assert 1 <= len({own for _, own in done}) <= 3


def test_a_task_without_pieces_is_done(crew):
    crew.begin([]).wait()


def test_a_thread_that_is_done_goes_on_with_the_next_task(crew):
    """So a batch's slowest piece holds up no other thread."""
    release = threading.Event()
    slow = crew.begin([lambda _: release.wait(DEADLINE_S) or None, lambda _: None])
    crew.begin([lambda _: None] * 50).wait()
    assert slow._left == 1

    release.set()
    slow.wait()


@pytest.mark.parametrize("fails_first", [0, 1])
def test_of_several_errors_the_first_pieces_is_told_as_itself(crew, fails_first):
    """Whichever failed first: both run at the same time."""
    both, other_failed = threading.Barrier(2), threading.Event()
    errors = [ValueError("first piece"), KeyError("second piece")]

    def fails(number):
        both.wait(DEADLINE_S)
        if number != fails_first:
            other_failed.wait(DEADLINE_S)
        raise errors[number]

    task = crew.begin([lambda _: fails(0), lambda _: fails(1)])
    deadline = time.monotonic() + DEADLINE_S
    while task._failed is None and time.monotonic() < deadline:
        os.sched_yield()
    assert task._failed == (fails_first, errors[fails_first])
    other_failed.set()
    with pytest.raises(ValueError, match="first piece") as told:
        task.wait()

    assert told.value is errors[0]


def test_pieces_after_a_failed_one_are_left_out(crew):
    done = []
    held = threading.Barrier(3)
    for _ in range(2):  # one thread is left, so pieces are done in order
        crew.begin([lambda _: held.wait(DEADLINE_S) and None])

    def fails(_):
        raise ValueError("the second")

    task = crew.begin([lambda _: done.append(0), fails, lambda _: done.append(2)])
    with pytest.raises(ValueError, match="the second"):
        task.wait()
    held.wait(DEADLINE_S)

    assert done == [0]


def test_what_a_thread_cannot_make_for_itself_is_an_error_of_its_pieces():
    def no_memory():
        raise MemoryError("no room for scratch")

    crew = Crew(2, no_memory, name="crew-of-test")
    for _ in range(2):
        with pytest.raises(MemoryError, match="no room"):
            crew.begin([lambda _: None] * 4).wait()
    crew.close()

    assert gone_in_time()


def test_a_cancelled_task_lets_go_of_whoever_waits_though_a_piece_still_hangs(crew):
    hangs, told = threading.Event(), []
    task = crew.begin([lambda _: hangs.wait(DEADLINE_S) and None])

    def wait():
        try:
            task.wait()
        except Abandoned as error:
            told.append(error)

    waiting = threading.Thread(target=wait)
    waiting.start()
    task.cancel()
    waiting.join(DEADLINE_S)
    hangs.set()

    assert len(told) == 1


def test_threads_end_when_the_crew_is_closed_or_forgotten():
    for forget in (False, True):
        crew = Crew(3, list, name="crew-of-test")
        crew.begin([lambda _: None] * 5).wait()
        assert len(threads_of_test()) == 3
        if forget:
            del crew
            gc.collect()
        else:
            crew.close()
            crew.close()
        assert gone_in_time()


def test_a_crew_without_work_has_no_threads():
    crew = Crew(3, list, name="crew-of-test")

    assert not threads_of_test()
    crew.close()


def test_a_buffer_comes_back_only_when_no_view_of_it_lives():
    ring = BufferRing()
    first = ring.take((4, 5, 3))
    place = first.ctypes.data
    row = torch.from_numpy(first[1:])[0]
    del first
    second = ring.take((4, 5, 3))
    assert second.ctypes.data != place

    del row
    third = ring.take((2, 5, 3))
    assert third.ctypes.data == place
    assert third.shape == (2, 5, 3)


def test_a_buffer_too_small_is_not_used():
    ring = BufferRing()
    del_me = ring.take((10,))
    del del_me

    assert ring.take((20,)).shape == (20,)


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16, np.float32])
def test_a_buffer_has_the_shape_and_dtype_asked_for_and_begins_at_a_cache_line(dtype):
    taken = BufferRing().take((3, 5, 7), dtype)

    assert (taken.shape, taken.dtype) == ((3, 5, 7), dtype)
    assert taken.ctypes.data % 64 == 0
    assert taken.flags.c_contiguous
    assert taken.flags.writeable


@pytest.mark.parametrize("backend", ["threads", "dali"])
def test_a_closed_loader_holds_no_batches(jpeg_set, backend):
    with Loader(jpeg_set.path, batch_size=24, backend=backend) as warm:  # modules stay
        next(iter(warm))
    tracemalloc.start()
    try:
        with Loader(jpeg_set.path, batch_size=24, backend=backend) as loader:
            held = [batch.images for batch in loader]
            nbytes = held[0].nbytes
            del held
            before = tracemalloc.get_traced_memory()[0]
        gc.collect()
        after = tracemalloc.get_traced_memory()[0]
    finally:
        tracemalloc.stop()

    assert loader.threads > 0  # it lives
    assert before - after > nbytes // 4
    assert after < nbytes
