"""`satrap predict`: probabilities for each row of a file, in the file's order."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from satrap.cli import show
from satrap.cli.failures import UsageError, refuse_without_folder
from satrap.cli.options import Checkpoint, DataPaths, Debug, Quiet, examples
from satrap.cli.sources import find_checkpoint

if TYPE_CHECKING:
    from satrap.schema import Job

NAME = "predict"
EXAMPLES = examples(
    "satrap predict runs/clicks-20260101-120000 april.parquet --out scores.parquet",
    "satrap predict runs/clicks-20260101-120000 april.parquet --out scores.csv --keep user_id --keep item_id",
)
SCORE = "score"


def command(
    checkpoint: Checkpoint,
    data: DataPaths,
    out: Annotated[
        Path, typer.Option(metavar="FILE", help="Where the scores go: .parquet or .csv.", show_default=False)
    ],
    keep: Annotated[
        list[str] | None,
        typer.Option(metavar="COLUMN", help="Column of the data to carry into the output. Repeatable."),
    ] = None,
    quiet: Quiet = False,
    debug: Debug = False,
) -> None:
    """Write one probability per row and label, in the order of the rows.

    The column is `score`, or `score_LABEL` where the model has several labels. The data needs no label.
    """
    if out.suffix not in (".parquet", ".csv"):
        raise UsageError(f"--out {out}: the ending must be .parquet or .csv")
    refuse_without_folder("--out", out)
    from satrap.cli.columns import carried
    from satrap.cli.scores import write_scores
    from satrap.train import Trainer

    trainer = Trainer.from_checkpoint(find_checkpoint(checkpoint))
    names = score_columns(trainer.job)
    clash = set(names) & set(keep or [])
    if clash:
        raise UsageError(f"--keep {clash.pop()}: the output already has a column of that name, the score")
    kept = carried(data, keep, trainer.job.data.format) if keep else None
    rows = write_scores(out, names, trainer.predict(data), kept)
    if not quiet:
        show.line(f"{rows:,} scores written to {out}")


def score_columns(job: Job) -> list[str]:
    """Names of the score columns: one per label of the job."""
    labels = job.data.label
    return [SCORE] if len(labels) == 1 else [f"{SCORE}_{x.column}" for x in labels]
