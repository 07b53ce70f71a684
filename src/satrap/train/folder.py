"""Where runs are kept."""

from __future__ import annotations

from datetime import datetime
from pathlib import Path

from satrap.schema import Job


def fresh_run_dir(job: Job) -> Path:
    """runs/<job>-<time>, with a number where two runs start in one second."""
    base = Path("runs") / f"{job.name}-{datetime.now():%Y%m%d-%H%M%S}"
    path, n = base, 2
    while path.exists():
        path, n = base.with_name(f"{base.name}-{n}"), n + 1
    return path
