"""What a caller leaves open: which backend makes the batches, and who decodes them where a card is; which mean."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from itertools import chain
from typing import Any

import numpy as np
import torch

from ..shards import RAW_EXTENSION, ShardSet, WrongCall
from . import kernels
from .augment import centre, ten_views
from .by_graph import GraphMaker
from .by_reference import ReferenceMaker
from .by_threads import ThreadMaker
from .bytes import StoredImages
from .delivery import Deliveries
from .errors import NoDali
from .graph import dali
from .making import Maker, Plan, Work

_MAKERS: Mapping[str, Callable[[Plan], Maker]] = {
    "threads": ThreadMaker,
    "dali": GraphMaker,
    "reference": ReferenceMaker,
}
SLOW = (
    "backend='reference' makes batches in plain NumPy and Pillow, one image after the other: tens of images/s "
    "where the others make thousands"
)
_WARM_UP, _TIMED = 3, 6  # batches: the first ones wait for memory, contexts and tables
_WORTH = 1.03  # a split has to be so many times as fast as one decoder alone, for what it complicates


def make_maker(plan: Plan) -> Maker:
    """Whoever makes batches as planned.

    Raises:
        NoDali: it takes DALI, which is not installed.
        GraphFailed: DALI refuses to build the graph.
    """
    return _MAKERS[plan.backend](plan)


def backend_for(device: torch.device, decoder: str | None) -> str:
    """The backend for a device, where none was asked for: threads on the cores, DALI for a card or its decoder.

    Raises:
        WrongCall: neither the kernels nor DALI are there (NoDali, where only DALI would do).
    """
    if device.type == "cpu" and decoder in (None, "cores") and kernels.AVAILABLE:
        return "threads"
    try:
        dali()
    except NoDali:
        if device.type == "cuda" or decoder not in (None, "cores"):
            raise
        raise WrongCall(
            "there is nothing to make batches with: the C kernels were not compiled, and DALI is not installed",
            why="one of the two decodes and finishes the images",
            remedy="install a C compiler and alexshard again, or pip install '.[cuda13]' in its clone; "
            "backend='reference' (--backend reference) needs neither, and is slow",
        ) from None
    return "dali"


def means_of(shard_set: ShardSet, *, output: str, mean: str, mean_crop: str, side: int) -> dict[str, Any]:
    """The fields of a `Plan` that say which mean is subtracted from crops of S = `side`.

    Raises:
        CorruptShardSet: the mean image is damaged.
    """
    if output == "uint8":
        return {}
    if mean == "channel":
        return {"channel_mean": np.array(shard_set.manifest.statistics.channel_mean, np.float32)}
    whole = shard_set.mean_image()
    if mean_crop == "own":
        return {"own_mean": whole}
    border = centre(len(whole) - side)
    central = whole[border : border + side, border : border + side]
    return {"central_mean": np.ascontiguousarray(central.transpose(2, 0, 1))}


def planned(
    shard_set: ShardSet,
    stored: StoredImages,
    *,
    device: torch.device,
    batch_size: int,
    side: int,
    output: str,
    mean: str,
    mean_crop: str,
    views: int,
    threads: int,
    backend: str | None,
    decoder: str | None,
    channels_last: bool,
    divisor: float,
) -> Plan:
    """The plan for what a loader was asked for, before anything is measured.

    Raises:
        WrongCall: nobody here can do it (NoDali, where only DALI could).
        CorruptShardSet: the mean image is damaged.
    """
    image = shard_set.manifest.image
    encoded = image.extension != RAW_EXTENSION
    return Plan(
        backend=backend or backend_for(device, decoder if encoded else None),
        decoder=(decoder or "cores") if encoded else "cores",
        split_share=0.5 if decoder == "split" else 1.0,
        threads=threads,
        device=device,
        stored=stored,
        encoded=encoded,
        batch_size=batch_size,
        stored_side=image.side,
        side=side,
        output=output,
        channels_last=channels_last,
        views=ten_views(image.side - side) if views == 10 else (),
        divisor=divisor,
        **means_of(shard_set, output=output, mean=mean, mean_crop=mean_crop, side=side),
    )


def decided(deliveries: Deliveries, decoder: str | None, epoch: int) -> tuple[Plan, Maker]:
    """The plan and its maker; on a card, where nobody says otherwise, with the decoder that is the fastest.

    Args:
        decoder: what was asked for.
        epoch: whose work is tried, and of those after it.
    """
    plan = deliveries.plan
    if plan.backend == "dali" and plan.encoded and decoder != "cores" and plan.device.type == "cuda":
        return with_decoder_measured(plan, deliveries.endless(epoch), decoder)
    return plan, make_maker(plan)


def with_decoder_measured(plan: Plan, works: Iterator[Work], decoder: str | None) -> tuple[Plan, Maker]:
    """The plan with the decoder that is the fastest here, by trying all three on batches that nobody gets.

    The split gives each side the part that it does in the same time as the other. With `decoder` "split" that part
    alone is what is looked for; "card" leaves nothing to look for. Without any work the plan stays as it is.
    """
    if decoder == "card":
        plan = replace(plan, decoder="card", split_share=1.0)
        return plan, make_maker(plan)
    first = next(works, None)
    if first is None:
        return plan, make_maker(plan)
    works = chain([first], works)
    rates = {alone: _tried(replace(plan, decoder=alone), works) for alone in ("card", "cores")}
    split = replace(plan, decoder="split", split_share=share_of_card(rates["card"], rates["cores"]))
    if decoder == "split":
        return split, make_maker(split)
    rates["split"] = _tried(split, works)
    chosen = fastest(rates)
    plan = split if chosen == "split" else replace(plan, decoder=chosen, split_share=1.0)
    return plan, make_maker(plan)


def _tried(plan: Plan, works: Iterator[Work]) -> float:
    maker = make_maker(plan)
    try:
        return images_per_s(maker, works, plan.device)
    finally:
        maker.close()


def share_of_card(card: float, cores: float) -> float:
    """The part of a batch that lets both decoders end together, from what each does alone in images/s.

    >>> share_of_card(6000, 2000)
    0.75
    """
    return card / (card + cores)


def fastest(rates: Mapping[str, float]) -> str:
    """The decoder to take, from images/s of each.

    >>> fastest({"card": 6000, "cores": 2000, "split": 7500})
    'split'
    >>> fastest({"card": 6000, "cores": 2000, "split": 6100})
    'card'
    """
    alone = max(("card", "cores"), key=rates.__getitem__)
    return "split" if rates["split"] > _WORTH * rates[alone] else alone


def images_per_s(maker: Maker, works: Iterator[Work], device: torch.device) -> float:
    """What a maker gives, with as many batches on their way as it likes."""
    begun: list[int] = []
    images, since = 0, time.perf_counter()
    for number in range(_WARM_UP + _TIMED + maker.in_flight):
        work = next(works)
        maker.begin(work)
        begun.append(len(work.samples))
        if len(begun) <= maker.in_flight:
            continue
        maker.collect()()
        images += begun.pop(0)
        if number == _WARM_UP + maker.in_flight - 1:
            _wait(device)
            images, since = 0, time.perf_counter()
    _wait(device)
    elapsed = time.perf_counter() - since
    maker.abandon()
    return images / elapsed


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
