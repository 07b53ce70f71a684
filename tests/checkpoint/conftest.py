"""What most checkpoint tests start from."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
from memory_rows import POSITION, MemoryRows, dense_parts, filled, job_of

from satrap import checkpoint
from satrap.schema import Adam, Job, Table, ValueFormat


@pytest.fixture
def job() -> Job:
    """Two tables of different dim, format and optimizer, in four partitions."""
    return job_of(Table(name="user", dim=4, optimizer=Adam()), Table(name="item", dim=3, format=ValueFormat.FP16))


@pytest.fixture
def rows(job: Job) -> MemoryRows:
    """60 rows a table."""
    return filled(job, 60)


@pytest.fixture
def saved(job: Job, rows: MemoryRows, tmp_path: Path) -> Path:
    """A checkpoint of step 10."""
    return save_step(tmp_path, job, rows, 10)


def save_step(folder: Path, job: Job, service: Any, step: int, **options: Any) -> Path:
    """Saves with a small dense network whose weights tell the step."""
    dense, optimizer = _dense(step)
    settings: dict[str, Any] = {
        "dense": dense,
        "optimizer": optimizer,
        "position": POSITION,
        "rng": {"torch": torch.tensor([step])},
        "extra": {"step": step},
        "threads": 1,
    }
    return checkpoint.save(folder, job=job, service=service, step=step, **{**settings, **options})


@cache
def _dense(seed: int) -> tuple[dict[str, Any], dict[str, Any]]:
    model, optimizer = dense_parts(seed)
    return model.state_dict(), optimizer.state_dict()


@pytest.fixture
def save() -> Callable[..., Path]:
    """`save_step`."""
    return save_step
