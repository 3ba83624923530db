"""batches → a trained network, its evaluation and figures.

Recipe ─► AlexNet, on one device or as TwoTowers on two ─► train ─► a run folder ─► Checkpoint ─► evaluate
"""

from .chains import Chain, composed, has_kernels, normalise
from .checkpoint import BadCheckpoint, Checkpoint
from .evaluate import Evaluation, Tally, evaluate, evaluation_loader, tally
from .feeding import Fed, Feeder
from .loop import train
from .machine import Machine, versions
from .network import AlexNet
from .outcome import Diverged, Outcome, RanksParted, Reporter
from .plan import Plan, loading, loading_line, validation_split
from .precision import cores_have_bf16
from .ranks import Ranks
from .recipe import LAYERS, PRESETS, Recipe, Segment, differences
from .run_folder import DamagedRun, Record, RunFolder
from .schedule import Schedule
from .step import Stepper
from .towers import Crossed, TwoTowers, build_network, crossing_bytes

__all__ = [
    "LAYERS",
    "PRESETS",
    "AlexNet",
    "BadCheckpoint",
    "Chain",
    "Checkpoint",
    "Crossed",
    "DamagedRun",
    "Diverged",
    "Evaluation",
    "Fed",
    "Feeder",
    "Machine",
    "Outcome",
    "Plan",
    "Ranks",
    "RanksParted",
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
    "composed",
    "cores_have_bf16",
    "crossing_bytes",
    "differences",
    "evaluate",
    "evaluation_loader",
    "has_kernels",
    "loading",
    "loading_line",
    "normalise",
    "tally",
    "train",
    "validation_split",
    "versions",
]
