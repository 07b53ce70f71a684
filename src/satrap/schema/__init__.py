"""The job and its parts: what is trained, from what, with what settings.

Owns: the typed, strict, frozen description of a job, its YAML form and its checks.
May import: errors. Must never: import torch, read data, touch a network. (Reading and writing a job's YAML text is
the only I/O, in `satrap.schema.files`.)
"""

from satrap.schema.features import Categorical, Feature, Label, Numeric, Pooling, Sequence
from satrap.schema.files import job_from_dict, job_to_dict, load_job, override, save_job
from satrap.schema.job import Checkpointing, Data, Durability, EarlyStopping, Job, Schedule, Store, Train
from satrap.schema.models import DLRM, MLP, Custom, DCNv2, DeepFM, ModelSpec, WideDeep
from satrap.schema.optimizers import SGD, Adagrad, Adam, AdamW, Ftrl, Optimizer, RowWiseAdagrad, StateFormat
from satrap.schema.tables import (
    DENSE_DIM,
    DENSE_TABLE,
    Admission,
    Capacity,
    Cold,
    Constant,
    Expiry,
    Hashed,
    Initializer,
    Normal,
    QuotientRemainder,
    Rounding,
    Table,
    TruncatedNormal,
    Uniform,
    ValueFormat,
    WireFormat,
    Zeros,
)

__all__ = [
    "DENSE_DIM",
    "DENSE_TABLE",
    "DLRM",
    "MLP",
    "SGD",
    "Adagrad",
    "Adam",
    "AdamW",
    "Admission",
    "Capacity",
    "Categorical",
    "Checkpointing",
    "Cold",
    "Constant",
    "Custom",
    "DCNv2",
    "Data",
    "DeepFM",
    "Durability",
    "EarlyStopping",
    "Expiry",
    "Feature",
    "Ftrl",
    "Hashed",
    "Initializer",
    "Job",
    "Label",
    "ModelSpec",
    "Normal",
    "Numeric",
    "Optimizer",
    "Pooling",
    "QuotientRemainder",
    "Rounding",
    "RowWiseAdagrad",
    "Schedule",
    "Sequence",
    "StateFormat",
    "Store",
    "Table",
    "Train",
    "TruncatedNormal",
    "Uniform",
    "ValueFormat",
    "WideDeep",
    "WireFormat",
    "Zeros",
    "job_from_dict",
    "job_to_dict",
    "load_job",
    "override",
    "save_job",
]
