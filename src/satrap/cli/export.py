"""`satrap export`: the rows of a checkpoint as Parquet or safetensors."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from satrap.cli import show
from satrap.cli.failures import UsageError
from satrap.cli.options import Checkpoint, Debug, Quiet, examples
from satrap.cli.sources import find_checkpoint

NAME = "export"
EXAMPLES = examples(
    "satrap export runs/clicks-20260101-120000 --out rows",
    "satrap export gs://models/clicks/best --out rows --format safetensors --state",
)


def command(
    checkpoint: Checkpoint,
    out: Annotated[Path, typer.Option(metavar="DIR", help="A new folder for it, or a URL.", show_default=False)],
    form: Annotated[str, typer.Option("--format", metavar="FORMAT", help="parquet or safetensors.")] = "parquet",
    state: Annotated[bool, typer.Option("--state", help="The optimizer's state of each row too.")] = False,
    table: Annotated[
        list[str] | None, typer.Option(metavar="TABLE", help="Only this table. Repeatable.", show_default=False)
    ] = None,
    quiet: Quiet = False,
    debug: Debug = False,
) -> None:
    """Write the rows of a checkpoint as Parquet or safetensors files, for use elsewhere.

    Each table is a folder of files with ids and values; `export.json` says what is there. Ids are those of the data,
    where they are integers; text has become a 64-bit hash. `satrap import` makes a run of it again.
    """
    if form not in ("parquet", "safetensors"):
        raise UsageError(f"--format {form}: parquet or safetensors")
    from satrap.checkpoint.export import export

    contents = export(
        find_checkpoint(checkpoint),
        out,
        form="parquet" if form == "parquet" else "safetensors",
        state=state,
        tables=table,
    )
    if not quiet:
        for t in contents.tables:
            show.line(f"{t.spec.name}: {t.rows:,} rows of {t.spec.dim} {t.spec.format.value}, in {len(t.files)} files")
        show.line(f"Written to {out}")
