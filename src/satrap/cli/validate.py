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
    for part, files in checked.items():
        if files is None:
            show.line(f"{part}: the files are not here, so their columns were not checked")
        else:
            show.line(f"{part}: {files} file{'s' if files != 1 else ''} with all the columns, of types that fit")
    without = " as far as that can be seen without its data" if None in checked.values() else ""
    show.line(f"{job_file} is valid{without}.")
