"""Packing: images in archives or folders to a shard set. Imports neither torch nor DALI.

sources     what a folder holds: a listing of images, nothing decoded
plan        which sample goes into which shard, under which key
decode, image, shard, statistics    one shard, a pure function of the plan
workers, output, quarantine, build  all of it, by several processes, whole or not at all
"""

from .build import BuildPlan, BuildReport, BuildSettings, build, parse_splits, plan_build
from .output import free_bytes
from .publish import destination
from .quarantine import MaxBad, TooManyBad
from .repair import RepairPlan, plan_repair, repair
from .sources import BadSource, Refusal, source_at
from .tar import BadArchive
from .workers import default_workers

__all__ = [
    "BadArchive",
    "BadSource",
    "BuildPlan",
    "BuildReport",
    "BuildSettings",
    "MaxBad",
    "Refusal",
    "RepairPlan",
    "TooManyBad",
    "build",
    "default_workers",
    "destination",
    "free_bytes",
    "parse_splits",
    "plan_build",
    "source_at",
    "plan_repair",
    "repair",
]
