"""Mean image, channel means, covariance and principal components of the training pixels, from exact integer sums.

The pixels are those that are packed, before JPEG encoding. Every shard has its own sums; adding them is
exact, so neither the number of workers nor the order of shards can change a digit.

legend  S side, s_c sum of channel c, G_cd sum of products of channels c and d, n pixels
        mean = s / n, covariance = G / n − mean·meanᵀ = (n·G − s·sᵀ) / n², the population's
source  Krizhevsky, Sutskever, Hinton 2012, sections 2 and 4.1
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray

from ...shards import Statistics, appearing_whole

T = TypeVar("T")

try:
    from . import _square
except ImportError:  # no compiler was there
    _square = None  # type: ignore[assignment]

# Of 256 products of two bytes the sum is below 2**24, so a float32 dot product of them is exact in any order.
_EXACT_LENGTH = 256
_PAIRS = ((0, 0), (0, 1), (0, 2), (1, 1), (1, 2), (2, 2))


@dataclass(slots=True)
class PixelSums:
    """Integer sums over images of one side."""

    images: int
    image: NDArray[np.int64]  # (S, S, 3): the sum of all images
    products: NDArray[np.int64]  # (3, 3): G

    @classmethod
    def zero(cls, side: int) -> PixelSums:
        return cls(0, np.zeros((side, side, 3), np.int64), np.zeros((3, 3), np.int64))

    def add(self, other: PixelSums) -> None:
        self.images += other.images
        self.image += other.image
        self.products += other.products

    def save(self, path: Path) -> None:
        with appearing_whole(path, unique=True) as file:
            np.savez(file, images=np.int64(self.images), image=self.image, products=self.products)

    @classmethod
    def load(cls, path: Path) -> PixelSums:
        with np.load(path, allow_pickle=False) as arrays:
            return cls(int(arrays["images"]), arrays["image"], arrays["products"])

    def mean_image(self) -> NDArray[np.float64]:
        """(S, S, 3), 0..255."""
        return self.image / self.images

    def statistics(self) -> Statistics:
        """Means, covariance and components of all pixels, on [0, 255]."""
        side = self.image.shape[0]
        n = self.images * side * side
        # Python's integers have no limit and its division of them is correctly rounded.
        s = [int(total) for total in self.image.sum(axis=(0, 1))]
        G = [[int(product) for product in row] for row in self.products]
        covariance = [[(n * G[c][d] - s[c] * s[d]) / (n * n) for d in range(3)] for c in range(3)]
        eigenvalues, eigenvectors = principal_components(np.array(covariance))
        return Statistics(
            pixels=n,
            channel_mean=_three([total / n for total in s]),
            covariance=_three([_three(row) for row in covariance]),
            eigenvalues=_three(eigenvalues.tolist()),
            eigenvectors=_three([_three(row) for row in eigenvectors.tolist()]),
        )


class SquareSums:
    """The sums of squares as they are packed, one after the other; up to 16 million of them."""

    def __init__(self, side: int) -> None:
        self._images = 0
        self._image = np.zeros((side, side, 4), np.uint32)
        self._products = np.zeros(len(_PAIRS), np.int64)

    def add(self, square_HWX: NDArray[np.uint8]) -> None:
        """Add one square, RGBX (side, side, 4)."""
        self._images += 1
        if _square is not None:
            _square.add(square_HWX, self._image, self._products)
        else:
            np.add(self._image, square_HWX, out=self._image)
            self._products += channel_products(square_HWX[..., :3])

    def total(self) -> PixelSums:
        """What was added until now."""
        products = np.empty((3, 3), np.int64)
        for (c, d), product in zip(_PAIRS, self._products, strict=True):
            products[c, d] = products[d, c] = product
        return PixelSums(self._images, self._image[..., :3].astype(np.int64), products)


def channel_products(pixels_HWC: NDArray[np.uint8]) -> NDArray[np.int64]:
    """Sums of products of the pairs RR, RG, RB, GG, GB, BB over an image, shape (6,), exact."""
    flat = pixels_HWC.reshape(-1, 3)
    padded = -(-len(flat) // _EXACT_LENGTH) * _EXACT_LENGTH
    planes = np.zeros((3, padded), np.float32)
    planes[:, : len(flat)] = flat.T
    rows = planes.reshape(3, -1, _EXACT_LENGTH)
    dots = [np.matmul(rows[c][:, None, :], rows[d][:, :, None]) for c, d in _PAIRS]
    return np.array([dot.sum(dtype=np.float64) for dot in dots]).astype(np.int64)  # exact: far below 2**53


def principal_components(
    covariance: NDArray[np.float64],
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Eigenvalues, descending, and eigenvectors as columns, the largest component of each positive."""
    values, vectors = np.linalg.eigh(covariance)
    values, vectors = values[::-1], vectors[:, ::-1]
    largest = vectors[np.abs(vectors).argmax(axis=0), np.arange(3)]
    # A channel that never varies gives eigenvalues of zero, which rounding may push below it.
    return np.maximum(values, 0.0), vectors * np.sign(largest)


def _three(items: list[T]) -> tuple[T, T, T]:
    first, second, third = items
    return first, second, third
