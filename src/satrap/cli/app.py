"""The `satrap` command and its subcommands."""

from __future__ import annotations

from typing import Annotated

import typer

from satrap.cli import (
    calibrate,
    deploy,
    evaluate,
    export,
    fill,
    import_,
    inspect,
    journal,
    keys,
    leave,
    plan,
    predict,
    rehearse,
    report,
    scale,
    top,
    train,
    validate,
)
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


COMMANDS = (
    train, evaluate, predict, inspect, export, import_, fill, top, scale, leave, report, validate, plan, calibrate,
    rehearse,
)  # fmt: skip
for module in COMMANDS:
    doc = _paragraphs(module.command.__doc__)
    app.command(module.NAME, cls=Command, help=doc, epilog=module.EXAMPLES)(module.command)

rendering = typer.Typer(
    no_args_is_help=True,
    rich_markup_mode="rich",
    context_settings={"help_option_names": ["-h", "--help"]},
    help="Kubernetes manifests of a job, and the commands that make a cluster for it.",
)
for name, function, shown in (
    ("render", deploy.render_command, deploy.RENDER_EXAMPLES),
    ("gcloud", deploy.gcloud_command, deploy.GCLOUD_EXAMPLES),
):
    rendering.command(name, cls=Command, help=_paragraphs(function.__doc__), epilog=shown)(function)
app.add_typer(rendering, name=deploy.NAME)


journal_app = typer.Typer(no_args_is_help=True, help=_paragraphs(journal.__doc__))
for name, (command, shown) in journal.COMMANDS.items():
    journal_app.command(name, cls=Command, help=_paragraphs(command.__doc__), epilog=shown)(command)
app.add_typer(journal_app, name=journal.NAME)


keys_app = typer.Typer(
    no_args_is_help=True,
    rich_markup_mode="rich",
    context_settings={"help_option_names": ["-h", "--help"]},
    help=keys.HELP,
    epilog=keys.EXAMPLES,
)
keys_app.command("new", cls=Command, help=_paragraphs(keys.new.__doc__), epilog=keys.EXAMPLES)(keys.new)
app.add_typer(keys_app, name=keys.NAME)


def main() -> None:
    """Entry point of the console script."""
    app(prog_name="satrap")
