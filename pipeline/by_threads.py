"""Batches made by threads: each image is read, decoded and finished by one thread while it lies in its cache.

bytes ─► 256×256 pixels (one buffer a thread) ─► crop, mirror, − mean, + jitter, ÷ divisor ─► place in the batch
"""

from __future__ import annotations

from collections import deque
from functools import partial
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from . import kernels
from .augment import Places
from .buffers import BufferRing
from .crew import Crew, Task
from .decode import Scratch, piece_size, pixels_of
from .making import Made, Plan, Work, on_device
from .trace import span
from .treatment import Treated

# Images that wait for a thread at least, as whole batches, and two batches at least: without any, threads wait for
# the end of each batch (0.9 of the images/s with one batch on its way, of 16 images or of 128; with two, 0.823 of
# decoding alone, with three 0.847: uint8, 128 images, 2 threads, medians of 6 in turns).
_AHEAD = 64

_NUMPY = {"float32": np.float32, "float16": np.float16, "bfloat16": np.uint16, "uint8": np.uint8}

_Begun = tuple[Task[Scratch], NDArray[Any]]


class ThreadMaker:
    """Makes batches on the cores without DALI; see making.Maker."""

    def __init__(self, plan: Plan) -> None:
        self.plan = plan
        self.in_flight = 1 + max(2, -(-_AHEAD // plan.batch_size))
        self._crew = Crew(plan.threads, partial(Scratch, plan.stored))
        self._buffers = BufferRing()
        self._begun: deque[_Begun] = deque()
        # The mean image as planes, which is how it is subtracted from planes.
        self._mean: NDArray[np.float32] | None = plan.central_mean
        if plan.own_mean is not None:
            self._mean = np.ascontiguousarray(plan.own_mean.transpose(2, 0, 1))

    def begin(self, work: Work) -> None:
        count = len(work.samples)
        out = self._buffers.take((count, *self.plan.shape), _NUMPY[self.plan.output])
        samples, places = work.samples.tolist(), self._places(work.treated)
        add, scale = self.plan.add(work.treated), 1.0 / work.treated.divisor
        size = piece_size(count, len(self._crew))
        pieces = []
        for first in range(0, count, size):
            part = slice(first, first + size)
            pieces.append(partial(self._make, samples[part], places[part], add[part], scale, out[part]))
        self._begun.append((self._crew.begin(pieces), out))

    def collect(self) -> Made:
        task, out = self._begun[0]  # stays there while it is waited for, so that `interrupt` finds it
        try:
            task.wait()
        finally:
            self._begun.popleft()
        images = torch.from_numpy(out)
        if self.plan.output == "bfloat16":
            images = images.view(torch.bfloat16)
        moved = on_device(images, self.plan.device)
        return lambda: self.plan.shown(moved())

    def interrupt(self) -> None:
        for task, _ in list(self._begun):
            task.cancel()

    def abandon(self) -> None:
        self.interrupt()
        self._begun.clear()

    def close(self) -> None:
        self.abandon()
        self._crew.close()
        self._buffers = BufferRing()  # those of batches that somebody keeps go when these do

    def _places(self, treated: Treated) -> list[Places]:
        """Of each image: where its views lie and whether they are mirrored."""
        if self.plan.views:
            return [self.plan.views] * len(treated)
        each = zip(treated.y.tolist(), treated.x.tolist(), treated.mirror.tolist(), strict=True)
        return [(place,) for place in each]

    def _make(
        self,
        samples: list[int],
        places: list[Places],
        add: NDArray[np.float32],
        scale: float,
        out: NDArray[Any],
        scratch: Scratch,
    ) -> None:
        """A piece of a batch, in one of the threads."""
        plan, mean = self.plan, self._mean
        follows = plan.own_mean is not None  # the mean's crop follows the image's
        each = out if plan.views else out[:, None]
        with span("decode", images=len(samples)):
            for sample, views, added, images in zip(samples, places, add, each, strict=True):
                pixels = pixels_of(plan.stored, sample, plan.encoded, scratch)
                for (y, x, mirror), image in zip(views, images, strict=True):
                    if not plan.floats:
                        kernels.cut(pixels, image, y=y, x=x, mirror=mirror)
                        continue
                    kernels.finish(
                        pixels,
                        image,
                        y=y,
                        x=x,
                        mirror=mirror,
                        mean=mean,
                        mean_y=y if follows else 0,
                        mean_x=x if follows else 0,
                        mean_mirror=mirror and follows,
                        add=added,
                        scale=scale,
                        channels_last=plan.channels_last,
                    )
