"""Batches made by the DALI graph, which is fed pixels or JPEG files; or a part of each batch with one, the rest
with the other: the card's decoder and the cores then work at the same time.

    files  ─► graph that decodes ─┐
    pixels ─► graph ──────────────┴► joined on the device, in order
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import torch
from torch.utils.dlpack import from_dlpack

from .crew import Crew
from .decode import ImageSource, Loading, Scratch
from .graph import Graph, GraphPlan, Inputs
from .lent import keep_until_read
from .making import DTYPES, Made, Plan, Work
from .trace import span

_DECODED_BY_CREW = {"cores": (True,), "card": (False,), "split": (False, True)}  # of each lane, in order


@dataclass(frozen=True, slots=True)
class _Begun:
    work: Work
    parts: tuple[tuple[int, slice, Loading], ...]  # which lane, which samples of the batch


class _Lane:
    """A graph and what it is fed from."""

    def __init__(self, plan: Plan, crew: Crew[Scratch], decode: bool) -> None:
        self.source = ImageSource(plan.stored, crew, encoded=plan.encoded, decode=decode)
        self.graph = Graph(
            GraphPlan(
                batch_size=plan.batch_size,
                stored_side=plan.stored_side,
                side=plan.side,
                threads=plan.threads,
                device_id=plan.device.index if plan.device.type == "cuda" else None,
                encoded=plan.encoded and not decode,
                floats=plan.floats,
                views=plan.views,
                own_mean=plan.own_mean,
                central_mean=plan.central_mean,
                divisor=plan.divisor,
            )
        )


class GraphMaker:
    """Makes batches by DALI, on the cores or on a card; see making.Maker."""

    in_flight = 2  # one is loaded while the graph works on another

    def __init__(self, plan: Plan) -> None:
        self.plan = plan
        self._crew = Crew(plan.threads, partial(Scratch, plan.stored))
        self._lanes = [_Lane(plan, self._crew, decode) for decode in _DECODED_BY_CREW[plan.decoder]]
        self._loading: deque[_Begun] = deque()
        self._running: tuple[int, ...] = ()  # lanes whose graph works on the batch before those
        self._ready: deque[list[Any] | BaseException] = deque()

    def begin(self, work: Work) -> None:
        parts, count = [], len(work.samples)
        first = min(count, max(1, round(self.plan.split_share * count))) if len(self._lanes) == 2 else count
        for number, part in enumerate((slice(0, first), slice(first, count))):
            if part.stop > part.start:
                loading = self._lanes[number].source.begin(work.samples[part])
                parts.append((number, part, loading))
        self._loading.append(_Begun(work, tuple(parts)))
        if len(self._loading) > 1:
            self._run_next()

    def collect(self) -> Made:
        if not self._ready:
            if not self._running:
                self._run_next()
            self._finish()
        ready = self._ready.popleft()
        if isinstance(ready, BaseException):
            raise ready
        return partial(self._images, ready)

    def _run_next(self) -> None:
        """Let the graph go on to the oldest batch that is being loaded, once it is done with the one before."""
        begun = self._loading[0]  # stays there while it is waited for, so that `interrupt` finds it
        try:
            images = [loading.wait() for _, _, loading in begun.parts]
        except BaseException as error:  # told where its batch would have come
            self._finish()
            self._ready.append(error)
            return
        finally:
            self._loading.popleft()
        self._finish()
        channel_mean = np.zeros(3, np.float32) if self.plan.channel_mean is None else self.plan.channel_mean
        try:
            for (number, part, _), files in zip(begun.parts, images, strict=True):
                treated = begun.work.treated.part(part)
                self._running += (number,)
                self._lanes[number].graph.begin(Inputs(files, treated, channel_mean))
        except BaseException as error:
            self._drain()
            self._ready.append(error)

    def _finish(self) -> None:
        """Wait for the graphs that work, if any do."""
        if not self._running:
            return
        running, self._running = self._running, ()
        try:
            with span("graph"):
                self._ready.append([self._lanes[number].graph.collect() for number in running])
        except BaseException as error:
            self._ready.append(error)
            self._running = running
            self._drain()

    def _images(self, outputs: list[Any]) -> torch.Tensor:
        """In the thread of whoever takes the batch: its current CUDA stream is what waits for the images."""
        parts = []
        for output in outputs:
            images = from_dlpack(output)
            if images.is_cuda:
                keep_until_read(images, output)
            parts.append(images)
        images = parts[0] if len(parts) == 1 else torch.cat(parts)
        if not self.plan.floats:
            return images.movedim(-1, -3)
        images = images.to(DTYPES[self.plan.output])
        if self.plan.channels_last:
            images = images.movedim(-3, -1).contiguous().movedim(-1, -3)
        return images

    def interrupt(self) -> None:
        for begun in list(self._loading):
            for _, _, loading in begun.parts:
                loading.cancel()

    def abandon(self) -> None:
        self.interrupt()
        self._loading.clear()
        self._drain()
        self._ready.clear()

    def _drain(self) -> None:
        """Wait for runs that nobody collects, so that the next run of a graph gives its own output."""
        self._running = ()
        for lane in self._lanes:
            lane.graph.abandon()

    def close(self) -> None:
        self.abandon()
        self._crew.close()
        for lane in self._lanes:
            lane.graph.close()
        self._lanes = []
