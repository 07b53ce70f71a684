"""Tables filled with rows of their size, to see what a size takes and to rehearse with it.

R rows of a table. The ids are 0 … R - 1: where the data's ids are text, whose hashes are other ids, they are rows of
size that no batch will name. Of a table of fixed size they are its row numbers.
"""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from time import perf_counter

import numpy as np

from satrap.errors import JobError, SaveError, StoreError, did_you_mean
from satrap.observe import Progress, rss_bytes
from satrap.plan import RowBytes, bounds_of, row_bytes
from satrap.ps import LocalService
from satrap.schema import DENSE_TABLE, Job, RowWiseAdagrad, Table
from satrap.train.importing import begin_with

BATCH = 1 << 20
"""Rows of one call: many to a partition, whose memory then stays in the cache."""
GIB = 2**30
NAMED = 3
"""Tables that a message names, the largest first."""


@dataclass(frozen=True, slots=True)
class Filled:
    """A table that was filled."""

    table: Table
    rows: int
    """R: made now."""
    seconds: float
    planned: RowBytes
    """A row, as `satrap plan` has it."""
    held_bytes: int
    """That the table's blocks take."""
    grown_bytes: int
    """That the resident memory of this process has grown by meanwhile."""

    @property
    def rows_per_s(self) -> float:
        """Made in a second."""
        return self.rows / self.seconds if self.seconds else 0.0


def planned(table: Table, rows: int, partitions: int) -> RowBytes:
    """Bytes a row of a table that is filled with so many.

    >>> from satrap.schema import ValueFormat
    >>> round(planned(Table(name="t", dim=64, format=ValueFormat.INT8), 200_000_000, 64).total, 1)
    87.7
    """
    bounds = bounds_of(table, table.format.value, partitions)
    return row_bytes(
        table.dim,
        table.format.value,
        table.optimizer or RowWiseAdagrad(),
        rows=rows,
        partitions=partitions,
        bounds=bounds,
        reserved=True,
    )


def fill(service: LocalService, rows: Mapping[str, int], *, progress: bool | None = None) -> tuple[Filled, ...]:
    """Makes R rows of each of these tables. `progress` False is silent, see `observe.Progress`.

    Raises JobError for a table that is not there or is bounded to fewer rows, and StoreError, before any row is made,
    where memory does not suffice, or, when others have taken it meanwhile, with the rows made so far.
    """
    tables = {t.name: t for t in service.tables() if t.name != DENSE_TABLE}
    _check(tables, rows, service.partitions)
    _check_memory(service, tables, rows)
    return tuple(_fill(service, tables[name], count, progress) for name, count in rows.items())


def filled_run(
    job: Job, rows: Mapping[str, int], *, run_dir: str | Path | None = None, progress: bool | None = None
) -> tuple[Path, tuple[Filled, ...]]:
    """A run folder whose checkpoint, of step 0, has tables filled with rows: `fit(resume=True)` goes on from it.
    Returns the checkpoint.

    Raises what `fill` does; SaveError, before any row is made, where the disk has no room for it; and what
    `train.importing.begin_with` does.
    """
    filled: tuple[Filled, ...] = ()

    def put(service: LocalService) -> tuple[str, ...]:
        nonlocal filled
        _check({t.name: t for t in service.tables()}, rows, service.partitions)
        if run_dir is not None and job.train.checkpoint.folder is None:
            _check_disk(service, rows, Path(run_dir))
        filled = fill(service, rows, progress=progress)
        return ()

    path, _ = begin_with(job, put, run_dir=run_dir)
    return path, filled


def _fill(service: LocalService, table: Table, count: int, progress: bool | None) -> Filled:
    before, made, started = rss_bytes(), 0, perf_counter()
    with Progress(show=progress, total_samples=count, title=f"filling {table.name}", unit="rows") as shown:
        shown.update(samples=0)
        service.reserve_rows(table.name, count)
        for at in range(0, count, BATCH):
            made += service.store.fill(table.name, np.arange(at, min(at + BATCH, count), dtype=np.uint64))
            seconds = perf_counter() - started
            shown.update(samples=min(at + BATCH, count), rows_per_s=made / seconds, rss_bytes=rss_bytes())
    size = service.stats()[table.name]
    return Filled(
        table=table,
        rows=made,
        seconds=perf_counter() - started,
        planned=planned(table, size.rows, service.partitions),
        held_bytes=size.value_bytes + size.state_bytes + size.overhead_bytes,
        grown_bytes=rss_bytes() - before,
    )


def _check(tables: Mapping[str, Table], rows: Mapping[str, int], partitions: int) -> None:
    for name, count in rows.items():
        if name not in tables:
            raise JobError(f"the job has no table '{name}'; {did_you_mean(name, tables)}")
        capacity = bounds_of(tables[name], tables[name].format.value, partitions).capacity
        if count > capacity:
            raise JobError(
                f"table '{name}' cannot be filled with {count:,} rows: it is bounded to {capacity:,.0f} "
                "(capacity, or the rows of a table of fixed size)"
            )


def _check_memory(service: LocalService, tables: Mapping[str, Table], rows: Mapping[str, int]) -> None:
    sizes = {n: count * planned(tables[n], count, service.partitions).total for n, count in rows.items()}
    needed, left = sum(sizes.values()), service.store.room.left_bytes()
    if needed <= left:
        return
    each = {n: size / rows[n] for n, size in sizes.items() if rows[n]}
    largest = sorted(each, key=lambda n: -sizes[n])[:NAMED]
    text = ", ".join(f"'{n}' {rows[n]:,} rows of {each[n]:.1f} bytes" for n in largest)
    text += f" and {len(each) - NAMED} more tables" if len(each) > NAMED else ""
    raise StoreError(
        f"{needed / GIB:.2f} GiB of rows ({text}) do not fit: {left / GIB:.2f} GiB are left for them "
        f"({service.store.room.text()}). {left / needed:.0%} of these rows would fit; rows of fewer bytes are "
        "tables.NAME.format, dim and the optimizer's state. No row was made"
    )


def _check_disk(service: LocalService, rows: Mapping[str, int], folder: Path) -> None:
    tables = {t.name: t for t in service.tables()}
    needed = sum(n * planned(tables[t], n, service.partitions).saved for t, n in rows.items())
    there = next(p for p in (folder.absolute(), *folder.absolute().parents) if p.exists())
    free = shutil.disk_usage(there).free
    if free < needed:
        raise SaveError(
            f"a checkpoint of these rows takes {needed / GIB:.2f} GiB, free at {there}: {free / GIB:.2f} GiB. Choose "
            "another --run-dir, or fill without one, which saves nothing. No row was made"
        )


__all__ = ["Filled", "fill", "filled_run", "planned"]
