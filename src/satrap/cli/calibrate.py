"""`satrap calibrate`: what this machine and a job cost, for `satrap plan`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from satrap.cli import show
from satrap.cli.failures import refuse_without_folder
from satrap.cli.options import Debug, Quiet, examples
from satrap.schema import load_job, override

NAME = "calibrate"
EXAMPLES = examples(
    "satrap calibrate job.yaml --out constants.yaml",
    "satrap calibrate --out machine.yaml",
    "satrap plan job.yaml --cluster gke.yaml --constants constants.yaml",
)


def command(
    job_file: Annotated[
        Path | None, typer.Argument(metavar="[JOB.YAML]", help="Also measure this job's stages.", show_default=False)
    ] = None,
    overrides: Annotated[
        list[str] | None, typer.Argument(metavar="[KEY=VALUE]...", help="Settings to change.", show_default=False)
    ] = None,
    out: Annotated[Path, typer.Option(metavar="FILE", help="Where to write what was measured.")] = Path(
        "constants.yaml"
    ),
    quick: Annotated[bool, typer.Option("--quick", help="Small sizes: to see that it runs, not to plan with.")] = False,
    quiet: Quiet = False,
    debug: Debug = False,
) -> None:
    """Measure what `satrap plan` calculates with: rows in memory, pulls and pushes, the disk, a job's own stages.

    Takes about a minute of an otherwise idle machine. Times are CPU-seconds, so what else runs does little harm.
    """
    from satrap.calibrate import calibrate
    from satrap.plan import save_constants

    refuse_without_folder("--out", out)
    job = None if job_file is None else override(load_job(job_file), overrides or [])
    folder = out.resolve().parent
    constants = calibrate(job, folder=folder, quick=quick, say=(lambda text: None) if quiet else show.line)
    save_constants(constants, out)
    if not quiet:
        m = constants.machine
        show.line(f"{m.cpu}, {m.cores} cores, {m.date}: written to {show.path(out)}")
