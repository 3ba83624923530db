"""Three ways to make a batch, which must give the same one, and how one of them is chosen."""

from __future__ import annotations

import subprocess
import sys
import warnings

import numpy as np
import pytest
import torch
from alexshard.pipeline import Loader, NoDali, UndecodableSample, graph, kernels
from alexshard.pipeline.choosing import SLOW
from alexshard.shards import WrongCall

BACKENDS = ("threads", "dali", "reference")
TREATMENTS = (
    {"augment": "paper", "mean": "image"},
    {"augment": "paper", "mean": "channel"},
    {"augment": "paper", "mean_crop": "centre", "eigen": "published"},
    {"augment": "original", "mean": "image"},
    {"augment": "original", "mean": "channel", "jitter_steps": 1},
    {"augment": None, "mean": "image", "crop": 70},
    {"augment": None, "mean_crop": "centre", "views": 10},
    {"augment": None, "mean": "channel", "views": 10},
)
# One step of the format, relative to the value: the ways round sums that differ in the last bit of float32.
STEP = {"float32": 0.0, "float16": 2.0**-10, "bfloat16": 2.0**-7, "uint8": 0.0}


def batches_of(pictures, backend, **options):
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="backend='reference'")
        loader = Loader(pictures.path, batch_size=24, seed=5, epoch=1, backend=backend, threads=2, **options)
    with loader:
        assert loader.backend == backend
        return list(loader)


def assert_the_same(pictures, **options):
    ways = [batches_of(pictures, backend, **options) for backend in BACKENDS]
    step = STEP[options.get("output", "float32")]
    for first, *others in zip(*ways, strict=True):
        for other in others:
            assert other.keys == first.keys
            assert other.images.dtype == first.images.dtype
            assert other.images.stride() == first.images.stride()
            torch.testing.assert_close(other.images.float(), first.images.float(), atol=1e-3, rtol=step)
            assert other.scale == first.scale
            for field in ("labels", "crop", "mirror", "offset", "valid"):
                assert torch.equal(getattr(other, field), getattr(first, field))
    return ways[0]


@pytest.mark.parametrize("treatment", TREATMENTS, ids=str)
def test_whoever_makes_them_batches_are_the_same(jpeg_set, treatment):
    batches = assert_the_same(jpeg_set, **treatment)

    assert len(batches) == 3
    assert batches[0].images.dtype == torch.float32


@pytest.mark.parametrize("output", ["float16", "bfloat16", "uint8"])
@pytest.mark.parametrize("treatment", [TREATMENTS[0], TREATMENTS[3], TREATMENTS[7]], ids=str)
def test_in_every_output_too(raw_set, output, treatment):
    batches = assert_the_same(raw_set, output=output, **treatment)

    assert batches[0].images.dtype == getattr(torch, output)


@pytest.mark.parametrize("output", ["float32", "float16"])
@pytest.mark.parametrize("treatment", [TREATMENTS[0], TREATMENTS[6]], ids=str)
def test_channels_last_is_a_way_to_lie_in_memory_and_nothing_else(raw_set, output, treatment):
    last = assert_the_same(raw_set, output=output, channels_last=True, **treatment)
    first = batches_of(raw_set, "threads", output=output, **treatment)

    for one, other in zip(last, first, strict=True):
        assert one.images.shape == other.images.shape
        assert one.images.flatten(0, -4).is_contiguous(memory_format=torch.channels_last)
        assert other.images.is_contiguous()
        assert torch.equal(one.images, other.images)


@pytest.mark.parametrize("backend", ["threads", "dali"])
@pytest.mark.parametrize(
    "options",
    [{}, {"output": "uint8"}, {"output": "bfloat16", "channels_last": True}, {"augment": None, "views": 10}],
    ids=str,
)
def test_fifty_batches_that_somebody_keeps_are_never_overwritten(jpeg_set, backend, options, digest):
    with Loader(jpeg_set.path, batch_size=8, backend=backend, **options) as loader:
        kept = [(batch.images, digest(batch.images)) for _ in range(6) for batch in loader]

    assert len(kept) == len({images.data_ptr() for images, _ in kept}) == 54
    assert [digest(images) for images, _ in kept] == [was for _, was in kept]


def test_torch_gets_the_threads_memory_not_a_copy(raw_set):
    with Loader(raw_set.path, batch_size=8, backend="threads", output="bfloat16") as loader:
        maker = loader._maker
        for (_, work, _), _ in zip(loader._deliveries.works(0), range(2), strict=False):
            maker.begin(work)
        _, out = maker._begun[0]

        assert maker.collect()().data_ptr() == out.ctypes.data


def test_on_the_cores_threads_make_batches_where_the_kernels_are(raw_set, monkeypatch):
    chosen = {}
    for available in (True, False):
        monkeypatch.setattr(kernels, "AVAILABLE", available)
        with Loader(raw_set.path, batch_size=8) as loader:
            chosen[available] = loader.backend

    assert chosen == {True: "threads", False: "dali"}


def test_dalis_decoder_is_dalis(jpeg_set):
    with Loader(jpeg_set.path, batch_size=8, decoder="split") as loader:
        assert (loader.backend, loader.decoder, loader.split_share) == ("dali", "split", 0.5)


def without_dali(monkeypatch):
    graph.dali.cache_clear()
    monkeypatch.setitem(sys.modules, "nvidia.dali.fn", None)


def test_without_dali_the_error_names_the_extra_and_what_does_without(raw_set, monkeypatch):
    without_dali(monkeypatch)
    with pytest.raises(NoDali, match=r"pip install '\.\[cuda13\]' .* in the clone of alexshard") as told:
        Loader(raw_set.path, batch_size=10, backend="dali")

    assert "backend='reference'" in str(told.value)


def test_without_dali_and_kernels_the_error_names_the_reference(raw_set, monkeypatch):
    without_dali(monkeypatch)
    monkeypatch.setattr(kernels, "AVAILABLE", False)
    with pytest.raises(WrongCall, match="nothing to make batches with") as told:
        Loader(raw_set.path, batch_size=10)

    assert "backend='reference'" in str(told.value)


def test_the_reference_says_that_it_is_slow_to_whoever_made_the_loader(raw_set):
    with pytest.warns(UserWarning, match="plain NumPy and Pillow") as told:
        Loader(raw_set.path, batch_size=10, backend="reference").close()

    assert [str(each.message) for each in told] == [SLOW]
    assert told[0].filename == __file__


@pytest.mark.parametrize(("backend", "unwanted"), [("threads", {"nvidia"}), ("reference", {"nvidia"})])
def test_without_dali_nobody_imports_it(jpeg_set, backend, unwanted):
    code = (
        "import sys; from alexshard.pipeline import Loader; "
        f"next(iter(Loader(sys.argv[1], batch_size=8, backend={backend!r}))); "
        "print(*{name.partition('.')[0] for name in sys.modules})"
    )
    command = [sys.executable, "-W", "ignore", "-c", code, str(jpeg_set.path)]
    done = subprocess.run(command, capture_output=True, text=True, check=True, timeout=60)

    assert "torch" in done.stdout.split()
    assert unwanted & set(done.stdout.split()) == set()


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("encoding", ["raw", "jpeg"])
def test_batches_before_a_damaged_image_arrive_and_then_its_error(
    raw_set, jpeg_set, tmp_path, spoiled, backend, encoding
):
    """Whatever was on its way; and the loader can be asked again."""
    pictures = raw_set if encoding == "raw" else jpeg_set
    damaged = spoiled(pictures, tmp_path / "spoiled", sample=30, at=200, by=bytes(40))
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="backend='reference'")
        loader = Loader(tmp_path / "spoiled", batch_size=8, order="stored", backend=backend, prefetch=2)
    with loader:
        got = []
        with pytest.raises(UndecodableSample, match=f"sample {damaged} ") as told:
            for batch in loader:
                got += batch.keys
        assert "train-000000.tar" in str(told.value)
        assert got == pictures.keys["train"][:24]
        with pytest.raises(UndecodableSample, match=f"sample {damaged} "):
            next(iter(loader))
        assert loader.state_dict()["position"] == 24


def test_the_same_damaged_image_is_told_of_however_threads_run(jpeg_set, tmp_path, spoiled):
    folder = tmp_path / "spoiled"
    first = spoiled(jpeg_set, folder, sample=3, at=200, by=bytes(40))
    spoiled(jpeg_set, folder, sample=33, at=200, by=bytes(40))
    with Loader(folder, batch_size=40, order="stored", backend="threads", threads=8) as loader:
        for _ in range(10):
            with pytest.raises(UndecodableSample, match=f"sample {first} "):
                next(iter(loader))


def test_float_outputs_round_to_the_nearest(raw_set):
    exact, half = (batches_of(raw_set, "threads", output=output)[0].images for output in ("float32", "float16"))

    assert torch.equal(half, exact.to(torch.float16))
    assert np.isfinite(half.numpy()).all()
