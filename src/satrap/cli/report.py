"""`satrap report`: runs as one HTML page."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from satrap.cli import show
from satrap.cli.options import Debug, examples
from satrap.cli.sources import find_run

NAME = "report"
EXAMPLES = examples(
    "satrap report runs/clicks-20260101-120000",
    "satrap report runs/synchronous runs/hybrid --out compared.html",
)


def command(
    runs: Annotated[
        list[Path], typer.Argument(metavar="RUN...", help="Run folders; several are compared.", show_default=False)
    ],
    out: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="Where to; default report.html in the run folder, here for several runs."),
    ] = None,
    debug: Debug = False,
) -> None:
    """Show a run, or compare several, in one HTML file that needs nothing else.

    Curves, staleness, where the time went, the ledger of gradients, tables by rows and bytes, frequent ids, machine and
    job; of several runs, where their jobs differ.
    """
    from satrap.observe.report import write_report

    written = write_report([find_run(r) for r in runs], out)
    show.line(f"Written {show.path(written)}; open it in a browser.")
