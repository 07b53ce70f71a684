"""Checkpoints of a run: when one is due, what goes into it, which are kept, and how a run is put back to one."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from satrap import checkpoint
from satrap.errors import CheckpointError, TrainingError
from satrap.schema import Job
from satrap.train.sources import Sources
from satrap.train.state import RunState, random_state, set_random_state
from satrap.train.step import DenseStep


class Checkpoints:
    """The checkpoint folder of one run."""

    def __init__(self, run_dir: Path, job: Job, service: Any, dense: DenseStep, sources: Sources) -> None:
        self._folder = run_dir / "checkpoints"
        self._job, self._service, self._dense, self._sources = job, service, dense, sources

    def save(self, state: RunState, report: Mapping[str, Any]) -> Path:
        """Saves everything the run needs to go on from here, and removes what need not be kept.

        The pipeline must be drained. `report` is what the log needs to go on. Raises TrainingError, with every earlier
        checkpoint intact, where the dense weights are no longer finite.
        """
        dense = self._dense.model.state_dict()
        for name, tensor in dense.items():
            if tensor.is_floating_point() and not bool(tensor.isfinite().all()):
                raise TrainingError(
                    f"the dense weight {name} is not finite after step {state.step}: no checkpoint is saved of it; "
                    "earlier ones are intact. A lower learning rate or train.clip_norm usually helps"
                )
        optimizer = self._dense.optimizer
        path = checkpoint.save(
            self._folder,
            job=self._job,
            service=self._service,
            dense=dense,
            optimizer=None if optimizer is None else optimizer.state_dict(),
            step=state.step,
            position=state.position,
            rng=random_state(self._dense.device),
            extra={"run": state.to_dict(), "report": dict(report), "data": self._sources.fingerprint},
        )
        if state.best_step == state.step:
            checkpoint.mark_best(path)
        checkpoint.retain(self._folder, self._job.train.checkpoint.keep)
        return path

    def path(self, step: int) -> Path:
        """Where the checkpoint of a step is."""
        return self._folder / f"step-{step:08d}"

    def restore(self, loaded: checkpoint.Loaded) -> tuple[RunState, Mapping[str, Any]]:
        """Puts weights, optimizer, rows and random generators back; returns the run's state and the report's.

        Raises DataError where the data is no longer what the position is a place in, and CheckpointError.
        """
        self._sources.check_fingerprint(loaded.extra["data"])
        restore_model(loaded, self._dense, self._service)
        restore_optimizer(loaded, self._job, self._dense)
        set_random_state(loaded.rng, self._dense.device)
        state = RunState.from_dict(loaded.extra["run"], step=loaded.step, position=loaded.position)
        if state.best_step == state.step:
            checkpoint.mark_best(loaded.path)  # where the process died between saving it and saying so
        return state, loaded.extra["report"]


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
