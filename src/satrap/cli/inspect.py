"""`satrap inspect`: what is in a checkpoint."""

from __future__ import annotations

from typing import Annotated

import typer

from satrap.cli import show
from satrap.cli.options import AsJson, Checkpoint, Debug, examples
from satrap.cli.sources import find_checkpoint, is_checkpoint

NAME = "inspect"
EXAMPLES = examples(
    "satrap inspect runs/clicks-20260101-120000",
    "satrap inspect runs/clicks-20260101-120000/checkpoints/step-00001234 --digest",
)


def command(
    checkpoint: Checkpoint,
    digest: Annotated[
        bool, typer.Option("--digest", help="Print only a hash of the model's content, the same for every layout.")
    ] = False,
    as_json: AsJson = False,
    debug: Debug = False,
) -> None:
    """Show tables, rows, bytes, optimizers, steps and the reader's position of a checkpoint.

    Of a run folder: its checkpoints, which is best by validation and which newest, then the one that commands take.
    """
    from satrap import checkpoint as checkpoints

    path = find_checkpoint(checkpoint)
    if digest:
        value = checkpoints.digest(path)
        if as_json:
            show.as_json({"checkpoint": str(path), "digest": value})
        else:
            typer.echo(value)
        return
    summary = checkpoints.inspect(path)
    listed = [] if is_checkpoint(checkpoint) else checkpoints.kept(checkpoint)
    if as_json:
        fields = show.summary_fields(summary)
        show.as_json({**fields, "checkpoints": show.kept_fields(listed)} if listed else fields)
        return
    if listed:
        show.kept(listed)
    show.summary(summary)
