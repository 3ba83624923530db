"""The inner loops in C give the bytes of pillow-simd and NumPy, with and without AVX2; misfits are refused."""

from __future__ import annotations

import importlib.util
import shutil
import subprocess
import sysconfig
from pathlib import Path

import numpy as np
import pytest
from alexshard.tools.packing import image, statistics
from alexshard.tools.packing.image import central_square, kept_box, pillow_flavour
from alexshard.tools.packing.statistics import SquareSums
from hypothesis import given
from hypothesis import strategies as st

SOURCE = Path(image.__file__).with_name("_square.c")
SIZES = [(500, 375, 256), (375, 500, 256), (333, 500, 256), (640, 481, 256), (61, 40, 32), (9, 7, 32), (1, 1, 8)]
SIZES += [
    (20_000_001, 1, 8),
    (1000, 3, 8),
    (2, 900, 16),
    (3001, 2003, 224),
    (256, 256, 256),
    (257, 256, 256),
    (47, 1, 9),
]


@pytest.fixture(scope="module")
def compiled():
    """The extension that set-up compiled; skipped, loudly, where no compiler was there."""
    if image._square is None:
        pytest.skip("NOT TESTED: set-up compiled no extension (was a C compiler there?)")
    return image._square


@pytest.fixture(scope="module")
def portable(tmp_path_factory):
    """The same source compiled without AVX2."""
    compiler = shutil.which("cc")
    if compiler is None:
        pytest.skip("NOT TESTED: no C compiler")
    library = tmp_path_factory.mktemp("portable") / "_square.abi3.so"
    include = sysconfig.get_paths()["include"]
    flags = ["-DPORTABLE", "-O2", "-Wall", "-Wextra", "-Werror", "-shared", "-fPIC", f"-I{include}"]
    subprocess.run([compiler, *flags, str(SOURCE), "-o", str(library)], check=True)
    spec = importlib.util.spec_from_file_location("alexshard.tools.packing._square", library)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def noise(width: int, height: int, seed: int = 0) -> np.ndarray:
    """RGB noise, which shows every weight; uint8 (height, width, 3)."""
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3), np.uint8)


def without_extension(monkeypatch):
    for module in (image, statistics):
        monkeypatch.setattr(module, "_square", None)


@pytest.mark.parametrize(("width", "height", "side"), SIZES)
def test_the_square_has_the_bytes_of_pillow_simd(width, height, side, compiled, monkeypatch):
    if not pillow_flavour().startswith("pillow-simd"):
        pytest.skip("NOT TESTED: pillow-simd is not installed, and Pillow differs by a level")
    pixels = noise(width, height)
    square = central_square(pixels, side)
    without_extension(monkeypatch)

    assert np.array_equal(square[..., :3], central_square(pixels, side)[..., :3])


@given(width=st.integers(1, 90), height=st.integers(1, 90), side=st.integers(8, 40), seed=st.integers(0, 9))
def test_of_any_size_it_is_within_two_levels_of_pillow(width, height, side, seed, compiled):
    pixels = noise(width, height, seed)
    square = central_square(pixels, side)
    with pytest.MonkeyPatch.context() as patch:
        without_extension(patch)
        expected = central_square(pixels, side)

    assert np.abs(square[..., :3].astype(int) - expected[..., :3]).max() <= 2


@pytest.mark.parametrize(("width", "height", "side"), SIZES)
def test_a_processor_without_avx2_gives_the_same_bytes(width, height, side, compiled, portable, monkeypatch):
    pixels = noise(width, height)
    square, sums = central_square(pixels, side), SquareSums(side)
    sums.add(square)
    for module in (image, statistics):
        monkeypatch.setattr(module, "_square", portable)
    again = SquareSums(side)
    again.add(central_square(pixels, side))

    assert np.array_equal(square, central_square(pixels, side))
    assert np.array_equal(again.total().image, sums.total().image)
    assert np.array_equal(again.total().products, sums.total().products)


def test_the_sums_are_those_of_numpy(compiled, monkeypatch):
    squares = [central_square(noise(90, 64, seed), 64) for seed in range(3)] + [
        np.full((64, 64, 4), 255, np.uint8)
    ]
    fast, plain = SquareSums(64), SquareSums(64)
    for square in squares:
        fast.add(square)
    without_extension(monkeypatch)
    for square in squares:
        plain.add(square)

    assert np.array_equal(fast.total().image, plain.total().image)
    assert np.array_equal(fast.total().products, plain.total().products)


def test_a_reduced_decoding_lies_on_the_same_grid():
    """Every second pixel of a linear ramp is the ramp again, so a shift of the grid would show as a level."""
    ramp = np.linspace(20, 230, 1200)
    x, y = np.meshgrid(ramp, ramp[:900])
    full = np.dstack([x, y, (x + y) / 2])
    half = full.reshape(450, 2, 600, 2, 3).mean(axis=(1, 3))
    square = central_square(np.round(full).astype(np.uint8), 64)

    reduced = central_square(np.round(half).astype(np.uint8), 64, size=(1200, 900), reduction=2)

    assert np.abs(square.astype(int) - reduced).max() <= 1


def calls(compiled):
    """The arguments of a call that works, for tests that spoil one of them."""
    left, top, right, bottom = kept_box(60, 40, 16)
    across, down = image._across(60, left, right, 16), image._down(40, top, bottom, 16)
    return {
        "source": np.zeros((40, 60, 3), np.uint8),
        "width": 60,
        "side": 16,
        "across": (across.starts, across.weights, across.bits),
        "down": (down.starts, down.weights, down.bits),
        "rows": down.rows,
        "buffer": bytearray(8 * 16 * 24 + 3 * 60 + 16),
        "out": np.empty((16, 16, 4), np.uint8),
    }


@pytest.mark.parametrize(
    ("name", "spoil"),
    [
        ("source", lambda source: source[:-1]),
        ("width", lambda width: width + 1),
        ("width", lambda _: -4),
        ("side", lambda side: side * 2),
        ("across", lambda across: (across[0] + 60, *across[1:])),
        ("across", lambda across: (across[0] - 30, *across[1:])),
        ("across", lambda across: (across[0], across[1][:, :-1].copy(), across[2])),
        ("across", lambda across: (*across[:2], 40)),
        ("down", lambda down: (down[0] + 1, *down[1:])),
        ("down", lambda down: (down[0] + 40, *down[1:])),
        ("rows", lambda rows: (rows[0], rows[1] + 4)),
        ("rows", lambda rows: (-1, rows[1])),
        ("down", lambda down: (down[0][::-1].copy(), *down[1:])),
        ("buffer", lambda buffer: buffer[:1500]),
        ("out", lambda out: out[:-1]),
    ],
)
def test_what_does_not_fit_together_is_refused_before_a_byte_is_read(name, spoil, compiled):
    arguments = calls(compiled)
    compiled.resample(*arguments.values())
    arguments[name] = spoil(arguments[name])

    with pytest.raises(ValueError, match="do not fit together"):
        compiled.resample(*arguments.values())


def test_sums_of_another_size_are_refused(compiled):
    with pytest.raises(ValueError, match="not of this size"):
        compiled.add(bytes(64), bytearray(64), bytearray(48))
