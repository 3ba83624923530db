"""Sums are exact, and what is made of them equals an independent computation."""

from __future__ import annotations

import tarfile
from fractions import Fraction

import numpy as np
import pytest
from alexshard.shards import Manifest, ShardSet, Split
from alexshard.tools.packing.statistics import PixelSums, SquareSums, channel_products, principal_components
from hypothesis import given
from hypothesis import strategies as st

from tests.tools import drawn

# fidelity.md §3.5, eigenvectors of ImageNet as published, as columns
PUBLISHED = np.array([[-0.5675, 0.7192, 0.4009], [-0.5808, -0.0045, -0.8140], [-0.5836, -0.6948, 0.4203]])


@given(side=st.integers(1, 70), seed=st.integers(0, 2**32 - 1), white=st.booleans())
def test_channel_products_are_exact_integers(side, seed, white):
    pixels = np.random.default_rng(seed).integers(255 if white else 0, 256, (side, side, 3)).astype(np.uint8)
    flat = pixels.reshape(-1, 3).astype(np.int64)

    assert np.array_equal(channel_products(pixels), (flat.T @ flat)[np.triu_indices(3)])


def test_white_images_of_256_do_not_overflow():
    running = SquareSums(256)
    for _ in range(3):
        running.add(np.full((256, 256, 4), 255, np.uint8))
    sums = running.total()

    assert (sums.products == 3 * 256 * 256 * 255 * 255).all()
    assert np.array_equal(sums.statistics().covariance, np.zeros((3, 3)))


def test_adding_shards_equals_adding_images(tmp_path):
    squares = [np.dstack([drawn.pixels(i, 32, 32), np.full((32, 32), i, np.uint8)]) for i in range(6)]
    whole, parts = SquareSums(32), [SquareSums(32) for _ in range(2)]
    for i, square in enumerate(squares):
        whole.add(square)
        parts[i % 2].add(square)
    total = PixelSums.zero(32)
    for number, part in enumerate(parts):
        part.total().save(tmp_path / f"{number}.npz")
        total.add(PixelSums.load(tmp_path / f"{number}.npz"))

    assert total.statistics() == whole.total().statistics()
    assert np.array_equal(total.mean_image(), whole.total().mean_image())


@given(seed=st.integers(0, 2**32 - 1))
def test_eigenvectors_are_columns_descending_with_the_largest_component_positive(seed):
    factor = np.random.default_rng(seed).normal(size=(3, 3))
    covariance = factor @ factor.T

    values, vectors = principal_components(covariance)

    assert values[0] >= values[1] >= values[2] >= 0
    assert np.allclose(covariance @ vectors, vectors * values, atol=1e-9)
    assert (vectors[np.abs(vectors).argmax(axis=0), range(3)] > 0).all()


def independent(folder) -> dict[str, np.ndarray]:
    """Statistics of a raw set by tarfile, exact fractions and NumPy alone; nothing of this project computes."""
    pixels = []
    for path in sorted(folder.glob("train-*.tar")):
        with tarfile.open(path) as archive:
            for info in archive:
                if info.name.endswith(".ppm"):
                    data = archive.extractfile(info).read()
                    side = int(data.split(maxsplit=3)[1])
                    pixels.append(np.frombuffer(data[-side * side * 3 :], np.uint8).reshape(side, side, 3))
    images = np.stack(pixels)
    n = images.size // 3
    channels = [images[..., c].astype(np.int64).ravel() for c in range(3)]
    mean = [Fraction(int(c.sum()), n) for c in channels]
    covariance = [
        [Fraction(int((a * b).sum()), n) - mean[i] * mean[j] for j, b in enumerate(channels)]
        for i, a in enumerate(channels)
    ]
    exact = np.array([[float(value) for value in row] for row in covariance])
    values, vectors = np.linalg.eig(exact)
    order = np.argsort(values)[::-1]
    return {
        "pixels": n,
        "mean_image": images.astype(np.float64).mean(axis=0),
        "channel_mean": np.array([float(value) for value in mean]),
        "covariance": exact,
        "eigenvalues": values[order],
        "eigenvectors": vectors[:, order],
    }


@pytest.mark.parametrize("kind", ["drawn", "2010", "full"])
def test_statistics_of_a_raw_set_equal_an_independent_computation(kind, request, tmp_path):
    if kind == "drawn":
        source, image = drawn.ilsvrc(tmp_path / "source"), drawn.SMALL_RAW
    else:
        source, image = request.getfixturevalue("assembled")(kind), drawn.ImageFormat(64, "raw")
    drawn.pack(source, tmp_path / "set", image=image, samples_per_shard=37)

    expected = independent(tmp_path / "set")
    found = Manifest.load(tmp_path / "set").statistics

    assert found.pixels == expected["pixels"]
    for name in ("channel_mean", "covariance", "eigenvalues"):
        assert getattr(found, name) == pytest.approx(expected[name], rel=1e-6), name
    cosines = np.abs((np.array(found.eigenvectors) * expected["eigenvectors"]).sum(axis=0))
    assert cosines == pytest.approx(np.ones(3), rel=1e-6)
    stored = np.load(tmp_path / "set" / "mean_image.npy")
    assert stored == pytest.approx(expected["mean_image"], rel=1e-6)


def test_components_of_real_full_size_images_are_those_published_for_imagenet(assembled, tmp_path):
    drawn.pack(assembled("full"), tmp_path / "set", image=drawn.ImageFormat(256, "jpeg", 90, "4:2:0"))

    vectors = np.array(Manifest.load(tmp_path / "set").statistics.eigenvectors)

    assert (np.abs((vectors * PUBLISHED).sum(axis=0)) > 0.99).all()


def test_the_mean_is_of_the_pixels_before_jpeg_encoding(tmp_path):
    source = drawn.ilsvrc(tmp_path / "source")
    for name, image in (("raw", drawn.SMALL_RAW), ("jpeg", drawn.ImageFormat(32, "jpeg", 5, "4:2:0"))):
        drawn.pack(source, tmp_path / name, image=image)

    raw, coarse = (Manifest.load(tmp_path / name).statistics for name in ("raw", "jpeg"))

    assert raw == coarse


def test_a_set_without_train_takes_classes_and_statistics_of_another(tmp_path):
    source = drawn.ilsvrc(tmp_path / "source")
    drawn.pack(source, tmp_path / "whole")
    whole = ShardSet.open(tmp_path / "whole")

    drawn.pack(source, tmp_path / "val", splits=(Split.VAL,), statistics_from=tmp_path / "whole")
    val = ShardSet.open(tmp_path / "val")

    assert list(val.manifest.splits) == ["val"]
    assert val.manifest.classes == whole.manifest.classes
    assert val.manifest.statistics.source == whole.digest
    assert val.manifest.statistics.covariance == whole.manifest.statistics.covariance
    assert np.array_equal(val.mean_image(), whole.mean_image())
    assert val.index("val").label.tolist() == whole.index("val").label.tolist()
