"""What most checkpoint tests start from."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
from memory_rows import MemoryRows, filled, job_of, save_step

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


@pytest.fixture
def save() -> Callable[..., Path]:
    """`save_step`."""
    return save_step
