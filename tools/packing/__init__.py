"""Packing: images in archives or folders to a shard set. Imports neither torch nor DALI.

sources     what a folder holds: a listing of images, nothing decoded
plan        which sample goes into which shard, under which key
decode, image, shard, statistics    one shard, a pure function of the plan
workers     shards by several processes; one that dies or hangs is named
lock, output, identity, resume      whose output it is, and what an earlier run has left in it
forecast                            what reading and decoding will cost, from a few images
stores, patience, prefix, publish   a set that goes to an object store while it is packed
finish, build                       all of it, whole or not at all
"""

from .build import (
    BuildPlan,
    BuildReport,
    BuildSettings,
    Usage,
    build,
    finished_shards,
    half_built_state,
    is_complete,
    parse_splits,
    plan_build,
)
from .forecast import WORTH_TELLING, Forecast, forecast
from .output import free_bytes
from .publish import destination
from .quarantine import MaxBad, TooManyBad
from .repair import RepairPlan, plan_repair, repair
from .resume import HalfBuilt
from .sources import BadSource, Refusal, source_at
from .tar import BadArchive
from .workers import HUNG_AFTER_S, default_workers

__all__ = [
    "HUNG_AFTER_S",
    "WORTH_TELLING",
    "BadArchive",
    "BadSource",
    "BuildPlan",
    "BuildReport",
    "BuildSettings",
    "Forecast",
    "HalfBuilt",
    "MaxBad",
    "Refusal",
    "RepairPlan",
    "TooManyBad",
    "Usage",
    "build",
    "default_workers",
    "destination",
    "finished_shards",
    "forecast",
    "free_bytes",
    "half_built_state",
    "is_complete",
    "parse_splits",
    "plan_build",
    "plan_repair",
    "repair",
    "source_at",
]
