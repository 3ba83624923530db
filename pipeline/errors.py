"""What can go wrong between a shard set and a batch.

AlexshardError
├── UndecodableSample   an image's bytes are no image of the size that the set promises
├── GraphFailed         DALI refused to build or run the graph
└── WrongCall
    ├── NoDali          DALI is not installed, and was asked for or is needed (a card)
    ├── StaleIteration  a later iteration of the same loader has begun
    └── OtherState      a loader state of another shard set, seed or order
"""

from ..shards import AlexshardError, WrongCall


class UndecodableSample(AlexshardError):
    """An image's bytes are no image of the size that the set promises."""


class GraphFailed(AlexshardError):
    """DALI refused to build or run the graph."""


class NoDali(WrongCall):
    """DALI is not installed."""


class StaleIteration(WrongCall):
    """A later iteration of the same loader has begun."""


class OtherState(WrongCall):
    """A loader state of another shard set, seed or order."""
