"""The graph itself: its form that decodes, and the life of its outputs."""

from __future__ import annotations

import gc
import os
import resource
import signal
import subprocess
import sys
import threading
import weakref
from itertools import islice
from pathlib import Path

import pytest
import torch
from alexshard.pipeline import Loader
from alexshard.pipeline.lent import when_forgotten

# Largest difference of a pixel between DALI 2.4.0's decoder for the cores and simplejpeg 1.9.0.
GRAPH_DECODER_DIFFERS = 0.0


@pytest.mark.parametrize("decoder", ["card", "split"])
@pytest.mark.parametrize("options", [{}, {"output": "uint8"}, {"augment": None, "views": 10}])
def test_it_is_the_same_whoever_decodes(jpeg_set, decoder, options):
    """On a card the graph decodes, all or a part of a batch; on the cores it can too, by DALI's own decoder."""
    batches = []
    for who in ("cores", decoder):
        with Loader(jpeg_set.path, batch_size=20, backend="dali", decoder=who, **options) as loader:
            assert (loader.backend, loader.decoder) == ("dali", who)
            batches.append(list(loader))

    assert len(batches[0]) == 3
    for one, other in zip(*batches, strict=True):
        assert one.keys == other.keys
        torch.testing.assert_close(one.images, other.images, atol=GRAPH_DECODER_DIFFERS + 1e-3, rtol=0)


@pytest.mark.parametrize("backend", ["threads", "dali"])
def test_a_batch_can_be_written_to_without_touching_another(raw_set, backend, digest):
    with Loader(raw_set.path, batch_size=8, backend=backend) as loader:
        first, *others = list(loader)
        before = [digest(batch.images) for batch in others]
        first.images.zero_()

        assert [digest(batch.images) for batch in others] == before


def test_torch_gets_dalis_memory_not_a_copy(raw_set):
    with Loader(raw_set.path, batch_size=8, backend="dali") as loader:
        maker = loader._maker
        for _, work, _ in islice(loader._deliveries.works(0), 3):
            maker.begin(work)
        made = maker.collect()
        (output,) = made.args[0]

        assert made().data_ptr() == output.data_ptr()


@pytest.mark.parametrize("backend", ["threads", "dali"])
def test_memory_of_batches_that_nobody_keeps_is_used_again(jpeg_set, backend):
    def resident_bytes():
        return int(Path("/proc/self/statm").read_text().split()[1]) * resource.getpagesize()

    with Loader(jpeg_set.path, batch_size=8, backend=backend) as loader:
        for _ in range(3):
            list(loader)
        before = resident_bytes()
        delivered = sum(batch.images.nbytes for _ in range(80) for batch in loader)

    assert delivered > 250e6
    assert resident_bytes() - before < 60e6


LEAVE = """
import gc, os, signal, sys, threading
from alexshard.pipeline import Loader

loader = Loader(sys.argv[1], batch_size=8, backend=sys.argv[3])
batches = iter(loader)
kept = [next(batches) for _ in range(3)]
how = sys.argv[2]
while not loader._running.full:  # then the thread waits for room, and a run of the graph waits to be collected
    os.sched_yield()
if how == "raise":
    raise SystemExit(3)
if how == "interrupt":
    os.kill(os.getpid(), signal.SIGINT)
    list(batches)
if how == "forget":
    del batches, loader
    gc.collect()
    for thread in threading.enumerate()[1:]:  # one that was busy let go of the loader last, and ends by itself
        thread.join(30)
    assert [thread.name for thread in threading.enumerate()] == ["MainThread"], threading.enumerate()
"""


@pytest.mark.parametrize("backend", ["threads", "dali"])
@pytest.mark.parametrize(
    ("encoding", "how", "code"),
    [
        ("raw", "abandon", 0),
        ("jpeg", "abandon", 0),
        ("raw", "raise", 3),
        ("jpeg", "forget", 0),
        ("jpeg", "interrupt", -signal.SIGINT),
    ],
)
def test_leaving_in_the_middle_of_an_epoch_ends_the_process(raw_set, jpeg_set, encoding, how, code, backend):
    pictures = raw_set if encoding == "raw" else jpeg_set
    command = [sys.executable, "-W", "error", "-c", LEAVE, str(pictures.path), how, backend]
    done = subprocess.run(command, timeout=60, capture_output=True, text=True, env=os.environ, check=False)

    assert done.returncode == code, done.stderr
    if how != "interrupt":
        assert done.stderr == ""


@pytest.mark.parametrize("backend", ["threads", "dali"])
@pytest.mark.parametrize("taken", [0, 1])
def test_a_loader_that_is_forgotten_is_gone_however_far_its_iterator_came(jpeg_set, taken, backend):
    loader = Loader(jpeg_set.path, batch_size=8, backend=backend)
    batches = iter(loader)
    for _ in range(taken):
        next(batches)
    lives = weakref.ref(loader)
    del loader, batches
    gc.collect()
    ours = [thread for thread in threading.enumerate() if thread.name.startswith("alexshard")]
    for thread in ours:  # one that was busy let go of the loader last, and ends by itself
        thread.join(30)

    assert lives() is None
    assert not [thread.name for thread in ours if thread.is_alive()]


def test_memory_is_let_go_when_the_last_view_is_and_not_before(raw_set):
    """What lends a batch's memory on a card rests on it: torch may keep it for views and for the backward pass."""
    with Loader(raw_set.path, batch_size=8, backend="dali") as loader:
        images = next(iter(loader)).images
    gone = []
    when_forgotten(images, gone.append, "gone")
    view = images[1:].movedim(1, -1)
    del images
    weight = torch.ones(3, requires_grad=True)
    loss = (view * weight).sum()
    del view
    gc.collect()
    assert gone == []

    loss.backward()
    assert gone == ["gone"]


def test_importing_the_pipeline_does_not_import_dali():
    code = "import sys, alexshard.pipeline; sys.exit(any(name.startswith('nvidia') for name in sys.modules))"

    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
