"""Training: the loop, its pipeline and schedules, evaluation, prediction.

Owns: the order of lookups and pushes (staleness), the dense step, the group of workers that train together, when to
evaluate and to save, interrupts, results.
May import: embedding, checkpoint, ps, data, models, plan, schema, observe, errors, torch. Must never: know how rows are
stored or files are laid out; call a signal handler's business from a library thread.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
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

_HOME = {
    "group": ("Agreed", "Alone", "Group", "TorchGroup", "listen"),
    "results": ("Evaluation", "Result", "Size", "StageSeconds"),
    "trainer": ("Trainer",),
}
_MODULE_OF = {name: module for module, names in _HOME.items() for name in names}


def __getattr__(name: str) -> object:
    # On first use: a process that only starts trainers elsewhere does not wait for torch.
    if name not in _MODULE_OF:
        raise AttributeError(f"module 'satrap.train' has no attribute '{name}'")
    value = getattr(import_module(f"satrap.train.{_MODULE_OF[name]}"), name)
    globals()[name] = value
    return value
