"""A checkpoint whose rows are arbitrary bits."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

sys.path.append(str(Path(__file__).parent.parent / "checkpoint"))

from memory_rows import POSITION, MemoryRows, filled, job_of

from satrap import checkpoint
from satrap.schema import Adam, Table, ValueFormat


def random_checkpoint(folder: Path) -> tuple[Path, MemoryRows]:
    """Two tables of 60 rows, one of them fp16, in four partitions."""
    job = job_of(Table(name="a/b", dim=4, optimizer=Adam()), Table(name=".c", dim=3, format=ValueFormat.FP16))
    rows = filled(job, 60)
    return save_rows(rows, folder), rows


def save_rows(service: Any, folder: Path) -> Path:
    """A checkpoint of nothing but rows."""
    options: Any = {"dense": {}, "optimizer": None, "step": 1, "position": POSITION, "threads": 1}
    job = job_of(*service.tables(), partitions=service.partitions)
    return checkpoint.save(folder, job=job, service=service, **options)
