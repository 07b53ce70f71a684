"""satrap trains deep recommenders whose embedding tables outgrow any machine.

The names below are loaded on first use, so that `import satrap` (and `satrap --help`) does not wait for torch.

>>> import satrap
>>> satrap.Table(name="user", dim=16).dim
16
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING

__version__ = "0.1.0"

_HOME = {
    "satrap.schema": (
        "MLP SGD Adagrad Adam AdamW Categorical Checkpointing Constant Custom DCNv2 DLRM Data DeepFM EarlyStopping Feature "
        "Ftrl Initializer Job Label ModelSpec Normal Numeric Optimizer Pooling RowWiseAdagrad Schedule Sequence Store Table "
        "Train TruncatedNormal Uniform ValueFormat WideDeep Zeros job_from_dict job_to_dict load_job override save_job"
    ).split(),
    "satrap.errors": "SatrapError JobError DataError StoreError CheckpointError TrainingError".split(),
    "satrap.data": "Batch Jagged Position Reader hash_strings infer_job".split(),
    "satrap.models": "Named Padded".split(),
    "satrap.ps": "LocalService ParameterService".split(),
    "satrap.train": "Evaluation Result Trainer".split(),
}
_ROOM_OF = {name: room for room, names in _HOME.items() for name in names}

if TYPE_CHECKING:
    from satrap.data import Batch, Jagged, Position, Reader, hash_strings, infer_job
    from satrap.errors import CheckpointError, DataError, JobError, SatrapError, StoreError, TrainingError
    from satrap.models import Named, Padded
    from satrap.ps import LocalService, ParameterService
    from satrap.schema import (
        MLP,
        SGD,
        Adagrad,
        Adam,
        AdamW,
        Categorical,
        Checkpointing,
        Constant,
        Custom,
        Data,
        DCNv2,
        DeepFM,
        DLRM,
        EarlyStopping,
        Feature,
        Ftrl,
        Initializer,
        Job,
        Label,
        ModelSpec,
        Normal,
        Numeric,
        Optimizer,
        Pooling,
        RowWiseAdagrad,
        Schedule,
        Sequence,
        Store,
        Table,
        Train,
        TruncatedNormal,
        Uniform,
        ValueFormat,
        WideDeep,
        Zeros,
        job_from_dict,
        job_to_dict,
        load_job,
        override,
        save_job,
    )
    from satrap.train import Evaluation, Result, Trainer

__all__ = ["__version__", *sorted(_ROOM_OF)]  # noqa: PLE0604


def __getattr__(name: str) -> object:
    room = _ROOM_OF.get(name)
    if room is None:
        raise AttributeError(f"module 'satrap' has no attribute '{name}'")
    value = getattr(import_module(room), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *_ROOM_OF})
