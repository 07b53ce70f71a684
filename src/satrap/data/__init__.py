"""Data: from the user's files to batches.

Owns: sources, decoding, id hashing, scaling, shuffling, positions, inference of a job from a file.
May import: schema, observe, errors. Must never: import torch, look up a row.
"""

from satrap.data.batch import Batch, Jagged, Position
from satrap.data.decode import numeric_slices
from satrap.data.hashing import NULL_ID, hash_strings
from satrap.data.infer import Inference, infer_job
from satrap.data.measure import measure
from satrap.data.reader import Reader

__all__ = [
    "NULL_ID",
    "Batch",
    "Inference",
    "Jagged",
    "Position",
    "Reader",
    "hash_strings",
    "infer_job",
    "measure",
    "numeric_slices",
]
