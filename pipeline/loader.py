"""The loader: a shard set and a seed in, batches out.

epoch_order ─► spans ─► draws ─┐
                    └► image_source ─► graph ─► Batch          (all but the last arrow in a background thread)
"""

from __future__ import annotations

from collections.abc import Generator, Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from types import TracebackType
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch.utils.dlpack import from_dlpack

from ..shards import ShardSet, WrongCall, usable_cores
from .ahead import ReadAhead
from .augment import AUGMENTATIONS, Places, centre, crop_side, ten_views
from .batch import Batch, assemble
from .bytes import StoredImages
from .checks import check_call, usable_device
from .decode import image_source
from .errors import StaleIteration
from .graph import Graph, GraphPlan, Inputs
from .lent import keep_until_read
from .order import EpochOrder, Sharing, Span, default_window, epoch_order
from .state import STATE_VERSION, position_of
from .treatment import Treated, Treatment


@dataclass(frozen=True, slots=True)
class _Delivery:
    """One batch on its way from the background thread."""

    span: Span
    samples: NDArray[np.int64]
    treated: Treated
    inputs: Inputs | None  # until the graph has run
    output: Any  # afterwards: a DALI tensor; None where this rank's slice is empty


class Loader:
    """Batches of a shard set's split, as the presets `paper` and `original` make them.

        with Loader("shards/", batch_size=128) as loader:
            for epoch in range(90):
                for batch in loader:
                    train(batch.images, batch.labels)

    `iter` runs the current epoch from its position, then the epoch is the next one. Order and draws are functions
    of seed, epoch and position: the same on any number of ranks, and at once after `load_state_dict`.

    Args:
        shards: a shard set, its folder, or a folder that holds exactly one.
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
        output: "float32", or "uint8" for those who subtract the mean themselves (see `Batch`).
        drop_last: drop the samples that do not fill a global batch; None: in train alone.
        views: 10 gives every image's ten views (needs augment=None): images (N, 10, 3, S, S).
        mean_crop: "own" subtracts each pixel's own mean, "centre" the central crop of the mean image from every
            crop, not mirrored; None: as the preset does, "own" without one. Of mean="image" alone.
        jitter_steps: batches, counted over the whole run (epoch · len + batch), that are jittered and, in
            `original`, divided by 1.1; None: all.
        eigen: "set" jitters along the set's own eigenvectors, "published" along ImageNet's (fidelity.md §3.5).
        threads: that decode, and as many of DALI's; None: one a core.
        prefetch: batches made ahead of the one that is asked for.
        crop: side S of the crop; None: what belongs to the stored side (fidelity.md §1.3: 256 → 224).
        window: shards in a window of order="windowed"; None: about the square root of their number.
        decoder: of JPEGs: "cores", or "card" (needs a CUDA device); None: where the batches are wanted.

    Raises:
        WrongCall: what is asked for cannot be; NoShardSet, NoSuchSplit, NoDali among them.
        UndecodableSample: from the iteration; names shard, key and offset.
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
        output: Literal["float32", "uint8"] = "float32",
        *,
        drop_last: bool | None = None,
        views: Literal[1, 10] = 1,
        mean_crop: Literal["own", "centre"] | None = None,
        jitter_steps: int | None = None,
        eigen: Literal["set", "published"] = "set",
        threads: int | None = None,
        prefetch: int = 2,
        crop: int | None = None,
        decoder: Literal["cores", "card"] | None = None,
        window: int | None = None,
    ) -> None:
        self.device = usable_device(device)
        on_card = self.device.type == "cuda"
        decoder = decoder or ("card" if on_card else "cores")
        threads = usable_cores() if threads is None else threads
        check_call(
            device=self.device,
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
            decoder=decoder,
            window=window,
        )
        mean_crop = mean_crop or ("centre" if augment == "original" else "own")
        self.shard_set = shards if isinstance(shards, ShardSet) else ShardSet.open(shards)
        self.split = split
        self.seed, self.epoch = seed, epoch
        self._index = self.shard_set.index(split)
        image = self.shard_set.manifest.image
        self.side = crop_side(image.side) if crop is None else crop
        if not 1 <= self.side <= image.side:
            raise WrongCall(
                f"crop={crop} does not fit: {self.shard_set.path} stores {image.side}x{image.side} pixels"
            )
        self._slack = image.side - self.side
        self._sharing = Sharing(
            num_samples=len(self._index),
            batch_size=batch_size,
            rank=rank,
            world_size=world_size,
            drop_last=split == "train" if drop_last is None else drop_last,
        )
        if len(self) == 0:
            raise WrongCall(
                f"a global batch of {self._sharing.global_batch} is larger than {split} with its "
                f"{self.num_samples:,} samples, and an incomplete batch is dropped",
                where=str(self.shard_set.path),
                remedy=f"a batch of at most {self.num_samples // world_size:,} a rank, or drop_last=False",
            )
        self.order = order
        self._shard_samples = np.bincount(self._index.shard, minlength=len(self._index.shards))
        self.window = window or default_window(len(self._shard_samples)) if order == "windowed" else None
        self._treatment = Treatment(
            augmentation=AUGMENTATIONS[augment] if augment else None,
            slack=self._slack,
            seed=seed,
            statistics=self.shard_set.manifest.statistics if eigen == "set" else None,
            jitter_steps=jitter_steps,
        )
        self._views: Places = ten_views(self._slack) if views == 10 else ()
        self._channel_mean = np.zeros(3, np.float32)
        own_mean = central_mean = None
        if output == "float32" and mean == "channel":
            self._channel_mean = np.array(self.shard_set.manifest.statistics.channel_mean, np.float32)
        elif output == "float32" and mean_crop == "own":
            own_mean = self.shard_set.mean_image()
        elif output == "float32":
            top, bottom = self.border, self.border + self.side
            central = self.shard_set.mean_image()[top:bottom, top:bottom]
            central_mean = np.ascontiguousarray(central.transpose(2, 0, 1))
        self._stored = StoredImages(self._index, self.shard_set.shelf, image.side)
        self._source = image_source(self._stored, image.extension, decoder, threads)
        self._graph = Graph(
            GraphPlan(
                batch_size=batch_size,
                stored_side=image.side,
                side=self.side,
                threads=threads,
                device_id=self.device.index if on_card else None,
                encoded=self._source.encoded,
                floats=output == "float32",
                views=self._views,
                own_mean=own_mean,
                central_mean=central_mean,
                divisor=self._treatment.divisor(epoch * len(self)),
            )
        )
        self.threads, self.decoder = threads, decoder
        self._floats = output == "float32"
        self.prefetch = prefetch
        self._position = 0  # of the next batch to deliver, in samples of the whole epoch
        self._running: ReadAhead[_Delivery] | None = None
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
        return epoch_order(self._shard_samples, seed=self.seed, epoch=epoch, order=self.order, window=self.window)

    def __len__(self) -> int:
        """Batches of a whole epoch, the same on every rank."""
        return self._sharing.steps()

    def __iter__(self) -> Iterator[Batch]:
        """The rest of the current epoch; afterwards the epoch is the next one."""
        if self._closed:
            raise WrongCall("this loader was closed")
        self._stop()
        if self._sharing.steps(self._position) == 0:
            self.epoch, self._position = self.epoch + 1, 0
        running = self._running = ReadAhead(self._deliveries(self.epoch, self._position), self.prefetch)
        return self._batches(running)

    def _batches(self, running: ReadAhead[_Delivery]) -> Iterator[Batch]:
        try:
            for delivery in running:
                batch = self._batch(delivery)
                self._position = delivery.span.end
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

    def _deliveries(self, epoch: int, position: int) -> Generator[_Delivery, None, None]:
        """In the background thread: while the graph works on one batch, the next one's images are read."""
        order = self.order_of(epoch).samples
        begun: _Delivery | None = None
        try:
            for span in self._sharing.spans(position):
                prepared = self._prepare(epoch, span, order[span.start : span.stop])
                finished = self._collect(begun) if begun else None
                if prepared.inputs is not None:
                    self._graph.begin(prepared.inputs)
                begun = prepared
                if finished is not None:
                    yield finished
            if begun is not None:
                yield self._collect(begun)
        finally:
            self._graph.abandon()

    def _prepare(self, epoch: int, span: Span, samples: NDArray[np.int64]) -> _Delivery:
        step = epoch * len(self) + (span.end - 1) // self._sharing.global_batch
        treated = self._treatment.of(span.start, span.stop, epoch=epoch, step=step)
        if len(samples) == 0:
            return _Delivery(span, samples, treated, None, None)
        inputs = Inputs(self._source.load(samples), treated, self._channel_mean)
        return _Delivery(span, samples, treated, inputs, None)

    def _collect(self, begun: _Delivery) -> _Delivery:
        if begun.inputs is None:
            return begun
        return replace(begun, inputs=None, output=self._graph.collect())

    def _batch(self, delivery: _Delivery) -> Batch:
        """In the consumer's thread, since its current CUDA stream is the one that must wait for the images."""
        samples, treated = delivery.samples, delivery.treated
        if delivery.output is None:
            views = (len(self._views),) if self._views else ()
            dtype = torch.float32 if self._floats else torch.uint8
            images = torch.empty((0, *views, 3, self.side, self.side), dtype=dtype, device=self.device)
        else:
            images = from_dlpack(delivery.output)
            if images.is_cuda:
                keep_until_read(images, delivery.output)
            if not self._floats:
                images = images.movedim(-1, -3)
        return assemble(
            images,
            treated,
            self._views,
            labels=self._index.label[samples],
            keys=[self._index.keys[sample] for sample in samples],
        )

    def state_dict(self) -> dict[str, Any]:
        """Where this loader is: a few numbers and words, ready for JSON.

        What was delivered counts, not what was read ahead. The position is in samples of the whole epoch, so
        another number of ranks or another batch size can go on from it.
        """
        epoch, position = self.epoch, self._position
        if self._sharing.steps(position) == 0:
            epoch, position = epoch + 1, 0
        return {**self._identity(), "epoch": epoch, "position": position}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on where the loader that made `state` was; ends an iteration that runs.

        Raises:
            OtherState: the state is of another shard set, split, seed, order or version.
        """
        epoch, position = position_of(
            state, identity=self._identity(), num_samples=self.num_samples, where=str(self.shard_set.path)
        )
        self._stop()
        self.epoch, self._position = epoch, position

    def _identity(self) -> dict[str, Any]:
        return {
            "version": STATE_VERSION,
            "shard_set": self.shard_set.digest,
            "split": self.split,
            "seed": self.seed,
            "order": self.order,
            **({"window": self.window} if self.window else {}),
        }

    def _stop(self) -> None:
        running, self._running = self._running, None
        if running is not None:
            running.close()

    def close(self) -> None:
        """End the iteration that runs and let go of threads and maps. Batches handed out stay as they are."""
        self._closed = True
        self._stop()
        self._source.close()
        self._graph.close()
        self._stored.close()

    def __enter__(self) -> Loader:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()
