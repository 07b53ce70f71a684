"""Parameter service: rows by id, pulled and pushed.

Owns: the `ParameterService` and `RowStorage` protocols and their implementations. May import: store, schema, observe,
errors. Must never: import torch or know of batches, features or pooling.
"""

from satrap.ps.local import LocalService
from satrap.ps.placement import Placement
from satrap.ps.protocol import (
    STALENESS_BINS,
    Ack,
    ParameterService,
    PullRequest,
    PushRequest,
    Refused,
    RowBlock,
    Rows,
    RowStorage,
    TableStats,
)

__all__ = [
    "STALENESS_BINS",
    "Ack",
    "LocalService",
    "ParameterService",
    "Placement",
    "PullRequest",
    "PushRequest",
    "Refused",
    "RowBlock",
    "RowStorage",
    "Rows",
    "TableStats",
]
