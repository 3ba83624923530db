"""The loader: a shard set and a seed in, batches out.

epoch_order ─► spans ─► draws ─┐
                    └► a maker ─► Batch          (all but the last arrow in a background thread: delivery.py)
"""

from __future__ import annotations

import os
import warnings
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import replace
from functools import partial
from pathlib import Path
from types import TracebackType
from typing import Any, Literal

import numpy as np
import torch

from ..shards import ShardSet, WrongCall
from .ahead import ReadAhead
from .augment import AUGMENTATIONS, centre
from .batch import Batch
from .bytes import StoredImages
from .checks import check_call, check_sharing, shard_set_of, usable_crop, usable_device, whole, whole_or_none
from .choosing import SLOW, decided, planned
from .delivery import Deliveries, Delivery
from .errors import StaleIteration
from .machine import default_prefetch, default_threads, free_on
from .order import EpochOrder, Sharing, epoch_order, usable_window
from .state import end_of_jitter, identity_of, position_of
from .times import Clock, Times
from .trace import span
from .treatment import Treatment


class Loader:
    """Batches of a shard set's split, as the presets `paper` and `original` make them.

        with Loader("shards/", batch_size=128) as loader:
            for epoch in range(90):
                for batch in loader:
                    train(batch.images, batch.labels)

    `iter` runs the current epoch from its position, then the epoch is the next one. Order and draws are functions
    of seed, epoch and position: the same on any number of ranks, and at once after `load_state_dict`.

    Args:
        shards: a shard set, its folder, a folder that holds exactly one, or an address (s3://…; remote.py says how
            much of it is kept here).
        split: "train", "val" or "test".
        batch_size: samples of one rank in a batch.
        device: where batches are wanted: "cpu", "cuda", "cuda:1".
        seed: of order and draws.
        epoch: the one to begin with.
        rank, world_size: this process among all. Rank r takes contiguous slice r of each global batch.
        augment: "paper" or "original" (fidelity.md §3), or None: the central crop, no mirror, no jitter.
        mean: "image" subtracts the mean image, "channel" its three means.
        order: "global" is another permutation each epoch, "stored" the order on disk, "windowed" another order of
            the shards each epoch, and permutations within windows of them (docs/order.md).
        output: "float32", "float16", "bfloat16", or "uint8" for those who subtract the mean themselves (`Batch`).
        drop_last: drop the samples that do not fill a global batch; None: in train alone.
        views: 10 gives every image's ten views (needs augment=None): images (N, 10, 3, S, S).
        mean_crop: "own" subtracts each pixel's own mean, "centre" the central crop of the mean image from every
            crop, not mirrored; None: as the preset does, "own" without one. Of mean="image" alone.
        jitter_steps: batches, counted over the whole run (epoch · len + batch), that are jittered and, in
            `original`, divided by 1.1; None: all. Given, a run goes on with the same global batch alone.
        eigen: "set" jitters along the set's own eigenvectors, "published" along ImageNet's (fidelity.md §3.5).
        threads: that decode, and as many of DALI's; None: one a core of those that this rank may use.
        prefetch: batches made ahead of the one that is asked for; None: from one to four, as memory allows.
        crop: side S of the crop; None: what belongs to the stored side (fidelity.md §1.3: 256 → 224).
        window: shards in a window of order="windowed"; None: about the square root of their number.
        backend: who makes the batches (making.py): "threads", "dali" or "reference"; None: DALI on a card, threads
            on the cores, or DALI there too where the C kernels were not compiled.
        decoder: of JPEGs, for "dali": "cores", "card", or "split" for a part of each batch each; None: on a card
            the fastest, measured here on some batches that nobody gets. Without a card "card" and "split" mean
            DALI's decoder on the cores.
        channels_last: floats lie in memory as (N, S, S, 3), as uint8 always does; their shape stays (N, 3, S, S).
        pad_last: fill the last batch up to `batch_size`, on every rank, by repeating the epoch's last sample;
            `Batch.valid` says which are there for the first time. Goes with drop_last=False.

    Attributes `backend`, `decoder`, `split_share` (of a batch, by the card), `threads`, `prefetch` and `window`
    say what was chosen.

    A loader belongs to the process that made it: after a fork, make another.

    Raises:
        WrongCall: what is asked for cannot be; NoShardSet, NoSuchSplit, NoDali among them.
        UndecodableSample, CorruptShardSet: from the iteration; name shard, key and offset.
    """

    def __init__(
        self,
        shards: str | Path | ShardSet,
        split: str = "train",
        batch_size: int = 128,
        device: str | torch.device = "cpu",
        seed: int = 0,
        epoch: int = 0,
        rank: int = 0,
        world_size: int = 1,
        augment: Literal["paper", "original"] | None = "paper",
        mean: Literal["image", "channel"] = "image",
        order: Literal["global", "windowed", "stored"] = "global",
        output: Literal["float32", "float16", "bfloat16", "uint8"] = "float32",
        *,
        drop_last: bool | None = None,
        views: Literal[1, 10] = 1,
        mean_crop: Literal["own", "centre"] | None = None,
        jitter_steps: int | None = None,
        eigen: Literal["set", "published"] = "set",
        threads: int | None = None,
        prefetch: int | None = None,
        crop: int | None = None,
        window: int | None = None,
        backend: Literal["threads", "dali", "reference"] | None = None,
        decoder: Literal["cores", "card", "split"] | None = None,
        channels_last: bool = False,
        pad_last: bool = False,
    ) -> None:
        batch_size, seed, epoch, rank, world_size = whole(
            batch_size=batch_size, seed=seed, epoch=epoch, rank=rank, world_size=world_size
        )
        threads, window, prefetch, jitter_steps, crop = whole_or_none(
            threads=threads, window=window, prefetch=prefetch, jitter_steps=jitter_steps, crop=crop
        )
        self.device = usable_device(device)
        threads = default_threads() if threads is None else threads
        check_call(
            batch_size=batch_size,
            seed=seed,
            epoch=epoch,
            rank=rank,
            world_size=world_size,
            augment=augment,
            mean=mean,
            order=order,
            output=output,
            views=views,
            mean_crop=mean_crop,
            jitter_steps=jitter_steps,
            eigen=eigen,
            threads=threads,
            prefetch=prefetch,
            backend=backend,
            decoder=decoder,
            window=window,
            channels_last=channels_last,
            drop_last=drop_last,
            pad_last=pad_last,
        )
        self._process = os.getpid()
        self._owns_set = not isinstance(shards, ShardSet)
        self.shard_set = shard_set_of(shards)
        with ExitStack() as unmade:  # a loader that cannot be made leaves nothing open
            if self._owns_set:
                unmade.callback(self.shard_set.shelf.close)
            self.split, self.order, self.seed, self.epoch = split, order, seed, epoch
            self._index = self.shard_set.index(split)
            image = self.shard_set.manifest.image
            self.side = usable_crop(crop, self.shard_set)
            self._slack = image.side - self.side
            drop = (split == "train" and not pad_last) if drop_last is None else bool(drop_last)
            self._sharing = Sharing(len(self._index), batch_size, rank, world_size, drop)
            check_sharing(self._sharing, split=split, where=self.shard_set.shown)
            shard_samples = np.bincount(self._index.shard, minlength=len(self._index.shards))
            self.window = usable_window(window, len(shard_samples)) if order == "windowed" else None
            digest, window = self.shard_set.digest, self.window
            self._identity = {
                **identity_of(shard_set=digest, split=split, seed=seed, order=order, window=window),
                **end_of_jitter(jitter_steps, self._sharing),
            }
            treatment = Treatment(
                augmentation=AUGMENTATIONS[augment] if augment else None,
                slack=self._slack,
                seed=seed,
                statistics=self.shard_set.manifest.statistics if eigen == "set" else None,
                jitter_steps=jitter_steps,
            )
            self._stored = StoredImages(self._index, self.shard_set.shelf, image.side)
            unmade.callback(self._stored.close)
            self._stored.check_fits(order, self.window)
            plan = planned(
                self.shard_set,
                self._stored,
                device=self.device,
                batch_size=batch_size,
                side=self.side,
                output=output,
                mean=mean,
                mean_crop=mean_crop or ("centre" if augment == "original" else "own"),
                views=views,
                threads=threads,
                backend=backend,
                decoder=decoder,
                channels_last=channels_last,
                divisor=treatment.divisor(epoch * len(self)),
            )
            order_of = partial(epoch_order, shard_samples, seed=seed, order=order, window=self.window)
            deliveries = Deliveries(plan, self._sharing, treatment, order_of, pad_last)
            if plan.backend == "reference":
                warnings.warn(SLOW, stacklevel=2)  # at whoever makes the loader
            self._plan, self._maker = decided(deliveries, decoder, epoch)
            unmade.pop_all()
        self._deliveries = replace(deliveries, plan=self._plan)
        self.backend, self.decoder, self.threads = self._plan.backend, self._plan.decoder, threads
        self.split_share = self._plan.split_share if self.decoder == "split" else None
        self.prefetch = prefetch or default_prefetch(
            self._plan.batch_bytes, free_on(self.device), in_flight=self._maker.in_flight
        )
        self._clock = Clock()
        self._stalled_s = self._store_s()
        self._position = 0  # of the next batch to deliver, in samples of the whole epoch
        self._running: ReadAhead[Delivery] | None = None
        self._closed = False

    @property
    def num_samples(self) -> int:
        """Samples of the split."""
        return len(self._index)

    @property
    def num_classes(self) -> int:
        """Classes of the shard set."""
        return self.shard_set.manifest.num_classes

    @property
    def border(self) -> int:
        """How far the central crop is from the top and left edge, in pixels."""
        return centre(self._slack)

    def order_of(self, epoch: int) -> EpochOrder:
        """The sample at each position of an epoch, and the shards that each run of positions lies on."""
        return self._deliveries.order_of(epoch=epoch)

    def __len__(self) -> int:
        """Batches of a whole epoch, the same on every rank."""
        return self._sharing.steps()

    def __iter__(self) -> Iterator[Batch]:
        """The rest of the current epoch; afterwards the epoch is the next one."""
        if self._closed:
            raise WrongCall("this loader was closed")
        self._check_process()
        self._stop()
        if self._sharing.steps(self._position) == 0:
            self.epoch, self._position = self.epoch + 1, 0
        deliveries = self._deliveries.of_epoch(self._maker, self.epoch, self._position)
        running = self._running = ReadAhead(
            deliveries, self.prefetch, interrupt=self._maker.interrupt, clock=self._clock
        )
        return self._batches(running)

    def _batches(self, running: ReadAhead[Delivery]) -> Iterator[Batch]:
        try:
            while (delivery := self._next(running)) is not None:
                batch = delivery.batch()
                self._position = delivery.end
                self._clock.images += len(batch)
                del delivery
                yield batch
                del batch
            if self._running is not running:
                raise StaleIteration(
                    "this iteration was ended by a later one, or by close or load_state_dict",
                    why="a loader is at one position of one epoch",
                    remedy="make a second Loader for a second iteration",
                )
            self.epoch, self._position = self.epoch + 1, 0
        finally:
            running.close()

    def _next(self, running: ReadAhead[Delivery]) -> Delivery | None:
        self._check_process()
        with span("wait"):
            return next(running, None)

    def _check_process(self) -> None:
        if os.getpid() != self._process:
            raise WrongCall(
                "this loader was made before the process forked, and its threads stayed behind",
                why="nobody would ever make the next batch",
                remedy="make the Loader in the process that takes its batches; its state can come from another",
            )

    @property
    def times(self) -> Times:
        """Where the time went since the loader was made."""
        clock = self._clock
        store_s = self._store_s() - self._stalled_s
        return Times(clock.waited_s, clock.made_s, clock.full_s, store_s, clock.images)

    def _store_s(self) -> float:
        return float(getattr(self.shard_set.shelf, "stalled_s", 0.0))

    def state_dict(self) -> dict[str, Any]:
        """Where this loader is: a few numbers and words, ready for JSON.

        What was delivered counts, not what was read ahead. The position is in samples of the whole epoch, so
        another number of ranks or another batch size can go on from it; with `jitter_steps` those that make the
        same global batch.
        """
        epoch, position = self.epoch, self._position
        if self._sharing.steps(position) == 0:
            epoch, position = epoch + 1, 0
        return {**self._identity, "epoch": epoch, "position": position}

    def load_state_dict(self, state: object) -> None:
        """Go on where the loader that made `state` was; ends an iteration that runs.

        Raises:
            OtherState: the state is of another shard set, split, seed, order or version, or its jitter ends
                elsewhere.
        """
        epoch, position = position_of(
            state, identity=self._identity, num_samples=self.num_samples, where=self.shard_set.shown
        )
        self._stop()
        self.epoch, self._position = epoch, position

    def _stop(self) -> None:
        running, self._running = self._running, None
        if running is not None:
            running.close()

    def close(self) -> None:
        """End the iteration that runs, let go of threads, memory and shards. Batches handed out stay as they are.

        A shard set that was handed in stays open, since others may use it.
        """
        self._closed = True
        if os.getpid() != self._process:
            return
        self._maker.interrupt()
        if self._owns_set:
            self.shard_set.shelf.close()  # wakes threads that wait for a shard
        self._stop()
        self._maker.close()
        self._stored.close()

    def __enter__(self) -> Loader:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()
