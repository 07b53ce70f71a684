"""satrap trains deep recommenders whose embedding tables outgrow any machine.

The names below are loaded on first use, so that `import satrap` (and `satrap --help`) does not wait for torch.

>>> import satrap
>>> satrap.Table(name="user", dim=16).dim
16
"""

from __future__ import annotations

import os
import sys
from importlib import import_module

_TORCH_SPINS = "torch" in sys.modules and "OMP_WAIT_POLICY" not in os.environ
"""Too late to set it below: torch has read it already. `Trainer` says so."""

# Lookups and pushes run beside torch's compute threads, which by default spin while they wait for each other and so
# take the cores from the rest: on two cores training was four times slower. Read once, when torch is first imported.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

__version__ = "0.1.0"

__all__ = [
    "DLRM",
    "MLP",
    "SGD",
    "Adagrad",
    "Adam",
    "AdamW",
    "Batch",
    "Categorical",
    "CheckpointError",
    "Checkpointing",
    "Constant",
    "Custom",
    "DCNv2",
    "Data",
    "DataError",
    "DeepFM",
    "EarlyStopping",
    "Evaluation",
    "Feature",
    "Ftrl",
    "Initializer",
    "Jagged",
    "Job",
    "JobError",
    "Label",
    "LocalService",
    "ModelSpec",
    "Named",
    "Normal",
    "Numeric",
    "Optimizer",
    "Padded",
    "ParameterService",
    "Pooling",
    "Position",
    "Reader",
    "Result",
    "Rounding",
    "RowWiseAdagrad",
    "SatrapError",
    "Schedule",
    "Sequence",
    "StateFormat",
    "Store",
    "StoreError",
    "Table",
    "Train",
    "Trainer",
    "TrainingError",
    "TruncatedNormal",
    "Uniform",
    "ValueFormat",
    "WideDeep",
    "WireFormat",
    "Zeros",
    "__version__",
    "hash_strings",
    "infer_job",
    "job_from_dict",
    "job_to_dict",
    "load_job",
    "override",
    "save_job",
]

_HOME = {
    "satrap.data": ("Batch", "Jagged", "Position", "Reader", "hash_strings", "infer_job"),
    "satrap.errors": ("CheckpointError", "DataError", "JobError", "SatrapError", "StoreError", "TrainingError"),
    "satrap.models": ("Named", "Padded"),
    "satrap.ps": ("LocalService", "ParameterService"),
    "satrap.train": ("Evaluation", "Result", "Trainer"),
}
"""Room → names that live there; all others are parts of a job, in `satrap.schema`."""
_ROOM_OF = {name: room for room, names in _HOME.items() for name in names}


def __getattr__(name: str) -> object:
    if name not in __all__:
        raise AttributeError(f"module 'satrap' has no attribute '{name}'")
    value = getattr(import_module(_ROOM_OF.get(name, "satrap.schema")), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
