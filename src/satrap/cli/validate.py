"""`satrap validate`: is this job right, before any time is spent on it."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from satrap.cli import show
from satrap.cli.options import Debug, Quiet, examples
from satrap.schema import load_job, override

NAME = "validate"
EXAMPLES = examples("satrap validate job.yaml", "satrap validate job.yaml train.batch_size=8192")


def command(
    job_file: Annotated[Path, typer.Argument(metavar="JOB.YAML", help="The job.", show_default=False)],
    overrides: Annotated[
        list[str] | None, typer.Argument(metavar="[KEY=VALUE]...", help="Settings to change.", show_default=False)
    ] = None,
    quiet: Quiet = False,
    debug: Debug = False,
) -> None:
    """Check a job: keys, values, names, and, where its files exist, their columns and types."""
    from satrap.cli.columns import check_columns

    job = override(load_job(job_file), overrides or [])
    checked = check_columns(job)
    if not quiet:
        show.job(job)
    for path, columns in checked.items():
        show.line(f"{path}: all {columns} columns are there, with fitting types")
    if not checked:
        show.line("The data files do not exist here, so their columns were not checked.")
    show.line(f"{job_file} is valid.")
