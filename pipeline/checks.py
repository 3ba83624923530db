"""What a call to the loader must fulfil before anything is opened."""

from __future__ import annotations

import torch

from ..shards import WrongCall
from .augment import AUGMENTATIONS
from .decode import DECODERS
from .order import ORDERS


def usable_device(wanted: str | torch.device) -> torch.device:
    """The device, a CUDA device with its number.

    Raises:
        WrongCall: it is none, or not there.
    """
    try:
        device = torch.device(wanted)
    except RuntimeError as error:
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
    device: torch.device,
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
    prefetch: int,
    decoder: str,
    window: int | None,
) -> None:
    """Check the arguments of `Loader`, which describes them.

    Raises:
        WrongCall: names the argument and what it may be.
    """
    _one_of("augment", augment, (*AUGMENTATIONS, None))
    _one_of("mean", mean, ("image", "channel"))
    _one_of("order", order, ORDERS)
    _one_of("output", output, ("float32", "uint8"))
    _one_of("views", views, (1, 10))
    _one_of("mean_crop", mean_crop, ("own", "centre", None))
    _one_of("eigen", eigen, ("set", "published"))
    _one_of("decoder", decoder, DECODERS)
    _at_least("batch_size", batch_size, 1)
    _at_least("threads", threads, 1)
    _at_least("prefetch", prefetch, 1)
    _at_least("world_size", world_size, 1)
    _at_least("jitter_steps", 0 if jitter_steps is None else jitter_steps, 0)
    _at_least("window", 1 if window is None else window, 1)
    if window is not None and order != "windowed":
        raise WrongCall(
            f"window={window} is of the order 'windowed', and order={order!r} has none",
            remedy="order='windowed', or leave window out",
        )
    if not 0 <= rank < world_size:
        raise WrongCall(f"rank {rank} is not one of a world of {world_size}: ranks are 0..{world_size - 1}")
    if not (0 <= seed < 2**64 and 0 <= epoch < 2**32):
        raise WrongCall(f"a seed has 64 bits and an epoch 32, got seed={seed}, epoch={epoch}")
    if views == 10 and augment is not None:
        raise WrongCall("ten views are for evaluation: with views=10 augment must be None")
    if mean == "channel" and mean_crop is not None:
        raise WrongCall(
            f"mean_crop={mean_crop!r} says what of the mean image is subtracted, mean='channel' subtracts none",
            remedy="leave mean_crop out, or mean='image'",
        )
    if decoder == "card" and device.type != "cuda":
        raise WrongCall(f"decoder='card' needs a CUDA device, and the batches go to {device}")


def _one_of(name: str, value: object, allowed: tuple[object, ...]) -> None:
    if value not in allowed:
        raise WrongCall(f"{name} is one of {', '.join(map(repr, allowed))}; got {value!r}")


def _at_least(name: str, value: int, least: int) -> None:
    if value < least:
        raise WrongCall(f"{name} must be at least {least}, got {value}")
