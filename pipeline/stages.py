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
from dataclasses import replace
from functools import partial
from itertools import count

import numpy as np
import torch
from numpy.typing import NDArray

from .choosing import make_maker
from .crew import Crew
from .decode import ImageSource, Scratch
from .loader import Loader
from .making import Maker, Work
from .order import Span
from .treatment import Treatment

STAGES = ("bytes", "decode", "augment", "device")


class Stages:
    """Runs one stage of a loader for a while. The loader must not be iterated over meanwhile."""

    def __init__(self, loader: Loader) -> None:
        self._loader = loader
        self._batches = _batches(loader)
        plan = loader._plan
        self._maker = make_maker(plan)
        self._crew = Crew(loader.threads, partial(Scratch, plan.stored))
        self._readers = ImageSource(plan.stored, self._crew, encoded=plan.encoded, decode=False)
        self._decoders = ImageSource(plan.stored, self._crew, encoded=plan.encoded, decode=True)
        self._whole: Maker | None = None  # where DALI decodes: images as decoded, neither cut nor finished
        if plan.encoded and plan.decoder != "cores":
            uncut = replace(plan, side=plan.stored_side, output="uint8", channels_last=False, views=())
            self._whole = make_maker(replace(uncut, own_mean=None, central_mean=None, channel_mean=None))

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
        self._readers.begin(samples).wait()

    def _decode(self, span: Span, samples: NDArray[np.int64]) -> None:
        if self._whole is None:
            self._decoders.begin(samples).wait()
            return
        centred = Treatment(None, 0, 0, None, None).of(span.start, span.stop, epoch=0, step=0)
        self._whole.begin(Work(samples, centred))
        self._whole.collect()()

    def _augment(self, span: Span, samples: NDArray[np.int64]) -> None:
        treatment = self._loader._deliveries.treatment
        self._maker.begin(Work(samples, treatment.of(span.start, span.stop, epoch=0, step=0)))
        self._maker.collect()()

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
