"""Batches made as reference.py states them: by Pillow and NumPy, one image after the other. For where neither DALI
nor a C compiler is, and to see what the fast ways should give."""

from __future__ import annotations

from collections import deque
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from .bytes import StoredImages
from .making import DTYPES, Made, Plan, Work, on_device
from .reference import cropped, decoded, finished
from .trace import span


class ReferenceMaker:
    """Makes batches slowly; see making.Maker."""

    in_flight = 0  # all work is done when a batch is collected

    def __init__(self, plan: Plan) -> None:
        self.plan = plan
        self._begun: deque[Work] = deque()
        self._file = np.empty(plan.stored.largest, np.uint8)
        self._before: NDArray[np.float32] | float = 0.0 if plan.own_mean is None else plan.own_mean
        self._after: NDArray[np.float32] | float = 0.0
        if plan.central_mean is not None:
            self._after = plan.central_mean.transpose(1, 2, 0)
        elif plan.channel_mean is not None:
            self._after = plan.channel_mean

    def begin(self, work: Work) -> None:
        self._begun.append(work)

    def interrupt(self) -> None:
        """Nothing goes on in the background."""

    def abandon(self) -> None:
        self._begun.clear()

    def close(self) -> None:
        self.abandon()

    def collect(self) -> Made:
        work, plan = self._begun.popleft(), self.plan
        images = np.empty((len(work.samples), *plan.shape), np.float32 if plan.floats else np.uint8)
        with span("decode", images=len(images)):
            for number, sample in enumerate(work.samples.tolist()):
                images[number] = self._finished(self._pixels(sample), work, number)
        tensor = torch.from_numpy(images).to(DTYPES[plan.output])
        moved = on_device(tensor, plan.device)
        return lambda: plan.shown(moved())

    def _pixels(self, sample: int) -> NDArray[np.uint8]:
        stored: StoredImages = self.plan.stored
        file = stored.read(sample, self._file)
        try:
            pixels = decoded(file.tobytes(), "jpg" if self.plan.encoded else "ppm")
        except (OSError, ValueError, SyntaxError) as error:  # what Pillow makes of damaged files
            raise stored.undecodable(sample, str(error)) from None
        if pixels.shape != (stored.side, stored.side, 3):
            raise stored.undecodable(sample, f"it has {pixels.shape[1]}x{pixels.shape[0]} pixels")
        return pixels

    def _finished(self, pixels: NDArray[np.uint8], work: Work, number: int) -> NDArray[Any]:
        """One sample's images as they lie in memory."""
        plan, treated = self.plan, work.treated
        place = (int(treated.y[number]), int(treated.x[number]), bool(treated.mirror[number]))
        views = []
        for y, x, mirror in plan.views or (place,):
            if not plan.floats:
                views.append(cropped(pixels, y, x, mirror, side=plan.side))
                continue
            view = finished(pixels, y, x, mirror, side=plan.side, before=self._before, after=self._after)
            view = (view + treated.jitter[number]) / treated.divisor
            views.append(view if plan.channels_last else view.transpose(2, 0, 1))
        return np.stack(views) if plan.views else views[0]
