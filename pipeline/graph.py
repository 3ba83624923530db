"""The DALI graph: images, places and means in; batches out. The only file that knows DALI.

    images ─► decode, or not ─► − own mean ─► crop, mirror, − offset, ÷ divisor ─► − central mean ─► out
              cpu or mixed      image mean    one fused operator, HWC → CHW       image mean

The graph has no reader, no random operator and no state: everything comes in with each run. The divisor alone is
built in, with the central mean divided by it: it changes once in a run, and then the graph is built anew. The same
function builds the form for the cores and the form for a card.

in   images     uint8, N × (side, side, 3) pixels, or N JPEG files; never copied
     y, x       float32 (N,): place of the crop as a fraction of the slack
     mirror     int32 (N,)
     offset     float32 (N, 3): subtracted from every pixel; the channel mean (if any) less the jitter
out  float32 (N, 3, S, S), or uint8 (N, S, S, 3); with views (N, V, …)
"""

from __future__ import annotations

import os
from contextlib import suppress
from dataclasses import dataclass, replace
from functools import cache
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .augment import Places
from .errors import GraphFailed, NoDali
from .treatment import Treated

_DALI_ERRORS = (RuntimeError, ValueError, TypeError, IndexError)  # what its C++ exceptions become


@dataclass(frozen=True, slots=True, eq=False)
class GraphPlan:
    """What a graph is built from."""

    batch_size: int  # the most samples of one run
    stored_side: int
    side: int  # of the crop
    threads: int
    device_id: int | None  # None: the cores
    encoded: bool  # images come as JPEG files
    floats: bool  # float32 (N, 3, S, S), else uint8 (N, S, S, 3)
    views: Places = ()  # the same for every image; without them places come in with each run
    own_mean: NDArray[np.float32] | None = (
        None  # (stored_side, stored_side, 3): cropped and mirrored with the image
    )
    central_mean: NDArray[np.float32] | None = None  # (3, S, S): subtracted as it is, wherever the crop lies
    divisor: float = 1.0  # of the first run


@dataclass(frozen=True, slots=True)
class Inputs:
    """What one run is fed, N images; see the module's docstring."""

    images: NDArray[np.uint8] | list[NDArray[np.uint8]]
    treated: Treated
    channel_mean: NDArray[np.float32]  # (3,): 0 where a mean image is subtracted


@cache
def dali() -> Any:
    """The DALI module, imported when first needed.

    Raises:
        NoDali: it is not installed.
    """
    try:
        import nvidia.dali.fn
        import nvidia.dali.types
    except ImportError as error:
        raise NoDali(
            f"backend='dali' needs NVIDIA DALI, which cannot be imported: {error}",
            why="decoding on the card, cropping, mirroring and subtracting the mean are one DALI graph",
            remedy="pip install '.[cuda13]' (or cuda12) in the clone of alexshard; it needs no card; "
            "backend='threads' needs the C kernels instead, and backend='reference' (slow) neither",
        ) from None
    return nvidia.dali


def build_pipeline(plan: GraphPlan) -> Any:
    """The graph as a DALI pipeline."""
    fn, types = dali().fn, dali().types
    device = "cpu" if plan.device_id is None else "gpu"

    def channelled(image: NDArray[np.float32], layout: str) -> Any:
        return types.Constant(image, device=device, layout=layout)

    pipeline = dali().Pipeline(
        batch_size=plan.batch_size,
        num_threads=plan.threads,
        device_id=plan.device_id,
        prefetch_queue_depth=1,  # one run at a time; the loader looks ahead, and inputs are free after each run
        exec_dynamic=True,  # outputs live as long as somebody holds them
        seed=0,  # nothing is random; set so that DALI does not ask the system for one
    )
    with pipeline:
        if plan.encoded:
            files = fn.external_source(name="images", dtype=types.UINT8, ndim=1, no_copy=True)
            images = fn.decoders.image(
                files,
                device="cpu" if plan.device_id is None else "mixed",
                output_type=types.RGB,
                adjust_orientation=False,  # packing ignores it, so a shard has none
                jpeg_fancy_upsampling=True,  # as libjpeg-turbo, so that decoders differ by rounding alone
            )
        else:
            images = fn.external_source(name="images", dtype=types.UINT8, layout="HWC", no_copy=True)
            images = images if plan.device_id is None else images.gpu()
        offset: Any = fn.external_source(name="offset", dtype=types.FLOAT, ndim=1) if plan.floats else None
        if plan.own_mean is not None:
            images = images - channelled(plan.own_mean, "HWC")

        def view(y: Any, x: Any, mirror: Any) -> Any:
            place = {"crop": (plan.side, plan.side), "crop_pos_y": y, "crop_pos_x": x, "mirror": mirror}
            if not plan.floats:
                return fn.crop_mirror_normalize(images, **place, dtype=types.UINT8, output_layout="HWC")
            cut = fn.crop_mirror_normalize(
                images, **place, mean=offset, std=plan.divisor, dtype=types.FLOAT, output_layout="CHW"
            )
            if plan.central_mean is None:
                return cut
            return cut - channelled(plan.central_mean / np.float32(plan.divisor), "CHW")

        if plan.views:
            slack = max(1, plan.stored_side - plan.side)
            out = fn.stack(*(view(y / slack, x / slack, int(mirrored)) for y, x, mirrored in plan.views))
        else:
            out = view(
                fn.external_source(name="y", dtype=types.FLOAT, ndim=0),
                fn.external_source(name="x", dtype=types.FLOAT, ndim=0),
                fn.external_source(name="mirror", dtype=types.INT32, ndim=0),
            )
        pipeline.set_outputs(out)
    pipeline.build()
    return pipeline


class Graph:
    """A built graph; one run at a time, begun and collected, so that the next batch is read while it computes."""

    def __init__(self, plan: GraphPlan) -> None:
        self._fed: Inputs | None = None  # keeps the memory that DALI reads from
        self._build(plan)

    def _build(self, plan: GraphPlan) -> None:
        self.plan = plan
        try:
            self._pipeline = build_pipeline(plan)
        except _DALI_ERRORS as error:
            raise _failed("build", error, plan) from error

    def begin(self, inputs: Inputs) -> None:
        """Start a run; `collect` waits for it."""
        if self.plan.floats and inputs.treated.divisor != self.plan.divisor:
            self._build(replace(self.plan, divisor=inputs.treated.divisor))
        plan, pipeline, treated = self.plan, self._pipeline, inputs.treated
        self._fed = inputs
        try:
            pipeline.feed_input("images", inputs.images)
            if not plan.views:
                slack = max(1, plan.stored_side - plan.side)
                pipeline.feed_input("y", (treated.y / slack).astype(np.float32))
                pipeline.feed_input("x", (treated.x / slack).astype(np.float32))
                pipeline.feed_input("mirror", treated.mirror.astype(np.int32))
            if plan.floats:
                pipeline.feed_input("offset", inputs.channel_mean - treated.jitter)
            pipeline.schedule_run()
        except _DALI_ERRORS as error:
            raise _failed("run", error, plan) from error

    def collect(self) -> Any:
        """The output of the run begun last, a DALI tensor with `__dlpack__`; complete, and never overwritten."""
        try:
            (output,) = self._pipeline.share_outputs()  # waits; the inputs have been read when it returns
            self._pipeline.release_outputs()  # of the executor's own reference; ours keeps the memory
            return output.as_tensor()
        except _DALI_ERRORS as error:
            raise _failed("run", error, self.plan) from error
        finally:
            self._fed = None

    def abandon(self) -> None:
        """Wait for a run that nobody will collect, so that the next one collects its own output."""
        if self._fed is not None:
            with suppress(GraphFailed):
                self.collect()

    def close(self) -> None:
        """Let go of DALI's threads and memory; outputs that somebody holds stay as they are."""
        self._pipeline = None


def dali_version() -> str:
    """The installed DALI's version."""
    return str(dali().__version__)


def _failed(doing: str, error: Exception, plan: GraphPlan) -> GraphFailed:
    # DALI's text goes on with its own stack; the first lines say what happened.
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    told = lines[: next((i for i, line in enumerate(lines) if line.startswith("Stacktrace")), len(lines))]
    return GraphFailed(
        f"DALI could not {doing} the graph: {' '.join(told[:6]) or type(error).__name__}",
        where=f"on {'the cores' if plan.device_id is None else f'cuda:{plan.device_id}'}, process {os.getpid()}",
        remedy="alexshard doctor says what is installed; --device cpu needs no card",
    )
