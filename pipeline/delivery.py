"""What a loader's background thread does: the batches of an epoch, one after the other, several on their way.

epoch_order ─► spans ─► draws ─► Work ─► a maker ─► Made ┐
                          └────► Facts ──────────────────┴► Delivery ─► (whoever takes it) ─► Batch
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Generator, Iterator
from dataclasses import dataclass
from itertools import count

import numpy as np
import torch
from numpy.typing import NDArray

from .batch import Batch, Facts
from .making import DTYPES, Made, Maker, Plan, Work
from .order import EpochOrder, Sharing, Span
from .trace import span as traced
from .treatment import Treatment
from .wanted import Wanted


@dataclass(frozen=True, slots=True)
class Delivery:
    """One batch on its way from the background thread."""

    end: int  # the position at which the next global batch starts
    facts: Facts
    made: Made  # its images, in the thread of whoever takes the batch: see making.Made

    def batch(self) -> Batch:
        return self.facts.with_images(self.made())


@dataclass(frozen=True, slots=True)
class Deliveries:
    """The batches that one rank takes.

    Args:
        order_of: the order of an `epoch`.
        pad_last: every batch has `sharing.batch_size` samples: what is missing is the epoch's last one, repeated.
    """

    plan: Plan
    sharing: Sharing
    treatment: Treatment
    order_of: Callable[..., EpochOrder]
    pad_last: bool = False

    def of_epoch(self, maker: Maker, epoch: int, position: int) -> Generator[Delivery, None, None]:
        """The batches from a position of an epoch on. Errors come where their batch would."""
        begun: deque[tuple[Span, Facts, bool]] = deque()
        try:
            for span, work, valid in self.works(epoch, position, maker.in_flight):
                wanted = len(work.samples) > 0
                if wanted:
                    maker.begin(work)
                begun.append((span, self._facts(work, valid), wanted))
                if len(begun) > maker.in_flight:
                    yield self._collected(maker, *begun.popleft())
            while begun:
                yield self._collected(maker, *begun.popleft())
        finally:
            maker.abandon()

    def works(
        self, epoch: int, position: int = 0, in_flight: int = 0
    ) -> Iterator[tuple[Span, Work, NDArray[np.bool_]]]:
        """What there is to do for each batch, and which of its samples are not there to fill it.

        `in_flight` of the batches before each may still be made: their shards stay.
        """
        with traced("order", epoch=epoch):
            order = self.order_of(epoch=epoch)
        stored = self.plan.stored
        wanted = Wanted(order, stored.index.shard, stored.will_need, in_flight)
        for span in self.sharing.spans(position):
            wanted.enter(span.start, span.stop)
            with traced("draws"):
                work, valid = self._work(epoch, span, order.samples)
            yield span, work, valid

    def endless(self, epoch: int) -> Iterator[Work]:
        """Work of epoch after epoch, to try out who does it; none where this rank's part of an epoch is empty."""
        if self.pad_last or self.sharing.samples_of_rank():
            for each in count(epoch):
                yield from (work for _, work, _ in self.works(each) if len(work.samples))

    def _work(self, epoch: int, span: Span, samples: NDArray[np.int64]) -> tuple[Work, NDArray[np.bool_]]:
        step = epoch * self.sharing.steps() + (span.end - 1) // self.sharing.global_batch
        missing = self.sharing.batch_size - len(span) if self.pad_last else 0
        if missing == 0:
            treated = self.treatment.of(span.start, span.stop, epoch=epoch, step=step)
            return Work(samples[span.start : span.stop], treated), np.ones(len(span), bool)
        treated = self.treatment.of(span.start, span.end, epoch=epoch, step=step)
        rows = np.concatenate([np.arange(len(span)), np.full(missing, len(treated) - 1)])
        return Work(samples[span.start + rows], treated.part(rows)), np.arange(len(rows)) < len(span)

    def _facts(self, work: Work, valid: NDArray[np.bool_]) -> Facts:
        index = self.plan.stored.index
        return Facts.of(
            work.treated,
            self.plan.views,
            labels=index.label[work.samples],
            keys=[index.keys[sample] for sample in work.samples.tolist()],
            valid=valid,
            for_card=self.plan.device.type == "cuda",
        )

    def _collected(self, maker: Maker, span: Span, facts: Facts, wanted: bool) -> Delivery:
        with traced("batch", images=len(facts.keys)):
            return Delivery(span.end, facts, maker.collect() if wanted else self._nothing)

    def _nothing(self) -> torch.Tensor:
        """The images of a rank whose part of a global batch is empty."""
        images = torch.empty((0, *self.plan.shape), dtype=DTYPES[self.plan.output], device=self.plan.device)
        return self.plan.shown(images)
