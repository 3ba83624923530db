"""The inner loops of loading give the numbers of NumPy, with AVX2, without it and without a compiler."""

from __future__ import annotations

import importlib.util
import os
import shutil
import subprocess
import sys
import sysconfig
import zlib
from pathlib import Path

import numpy as np
import pytest
import torch
from alexshard import pipeline
from alexshard.pipeline import kernels as installed
from alexshard.pipeline.draws import Draws
from alexshard.pipeline.reference import training_images
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

SOURCE = Path(installed.__file__).with_name("_kernels.c")
KINDS = (np.float32, np.float16, np.uint16)
UNCHANGED = {  # what finish does with it: another type, and planes
    "y": 0,
    "x": 0,
    "mirror": False,
    "mean": None,
    "mean_y": 0,
    "mean_x": 0,
    "mean_mirror": False,
    "add": np.zeros(3, np.float32),
    "scale": 1.0,
    "channels_last": False,
}


def module_from(path: Path, name: str):
    spec = importlib.util.spec_from_file_location(f"alexshard.pipeline.{name}", path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def compiled_without_avx2(folder: Path):
    compiler = shutil.which("cc")
    if compiler is None:
        pytest.skip("NOT TESTED: no C compiler")
    library = folder / "_kernels.abi3.so"
    flags = ["-DPORTABLE", "-O2", "-ffp-contract=off", "-Wall", "-Wextra", "-Werror", "-shared", "-fPIC"]
    include = f"-I{sysconfig.get_paths()['include']}"
    subprocess.run([compiler, *flags, include, str(SOURCE), "-o", str(library)], check=True)
    return module_from(library, "_kernels")


def without_extension():
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(sys.modules, "alexshard.pipeline._kernels", None)
        patch.delattr(pipeline, "_kernels", raising=False)
        module = module_from(Path(installed.__file__), "kernels")
    assert not module.AVAILABLE
    return module


@pytest.fixture(scope="module", params=["compiled", "without AVX2", "NumPy"])
def kernels(request, tmp_path_factory):
    """Each of the three forms; that which set-up should have compiled is skipped, loudly, where it did not."""
    if request.param == "NumPy":
        return without_extension()
    if request.param == "without AVX2":
        return compiled_without_avx2(tmp_path_factory.mktemp("portable"))
    if not installed.AVAILABLE:
        pytest.skip("NOT TESTED: set-up compiled no extension (was a C compiler there?)")
    return installed


def many(examples: int):
    # The fixture gives functions, which keep nothing from one example to the next.
    return settings(
        max_examples=examples, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
    )


def within(guarded: np.ndarray, start: int, shape: tuple[int, ...]) -> np.ndarray:
    """An array of this shape in the middle of another, from element `start` on."""
    return guarded[start : start + int(np.prod(shape))].reshape(shape)


def assert_nothing_outside(guarded: np.ndarray, start: int, size: int, guard: int) -> None:
    assert (guarded[:start] == guard).all()
    assert (guarded[start + size :] == guard).all()


@st.composite
def crops(draw):
    """A crop's size, and a stored size and place that it fits: (h, w, H, W, y, x)."""
    h, w = draw(st.integers(1, 24)), draw(st.one_of(st.integers(1, 70), st.sampled_from([8, 16, 32, 40, 48, 64])))
    slack_y, slack_x = draw(st.integers(0, 5)), draw(st.integers(0, 19))
    return h, w, h + slack_y, w + slack_x, draw(st.integers(0, slack_y)), draw(st.integers(0, slack_x))


def taken(image, h, w, y, x, mirror):
    """The crop of an image (H, W, C), in NumPy."""
    crop = image[y : y + h, x : x + w]
    return crop[:, ::-1] if mirror else crop


@many(200)
@given(crop=crops(), mirror=st.booleans(), start=st.integers(0, 33), seed=st.integers(0, 99))
def test_cut_crops_and_mirrors_and_touches_nothing_else(kernels, crop, mirror, start, seed):
    h, w, height, width, y, x = crop
    pixels = np.random.default_rng(seed).integers(0, 256, (height, width, 3), np.uint8)
    guarded = np.full(3 * h * w + 80, 77, np.uint8)

    kernels.cut(pixels, within(guarded, start, (h, w, 3)), y=y, x=x, mirror=mirror)

    assert np.array_equal(within(guarded, start, (h, w, 3)), taken(pixels, h, w, y, x, mirror))
    assert_nothing_outside(guarded, start, 3 * h * w, 77)


@many(300)
@given(
    crop=crops(),
    mirror=st.booleans(),
    with_mean=st.booleans(),
    mean_mirror=st.booleans(),
    kind=st.sampled_from(KINDS),
    channels_last=st.booleans(),
    start=st.integers(0, 17),
    seed=st.integers(0, 99),
)
def test_finish_does_each_step_in_float32_and_rounds_once(
    kernels, crop, mirror, with_mean, mean_mirror, kind, channels_last, start, seed
):
    h, w, height, width, y, x = crop
    rng = np.random.default_rng(seed)
    pixels = rng.integers(0, 256, (height, width, 3), np.uint8)
    mean = rng.uniform(0, 255, (3, h + 3, w + 2)).astype(np.float32) if with_mean else None
    add, scale = rng.normal(0, 40, 3).astype(np.float32), rng.uniform(0.001, 2)
    shape = (h, w, 3) if channels_last else (3, h, w)
    guarded = np.full(3 * h * w + 64, 77, kind)

    changes = {
        "mirror": mirror,
        "mean_y": 2,
        "mean_x": 1,
        "mean_mirror": mean_mirror,
        "channels_last": channels_last,
    }
    changes |= {"y": y, "x": x, "mean": mean, "add": add, "scale": scale}
    kernels.finish(pixels, within(guarded, start, shape), **(UNCHANGED | changes))

    values = taken(pixels, h, w, y, x, mirror).astype(np.float32)
    if mean is not None:
        values = values - taken(mean.transpose(1, 2, 0), h, w, 2, 1, mean_mirror)
    values = (values + add) * np.float32(scale)
    values = values if channels_last else values.transpose(2, 0, 1)
    assert within(guarded, start, shape).tobytes() == rounded(values, kind).tobytes()
    assert_nothing_outside(guarded, start, 3 * h * w, 77)


def rounded(values: np.ndarray, kind: type) -> np.ndarray:
    """float32 in a kind of half, bfloat16 by torch."""
    if kind is not np.uint16:
        with np.errstate(over="ignore"):  # what is beyond 65,504 is infinite
            return values.astype(kind)
    brains = torch.from_numpy(np.ascontiguousarray(values)).bfloat16()
    return brains.view(torch.int16).numpy().view(np.uint16)


@pytest.mark.parametrize("kind", [np.float16, np.uint16])
def test_halves_are_rounded_to_the_nearest_and_ties_to_even(kernels, kind):
    """Every size of float32: random ones, then the middles between neighbours, and what is next to these."""
    finite = np.arange(0, 0x7C00 if kind is np.float16 else 0x7F80, dtype=np.uint16)
    neighbours = finite.view(np.float16).astype(np.float64) if kind is np.float16 else brain_values(finite)
    middles = ((neighbours[:-1] + neighbours[1:]) / 2).astype(np.float32)
    values = np.random.default_rng(0).integers(0, 0x7F800000, 100_000, np.uint32).view(np.float32)
    ties = [middles, np.nextafter(middles, np.float32(0)), np.nextafter(middles, np.float32(1e30))]
    values = np.concatenate([values, *ties, neighbours.astype(np.float32), [np.float32(np.inf)]])
    values = np.concatenate([values, -values])
    values = np.resize(values, (3, 1, len(values)))
    out = np.empty(values.shape, kind)

    black = np.zeros((1, values.shape[2], 3), np.uint8)
    kernels.finish(black, out, **(UNCHANGED | {"mean": -values}))

    assert np.array_equal(out.view(np.uint16), rounded(np.float32(0) + values, kind).view(np.uint16))


def brain_values(bits: np.ndarray) -> np.ndarray:
    return (bits.astype(np.uint32) << 16).view(np.float32).astype(np.float64)


@pytest.mark.parametrize("preset", ["paper", "original"])
def test_finish_is_what_the_reference_states(kernels, preset):
    """Full size, in memory as batches have it, so that stores go past the caches."""
    rng = np.random.default_rng(3)
    pixels = rng.integers(0, 256, (6, 256, 256, 3), np.uint8)
    mean = rng.uniform(90, 130, (3, 256, 256)).astype(np.float32)
    jitter = rng.normal(0, 20, (6, 3))
    draws = Draws(*(rng.integers(0, 32, (2, 6))), rng.integers(0, 2, 6).astype(bool), rng.normal(size=(6, 3)))
    augmentation = pipeline.PAPER if preset == "paper" else pipeline.ORIGINAL
    batch = installed.batch_memory(6 * 3 * 224 * 224 * 4).view(np.float32).reshape(6, 3, 224, 224)

    for image in range(6):
        y, x, mirror = int(draws.y[image]), int(draws.x[image]), bool(draws.mirror[image])
        own = preset == "paper"
        place = {"mean_y": y, "mean_x": x, "mean_mirror": mirror} if own else {"mean_y": 16, "mean_x": 16}
        place |= {"y": y, "x": x, "mirror": mirror, "mean": mean}
        change = {"add": jitter[image].astype(np.float32), "scale": 1 / augmentation.divisor}
        kernels.finish(pixels[image], batch[image], **(UNCHANGED | place | change))

    stated = training_images(
        pixels, draws, side=224, mean_HWC=mean.transpose(1, 2, 0), jitter_N3=jitter, augmentation=augmentation
    )
    assert np.abs(batch - stated).max() < 1e-4


def cut_arguments():
    return {
        "pixels": np.zeros((20, 30, 3), np.uint8),
        "out": np.zeros((16, 16, 3), np.uint8),
        "y": 4,
        "x": 14,
        "mirror": True,
    }


def finish_arguments():
    return {
        **UNCHANGED,
        **cut_arguments(),
        "out": np.zeros((3, 16, 16), np.float32),
        "mean": np.zeros((3, 17, 18), np.float32),
        "mean_y": 1,
        "mean_x": 2,
        "mean_mirror": True,
    }


def read_only(array):
    array.flags.writeable = False
    return array


@pytest.mark.parametrize("name", ["cut", "finish"])
@pytest.mark.parametrize(
    ("argument", "spoil"),
    [
        ("y", lambda y: y + 1),
        ("x", lambda x: x + 1),
        ("y", lambda _: -1),
        ("x", lambda _: -1),
        ("pixels", lambda pixels: pixels[:-1]),
        ("pixels", lambda pixels: pixels[:, :-1]),
        ("pixels", lambda pixels: pixels[..., :2].copy()),
        ("pixels", lambda pixels: pixels.astype(np.int8)),
        ("pixels", lambda pixels: pixels.reshape(-1, 3)),
        ("out", lambda out: out[..., ::2]),
        ("out", lambda out: out[:2].copy() if out.shape[0] == 3 else out[..., :2].copy()),
        ("out", lambda out: np.zeros((*out.shape[:-1], out.shape[-1] + 18), out.dtype)),
        ("out", lambda out: out.astype(np.float64)),
        ("out", read_only),
    ],
)
def test_a_crop_that_does_not_fit_is_refused_before_a_byte_is_written(kernels, name, argument, spoil):
    arguments = cut_arguments() if name == "cut" else finish_arguments()
    getattr(kernels, name)(**arguments)
    arguments[argument] = spoil(arguments[argument])

    with pytest.raises(ValueError, match=r"."):
        getattr(kernels, name)(**arguments)

    assert not arguments["out"].any()


@pytest.mark.parametrize(
    ("argument", "spoil"),
    [
        ("mean_y", lambda y: y + 1),
        ("mean_x", lambda x: x + 1),
        ("mean_y", lambda _: -1),
        ("mean", lambda mean: mean.transpose(1, 2, 0).copy()),
        ("mean", lambda mean: mean.astype(np.float64)),
        ("add", lambda add: add[:2]),
        ("add", lambda add: add.astype(np.float64)),
        ("channels_last", lambda _: True),
    ],
)
def test_a_mean_that_does_not_fit_is_refused(kernels, argument, spoil):
    arguments = finish_arguments()
    arguments[argument] = spoil(arguments[argument])

    with pytest.raises(ValueError, match=r"."):
        kernels.finish(**arguments)


def test_arrays_that_overlap_are_refused(kernels):
    memory = np.zeros(4000, np.uint8)
    pixels, out = within(memory, 0, (20, 30, 3)), within(memory, 1799, (16, 16, 3))
    arguments = cut_arguments() | {"pixels": pixels, "out": out}
    with pytest.raises(ValueError, match="overlap"):
        kernels.cut(**arguments)
    arguments = finish_arguments()
    arguments["mean"] = within(arguments["out"].reshape(-1), 0, (3, 16, 16))
    with pytest.raises(ValueError, match="overlap"):
        kernels.finish(**arguments | {"mean_y": 0, "mean_x": 0})


def test_arguments_by_the_wrong_name_are_refused(kernels):
    arguments = cut_arguments()
    with pytest.raises(TypeError):
        kernels.cut(arguments.pop("pixels"), arguments.pop("out"), arguments.pop("y"), **arguments)


def test_the_check_sum_is_that_of_zlib_for_any_length_and_address(kernels):
    data = np.random.default_rng(0).integers(0, 256, 5000, np.uint8)
    for length in range(4097):
        for start in range(16) if length < 200 else (length % 16,):
            piece = data[start : start + length].data
            assert kernels.crc32(piece) == zlib.crc32(piece), (start, length)
    assert kernels.crc32(b"123456789") == 0xCBF43926


@pytest.fixture(scope="module")
def file(tmp_path_factory):
    """A file of 100,000 bytes, open: (descriptor, bytes)."""
    path = tmp_path_factory.mktemp("read") / "bytes"
    data = np.random.default_rng(1).integers(0, 256, 100_000, np.uint8).tobytes()
    path.write_bytes(data)
    fd = os.open(path, os.O_RDONLY)
    yield fd, data
    os.close(fd)


@many(100)
@given(offset=st.integers(0, 110_000), size=st.integers(0, 110_000))
def test_reading_fills_the_buffer_up_to_the_end_of_the_file(kernels, file, offset, size):
    fd, data = file
    there = data[offset : offset + size]
    into = np.full(size + 1, 77, np.uint8)

    assert kernels.read(fd, offset, into[:size]) == (len(there), zlib.crc32(there))
    assert into[: len(there)].tobytes() == there
    assert (into[len(there) :] == 77).all()


def test_what_cannot_be_read_is_an_error_of_the_system(kernels, file, tmp_path):
    into = np.empty(10, np.uint8)
    closed = os.open(tmp_path, os.O_RDONLY)
    with pytest.raises(IsADirectoryError):
        kernels.read(closed, 0, into)
    os.close(closed)
    with pytest.raises(OSError, match="Bad file descriptor"):
        kernels.read(closed, 0, into)
    with pytest.raises(OSError, match="Invalid argument"):
        kernels.read(file[0], -1, into)


def test_a_buffer_that_cannot_be_written_is_refused(kernels, file):
    for into in (read_only(np.zeros(10, np.uint8)), np.zeros(20, np.uint8)[::2]):
        with pytest.raises((TypeError, ValueError, BufferError)):
            kernels.read(file[0], 0, into)
        assert not into.any()


def test_memory_begins_where_batches_and_scratch_images_should():
    for size in (1, 1000, 196_608, 5_000_000):
        assert installed.batch_memory(size).shape == installed.scratch_memory(size).shape == (size,)
        assert installed.batch_memory(size).ctypes.data % 64 == 0
        assert installed.scratch_memory(size).ctypes.data % 32 == 16


def test_without_the_extension_the_same_functions_work(file):
    fd, data = file
    program = f"""
import sys
sys.modules["alexshard.pipeline._kernels"] = None
import numpy as np
from alexshard.pipeline import kernels
into = np.empty(100, np.uint8)
print(kernels.AVAILABLE, *kernels.read({fd}, 50, into), kernels.crc32(into))
"""
    done = subprocess.run(
        [sys.executable, "-c", program], pass_fds=[fd], capture_output=True, text=True, check=True, timeout=120
    )

    check_sum = zlib.crc32(data[50:150])
    assert done.stdout.split() == ["False", "100", str(check_sum), str(check_sum)]
