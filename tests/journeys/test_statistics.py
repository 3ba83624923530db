"""Mean, covariance and eigenvectors against an independent computation from the definitions, on a raw set."""

from __future__ import annotations

import io
import json
import tarfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image

RELATIVE = 1e-6
# Columns for the first, second and third component; fidelity.md §3.5, as published with fb.resnet.torch.
PUBLISHED = np.array([[-0.5675, 0.7192, 0.4009], [-0.5808, -0.0045, -0.8140], [-0.5836, -0.6948, 0.4203]])


@pytest.fixture(scope="module", params=["drawn", "full", "2010"])
def raw_set(request: pytest.FixtureRequest, make_desk: Callable[[str], Any]) -> tuple[str, Path, dict[str, Any]]:
    desk = make_desk(f"raw-{request.param}")
    if request.param == "drawn":
        desk.type("alexshard sample source --train 40 --val 10 --test 10")
        source = desk.folder / "source"
    else:
        source = request.getfixturevalue("assembled")(request.param)
    size = "--size 96" if request.param == "2010" else ""
    desk.type(f"alexshard build '{source}' --format raw --out set {size}")
    told = json.loads(desk.type("alexshard info set --json").stdout)
    return request.param, desk.folder / "set", told


def training_images(folder: Path) -> Iterator[NDArray[np.uint8]]:
    """(side, side, 3), 0..255, of every training image, by readers that are not ours."""
    for path in sorted(folder.glob("train-*.tar")):
        with tarfile.open(path) as archive:
            for member in archive:
                if member.name.endswith(".ppm"):
                    file = archive.extractfile(member)
                    assert file is not None
                    yield np.asarray(Image.open(io.BytesIO(file.read())))


@pytest.fixture(scope="module")
def independent(raw_set: tuple[str, Path, dict[str, Any]]) -> dict[str, NDArray[np.float64]]:
    """The same figures in two passes over the pixels: the mean, then the products of what differs from it."""
    _, folder, _ = raw_set
    images = list(training_images(folder))
    mean_image = np.sum(images, axis=0, dtype=np.float64) / len(images)
    mean = mean_image.mean(axis=(0, 1))
    products = np.zeros((3, 3))
    for image in images:
        away = (image - mean).reshape(-1, 3)
        products += away.T @ away
    covariance = products / (len(images) * images[0].shape[0] * images[0].shape[1])
    values, vectors = np.linalg.eigh(covariance)
    values, vectors = values[::-1], vectors[:, ::-1]
    largest = np.argmax(np.abs(vectors), axis=0)
    vectors = vectors * np.sign(vectors[largest, range(3)])
    return {"image": mean_image, "mean": mean, "covariance": covariance, "values": values, "vectors": vectors}


def test_the_mean_image_is_the_mean_of_the_training_pixels(raw_set, independent):
    _, folder, told = raw_set
    stored = np.load(folder / "mean_image.npy")

    assert stored.shape == independent["image"].shape
    assert stored.dtype == np.float32
    np.testing.assert_allclose(stored, independent["image"], rtol=RELATIVE)
    np.testing.assert_allclose(told["statistics"]["channel_mean"], independent["mean"], rtol=RELATIVE)


def test_the_covariance_is_that_of_the_training_pixels(raw_set, independent):
    _, _, told = raw_set

    np.testing.assert_allclose(told["statistics"]["covariance"], independent["covariance"], rtol=RELATIVE)


def test_eigenvalues_and_eigenvectors_are_those_of_the_covariance(raw_set, independent):
    _, _, told = raw_set

    np.testing.assert_allclose(told["statistics"]["eigenvalues"], independent["values"], rtol=RELATIVE)
    vectors = np.array(told["statistics"]["eigenvectors"])
    np.testing.assert_allclose(vectors, independent["vectors"], rtol=RELATIVE, atol=RELATIVE)


@pytest.mark.parametrize("raw_set", ["full"], indirect=True)
def test_the_eigenvectors_of_84_full_size_images_are_imagenets(raw_set):
    _, _, told = raw_set
    cosines = np.abs(np.sum(np.array(told["statistics"]["eigenvectors"]) * PUBLISHED, axis=0))

    assert cosines.min() > 0.99, cosines
