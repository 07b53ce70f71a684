"""What was measured: costs of the stages of training on one machine, as a YAML file (`satrap calibrate`).

Times are of the CPU, summed over threads, unless a name says `wall`. So they add up whatever else runs.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import msgspec

from satrap.errors import JobError
from satrap.schema.base import Spec
from satrap.schema.files import read_as, to_yaml
from satrap.schema.strict import convert, plain

VERSION = 1


class MeasuredOn(Spec, frozen=True, kw_only=True):
    """The machine, and when."""

    date: str
    cpu: str
    cores: int
    memory_gib: float
    satrap: str
    """Version, and commit where it is known."""


class RowCost(Spec, frozen=True, kw_only=True):
    """Of one row of a table that is too large for the caches, found at random, row-wise Adagrad."""

    dim: int
    format: str
    rows: int
    """Of the table."""
    lookup_ns: float
    update_ns: float


class LegCost(Spec, frozen=True, kw_only=True):
    """Of moving rows between a worker and its servers, one process's share, beside finding and updating them.

    Linear: `message_us` for each message, `table_us` for each table in it, `row_ns` for each row of it. Divided: when a
    batch goes to several servers.
    """

    message_us: float
    table_us: float
    row_ns: float
    divided_message_us: float
    divided_table_us: float
    divided_row_ns: float


class WireCost(Spec, frozen=True, kw_only=True):
    """Of pulls and pushes over ZeroMQ on loopback, for tables as the job's."""

    pull_client: LegCost
    pull_server: LegCost
    push_client: LegCost
    push_server: LegCost
    bytes_per_row: float
    """Of the measurement, both ways, of a pull: id, values, version."""
    byte_ns: float
    """Of one byte more, a process."""


class DiskCost(Spec, frozen=True, kw_only=True):
    """Sequential, of large files, past the page cache."""

    read_gib_s: float
    write_gib_s: float


class TableSeen(Spec, frozen=True, kw_only=True):
    """A table of the job, as its data uses it."""

    name: str
    ids_per_sample: float
    unique_per_batch: float
    """Distinct ids of a batch of `batch_size`, mean."""
    rows_seen: int
    """Distinct ids in the samples that were read: a lower bound of its rows."""


class JobCost(Spec, frozen=True, kw_only=True):
    """Of one sample of a job, by stage, at its batch size."""

    name: str
    batch_size: int
    samples: int
    """Read for it."""
    read_us: float
    """Files to batches."""
    prepare_us: float
    """Unique ids."""
    pull_us: float
    """Rows found in this process, made where missing."""
    pool_us: float
    dense_us: float
    """Forward, backward and the step of the dense optimizer."""
    dense_wall_us: float
    """The same by the clock, on `dense_threads`."""
    dense_threads: int
    dense_parts: int = 1
    """That a batch is computed in side by side, each by one thread; 1: every operation is divided among the threads."""
    overlap: float = 1.0
    """Of the cores of a worker without a GPU, the share that its threads keep busy together, where there is work for
    all of them."""
    worker_together: float = 1.0
    """CPU-seconds of a worker that does all of this at once, beside a server, over the sum of these figures."""
    servers_together: float = 1.0
    """The same of the server."""
    step_us: float
    """What a step costs beside: metrics, log, hand-over."""
    unpool_us: float
    push_us: float
    """Gradients applied in this process."""
    tables: tuple[TableSeen, ...]
    dense_parameters: int


class Constants(Spec, frozen=True, kw_only=True):
    """All that was measured."""

    version: int = VERSION
    machine: MeasuredOn
    rows: tuple[RowCost, ...]
    wire: WireCost
    disk: DiskCost
    job: JobCost | None = None

    def row_cost(self, dim: int, row_format: str) -> RowCost:
        """Of a row of that dim and format: measured, or in proportion between and beyond the nearest two dims.

        A format that was not measured costs what fp16 costs, which is decoded as well, or fp32.
        """
        forms = {r.format for r in self.rows}
        form = next(f for f in (row_format, "fp16", "fp32", *sorted(forms)) if f in forms)
        known = sorted((r for r in self.rows if r.format == form), key=lambda r: r.dim)
        if len(known) == 1 or dim == known[0].dim:
            return msgspec.structs.replace(known[0], dim=dim, format=row_format)
        above = next((i for i, r in enumerate(known) if r.dim >= dim), len(known) - 1)
        a, b = known[max(0, above - 1)], known[max(1, above)]
        t = (dim - a.dim) / (b.dim - a.dim)
        return RowCost(
            dim=dim,
            format=row_format,
            rows=b.rows,
            lookup_ns=max(1.0, a.lookup_ns + t * (b.lookup_ns - a.lookup_ns)),
            update_ns=max(1.0, a.update_ns + t * (b.update_ns - a.update_ns)),
        )


def constants_from_dict(tree: Any) -> Constants:
    """Constants from plain dicts and lists. Raises JobError."""
    if not isinstance(tree, dict) or "machine" not in tree:
        raise JobError("this is no file of measured constants; make one with `satrap calibrate`")
    if tree.get("version") != VERSION:
        raise JobError(
            f"version: these constants are of version {tree.get('version')}, this satrap reads {VERSION}; "
            "measure again with `satrap calibrate`"
        )
    found = convert(tree, Constants, "")
    assert isinstance(found, Constants)
    if not found.rows:
        raise JobError("rows: empty; measure again with `satrap calibrate`")
    return found


def load_constants(path: str | Path) -> Constants:
    """Reads measured constants. Raises JobError naming the file and the key."""
    return read_as(path, "constants", constants_from_dict)


def save_constants(constants: Constants, path: str | Path) -> None:
    """Writes them as YAML."""
    Path(path).write_text(to_yaml(plain(constants)), encoding="utf-8")
