"""What the reader hands to training: one batch, and the place in the data where it ends.

B batch, N ids of a feature in the batch, n numbers a sample, T labels a sample.
"""

from __future__ import annotations

from dataclasses import dataclass

import msgspec
import numpy as np
from numpy.typing import NDArray


class Position(msgspec.Struct, frozen=True, order=True):
    """A place in the data: everything before it has been handed out, everything from it on has not.

    `window` counts the shuffle windows of an epoch, `row` the rows already taken of that window's shuffled order.
    """

    epoch: int = 0
    window: int = 0
    row: int = 0


@dataclass(frozen=True, slots=True)
class Jagged:
    """The ids of one feature in one batch: `values[offsets[i]:offsets[i + 1]]` belong to sample i."""

    values: NDArray[np.uint64]
    """[N], contiguous."""
    offsets: NDArray[np.int64] | None = None
    """[B + 1], from 0 to N; None where every sample has exactly one id (N = B)."""
    weights: NDArray[np.float32] | None = None
    """[N], or None where all weights are 1."""


@dataclass(frozen=True, slots=True)
class Batch:
    """B samples. Arrays are read-only by convention and may be shared with the reader's buffers."""

    size: int
    numeric: NDArray[np.float32]
    """[B, n]: the job's numeric features side by side, in job order (with indicators behind their feature)."""
    ids: dict[str, Jagged]
    """By feature name, in job order."""
    labels: NDArray[np.float32]
    """[B, T], each 0 or 1. Empty [B, 0] where the data has no labels (prediction)."""
    weights: NDArray[np.float32] | None
    """[B], or None where all weights are 1."""
    position: Position
    """Where the data goes on after this batch."""
