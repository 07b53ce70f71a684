"""`satrap leave`: this machine will be taken away; what satrap has on it goes elsewhere first."""

from __future__ import annotations

import time
import urllib.request
from typing import Annotated

import typer

from satrap.cli.options import Debug, Quiet, examples

NAME = "leave"
EXAMPLES = examples(
    "satrap leave --within 20",
    "satrap leave --when http://metadata.google.internal/computeMetadata/v1/instance/preempted",
)
LOOK_S = 1.0


def command(
    within: Annotated[
        float, typer.Option(metavar="SECONDS", min=0.0, help="The time there is until the machine goes.")
    ] = 25.0,
    when: Annotated[
        str | None,
        typer.Option(
            metavar="URL",
            help="Wait until this answers TRUE, as Google's metadata server does before it takes a spot machine back.",
            show_default=False,
        ),
    ] = None,
    stays: Annotated[
        bool, typer.Option("--stays", help="The machine stays after all. Else it is taken to, 15 minutes later.")
    ] = False,
    quiet: Quiet = False,
    debug: Debug = False,
) -> None:
    """Say that this machine will be taken away, and wait until satrap has nothing on it that could be lost.

    Run on the machine itself, as the user that satrap runs as: by hand, before a machine is switched off; by Kubernetes
    before it ends a pod, as rendered manifests have it. Servers hand their partitions over to others while training
    goes on; for workers, and where no server is left to take over, all save and begin again on other machines. Exit
    code 1 where that was not done in time.
    """
    from satrap.launch import notice

    if stays:
        notice.stay()
        return
    if when is not None:
        while not _says_so(when):
            time.sleep(LOOK_S)
    left = notice.leave(within)
    if left:
        who = f"process {left[0]}" if len(left) == 1 else f"processes {', '.join(map(str, left))}"
        typer.echo(
            f"{who} still had something after {within:g} s. The machine counts as leaving for 15 minutes, for runs "
            "that begin as well; should it stay: satrap leave --stays",
            err=True,
        )
        raise typer.Exit(1)
    if not quiet:
        typer.echo("nothing of satrap is left here that could be lost")


def _says_so(url: str) -> bool:
    try:
        asked = urllib.request.Request(url, headers={"Metadata-Flavor": "Google"})
        with urllib.request.urlopen(asked, timeout=10) as answer:
            return bool(answer.read(64).strip().upper() == b"TRUE")
    except OSError:  # it may not be there yet, or for a moment
        return False
