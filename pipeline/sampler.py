"""The order and the images for torch's own `DataLoader`: no DALI, no kernels.

    images = ShardImages("shards/", transform=np.array)
    sampler = OrderSampler("shards/", batch_size=128, rank=0, world_size=1)
    for epoch in range(90):
        for pixels, labels in DataLoader(images, batch_size=128, sampler=sampler, num_workers=4):
            ...

Samples, ranks and states are those of `Loader`; crops and jitter are left to the transform. With torchdata's
`StatefulDataLoader` in its place, that one's `state_dict` holds the sampler's, at the batch that was delivered.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Literal

import numpy as np
from PIL import Image
from torch.utils.data import Dataset, Sampler

from ..shards import ShardSet, SplitIndex
from .bytes import StoredImages
from .checks import check_drop_last, shard_set_of, whole, whole_or_none
from .order import Sharing, check_order, epoch_order, usable_window
from .reference import decoded
from .state import identity_of, position_of


class OrderSampler(Sampler[int]):
    """Places on disk in the order in which one rank visits them: what `Loader` gives a rank, as numbers.

    `iter` goes through the current epoch from its position, then the epoch is the next one. An iteration that was
    left early begins again where it began: a `DataLoader` may have asked for more than it delivered. (Where its
    workers have asked for the whole epoch already, that is over.)

    Args:
        shards: a shard set, its folder, a folder that holds exactly one, or an address.
        split: "train", "val" or "test".
        batch_size: of the `DataLoader`, which must be the same: a position is a batch of all ranks.
        seed, epoch, rank, world_size, order, window: as `Loader` has them.
        drop_last: drop the samples that do not fill a global batch; None: in train alone. Where they are kept, a
            rank's last batch may be smaller than another's, or be missing: nothing is given twice.

    Raises:
        WrongCall: what is asked for cannot be; NoShardSet, NoSuchSplit among them.
    """

    def __init__(
        self,
        shards: str | Path | ShardSet,
        split: str = "train",
        batch_size: int = 128,
        seed: int = 0,
        epoch: int = 0,
        rank: int = 0,
        world_size: int = 1,
        order: Literal["global", "windowed", "stored"] = "global",
        *,
        window: int | None = None,
        drop_last: bool | None = None,
    ) -> None:
        batch_size, seed, epoch, rank, world_size = whole(
            batch_size=batch_size, seed=seed, epoch=epoch, rank=rank, world_size=world_size
        )
        (window,) = whole_or_none(window=window)
        check_drop_last(drop_last)
        check_order(
            batch_size=batch_size,
            seed=seed,
            epoch=epoch,
            rank=rank,
            world_size=world_size,
            order=order,
            window=window,
        )
        shard_set = shard_set_of(shards)
        index = shard_set.index(split)
        self._where = shard_set.shown
        self._shard_samples = np.bincount(index.shard, minlength=len(index.shards))
        self.seed, self.epoch, self.order = seed, epoch, order
        self.window = usable_window(window, len(index.shards)) if order == "windowed" else None
        self._sharing = Sharing(
            num_samples=len(index),
            batch_size=batch_size,
            rank=rank,
            world_size=world_size,
            drop_last=split == "train" if drop_last is None else drop_last,
        )
        self._identity = identity_of(
            shard_set=shard_set.digest, split=split, seed=seed, order=order, window=self.window
        )
        self._position = 0  # of the first sample that is not yet handed out, in samples of the whole epoch
        self._began = (epoch, 0)  # where the iteration that runs began

    def __len__(self) -> int:
        """Samples of this rank in a whole epoch."""
        return self._sharing.samples_of_rank()

    def __iter__(self) -> Iterator[int]:
        """The rest of the current epoch, from where it is when the first sample is asked for."""
        epoch, position = self._began
        if self._sharing.steps(position) == 0:
            epoch, position = self._began = epoch + 1, 0
        self.epoch, self._position = epoch, position
        order = epoch_order(
            self._shard_samples, seed=self.seed, epoch=epoch, order=self.order, window=self.window
        ).samples
        for span in self._sharing.spans(position):
            *others, last = order[span.start : span.stop].tolist() or [None]
            yield from others
            # Before the last is handed out: whoever has it has the batch, and asks for the state next.
            self._position = span.end
            if last is not None:
                yield last
        self.epoch, self._position = self._began = epoch + 1, 0

    def state_dict(self) -> dict[str, Any]:
        """Where this sampler is: a few numbers and words, ready for JSON. A `Loader` can go on from it, and back.

        Whole batches count that were handed out. A `DataLoader` with workers asks for batches ahead of those that
        it delivers: `StatefulDataLoader` keeps the state that belongs to what it delivered; beside another, count
        them and ask for `state_after`.
        """
        return self._state(self.epoch, self._position)

    def state_after(self, batches: int) -> dict[str, Any]:
        """The state where `batches` of the iteration that runs were delivered, whatever was asked for ahead."""
        epoch, began = self._began
        return self._state(epoch, min(began + batches * self._sharing.global_batch, self._sharing.num_samples))

    def load_state_dict(self, state: object) -> None:
        """Go on where the sampler or loader that made `state` was, at the next `iter`.

        Raises:
            OtherState: the state is of another shard set, split, seed, order, window or version.
        """
        self._began = self.epoch, self._position = position_of(
            state,
            identity=self._identity,
            num_samples=self._sharing.num_samples,
            where=self._where,
            jitters=False,  # crops and jitter are the transform's
        )

    def _state(self, epoch: int, position: int) -> dict[str, Any]:
        if self._sharing.steps(position) == 0:
            epoch, position = epoch + 1, 0
        return {**self._identity, "epoch": epoch, "position": position}


class ShardImages(Dataset[tuple[Any, int]]):
    """(image, label) of each sample of a split, by its place on disk.

    The image is a PIL image, RGB, or what `transform` makes of it; the label is −1 where there is none. Each image
    is held against the CRC-32 of when it was packed. Shards are opened where they are read, so this goes to
    workers whichever way they are started.

    Raises:
        UndecodableSample, CorruptShardSet: from an access; they name shard, key and offset.
    """

    def __init__(
        self,
        shards: str | Path | ShardSet,
        split: str = "train",
        transform: Callable[[Image.Image], Any] | None = None,
    ) -> None:
        self.shard_set = shard_set_of(shards)
        self.transform = transform
        self._index: SplitIndex = self.shard_set.index(split)
        self._stored: StoredImages | None = None

    def __len__(self) -> int:
        return len(self._index)

    def __getitem__(self, sample: int) -> tuple[Any, int]:
        image = self.shard_set.manifest.image
        if self._stored is None:
            self._stored = StoredImages(self._index, self.shard_set.shelf, image.side)
        stored = self._stored.read(sample, np.empty(self._stored.largest, np.uint8))
        try:
            picture = Image.fromarray(decoded(stored.data, image.extension))
        except (OSError, ValueError) as error:
            raise self._stored.undecodable(sample, str(error)) from error
        return (self.transform(picture) if self.transform else picture), int(self._index.label[sample])

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_stored": None}
