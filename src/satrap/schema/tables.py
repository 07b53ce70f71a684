"""A table: rows of D values by 64-bit id, with the optimizer that updates them."""

from __future__ import annotations

from enum import StrEnum

from satrap.schema.base import Spec
from satrap.schema.optimizers import Optimizer


class ValueFormat(StrEnum):
    """How a row's values are stored. Arithmetic and optimizer state are fp32 whatever the format."""

    FP32 = "fp32"
    FP16 = "fp16"


class WireFormat(StrEnum):
    """How values and gradients travel between processes. In one process nothing travels, and it has no effect."""

    FP32 = "fp32"
    """As they are."""
    FP16 = "fp16"
    """Half the bytes, 11 significant bits, with a power of two as the scale of a batch."""
    INT8 = "int8"
    """A quarter of the bytes: 255 steps between minus and plus a row's largest magnitude."""

    def section_bytes(self, rows: int, dim: int) -> int:
        """Bytes of `rows` rows of `dim` values in a message, the padding to a multiple of 4 included.

        >>> [f.section_bytes(rows=3, dim=5) for f in WireFormat]
        [60, 32, 28]
        """
        if self is WireFormat.FP32:
            return 4 * rows * dim
        raw = 2 * rows * dim if self is WireFormat.FP16 else rows * (4 + dim)
        return (raw + 3) & ~3


class Uniform(Spec, frozen=True, kw_only=True, tag_field="kind", tag="uniform"):
    """Values uniform in [low, high)."""

    low: float = -0.01
    high: float = 0.01


class Normal(Spec, frozen=True, kw_only=True, tag_field="kind", tag="normal"):
    """Values normal with mean and standard deviation."""

    mean: float = 0.0
    std: float = 0.01


class TruncatedNormal(Spec, frozen=True, kw_only=True, tag_field="kind", tag="truncated_normal"):
    """Values normal, cut at two standard deviations from the mean."""

    mean: float = 0.0
    std: float = 0.01


class Constant(Spec, frozen=True, kw_only=True, tag_field="kind", tag="constant"):
    """Every value the same."""

    value: float = 0.0


class Zeros(Spec, frozen=True, kw_only=True, tag_field="kind", tag="zeros"):
    """Every value zero."""


Initializer = Uniform | Normal | TruncatedNormal | Constant | Zeros


class Table(Spec, frozen=True, kw_only=True):
    """An embedding table: an id space of its own; several features may share it."""

    name: str
    dim: int
    """Values a row (D), 1 to 4096."""
    format: ValueFormat = ValueFormat.FP32
    """fp16 halves the memory of values; gradients and state stay fp32."""
    wire: WireFormat = WireFormat.FP32
    """fp16 and int8 send fewer bytes between workers and servers, each value rounded on its way. For tables whose rows
    the network is too slow for."""
    initializer: Initializer = Uniform()
    """A row is made on its first training pull from (job seed, table name, id) alone."""
    optimizer: Optimizer | None = None
    """None: `train.embedding_optimizer`."""
    max_gradient: float | None = None
    """Clips each element of a row's gradient to ±this before the optimizer sees it. None: no clipping."""
