"""`satrap scale`: more or fewer servers for a job that is training."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Annotated

import typer

from satrap.cli.options import Debug, Quiet, examples
from satrap.cli.sources import find_run

NAME = "scale"
EXAMPLES = examples("satrap scale runs/clicks-20260101-120000 --servers 4")
LOOK_S = 0.2
TAKEN_S = 60.0
"""Until a request that no driver has taken up is given up."""


def command(
    run: Annotated[Path, typer.Argument(metavar="RUN", help="The folder of a run that trains.", show_default=False)],
    servers: Annotated[int, typer.Option("--servers", metavar="N", help="How many it is to have.", show_default=False)],
    wait: Annotated[bool, typer.Option(help="Return when it is done.")] = True,
    quiet: Quiet = False,
    debug: Debug = False,
) -> None:
    """Give a job that is training more or fewer parameter servers, while it goes on.

    Partitions move one by one to new servers, or away from those that are to end; no gradient is lost and no step is
    repeated. At most store.partitions servers can own something. Exit code 1 where it cannot be done.
    """
    from satrap.errors import LaunchError
    from satrap.launch import scaling
    from satrap.observe.endpoint import read_targets
    from satrap.observe.processes import plural

    run = find_run(run)
    if not any(t.role == "server" for t in read_targets(run)):
        raise LaunchError(f"{run} has no servers that run: only a job that trains with --servers can be given others")
    name = scaling.ask(run, servers)
    if not wait:
        return
    asked_at, shown = time.monotonic(), 0
    while True:
        time.sleep(LOOK_S)
        told = scaling.told(run, name)
        if told is None:
            if time.monotonic() - asked_at > TAKEN_S:
                raise LaunchError(
                    f"nobody has taken the request up for {TAKEN_S:g} s: either the run has ended, or another request, "
                    "or a start of the group, is still under way; see what `satrap train` says"
                )
            continue
        if told.moved > shown and not quiet:
            shown = told.moved
            typer.echo(f"{told.moved} of {plural(told.of, 'partition')} have moved")
        if told.state == "failed":
            raise LaunchError(told.message)
        if told.state == "done":
            if not quiet:
                typer.echo(plural(servers, "server") + (f": {told.message}" if told.message else ""))
            return
