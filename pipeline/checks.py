"""What the arguments of a loader or a sampler must be."""

from __future__ import annotations

import operator
import os

import numpy as np
import torch

from ..shards import ShardSet, WrongCall
from .augment import AUGMENTATIONS, crop_side
from .making import BACKENDS, DECODERS, DTYPES
from .order import Sharing, check_order
from .remote import open_shard_set

# More is a slip of the hand, and would end in a machine without threads or memory.
MOST_THREADS, MOST_AHEAD = 1024, 64


def whole(**numbers: object) -> list[int]:
    """Numbers, NumPy's too, as Python's.

    Raises:
        WrongCall: names the one that is not whole; True and False are no numbers.
    """
    return [_index(name, number) for name, number in numbers.items()]


def whole_or_none(**numbers: object) -> list[int | None]:
    """As `whole`, and None is left as it is."""
    return [None if number is None else _index(name, number) for name, number in numbers.items()]


def _index(name: str, number: object) -> int:
    try:
        if not isinstance(number, (bool, np.bool_)):
            return operator.index(number)  # type: ignore[arg-type]  # which is what is found out here
    except TypeError:
        pass
    raise WrongCall(f"{name} is a whole number; got {number!r}")


def check_drop_last(drop_last: object) -> None:
    """Check that it is given as `Loader` and `OrderSampler` describe it.

    Raises:
        WrongCall: it is not.
    """
    if drop_last is not None:
        _yes_or_no("drop_last", drop_last)


def shard_set_of(shards: object) -> ShardSet:
    """A shard set that is handed in, or the one in a folder or at an address.

    Raises:
        WrongCall: it is nothing of that. All that `open_shard_set` raises.
    """
    if isinstance(shards, ShardSet):
        return shards
    if not isinstance(shards, (str, os.PathLike)):
        raise WrongCall(f"shards is a folder, an address or a ShardSet; got {shards!r}")
    return open_shard_set(os.fspath(shards))


def usable_crop(crop: int | None, shard_set: ShardSet) -> int:
    """Side of the crop from a set's images; None: what belongs to their side.

    Raises:
        WrongCall: it does not fit.
    """
    stored = shard_set.manifest.image.side
    side = crop_side(stored) if crop is None else crop
    if not 1 <= side <= stored:
        raise WrongCall(f"crop={crop} does not fit: {shard_set.shown} stores {stored}x{stored} pixels")
    return side


def check_sharing(sharing: Sharing, *, split: str, where: str) -> None:
    """Check that an epoch has a batch.

    Raises:
        WrongCall: it has none.
    """
    if sharing.steps() == 0:
        raise WrongCall(
            f"a global batch of {sharing.global_batch} is larger than {split} with its {sharing.num_samples:,} "
            "samples, and an incomplete batch is dropped",
            where=where,
            remedy=f"a batch of at most {sharing.num_samples // sharing.world_size:,} a rank, or drop_last=False",
        )


def usable_device(wanted: str | torch.device) -> torch.device:
    """The device, a CUDA device with its number.

    Raises:
        WrongCall: it is none, or not there.
    """
    try:
        device = torch.device(wanted)
    except (RuntimeError, TypeError) as error:
        raise WrongCall(f"{wanted!r} is no device; give cpu, cuda or cuda:N") from error
    if device.type == "cpu":
        return torch.device("cpu")
    if device.type != "cuda":
        raise WrongCall(f"batches can be put on cpu or cuda, not on {device}")
    if not torch.cuda.is_available():
        raise WrongCall(
            f"{device} was asked for, and torch sees no CUDA device", remedy="alexshard doctor; or cpu"
        )
    index = torch.cuda.current_device() if device.index is None else device.index
    if index >= torch.cuda.device_count():
        raise WrongCall(f"cuda:{index} was asked for, and there are {torch.cuda.device_count()} CUDA devices")
    return torch.device("cuda", index)


def check_call(
    *,
    batch_size: int,
    seed: int,
    epoch: int,
    rank: int,
    world_size: int,
    augment: str | None,
    mean: str,
    order: str,
    output: str,
    views: int,
    mean_crop: str | None,
    jitter_steps: int | None,
    eigen: str,
    threads: int,
    prefetch: int | None,
    backend: str | None,
    decoder: str | None,
    window: int | None,
    channels_last: bool,
    drop_last: bool | None,
    pad_last: bool,
) -> None:
    """Check the arguments of `Loader`, which describes them.

    Raises:
        WrongCall: names the argument and what it may be.
    """
    _one_of("augment", augment, (*AUGMENTATIONS, None))
    _one_of("mean", mean, ("image", "channel"))
    _one_of("output", output, tuple(DTYPES))
    (views,) = whole(views=views)
    _one_of("views", views, (1, 10))
    _one_of("mean_crop", mean_crop, ("own", "centre", None))
    _one_of("eigen", eigen, ("set", "published"))
    _one_of("backend", backend, (*BACKENDS, None))
    _one_of("decoder", decoder, (*DECODERS, None))
    _yes_or_no("channels_last", channels_last)
    _yes_or_no("pad_last", pad_last)
    check_drop_last(drop_last)
    check_order(
        batch_size=batch_size,
        seed=seed,
        epoch=epoch,
        rank=rank,
        world_size=world_size,
        order=order,
        window=window,
    )
    _within("threads", threads, 1, MOST_THREADS)
    _within("prefetch", 1 if prefetch is None else prefetch, 1, MOST_AHEAD)
    _at_least("jitter_steps", 0 if jitter_steps is None else jitter_steps, 0)
    if views == 10 and augment is not None:
        raise WrongCall("ten views are for evaluation: with views=10 augment must be None")
    if mean == "channel" and mean_crop is not None:
        raise WrongCall(
            f"mean_crop={mean_crop!r} says what of the mean image is subtracted, mean='channel' subtracts none",
            remedy="leave mean_crop out, or mean='image'",
        )
    if backend in ("threads", "reference") and decoder not in (None, "cores"):
        raise WrongCall(
            f"decoder={decoder!r} is one of DALI's, and backend={backend!r} works without it",
            remedy="leave one of the two out",
        )
    if channels_last and output == "uint8":
        raise WrongCall("channels_last is for floats: uint8 always lies in memory as (N, S, S, 3)")
    if pad_last and drop_last:
        raise WrongCall("pad_last fills the last batch, drop_last drops it: only one of the two can be")


def _one_of(name: str, value: object, allowed: tuple[object, ...]) -> None:
    if value not in allowed:
        raise WrongCall(f"{name} is one of {', '.join(map(repr, allowed))}; got {value!r}")


def _yes_or_no(name: str, value: object) -> None:
    if not isinstance(value, (bool, np.bool_)):
        raise WrongCall(f"{name} is one of True, False; got {value!r}")


def _within(name: str, value: int, least: int, most: int) -> None:
    if not least <= value <= most:
        raise WrongCall(f"{name} must be {least} to {most}, got {value}")


def _at_least(name: str, value: int, least: int) -> None:
    if value < least:
        raise WrongCall(f"{name} must be at least {least}, got {value}")
