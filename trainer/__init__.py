"""batches → a trained network, its evaluation and figures.

Recipe ─► AlexNet, on one device or as TwoTowers on two ─► train ─► a run folder ─► Checkpoint ─► evaluate
"""

from .beginning import weights_digest
from .chains import Chain, composed, has_kernels, normalise
from .checkpoint import Checkpoint
from .checkpoint_file import BadCheckpoint, CannotReadNow, LaterFormat
from .evaluate import Evaluation, Tally, evaluate, evaluation_loader, tally
from .feeding import Fed, Feeder
from .fields import description, nearest
from .filters import colourfulness, filters_picture
from .loop import train
from .machine import Machine, versions
from .network import AlexNet
from .outcome import Diverged, NotSaved, Outcome, OutOfMemory, RanksParted, Reporter
from .plan import Plan, loading, loading_line, validation_split
from .portable import FORMS, Constants, Form, Portable
from .precision import cores_have_bf16
from .ranks import Ranks
from .recipe import LAYERS, PRESETS, Recipe, differences
from .records import DamagedRun, Record
from .run_folder import RunFolder, load_checkpoint
from .saving import SaveEvery
from .schedule import Plateau, Schedule
from .schedules import SCHEDULES, NamedSchedule, Segment
from .step import Stepper
from .towers import Crossed, TwoTowers, build_network, crossing_bytes

__all__ = [
    "FORMS",
    "LAYERS",
    "PRESETS",
    "SCHEDULES",
    "AlexNet",
    "BadCheckpoint",
    "CannotReadNow",
    "Chain",
    "Checkpoint",
    "Constants",
    "Crossed",
    "DamagedRun",
    "Diverged",
    "Evaluation",
    "Fed",
    "Feeder",
    "Form",
    "LaterFormat",
    "Machine",
    "NamedSchedule",
    "NotSaved",
    "OutOfMemory",
    "Outcome",
    "Plan",
    "Plateau",
    "Portable",
    "Ranks",
    "RanksParted",
    "Recipe",
    "Record",
    "Reporter",
    "RunFolder",
    "SaveEvery",
    "Schedule",
    "Segment",
    "Stepper",
    "Tally",
    "TwoTowers",
    "build_network",
    "colourfulness",
    "composed",
    "cores_have_bf16",
    "crossing_bytes",
    "description",
    "differences",
    "evaluate",
    "evaluation_loader",
    "filters_picture",
    "has_kernels",
    "load_checkpoint",
    "loading",
    "loading_line",
    "nearest",
    "normalise",
    "tally",
    "train",
    "validation_split",
    "versions",
    "weights_digest",
]
