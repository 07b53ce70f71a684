"""Training: the loop, its pipeline and schedules, evaluation, prediction.

Owns: the order of lookups and pushes (staleness), the dense step, the group of workers that train together, when to
evaluate and to save, interrupts, results.
May import: embedding, checkpoint, ps, data, models, schema, observe, errors, torch. Must never: know how rows are
stored or files are laid out; call a signal handler's business from a library thread.
"""

from satrap.train.group import Agreed, Alone, Group, TorchGroup, listen
from satrap.train.results import Evaluation, Result, Size, StageSeconds
from satrap.train.trainer import Trainer

__all__ = [
    "Agreed",
    "Alone",
    "Evaluation",
    "Group",
    "Result",
    "Size",
    "StageSeconds",
    "TorchGroup",
    "Trainer",
    "listen",
]
