"""From a shard set to batches: order → draws → bytes → decode → crop, mirror, mean, jitter → torch.

`Loader` is all that most callers need; the rest is what it is made of, as functions. Importing this package
imports torch, not DALI; a `Loader` whose backend is "dali" imports that.
"""

from .arrivals import Arrivals
from .augment import AUGMENTATIONS, ORIGINAL, PAPER, Augmentation, centre, crop_side, ten_views
from .batch import Batch
from .draws import Draws, draw
from .errors import GraphFailed, NoDali, OtherState, StaleIteration, UndecodableSample
from .loader import Loader
from .machine import default_threads, free_on, granted_cores
from .order import ORDERS, EpochOrder, Sharing, Span, Window, default_window, epoch_order
from .remote import open_shard_set, parse_bytes
from .sampler import OrderSampler, ShardImages
from .shelving import RemoteShelf
from .stages import STAGES, Stages
from .times import Times
from .trace import Trace, span, write_trace
from .whole import WholeEpochs

__all__ = [
    "AUGMENTATIONS",
    "ORDERS",
    "ORIGINAL",
    "PAPER",
    "STAGES",
    "Arrivals",
    "Augmentation",
    "Batch",
    "Draws",
    "EpochOrder",
    "GraphFailed",
    "Loader",
    "NoDali",
    "OrderSampler",
    "OtherState",
    "RemoteShelf",
    "ShardImages",
    "Sharing",
    "Span",
    "Stages",
    "StaleIteration",
    "Times",
    "Trace",
    "UndecodableSample",
    "WholeEpochs",
    "Window",
    "centre",
    "crop_side",
    "default_threads",
    "default_window",
    "draw",
    "epoch_order",
    "free_on",
    "granted_cores",
    "open_shard_set",
    "parse_bytes",
    "span",
    "ten_views",
    "write_trace",
]
