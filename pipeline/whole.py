"""Iterations that begin at the beginning, for whoever does not expect a loader to go on where it was left."""

from __future__ import annotations

from collections.abc import Iterator

from .batch import Batch
from .loader import Loader


class WholeEpochs:
    """Every iteration over it is one whole epoch of `loader`, wherever the iteration before ended.

    A `Loader` goes on after the last batch that it delivered. Validation wants all of its split each time, also
    after somebody took two batches to see whether the code works (Lightning's sanity check). It has no state: it
    is never left in the middle.
    """

    def __init__(self, loader: Loader) -> None:
        self.loader = loader

    def __len__(self) -> int:
        """Batches of an epoch, the same on every rank."""
        return len(self.loader)

    def __iter__(self) -> Iterator[Batch]:
        """The loader's current epoch from its first batch."""
        self.loader.load_state_dict(self.loader.state_dict() | {"position": 0})
        return iter(self.loader)
