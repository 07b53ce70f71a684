"""The `satrap` command and its subcommands."""

from __future__ import annotations

from typing import Annotated

import typer

from satrap.cli import evaluate, inspect, predict, train, validate
from satrap.cli.failures import Command

app = typer.Typer(
    name="satrap",
    no_args_is_help=True,
    rich_markup_mode="rich",
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)


def _version(wanted: bool) -> None:
    if wanted:
        from satrap import __version__

        typer.echo(f"satrap {__version__}")
        raise typer.Exit


@app.callback()
def root(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Show the version and exit.")
    ] = False,
) -> None:
    """Train deep recommenders with large embedding tables, from the files you have.

    Start with [bold]satrap train clicks.parquet --label click[/bold].
    """


def _paragraphs(doc: str | None) -> str:
    """A docstring as help text: its line breaks belong to the source, only blank lines to the reader."""
    return "\n\n".join(" ".join(p.split()) for p in (doc or "").split("\n\n"))


for module in (train, evaluate, predict, inspect, validate):
    doc = _paragraphs(module.command.__doc__)
    app.command(module.NAME, cls=Command, help=doc, epilog=module.EXAMPLES)(module.command)


def main() -> None:
    """Entry point of the console script."""
    app(prog_name="satrap")
