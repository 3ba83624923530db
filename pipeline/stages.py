"""A loader taken apart: the same batches as far as one stage, to see what each adds.

bytes    every stored byte of the images, read once, by as many threads as decode
decode   pixels, by whoever decodes (a raw set's bytes are its pixels: as before)
augment  finished images: crop, mirror, mean and jitter by the graph
device   batches as a trainer gets them: torch tensors on the device, made in a background thread

So each stage contains those before it. All go on through the epochs, so that none finds its images in memory
because another has just read them.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Generator, Iterator
from concurrent.futures import ThreadPoolExecutor
from itertools import count

import numpy as np
import torch
from numpy.typing import NDArray

from .graph import Graph, GraphPlan, Inputs
from .loader import Loader
from .order import Span
from .treatment import Treatment

STAGES = ("bytes", "decode", "augment", "device")


class Stages:
    """Runs one stage of a loader for a while. The loader must not be iterated over meanwhile."""

    def __init__(self, loader: Loader) -> None:
        self._loader = loader
        self._raw = loader.shard_set.manifest.image.encoding == "raw"
        self._batches = _batches(loader)
        self._readers = ThreadPoolExecutor(loader.threads)
        self._decoder: Graph | None = None
        if loader._source.encoded:
            side = loader._stored.side
            plan = loader._graph.plan
            self._decoder = Graph(
                GraphPlan(
                    batch_size=plan.batch_size,
                    stored_side=side,
                    side=side,
                    threads=plan.threads,
                    device_id=plan.device_id,
                    encoded=True,
                    floats=False,
                )
            )

    def images_per_s(self, stage: str, *, seconds: float) -> float:
        """Images per second of one stage, over at least `seconds` and one batch, after a warm-up."""
        if stage == "device":
            return self._of_deliveries(seconds)
        work: Callable[[Span, NDArray[np.int64]], None]
        work = {"bytes": self._bytes, "decode": self._decode, "augment": self._augment}[stage]
        work(*next(self._batches))
        images, started = 0, time.perf_counter()
        while (elapsed := time.perf_counter() - started) < seconds or images == 0:
            span, samples = next(self._batches)
            work(span, samples)
            images += len(samples)
        return images / elapsed

    def _bytes(self, _span: Span, samples: NDArray[np.int64]) -> None:
        for _ in self._readers.map(self._read, np.array_split(samples, self._loader.threads)):
            pass

    def _read(self, samples: NDArray[np.int64]) -> None:
        stored = self._loader._stored
        into = np.empty(stored.largest, np.uint8)
        for sample in samples:
            stored.read(int(sample), into)

    def _decode(self, span: Span, samples: NDArray[np.int64]) -> None:
        if self._raw:
            self._bytes(span, samples)
            return
        images = self._loader._source.load(samples)
        if self._decoder is not None:
            centred = Treatment(None, 0, 0, None, None).of(span.start, span.stop, epoch=0, step=0)
            self._decoder.begin(Inputs(images, centred, np.zeros(3, np.float32)))
            self._decoder.collect()

    def _augment(self, span: Span, samples: NDArray[np.int64]) -> None:
        loader = self._loader
        treated = loader._treatment.of(span.start, span.stop, epoch=0, step=0)
        loader._graph.begin(Inputs(loader._source.load(samples), treated, loader._channel_mean))
        loader._graph.collect()

    def _of_deliveries(self, seconds: float) -> float:
        loader = self._loader
        batches = self._deliveries()
        # What was made ahead before the clock starts would be counted but not timed.
        for _ in range(loader.prefetch + 2):
            next(batches)
        images, started = 0, time.perf_counter()
        while (elapsed := time.perf_counter() - started) < seconds or images == 0:
            images += next(batches)
        if loader.device.type == "cuda":
            torch.cuda.synchronize(loader.device)
            elapsed = time.perf_counter() - started
        batches.close()
        return images / elapsed

    def _deliveries(self) -> Generator[int, None, None]:
        while True:
            for batch in self._loader:
                yield len(batch)


def _batches(loader: Loader) -> Iterator[tuple[Span, NDArray[np.int64]]]:
    """This rank's batches, epoch after epoch."""
    for epoch in count():
        order = loader.order_of(epoch).samples
        for span in loader._sharing.spans():
            if len(span):
                yield span, order[span.start : span.stop]
