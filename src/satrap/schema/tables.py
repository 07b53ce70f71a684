"""A table: rows of D values by 64-bit id, with the optimizer that updates them."""

from __future__ import annotations

from enum import StrEnum
from typing import Literal

from satrap.schema.base import Spec
from satrap.schema.optimizers import Optimizer


class ValueFormat(StrEnum):
    """How a row's values are stored. Arithmetic is fp32 whatever the format; the state's format is its optimizer's."""

    FP32 = "fp32"
    """4 bytes a value, exact."""
    FP16 = "fp16"
    """2 bytes: 11 significant bits, magnitudes up to 65,504; steps of 6e-8 near zero."""
    BF16 = "bf16"
    """2 bytes: 8 significant bits, any magnitude."""
    INT8 = "int8"
    """1 byte, and 4 a row for its scale: 255 steps between minus and plus the row's largest magnitude."""

    def row_bytes(self, dim: int) -> int:
        """Bytes of the values of a row, the scale of an int8 row included.

        >>> [f.row_bytes(16) for f in ValueFormat]
        [64, 32, 32, 20]
        """
        return {"fp32": 4 * dim, "fp16": 2 * dim, "bf16": 2 * dim, "int8": 4 + dim}[self.value]


class Rounding(StrEnum):
    """What becomes of a value that an update leaves between two that the row's format has."""

    NEAREST = "nearest"
    """The nearer one. An update below half a step is lost, each time."""
    STOCHASTIC = "stochastic"
    """One of both at random, the nearer one more often: right on average however small the updates are (Gupta et al.
    2015, arXiv 1502.02551). The random bits are a function of (job seed, table name, id, the row's count of updates,
    gradient), so a seed gives the same bits on any number of threads and servers."""


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


DENSE_TABLE = "_dense"
"""Name of the table that holds the dense weights with `train.dense_mode: async`."""
DENSE_DIM = 128
"""Values a row of it: each dense tensor is cut into rows of so many, the last one filled up with zeros."""


class Hashed(Spec, frozen=True, kw_only=True, tag_field="kind", tag="hashed"):
    """A table of fixed size: ids share its rows by a hash."""

    rows: int
    hashes: int = 1
    """Rows of an id, 1 to 8: their sum is its vector. With two or more, ids that share all their rows are rare."""


class QuotientRemainder(Spec, frozen=True, kw_only=True, tag_field="kind", tag="quotient_remainder"):
    """A table of fixed size: the vector of an id is the sum of two rows, one by the remainder and one by the quotient
    of its hash below `rows` squared, so that as many ids differ (Shi et al., KDD 2020)."""

    rows: int
    """For remainders, and as many again for quotients."""


IdSpace = Hashed | QuotientRemainder


class Capacity(Spec, frozen=True, kw_only=True):
    """How large a table may become, and which rows go when it would become larger. Give `rows` or `bytes`."""

    rows: int | None = None
    """At most so many rows. Each partition (`store.partitions`) has an equal share, which it never exceeds."""
    bytes: int | None = None
    """At most so many bytes of values, optimizer state, index and all else the table keeps in memory."""
    evict: Literal["recency", "frequency"] = "recency"
    """recency: those go first that no training batch has named for longest (approximate LRU). frequency: those that the
    fewest batches have named, counts halved from time to time (LFU with aging); for id spaces with a steady core and
    much that comes once."""


class Cold(Spec, frozen=True, kw_only=True):
    """How much of a table stays in memory; the other rows lie in a file on a local disk (`store.cold_folder`) and come
    back when a batch names them. Nothing is lost, and training gives the same bits. Give `memory_rows` or
    `memory_bytes`."""

    memory_rows: int | None = None
    """Rows in memory. Each partition (`store.partitions`) has an equal share; while a batch names more rows of one than
    that, they are in memory all the same."""
    memory_bytes: int | None = None
    """Bytes of these rows: values, optimizer state, index. Beside them about 10 bytes a row on disk say where it is."""
    evict: Literal["recency", "frequency"] = "recency"
    """Which rows go to disk: those that no training batch has named for longest, or that the fewest have named."""


class Expiry(Spec, frozen=True, kw_only=True):
    """When a row that is not used goes. A use is a training batch that names the row. Give `steps` or `seconds`."""

    steps: int | None = None
    """Goes when so many optimizer steps have passed without a use; 1/16 later at the latest where its partition is in
    use."""
    seconds: int | None = None
    """The same by the clock. A run of it is not repeatable to the bit."""


class Admission(Spec, frozen=True, kw_only=True):
    """How often an id must be seen before it gets a row. Until then it reads as its initial values, and its gradients
    are refused and counted (`not_admitted`)."""

    sightings: int = 2
    """Training batches that name it, 2 to 255."""
    window: int = 1_048_576
    """Sightings of ids without a row after which all counts are halved: rarer ids are forgotten. The counts take 8
    bytes a sighting of the window. They are approximate, and never too low within a window: about 1 in 100 ids that
    came once is taken for one that came twice."""


Initializer = Uniform | Normal | TruncatedNormal | Constant | Zeros


class Table(Spec, frozen=True, kw_only=True):
    """An embedding table: an id space of its own; several features may share it."""

    name: str
    dim: int
    """Values a row (D), 1 to 4096."""
    format: ValueFormat = ValueFormat.FP32
    """fp16 and bf16 halve the memory of values, int8 takes about a quarter. Gradients stay fp32; for the optimizer's
    state see `Adam.state`."""
    rounding: Rounding | None = None
    """None: stochastic for bf16 and int8, whose steps are larger than most updates, nearest for fp16. No effect with
    fp32, and none on a row's first values, which are rounded to the nearest."""
    wire: WireFormat = WireFormat.FP32
    """fp16 and int8 send fewer bytes between workers and servers, each value rounded on its way. For tables whose rows
    the network is too slow for."""
    initializer: Initializer = Uniform()
    """A row is made on its first training pull from (job seed, table name, id) alone."""
    optimizer: Optimizer | None = None
    """None: `train.embedding_optimizer`."""
    max_gradient: float | None = None
    """Clips each element of a row's gradient to ±this before the optimizer sees it. None: no clipping."""
    ids: IdSpace | None = None
    """Puts all ids into a table of fixed size. None: each id has a row of its own."""
    capacity: Capacity | None = None
    """Bounds the table. None: it grows as ids come."""
    cold: Cold | None = None
    """Keeps only a part of the table in memory, the rest on disk. None: all rows are in memory."""
    expire: Expiry | None = None
    """Removes rows that are not used any more. None: they stay."""
    admit: Admission | None = None
    """Makes rows only of ids that come more than once. None: the first training batch that names an id makes its
    row."""

    @property
    def rounds(self) -> Rounding | None:
        """How updates are rounded; None for fp32, which keeps every bit.

        >>> Table(name="t", dim=4, format=ValueFormat.INT8).rounds
        <Rounding.STOCHASTIC: 'stochastic'>
        """
        if self.format is ValueFormat.FP32:
            return None
        default = Rounding.NEAREST if self.format is ValueFormat.FP16 else Rounding.STOCHASTIC
        return self.rounding or default

    @property
    def rows_per_id(self) -> int:
        """Rows whose sum is the vector of an id."""
        match self.ids:
            case Hashed(hashes=n):
                return n
            case QuotientRemainder():
                return 2
            case None:
                return 1

    @property
    def bounded(self) -> bool:
        """Whether rows may be missing or go for another reason than being erased."""
        return not (self.capacity is None and self.expire is None and self.admit is None)
