"""A loader taken apart: the same batches as far as one stage, to see what each adds.

bytes    every stored byte of the images, read and held against its check sum, by as many threads as decode
decode   pixels, by whoever decodes (a raw set's bytes are its pixels), into one buffer a thread
crop     batches of bytes, by whoever makes the batches: images cut, not mirrored
finish   finished batches: mirror, mean and jitter too, in the type that is asked for
device   finished batches on the device, with labels and keys, in the calling thread
loader   batches as a trainer gets them: made in a background thread, some ahead

So each stage contains those before it, with as many batches on their way as in the loader, in pieces of the same
size. All go on through the epochs, so that none finds its images in memory because another has just read them.
Each has threads and memory of its own while it runs.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Generator, Iterator
from contextlib import closing
from dataclasses import replace
from functools import partial
from itertools import count

import numpy as np

from ..shards import WrongCall
from .ahead import ReadAhead
from .batch import Batch
from .choosing import make_maker
from .crew import Crew, Task
from .decode import Scratch, piece_size, pixels_of
from .loader import Loader
from .making import Maker, Plan, Work
from .trace import span
from .treatment import Treatment

STAGES = ("bytes", "decode", "crop", "finish", "device", "loader")


class Stages:
    """Runs stages of a loader. The loader must not be iterated over meanwhile.

    Raises:
        WrongCall: this rank has no sample in any epoch.
    """

    def __init__(self, loader: Loader) -> None:
        if not any(map(len, loader._sharing.spans())):
            raise WrongCall(
                f"rank {loader._sharing.rank} has no sample of {loader.split}, so there is nothing to measure",
                where=loader.shard_set.shown,
                why=f"it has {loader.num_samples:,} for {loader._sharing.world_size} ranks",
                remedy="fewer ranks",
            )
        self._loader = loader
        self._epochs = count(loader.epoch)

    @property
    def batch_bytes(self) -> int:
        """Of a full batch's images."""
        return self._loader._plan.batch_bytes

    def batches(self, stage: str) -> Generator[int, None, None]:
        """Do one batch's work with each `next`, endlessly; gives its number of images. To be closed."""
        if stage == "loader":
            return self._delivered()
        if stage == "device":
            return self._on_device()
        plan = self._loader._plan
        if stage in ("bytes", "decode") and (stage == "bytes" or _by_threads(plan)):
            return self._by_crew(partial(_piece, plan, stage == "decode"))
        bare = replace(
            plan, output="uint8", channels_last=False, own_mean=None, central_mean=None, channel_mean=None
        )
        if stage == "decode":  # whoever decodes else gives nothing less than batches: of whole images
            return self._by_maker(replace(bare, side=plan.stored_side, views=()), _uncut)
        if stage == "crop":
            return self._by_maker(bare, _unmirrored)
        return self._by_maker(plan, lambda work: work)

    def ahead(self, stage: str) -> int:
        """How many batches may have been made before the first is taken, and so must not be counted."""
        begun = self._loader._maker.in_flight + 1
        return begun + (self._loader.prefetch + 1 if stage == "loader" else 0)

    def kept(self) -> list[Batch]:
        """Some of the loader's batches, as many as it makes ahead and one more."""
        kept: list[Batch] = []
        while len(kept) <= self._loader.prefetch:
            with closing(iter(self._loader)) as batches:  # type: ignore[type-var]
                for batch in batches:
                    kept.append(batch)
                    if len(kept) > self._loader.prefetch:
                        break
        return kept

    def replayed(self, kept: list[Batch]) -> Generator[Batch, None, None]:
        """The same batches again and again, handed over as the loader hands over its own. To be closed."""
        running = ReadAhead(_again(kept), self._loader.prefetch)
        try:
            yield from running
        finally:
            running.close()

    def _works(self) -> Iterator[Work]:
        """What there is to do for each of this rank's batches, epoch after epoch."""
        for epoch in self._epochs:
            yield from (work for _, work, _ in self._loader._deliveries.works(epoch) if len(work.samples))

    def _by_crew(self, piece: Callable[[list[int], Scratch], None]) -> Generator[int, None, None]:
        """Pieces of images done by threads of their own, as those of the makers are."""
        plan, in_flight = self._loader._plan, self._loader._maker.in_flight
        crew = Crew(plan.threads, partial(Scratch, plan.stored))
        begun: deque[tuple[Task[Scratch], int]] = deque()
        try:
            for work in self._works():
                samples = work.samples.tolist()
                size = piece_size(len(samples), len(crew))
                pieces = [partial(piece, samples[first : first + size]) for first in range(0, len(samples), size)]
                begun.append((crew.begin(pieces), len(samples)))
                if len(begun) > in_flight:
                    task, images = begun.popleft()
                    task.wait()
                    yield images
        finally:
            for task, _ in begun:
                task.cancel()
            crew.close()

    def _by_maker(self, plan: Plan, as_asked: Callable[[Work], Work]) -> Generator[int, None, None]:
        maker = make_maker(plan)
        begun: deque[int] = deque()
        try:
            for work in self._works():
                maker.begin(as_asked(work))
                begun.append(len(work.samples))
                if len(begun) > maker.in_flight:
                    made = maker.collect()
                    if plan.device.type == "cuda" and plan.backend == "dali":
                        made()  # DALI's batches are on the card already; this lets go of them in order
                    yield begun.popleft()
        finally:
            _end(maker)

    def _on_device(self) -> Generator[int, None, None]:
        loader = self._loader
        maker = make_maker(loader._plan)
        try:
            for epoch in self._epochs:
                with closing(loader._deliveries.of_epoch(maker, epoch, 0)) as deliveries:
                    for delivery in deliveries:
                        yield len(delivery.batch())
        finally:
            _end(maker)

    def _delivered(self) -> Generator[int, None, None]:
        while True:
            with closing(iter(self._loader)) as batches:  # type: ignore[type-var]
                for batch in batches:
                    images = len(batch)
                    del batch  # a trainer would have taken its step by now
                    yield images


def _by_threads(plan: Plan) -> bool:
    """Whether threads of ours decode, or nobody has to."""
    return not plan.encoded or (plan.decoder == "cores" and plan.backend != "reference")


def _piece(plan: Plan, decode: bool, samples: list[int], scratch: Scratch) -> None:
    with span("decode" if decode else "bytes", images=len(samples)):
        for sample in samples:
            if decode:
                pixels_of(plan.stored, sample, plan.encoded, scratch)
            else:
                plan.stored.read(sample, scratch.file)


def _unmirrored(work: Work) -> Work:
    treated = work.treated
    bare = replace(
        treated, mirror=np.zeros_like(treated.mirror), jitter=np.zeros_like(treated.jitter), divisor=1.0
    )
    return replace(work, treated=bare)


def _uncut(work: Work) -> Work:
    return replace(work, treated=Treatment(None, 0, 0, None, None).of(0, len(work.samples), epoch=0, step=0))


def _again(kept: list[Batch]) -> Generator[Batch, None, None]:
    while True:
        yield from kept


def _end(maker: Maker) -> None:
    maker.abandon()
    maker.close()
