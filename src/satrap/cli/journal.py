"""`satrap journal`: what a server has kept of its history, and what is left of a damaged one."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from satrap.cli import show
from satrap.cli.options import AsJson, Debug, examples

if TYPE_CHECKING:
    from satrap.durable.check import Report

NAME = "journal"
FOLDER = typer.Argument(help="A server's folder, such as runs/NAME/history/server-0; or one that holds such folders.")
CHECK_EXAMPLES = examples("satrap journal check runs/clicks-20260101-120000/history")
REPAIR_EXAMPLES = examples("satrap journal repair runs/clicks-20260101-120000/history/server-0")


def check(folder: Annotated[Path, FOLDER], as_json: AsJson = False, debug: Debug = False) -> None:
    """Read the journals and snapshots of servers, and say whether anything is damaged, where, and what can be read.

    Exit code 1 where something is damaged.
    """
    from satrap.durable.check import check as look

    reports = [look(f) for f in _histories(folder)]
    if as_json:
        show.as_json({"histories": [_fields(r) for r in reports]})
    else:
        for r in reports:
            _say(r)
    if any(r.damage for r in reports):
        raise typer.Exit(1)


def repair(folder: Annotated[Path, FOLDER], debug: Debug = False) -> None:
    """Cut a damaged journal before its damage, so that the server begins with what is before it.

    What was acknowledged behind the damage is lost, and said to be; the damaged files stay under other names.
    """
    from satrap.durable.check import check as look
    from satrap.durable.check import repair as cut

    for f in _histories(folder):
        report = look(f)
        if report.damage is None:
            typer.echo(f"{f}: nothing is damaged")
            continue
        aside = cut(f)
        typer.echo(
            f"{f}: ends at record {report.records[1]} now. What was acknowledged behind it is lost. Put aside: "
            f"{', '.join(p.name for p in aside)}"
        )


def _histories(folder: Path) -> list[Path]:
    from satrap.durable.journal import segments
    from satrap.durable.snapshot import snapshots
    from satrap.errors import JournalError

    below = sorted(p for p in folder.iterdir() if p.is_dir()) if folder.is_dir() else []
    found = [f for f in (folder, *below) if segments(f) or snapshots(f)]
    if not found:
        raise JournalError(f"{folder} holds no server's history: neither a journal nor a snapshot is there")
    return found


def _fields(r: Report) -> dict[str, object]:
    return {
        "folder": str(r.folder),
        "snapshot": None if r.snapshot is None else r.snapshot.name,
        "first_record": r.records[0],
        "last_record": r.records[1],
        "journal_bytes": r.bytes,
        "torn": r.torn,
        "damage": r.damage,
    }


def _say(r: Report) -> None:
    snapshot = "no snapshot" if r.snapshot is None else r.snapshot.name
    typer.echo(f"{r.folder}: {snapshot}, records {r.records[0]:,} to {r.records[1]:,}, {r.bytes:,} bytes of journal")
    for torn in r.torn:
        typer.echo(f"  left by a crash, of no harm: {torn}")
    if r.damage is not None:
        typer.echo(f"  damaged: {r.damage}\n  cut it there with: satrap journal repair {r.folder}")


COMMANDS: dict[str, tuple[Callable[..., None], str]] = {
    "check": (check, CHECK_EXAMPLES),
    "repair": (repair, REPAIR_EXAMPLES),
}
