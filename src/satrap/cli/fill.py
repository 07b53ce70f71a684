"""`satrap fill`: tables of a size, made at once."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from satrap.cli import show
from satrap.cli.failures import UsageError
from satrap.cli.options import AsJson, Debug, Quiet, examples
from satrap.schema import load_job, override

if TYPE_CHECKING:
    from satrap.schema import Job
    from satrap.train.filling import Filled

NAME = "fill"
EXAMPLES = examples(
    "satrap fill job.yaml --rows user=200M",
    "satrap fill job.yaml tables.user.format=int8 --rows user=20M --rows item=1M --run-dir runs/large",
)


def command(
    job_file: Annotated[Path, typer.Argument(metavar="JOB.YAML", help="The job.", show_default=False)],
    overrides: Annotated[
        list[str] | None, typer.Argument(metavar="[KEY=VALUE]...", help="Settings to change.", show_default=False)
    ] = None,
    rows: Annotated[
        list[str] | None,
        typer.Option(
            metavar="[TABLE=]N",
            help="Rows of a table, or of every table: user=200M, 1M. Repeatable.",
            show_default=False,
        ),
    ] = None,
    run_dir: Annotated[
        Path | None,
        typer.Option(metavar="DIR", help="Save them: the folder of a new run, to be trained with train --resume."),
    ] = None,
    json: AsJson = False,
    quiet: Quiet = False,
    debug: Debug = False,
) -> None:
    """Fill tables with rows, to see what a size takes on this machine and to rehearse with it.

    Makes the rows of the ids 0 to N - 1, as training would, and says how fast, and the bytes of each beside those that
    `satrap plan` counts. Without --run-dir they are dropped again. What memory or disk have no room for is refused
    before a row is made.
    """
    from satrap.plan import quantity

    job = override(load_job(job_file), overrides or [])
    wanted = _by_table(job, [(text, *_split(text, quantity)) for text in rows or []])
    shown = False if quiet else None
    if run_dir is None:
        from satrap.ps import LocalService
        from satrap.train.filling import fill

        filled, saved = fill(LocalService.of(job), wanted, progress=shown), None
    else:
        from satrap.train.filling import filled_run

        saved, filled = filled_run(job, wanted, run_dir=run_dir, progress=shown)
    if json:
        show.as_json({"tables": [_fields(f) for f in filled], "checkpoint": None if saved is None else str(saved)})
        return
    if quiet:
        return
    for f in filled:
        show.line(_text(f))
    if saved is not None:
        show.line(f"Saved {show.path(saved)}; train it with: satrap train --resume {run_dir}")


def _split(text: str, quantity: Any) -> tuple[str, int]:
    table, _, number = text.rpartition("=")
    return table, round(quantity(number))


def _by_table(job: Job, given: list[tuple[str, str, int]]) -> dict[str, int]:
    """Rows by table; one that is named goes by its own number, the others by the one without a name."""
    if not given:
        raise UsageError("--rows is missing: how many, of a table (user=200M) or of every table (1M)")
    found: dict[str, int] = {}
    for text, table, count in given:
        if table in found:
            raise UsageError(f"--rows {text}: given twice{f' for table {table}' if table else ''}")
        found[table] = count
    every = found.pop("", None)
    if every is not None:
        found |= {t.name: every for t in job.resolved_tables() if t.name not in found}
    return found


def _text(f: Filled) -> str:
    """A table's line."""
    each = f.held_bytes / f.rows if f.rows else 0.0
    return (
        f"{f.table.name}: {f.rows:,} rows of {f.table.dim} {f.table.format.value} in {f.seconds:.1f} s "
        f"({f.rows_per_s:,.0f} a second); {each:.1f} bytes a row, {f.planned.total:.1f} planned; memory grew by "
        f"{show.size(f.grown_bytes)}"
    )


def _fields(f: Filled) -> dict[str, Any]:
    return {
        "name": f.table.name,
        "dim": f.table.dim,
        "format": f.table.format.value,
        "rows": f.rows,
        "seconds": f.seconds,
        "rows_per_s": f.rows_per_s,
        "held_bytes": f.held_bytes,
        "grown_bytes": f.grown_bytes,
        "planned_bytes_a_row": f.planned.total,
    }
