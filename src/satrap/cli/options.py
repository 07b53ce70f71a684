"""Options that several commands share, so that they read the same everywhere."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

Debug = Annotated[bool, typer.Option("--debug", help="Show the traceback of an error.")]
Quiet = Annotated[bool, typer.Option("--quiet", "-q", help="No progress and no notes; results and errors only.")]
AsJson = Annotated[bool, typer.Option("--json", help="Print the result as JSON, for scripts.")]

Checkpoint = Annotated[
    Path,
    typer.Argument(
        metavar="CKPT",
        help="A run folder (its best checkpoint, or its latest), RUN/best, RUN/latest, or a checkpoint; or their URL.",
        show_default=False,
    ),
]
DataPaths = Annotated[
    list[str],
    typer.Argument(metavar="DATA...", help="Files, folders, globs or fsspec URLs.", show_default=False),
]


def examples(*lines: str) -> str:
    """The examples below a command's help. Blank lines between, because help text is reflowed by paragraph."""
    return "\n\n".join(["[bold]Examples[/bold]", *(f"[cyan]$ {line}[/cyan]" for line in lines)])
