"""`satrap top`: the servers and workers of a running job, live."""

from __future__ import annotations

import time
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from satrap.cli import show
from satrap.cli.options import AsJson, Debug, examples
from satrap.cli.sources import find_run

if TYPE_CHECKING:
    from satrap.observe.top import Top

NAME = "top"
EXAMPLES = examples("satrap top runs/clicks-20260101-120000", "satrap top runs/clicks-20260101-120000 --once")


def command(
    run: Annotated[Path, typer.Argument(metavar="RUN", help="The folder of a run.", show_default=False)],
    interval: Annotated[float, typer.Option(metavar="SECONDS", min=0.2, help="Between two looks.")] = 1.0,
    once: Annotated[bool, typer.Option("--once", help="Look for one interval, print, and end.")] = False,
    as_json: AsJson = False,
    debug: Debug = False,
) -> None:
    """Show a running job: rates, latencies, staleness and memory of every server and worker, until Ctrl-C.

    The processes are those that the run folder lists (metrics-targets.json); those of other machines are asked where
    they serve their metrics (--metrics-host).

    Two times in milliseconds are p50 and p99: of a server its handling alone, of a worker until the answer was there.
    held: pushes that wait for the other workers of their step. kept: batches that wait for their gradients. waiting:
    requests under way. All of them, with what to do: docs/operations.
    """
    from satrap.observe.top import Top

    top = Top(find_run(run))
    top.look()
    if once or as_json:
        time.sleep(interval if top.running else 0.0)
        top.look()
        if as_json:
            show.as_json({"run": str(run), "processes": top.figures(), "last": top.last_record()})
        else:
            show.drawn(top.draw())
        return
    try:
        _live(top, interval)
    except KeyboardInterrupt:
        return


def _live(top: Top, interval: float) -> None:
    """Until Ctrl-C, or until the run has ended."""
    from rich.live import Live

    with Live(top.draw(), console=show.console(), auto_refresh=False, transient=False) as live:
        while True:
            time.sleep(interval)
            top.look()
            live.update(top.draw(), refresh=True)
            if not top.targets:
                return
