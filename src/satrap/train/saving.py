"""Checkpoints of a run: what goes into one, where and which are kept, and how a run is put back to one."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from satrap import checkpoint
from satrap.data.batch import Position
from satrap.errors import CheckpointError, StoreError, TrainingError
from satrap.ps import Cut, Cuttable
from satrap.schema import Job
from satrap.train.group import ALONE, Group
from satrap.train.plain import from_bytes, to_bytes
from satrap.train.sources import Sources
from satrap.train.state import RunState, random_state, set_random_state
from satrap.train.step import DenseStep
from satrap.train.together import share_dense
from satrap.train.writing import Saved, Writing

_log = logging.getLogger("satrap.train")


class Checkpoints:
    """The checkpoint folder of one run. Of a group, worker 0 writes and reads it, and tells the others."""

    def __init__(
        self, run_dir: Path, job: Job, service: Any, dense: DenseStep, sources: Sources, group: Group = ALONE
    ) -> None:
        self._folder = run_dir / "checkpoints"
        if group.rank == 0:
            self._folder = checkpoint.kept_at(run_dir, job.train.checkpoint.folder)
            checkpoint.keep_at(run_dir, self._folder)
        self._job, self._service, self._dense, self._sources = job, service, dense, sources
        self._group = group
        self._behind = True
        """Whether the next one is written while training goes on."""
        self._writing: Writing | None = None
        self._under_way = False

    def begin(self, state: RunState, report: Mapping[str, Any], *, behind: bool) -> None:
        """Begins to save everything the run needs to go on from here. `behind`: training will go on meanwhile, where
        rows can be kept as they are now; else all has been written when it returns. One at a time: `settle` the one
        before.

        The pipeline must be drained. `report` is what the log needs to go on. Raises, with every earlier checkpoint
        intact, TrainingError where the dense weights are no longer finite, and CheckpointError for what can never be
        saved.
        """
        rng = random_state(self._dense.device)
        extra: dict[str, Any] = {"report": dict(report)}
        if self._group.world > 1:
            mine = {"position": _numbers(state.position), "report": dict(report), "rng": rng}
            workers = [from_bytes(data) for data in self._group.gather(to_bytes(mine))]
            rng, extra = {"workers": [w.pop("rng") for w in workers]}, {"workers": workers}
        if self._group.rank == 0:
            self._writing = self._begin(state, rng, extra, behind)
        self._under_way = True
        # Nobody goes on before the rows are kept.
        self._group.barrier()

    @property
    def ended(self) -> bool:
        """Whether a checkpoint has been written, or not, that nobody has taken note of. Of a group, worker 0 knows."""
        return self._writing is not None and not self._writing.told and self._writing.ended

    def outcome(self) -> Saved | None:
        """What became of the checkpoint that was begun; waits for it. None where there is none. Worker 0's.

        What a disk, an object store or a server refuses is told, not raised: training can go on without this
        checkpoint. Raises CheckpointError for what can never be saved.
        """
        if self._writing is None or self._writing.told:
            return None
        saved = self._writing.result()
        self._writing.told = True
        self._behind = not self._writing.lost
        return saved

    def settle(self) -> tuple[Saved, bool] | None:
        """`outcome`, at every worker, and whether it was asked for before. All ask together. None where nothing was
        begun since."""
        if not self._under_way:
            return None
        self._under_way = False
        new = self.outcome() is not None
        saved = None if self._writing is None else self._writing.result()
        self._writing = None
        if self._group.world == 1:
            assert saved is not None
            return saved, not new
        plain = None if saved is None else [saved.step, None if saved.path is None else str(saved.path), saved.problem]
        step, path, problem = from_bytes(self._group.broadcast(None if plain is None else to_bytes(plain)))
        if saved is None:
            return Saved(step, None if path is None else checkpoint.place(path), problem), False
        return saved, not new

    def abandon(self, *, at_once: bool) -> None:
        """Waits for what is being written, whatever becomes of it, since training has failed. `at_once`: gives it up;
        the checkpoints before it stay."""
        if self._writing is not None:
            self._writing.end(at_once=at_once)

    def _begin(self, state: RunState, rng: Any, extra: dict[str, Any], behind: bool) -> Writing:
        dense = self._dense.model.state_dict()
        for name, tensor in dense.items():
            if tensor.is_floating_point() and not bool(tensor.isfinite().all()):
                raise TrainingError(
                    f"the dense weight {name} is not finite after step {state.step}: no checkpoint is saved of it; "
                    "earlier ones are intact. A lower learning rate or train.clip_norm usually helps"
                )
        optimizer = self._dense.optimizer
        cut = self._cut() if behind else None
        try:
            contents = checkpoint.Contents(
                job=self._job,
                service=cut or self._service,
                dense=dense,
                optimizer=None if optimizer is None else optimizer.state_dict(),
                step=state.step,
                position=state.position,
                rng=rng,
                extra={"run": state.to_dict(), "data": self._sources.fingerprint, **extra},
            )
        except BaseException:
            if cut is not None:
                cut.close()
            raise
        keep = self._job.train.checkpoint.keep
        return Writing(self._folder, contents, cut, keep=keep, best=state.best_step == state.step)

    def _cut(self) -> Cut | None:
        """The rows as they are now; None where training must wait while they are written: the service cannot keep them,
        has no memory for it, or had too little for the last one."""
        if not self._behind or not isinstance(self._service, Cuttable):
            return None
        try:
            return self._service.cut()
        except StoreError as e:
            _log.info("training waits while a checkpoint is written: %s", e)
            return None

    def at(self, step: int) -> Path | None:
        """The checkpoint of a step, as every worker is told; None where it was not saved, or is gone."""
        path = None
        if self._group.rank == 0:
            with suppress(CheckpointError):  # a store that cannot be asked: as good as not there
                path = checkpoint.at_step(self._folder, step)
        if self._group.world == 1:
            return path
        told = self._group.broadcast((str(path or "")).encode() if self._group.rank == 0 else None).decode()
        return checkpoint.place(told) if told else None

    def restore(self, loaded: checkpoint.Loaded | None) -> tuple[RunState, Mapping[str, Any] | None]:
        """Puts weights, optimizer, rows and random generators back; returns the run's state and the report's.

        `loaded`: worker 0's; the others of a group give None, and get what they need from it. Where the checkpoint is
        of fewer workers, the new ones have no report and keep their random state.
        Raises DataError where the data is no longer what the position is a place in, and CheckpointError.
        """
        told = None
        if loaded is not None:
            self._restore(loaded)
            told = {"step": loaded.step, "run": loaded.extra["run"], "workers": _workers(loaded)}
        told = share_dense(self._group, self._dense, told, optimizer=True)
        workers = told["workers"]
        mine = workers[self._group.rank] if self._group.rank < len(workers) else None
        position = Position(*(mine or workers[0])["position"])  # of new workers: the epoch's beginning
        state = RunState.from_dict(told["run"], step=told["step"], position=position)
        if mine is not None:
            set_random_state(mine["rng"], self._dense.device)
        if loaded is not None and state.best_step == state.step:
            checkpoint.mark_best(loaded.path)  # where the process died between saving it and saying so
        return state, None if mine is None else mine["report"]

    def _restore(self, loaded: checkpoint.Loaded) -> None:
        epoch = loaded.extra["run"]["epoch"]
        begins = all(w["position"] == _numbers(Position(epoch)) for w in _workers(loaded))
        self._sources.check_fingerprint(loaded.extra["data"], between_epochs=begins)
        restore_model(loaded, self._dense, self._service)
        restore_optimizer(loaded, self._job, self._dense)


def _workers(loaded: checkpoint.Loaded) -> list[dict[str, Any]]:
    """Position, report and random state of each worker that trained for a checkpoint."""
    workers = loaded.extra.get("workers")
    if workers is None:
        return [{"position": _numbers(loaded.position), "report": loaded.extra["report"], "rng": loaded.rng}]
    return [{**w, "rng": rng} for w, rng in zip(workers, loaded.rng["workers"], strict=True)]


def _numbers(position: Position) -> list[int]:
    return [position.epoch, position.window, position.row]


def restore_model(loaded: checkpoint.Loaded, dense: DenseStep, service: Any) -> None:
    """Puts the dense weights and the rows of a checkpoint in place. Raises CheckpointError where they do not fit."""
    _check_dense(loaded, dense.model.state_dict())
    loaded.restore_rows(service)
    dense.model.load_state_dict(loaded.dense)


def restore_optimizer(loaded: checkpoint.Loaded, job: Job, dense: DenseStep) -> None:
    """Puts the dense optimizer's state back. Its settings are the job's as it is now, not those it was saved with.

    Raises CheckpointError for the state of another optimizer.
    """
    if dense.optimizer is None:
        return
    have, saved = type(job.train.optimizer), type(loaded.job.train.optimizer)
    if loaded.optimizer is None or have is not saved:
        what = "no optimizer state" if loaded.optimizer is None else f"the state of {saved.__name__}"
        raise CheckpointError(
            f"{loaded.path}: it holds {what}, but train.optimizer is {have.__name__}; go on with the optimizer it was "
            "trained with, or start a new run"
        )
    settings = [{k: v for k, v in group.items() if k != "params"} for group in dense.optimizer.param_groups]
    dense.optimizer.load_state_dict(loaded.optimizer)
    for group, values in zip(dense.optimizer.param_groups, settings, strict=True):
        group.update(values)


def _check_dense(loaded: checkpoint.Loaded, have: Mapping[str, Tensor]) -> None:
    """`load_state_dict` says the same in its own way; here before any row is touched, and by the checkpoint's name."""
    missing, unknown = have.keys() - loaded.dense.keys(), loaded.dense.keys() - have.keys()
    shapes = [n for n in have.keys() & loaded.dense.keys() if have[n].shape != loaded.dense[n].shape]
    for what, names in (
        ("has no weights for", missing),
        ("has weights the model lacks:", unknown),
        ("differs from the model in the shape of", shapes),
    ):
        if names:
            raise CheckpointError(
                f"{loaded.path}: it {what} {', '.join(sorted(names)[:5])}; the model must be built from the same job, "
                "or, if it is your own module, from the same code"
            )


def device_of(name: str) -> torch.device:
    """The device of a job's `train.device`. Raises TrainingError where it is not there."""
    if name == "cuda" and not torch.cuda.is_available():
        raise TrainingError("train.device is cuda, but torch finds no CUDA device; use auto or cpu")
    return torch.device("cuda" if name != "cpu" and torch.cuda.is_available() else "cpu")
