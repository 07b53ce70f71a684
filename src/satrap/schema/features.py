"""Features: how columns of the user's data become ids and numbers."""

from __future__ import annotations

from enum import StrEnum
from typing import Literal

from satrap.schema.base import Spec


class Pooling(StrEnum):
    """How the rows of a multi-valued feature become one vector, with per-id weights w (1 where there are none).

    sum: Σ w x; mean: Σ w x / Σ w; sqrtn: Σ w x / sqrt(Σ w²). An empty list gives zeros.
    """

    SUM = "sum"
    MEAN = "mean"
    SQRTN = "sqrtn"


class Categorical(Spec, frozen=True, kw_only=True, tag_field="kind", tag="categorical"):
    """Ids looked up in a table and pooled to one vector [B, D]. Strings are hashed (xxh3, 64 bits), integers kept."""

    name: str
    column: str | None = None
    """Column of the data. None: the feature's name."""
    table: str | None = None
    """Table of the rows. None: the feature's name."""
    pooling: Pooling = Pooling.SUM
    """Matters for list columns; a single value is its own pool."""
    weights: str | None = None
    """Column with one float weight per id, of the same list lengths. None: all weights 1."""
    missing: Literal["id", "empty", "error"] = "id"
    """A null (or NaN): an id of its own that is learned, no id at all (a zero vector), or a DataError."""
    buckets: tuple[float, ...] | None = None
    """Ascending boundaries: a numeric column becomes the number of its bucket, 0 to len(buckets)."""
    max_length: int | None = None
    """Lists longer than this keep their first ids. None: no limit."""


class Sequence(Spec, frozen=True, kw_only=True, tag_field="kind", tag="sequence"):
    """Ids in order, looked up and given to the model as a padded [B, L, D] tensor and a bool mask [B, L]."""

    name: str
    max_length: int
    """L: longer lists keep their last ids (the most recent events)."""
    column: str | None = None
    table: str | None = None
    missing: Literal["id", "empty", "error"] = "empty"


class Numeric(Spec, frozen=True, kw_only=True, tag_field="kind", tag="numeric"):
    """A number (or a fixed-size list of `width` numbers) that goes to the model as it is, after scaling."""

    name: str
    column: str | None = None
    width: int = 1
    transform: Literal["none", "log", "sqrt"] = "none"
    """log: sign(x) log(1 + |x|); sqrt: sign(x) sqrt(|x|). Applied before `scale`."""
    scale: Literal["none", "standard"] = "none"
    """standard: (x - mean) / std, over the training data, measured once before training and kept in the job."""
    mean: float | None = None
    std: float | None = None
    """With scale: standard. None: measured."""
    missing: Literal["fill", "error"] = "fill"
    """A null, NaN or infinity: `fill` (after transform and scaling) or a DataError."""
    fill: float = 0.0
    indicator: bool = False
    """Adds a column that is 1 where the value was missing."""


Feature = Categorical | Sequence | Numeric


class Label(Spec, frozen=True, kw_only=True):
    """What is learned: a column that is 0 or 1 (or bool), or equal to `positive` for 1."""

    column: str
    positive: str | int | None = None
    """For a column of other values: this one is 1, every other 0."""
