"""Where a loader or a sampler is, as a few numbers and words: written by `state_dict`, checked when it comes back.

version, shard_set, split, seed, order, window (of `windowed` alone)   must be those of whoever goes on
jitter_steps, global_batch, drop_last (with jitter_steps alone)        too: they say where the jitter ends
epoch, position                                                        where it goes on, in samples of the epoch

No number of ranks is in it and no batch size, so any can go on from it; with jitter_steps any that makes the same
global batch.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from ..shards import printable
from .errors import OtherState
from .order import Sharing

STATE_VERSION = 1
_OF_JITTER = ("jitter_steps", "global_batch", "drop_last")
_SHOWN = 80  # characters of a value in a message


def identity_of(*, shard_set: str, split: str, seed: int, order: str, window: int | None) -> dict[str, Any]:
    """What decides on the samples of every position; `shard_set` is the digest of the set."""
    identity = {
        "version": STATE_VERSION,
        "shard_set": shard_set,
        "split": str(split),
        "seed": int(seed),
        "order": order,
    }
    return identity if window is None else {**identity, "window": int(window)}


def end_of_jitter(jitter_steps: int | None, sharing: Sharing) -> dict[str, Any]:
    """What decides at which sample of the run the jitter ends, where it does."""
    if jitter_steps is None:
        return {}
    return dict(zip(_OF_JITTER, (jitter_steps, sharing.global_batch, sharing.drop_last), strict=True))


def position_of(
    state: object, *, identity: Mapping[str, Any], num_samples: int, where: str, jitters: bool = True
) -> tuple[int, int]:
    """Epoch and position of a state, for one who is `identity`. Whatever the state is, it is read or refused.

    Args:
        jitters: whether it matters where the jitter ends.

    Raises:
        OtherState: it is the state of another shard set, split, seed, order, window or version, of a run whose
            jitter ends elsewhere, or none at all.
    """
    if not isinstance(state, Mapping) or not any(name in state for name in identity):
        raise OtherState(
            f"a loader's state is what state_dict() gives; got {_shown(state)}",
            where=where,
            remedy="give the state that was saved, or start from a new one",
        )
    of_some = ("window", *(_OF_JITTER if jitters else ()))
    for name in (*identity, *(name for name in of_some if name in state and name not in identity)):
        here, there = identity.get(name), _plain(state.get(name))
        if type(there) is not type(here) or there != here:
            raise OtherState(
                f"the loader's state has {name} {_shown(state.get(name))}, this loader has {here!r}",
                where=where,
                why="the jitter would end at another sample"
                if name in _OF_JITTER
                else "the samples not yet seen would be others",
                remedy=f"open the loader with the same {name}, or start from a new state",
            )
    epoch, position = _plain(state.get("epoch")), _plain(state.get("position"))
    if type(epoch) is int and type(position) is int and 0 <= epoch < 2**32 and 0 <= position <= num_samples:
        return epoch, position
    raise OtherState(
        f"the loader's state has epoch {_shown(state.get('epoch'))} and position {_shown(state.get('position'))}, "
        f"and the split has {num_samples:,} samples",
        where=where,
        why="there is no such place in any epoch",
        remedy="give the state that was saved, or start from a new one",
    )


def _plain(value: object) -> object:
    """NumPy's whole numbers as Python's; all else as it is."""
    return int(value) if isinstance(value, np.integer) else value


def _shown(value: object) -> str:
    """A value that may be anything, on one line."""
    try:
        text = printable(repr(value))
    except Exception:  # the repr of a number with many digits, or of somebody's class, may raise anything
        return f"a {type(value).__name__}"
    return text if len(text) <= _SHOWN else f"{text[:_SHOWN]}…"
