"""A run that begins with rows from elsewhere: a run folder with a checkpoint of step 0."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from msgspec.structs import replace
from numpy.typing import NDArray
from torch import nn

from satrap import checkpoint
from satrap.checkpoint.foreign import Rows, RowSource
from satrap.durable.rows import kind_of
from satrap.errors import CheckpointError, JobError, StoreError, TrainingError
from satrap.ps import LocalService, PullRequest
from satrap.ps.protocol import RowBlock
from satrap.schema import DENSE_TABLE, Job, Table, ValueFormat, save_job
from satrap.store import converter, state_words
from satrap.store.formats import Convert
from satrap.train.folder import fresh_run_dir
from satrap.train.reporting import Report
from satrap.train.saving import Checkpoints
from satrap.train.sources import Sources
from satrap.train.state import RunState
from satrap.train.together import seed_of
from satrap.train.trainer import Trainer, measured


def import_rows(
    job: Job,
    rows: Mapping[str, RowSource],
    *,
    run_dir: str | Path | None = None,
    dense: Mapping[str, torch.Tensor] | None = None,
    fresh_dense: bool = False,
    model: nn.Module | None = None,
) -> tuple[Path, tuple[str, ...]]:
    """Makes a run folder whose checkpoint, of step 0, has these rows: `fit(resume=True)` goes on from it, and it can be
    evaluated as it is. Returns the checkpoint, and notes of what was not taken as it came.

    `rows`: table → where its rows come from (`satrap.checkpoint.foreign`); other tables begin empty. `dense`: the
    model's state dict; None: as the job's seed makes it, as with `fresh_dense` where they do not fit. `run_dir` None:
    runs/<job>-<time>. `model`: the user's own, where the job does not say how to build it. All rows are in memory at
    once.

    Raises JobError for a run folder that has checkpoints or a table that the job does not have, CheckpointError for
    rows that do not fit, DataError where the job's files do not.
    """
    return begin_with(
        job, lambda service: fill(service, rows), run_dir=run_dir, dense=dense, fresh_dense=fresh_dense, model=model
    )


def begin_with(
    job: Job,
    put: Callable[[LocalService], tuple[str, ...]],
    *,
    run_dir: str | Path | None = None,
    dense: Mapping[str, torch.Tensor] | None = None,
    fresh_dense: bool = False,
    model: nn.Module | None = None,
) -> tuple[Path, tuple[str, ...]]:
    """`import_rows` of rows that `put` puts into the empty tables; it returns notes."""
    folder = Path(run_dir) if run_dir is not None else fresh_run_dir(job)
    if checkpoint.latest(checkpoint.kept_at(folder, job.train.checkpoint.folder)) is not None:
        raise JobError(f"{folder} already holds the checkpoints of a run; choose another folder")
    job = measured(job, None)
    trainer = Trainer(job, model, run_dir=folder, progress=False, plots=False)
    notes = put(trainer.service)
    if dense is not None:
        notes += _load_dense(trainer.model, dense, fresh_dense)
    sources = Sources(job)
    with Report(job, folder, trainer.service, False) as report:
        save_job(job, folder / "job.yaml")
        # As a run that begins: what it draws from now on is what a fresh one would.
        torch.manual_seed(seed_of(job.seed, 0))
        trainer.model.train()
        if trainer._dense.rows is not None:
            trainer._dense.rows.write(trainer.service)
        checkpoints = Checkpoints(folder, job, trainer.service, trainer._dense, sources)
        checkpoints.begin(RunState(), report.to_dict(), behind=False)
        saved = checkpoints.outcome()
        assert saved is not None
        if saved.path is None:
            raise CheckpointError(str(saved.problem))
        report.saved(saved.step, saved.path)
    return saved.path, notes


def fill(service: LocalService, rows: Mapping[str, RowSource]) -> tuple[str, ...]:
    """Puts rows into a service's empty tables. Returns notes. Raises JobError and CheckpointError."""
    tables = {t.name: t for t in service.tables() if t.name != DENSE_TABLE}
    notes: list[str] = []
    for name in rows:
        if name not in tables:
            raise JobError(f"the job has no table '{name}' for {rows[name].name}; it has {', '.join(sorted(tables))}")
    for name, table in tables.items():
        if name not in rows:
            notes.append(f"table '{name}': no rows given; it begins empty")
            continue
        notes += _fill_table(service, table, rows[name])
    return tuple(notes)


def _fill_table(service: LocalService, table: Table, source: RowSource) -> list[str]:
    count, rounded, notes = 0, False, []
    keeps_state = source.optimizer == kind_of(table)
    if source.optimizer is not None and not keeps_state:
        notes.append(
            f"table '{table.name}': {source.name} has the state of {source.optimizer}, the job's optimizer is "
            f"{kind_of(table)}: it begins anew"
        )
    taken = _Taken(table, source, keeps_state)
    for piece in source.pieces():
        block, exact = taken.block(piece)
        service.import_rows(table.name, block)
        count += len(block.ids)
        rounded = rounded or not exact
    have = service.stats()[table.name].rows
    if have != count:
        raise CheckpointError(f"{source.name}: {count} rows, of {have} different ids: an id is there twice")
    if rounded:
        notes.append(f"table '{table.name}': the values of {source.name} were rounded to {table.format.value}")
    return notes


class _Taken:
    """Turns the pieces of a source into rows as a table stores them."""

    def __init__(self, table: Table, source: RowSource, keeps_state: bool) -> None:
        self._table, self._keeps_state, self._where = table, keeps_state, source.name
        known = source.spec if keeps_state else None
        self._theirs = known or replace(table, format=ValueFormat.FP32, rounding=None)
        self._fresh = _fresh_state(table)

    def block(self, piece: Rows) -> tuple[RowBlock, bool]:
        """A piece as the table stores it, and whether all values are what they were."""
        table, values = self._table, piece.values
        if values.ndim != 2 or values.shape[1] != table.dim:
            raise CheckpointError(
                f"{self._where}: its vectors have {values.shape[-1]} numbers, table '{table.name}' has dim {table.dim}"
            )
        keeps = self._keeps_state and piece.state is not None
        theirs = self._theirs
        if not keeps:
            form = ValueFormat.FP16 if values.dtype == np.float16 else ValueFormat.FP32
            theirs = replace(theirs, format=form, rounding=None)
        there, back = self._converters(theirs, piece)
        values = np.ascontiguousarray(values)
        kept = piece.state if keeps else np.zeros((len(values), state_words(theirs)), np.float32)
        assert kept is not None
        stored, state = (values, kept) if there is None else there(values, np.ascontiguousarray(kept))
        if stored.dtype == np.float16 and bool((np.isinf(stored) & np.isfinite(values)).any()):
            raise CheckpointError(
                f"{self._where}: a value is beyond what fp16, the format of table '{table.name}', can hold"
            )
        exact = back is None or bool(np.array_equal(back(stored, state)[0], values, equal_nan=True))
        if not keeps:
            state = np.tile(self._fresh, (len(values), 1))
        return RowBlock(np.ascontiguousarray(piece.ids), stored, np.ascontiguousarray(state)), exact

    def _converters(self, theirs: Table, piece: Rows) -> tuple[Convert | None, Convert | None]:
        """There and back. Raises CheckpointError for state of other settings."""
        have = None if piece.state is None else piece.state.shape[1]
        try:
            if self._keeps_state and have is not None and have != state_words(theirs):
                raise StoreError("")
            return converter(theirs, self._table), converter(self._table, theirs)
        except StoreError as e:
            raise CheckpointError(
                f"{self._where}: {have} words of optimizer state a row, table '{self._table.name}' has "
                f"{state_words(self._table)}: the same optimizer with other settings; make them equal, or export "
                "without --state"
            ) from e


def _fresh_state(table: Table) -> NDArray[np.float32]:
    """The optimizer state [K] of a row that was just made: the same for every row of a table."""
    one = LocalService([table], seed=0, partitions=1, threads=1)
    one.pull(PullRequest(ids={table.name: np.zeros(1, np.uint64)}, create=True))
    state: NDArray[np.float32] = one.export_rows(table.name, 0).state[0]
    return state


def _load_dense(model: nn.Module, dense: Mapping[str, Any], fresh: bool) -> tuple[str, ...]:
    """Puts the dense weights in place, all or none; with `fresh` they may stay as they are, which is a note."""
    have = {name: tuple(t.shape) for name, t in model.state_dict().items()}
    given = {name: tuple(t.shape) for name, t in dense.items()}
    if have != given:
        names = sorted(n for n in have.keys() | given.keys() if have.get(n) != given.get(n))
        what = f"the dense weights do not fit the job's model: {', '.join(names[:4])} differ"
        if not fresh:
            raise TrainingError(what)
        return (f"{what}; they begin fresh",)
    model.load_state_dict(dict(dense))
    return ()


__all__ = ["begin_with", "fill", "import_rows"]
