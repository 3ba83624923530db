"""The endless tables that every random choice is read from.

A table belongs to one seed, one epoch and one purpose; it has rows of four 64-bit words, and any row is reached at
once, so nothing about randomness is ever stored. Counter-based generator: Philox 4x64 (Salmon et al. 2011), whose
words are fixed by its definition, not by a version of NumPy.
"""

from __future__ import annotations

from enum import IntEnum

import numpy as np
from numpy.typing import NDArray

WORDS_PER_ROW = 4  # one block of Philox; `advance` counts blocks


class Purpose(IntEnum):
    """What a table is for. The numbers are part of every key: changing one changes every run."""

    ORDER = 0
    CROP = 1
    JITTER = 2
    SHARDS = 3


def rows_of_words(purpose: Purpose, *, seed: int, epoch: int, first: int, rows: int) -> NDArray[np.uint64]:
    """Rows `first` to `first + rows` of a table, uint64 (rows, 4).

    Raises:
        ValueError: the seed does not fit in 64 bits, or the epoch not in 32.
    """
    if not (0 <= seed < 2**64 and 0 <= epoch < 2**32):
        raise ValueError(f"a seed has 64 bits, an epoch 32; got {seed=}, {epoch=}")
    key = np.array([seed, epoch * 256 + purpose], np.uint64)
    generator = np.random.Philox(key=key)
    generator.advance(first)
    return generator.random_raw(rows * WORDS_PER_ROW).reshape(rows, WORDS_PER_ROW)
