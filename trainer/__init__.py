"""batches → a trained network, its evaluation and figures.

Recipe ─► AlexNet, on one device or as TwoTowers on two ─► train ─► a run folder ─► Checkpoint ─► evaluate
"""

from .checkpoint import BadCheckpoint, Checkpoint
from .evaluate import Evaluation, Tally, evaluate, evaluation_loader, tally
from .loop import Diverged, Outcome, Reporter, train
from .machine import Machine, versions
from .network import AlexNet
from .plan import Plan, loading, loading_line, validation_split
from .recipe import LAYERS, PRESETS, Recipe, Segment, differences
from .run_folder import DamagedRun, Record, RunFolder
from .schedule import Schedule
from .step import Stepper
from .towers import TwoTowers, build_network

__all__ = [
    "LAYERS",
    "PRESETS",
    "AlexNet",
    "BadCheckpoint",
    "Checkpoint",
    "DamagedRun",
    "Diverged",
    "Evaluation",
    "Machine",
    "Outcome",
    "Plan",
    "Recipe",
    "Record",
    "Reporter",
    "RunFolder",
    "Schedule",
    "Segment",
    "Stepper",
    "Tally",
    "TwoTowers",
    "build_network",
    "differences",
    "evaluate",
    "evaluation_loader",
    "loading",
    "loading_line",
    "tally",
    "train",
    "validation_split",
    "versions",
]
