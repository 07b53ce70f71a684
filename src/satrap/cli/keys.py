"""`satrap keys`: who may speak to servers that other machines can reach."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from satrap.cli import show
from satrap.cli.options import Debug, examples

NAME = "keys"
EXAMPLES = examples("satrap keys new /etc/satrap/keys")
HELP = "Keys of servers and of those who may ask them."


def new(
    folder: Annotated[Path, typer.Argument(metavar="DIR", help="A new or empty folder.", show_default=False)],
    debug: Debug = False,
) -> None:
    """Make keys for servers and for each role: worker (pulls, pushes), reader (pulls), admin (saves, loads, stops).

    Put the folder on every machine that runs a server or a worker, readable by that user alone, and give
    `satrap train --keys DIR`.
    """
    from satrap.ps.keys import Keys

    for path in Keys.new().save(folder):
        show.line(f"{path}  {_HOLDERS[path.stem]}")
    show.line(f"Whoever has a file has its rights. Train with: satrap train JOB.YAML --servers 2 --keys {folder}")


_HOLDERS = {
    "server": "servers",
    "worker": "workers: pull and push",
    "reader": "readers: pull only",
    "admin": "admins and worker 0: save, load, stop",
}
