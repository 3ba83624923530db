"""Where a loader is, as a few numbers and words: written by `Loader.state_dict`, checked when it comes back."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from .errors import OtherState

STATE_VERSION = 1


def position_of(
    state: Mapping[str, Any], *, identity: Mapping[str, Any], num_samples: int, where: str
) -> tuple[int, int]:
    """Epoch and position of a state, for a loader of `identity`.

    Raises:
        OtherState: it is the state of another shard set, split, seed, order or version, or none at all.
    """
    for name, here in identity.items():
        if state.get(name) != here:
            raise OtherState(
                f"the loader's state has {name} {state.get(name)!r}, this loader has {here!r}",
                where=where,
                why="the samples not yet seen would be others",
                remedy=f"open the loader with the same {name}, or start from a new state",
            )
    epoch, position = state.get("epoch"), state.get("position")
    if not (
        isinstance(epoch, int)
        and isinstance(position, int)
        and 0 <= epoch < 2**32
        and 0 <= position <= num_samples
    ):
        raise OtherState(
            f"the loader's state has epoch {epoch!r} and position {position!r}, and the split has "
            f"{num_samples:,} samples",
            where=where,
        )
    return epoch, position
