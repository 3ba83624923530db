"""The order of an epoch, and how ranks share it: pure functions, so nothing is stored and any rank can resume.

legend  n samples of the split; a *position* is a place in the epoch's order, 0..n-1, the same on every rank;
        a *window* is a run of positions whose samples lie on few shards, so that a disk can be read ahead

What each order is worth: shuffling.py, docs/order.md.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from math import isqrt

import numpy as np
from numpy.typing import NDArray

from ..shards import WrongCall
from .words import WORDS_PER_ROW, Purpose, rows_of_words

ORDERS = ("global", "windowed", "stored")


@dataclass(frozen=True, slots=True)
class Window:
    """Positions `start` to `stop` of an epoch: every sample of these shards, and of no others."""

    start: int
    stop: int
    shards: tuple[int, ...]  # in the order in which they are wanted


@dataclass(frozen=True, slots=True)
class EpochOrder:
    """One epoch: the sample at each position, and the windows that follow each other."""

    samples: NDArray[np.int64]  # (n,): places on disk, a permutation
    windows: tuple[Window, ...]  # of at least one sample each, without gaps


def check_order(
    *, batch_size: int, seed: int, epoch: int, rank: int, world_size: int, order: str, window: int | None
) -> None:
    """Check what decides on the order and on a rank's part of it, as a caller of a loader or sampler gives it.

    Raises:
        WrongCall: names the argument and what it may be.
    """
    if order not in ORDERS:
        raise WrongCall(f"order is one of {', '.join(map(repr, ORDERS))}; got {order!r}")
    least_1 = {"batch_size": batch_size, "world_size": world_size, "window": 1 if window is None else window}
    for name, value in least_1.items():
        if value < 1:
            raise WrongCall(f"{name} must be at least 1, got {value}")
    if window is not None and order != "windowed":
        raise WrongCall(
            f"window={window} is of the order 'windowed', and order={order!r} has none",
            remedy="order='windowed', or leave window out",
        )
    if not 0 <= rank < world_size:
        raise WrongCall(f"rank {rank} is not one of a world of {world_size}: ranks are 0..{world_size - 1}")
    if not (0 <= seed < 2**64 and 0 <= epoch < 2**32):
        raise WrongCall(f"a seed has 64 bits and an epoch 32, got seed={seed}, epoch={epoch}")


def usable_window(window: int | None, num_shards: int) -> int:
    """What a window of so many shards comes to, None being the default: never more than there are."""
    return max(1, min(window or default_window(num_shards), num_shards))


def default_window(num_shards: int) -> int:
    """Shards in a window, so that two samples that met in a batch meet in the next epoch at most twice as often as
    under `global`, and no more than that needs: about the square root of the number of shards.

    With k windows of S shards it is 1 + (k − 1)² / (S − 1) times as often: `shuffling.expected_meetings`.
    """
    most_windows = 1 + isqrt(max(0, num_shards - 1))
    return max(1, -(-num_shards // most_windows))


def epoch_order(
    shard_samples: Sequence[int] | NDArray[np.int64],
    *,
    seed: int,
    epoch: int,
    order: str = "global",
    window: int | None = None,
) -> EpochOrder:
    """The samples (places on disk) in the order one epoch visits them.

    global    another permutation of all samples each epoch
    windowed  shards in another order each epoch, cut into windows of at most `window`; the samples of a window
              are permuted: they come in the order that they have in `global`, so one window of all shards is that
    stored    the order on disk, each epoch

    Depends on nothing but its arguments: sorting 64-bit keys needs no generator method whose stream a version of
    NumPy could change.

    Args:
        shard_samples: samples on each shard, in the order on disk; shards without any are passed over.
        window: at most so many shards; None: `default_window`. Of `windowed` alone.

    Raises:
        ValueError: there is no such order; a window of no shards, or one where the order has none.
    """
    sizes = np.asarray(shard_samples, np.int64)
    starts = np.concatenate([[0], np.cumsum(sizes)])
    shards = np.flatnonzero(sizes)
    num_samples = int(starts[-1])
    if order not in ORDERS:
        raise ValueError(f"an order is one of {', '.join(ORDERS)}; got {order!r}")
    if window is not None and (order != "windowed" or window < 1):
        raise ValueError(f"a window has at least one shard, and only windowed has any; got {order=}, {window=}")
    if order == "stored" or num_samples == 0:
        one_each = (Window(int(starts[shard]), int(starts[shard + 1]), (int(shard),)) for shard in shards)
        return EpochOrder(np.arange(num_samples, dtype=np.int64), tuple(one_each))
    keys = _keys(Purpose.ORDER, num_samples, seed=seed, epoch=epoch)
    if order == "global":
        return EpochOrder(_by_key(keys), (Window(0, num_samples, tuple(shards.tolist())),))
    shards = shards[_by_key(_keys(Purpose.SHARDS, len(sizes), seed=seed, epoch=epoch)[shards])]
    # Evenly: a last window of one shard would be read in the order of one shard.
    cut = np.array_split(shards, -(-len(shards) // (window or default_window(len(sizes)))))
    samples, stop = np.empty(num_samples, np.int64), 0
    windows: list[Window] = []
    for several in cut:
        # In the order on disk, so that equal keys fall as they do in `global`.
        places = np.concatenate([np.arange(starts[shard], starts[shard + 1]) for shard in np.sort(several)])
        start, stop = stop, stop + len(places)
        samples[start:stop] = places[_by_key(keys[places])]
        windows.append(Window(start, stop, tuple(several.tolist())))
    return EpochOrder(samples, tuple(windows))


def _keys(purpose: Purpose, count: int, *, seed: int, epoch: int) -> NDArray[np.uint64]:
    rows = -(-count // WORDS_PER_ROW)
    return rows_of_words(purpose, seed=seed, epoch=epoch, first=0, rows=rows).ravel()[:count]


def _by_key(keys: NDArray[np.uint64]) -> NDArray[np.int64]:
    """`argsort(keys, kind="stable")` in 0.6 of its time, which is what a resume waits for.

    Numbers sort faster than places sort by numbers: so the place goes into a key's lowest bits, and the few keys
    that agree in all others are sorted again, whole.
    """
    place_bits = np.uint64(max(1, (len(keys) - 1).bit_length()))
    places = (np.uint64(1) << place_bits) - np.uint64(1)
    mixed = keys & ~places
    mixed |= np.arange(len(keys), dtype=np.uint64)
    mixed.sort()
    rest = mixed >> place_bits
    alike = np.flatnonzero(rest[1:] == rest[:-1])
    mixed &= places
    order = mixed.view(np.int64)
    if len(alike):
        at = np.union1d(alike, alike + 1)
        order[at] = order[at][np.argsort(keys[order[at]], kind="stable")]
    return order


@dataclass(frozen=True, slots=True)
class Span:
    """One rank's part of one global batch: positions `start` to `stop`; the next global batch starts at `end`."""

    start: int
    stop: int
    end: int

    def __len__(self) -> int:
        return self.stop - self.start


@dataclass(frozen=True, slots=True)
class Sharing:
    """How an epoch is cut into global batches, and these into one contiguous slice for each rank.

    Every rank takes the same number of steps. An incomplete last global batch is dropped, or kept and shared as
    evenly as it goes (a rank's slice may then be empty).
    """

    num_samples: int
    batch_size: int  # of one rank
    rank: int = 0
    world_size: int = 1
    drop_last: bool = True

    @property
    def global_batch(self) -> int:
        return self.batch_size * self.world_size

    def steps(self, position: int = 0) -> int:
        """Batches from `position` to the end of the epoch."""
        left = self.num_samples - position
        return left // self.global_batch if self.drop_last else -(-left // self.global_batch)

    def samples_of_rank(self) -> int:
        """Samples of this rank in a whole epoch."""
        rest = 0 if self.drop_last else self.num_samples % self.global_batch
        rest_of_rank = rest * (self.rank + 1) // self.world_size - rest * self.rank // self.world_size
        return self.num_samples // self.global_batch * self.batch_size + rest_of_rank

    def spans(self, position: int = 0) -> Iterator[Span]:
        """This rank's slices from `position` on."""
        for start in range(position, position + self.steps(position) * self.global_batch, self.global_batch):
            end = min(start + self.global_batch, self.num_samples)
            size = end - start
            yield Span(
                start + size * self.rank // self.world_size,
                start + size * (self.rank + 1) // self.world_size,
                end,
            )
