"""Every way a command can fail, and what the user sees: one message on stderr and an exit code, no traceback.

`--debug` shows the traceback as well. What is not a SatrapError, a full disk or a lack of memory is a bug of satrap
and says so.
"""

from __future__ import annotations

import errno
import sys
import traceback
from pathlib import Path
from typing import Any

import typer
from typer.core import TyperCommand

from satrap.errors import SatrapError

EXIT_ERROR = 1
EXIT_MISUSE = 2
EXIT_INTERRUPTED = 130
"""128 + SIGINT, as shells have it."""

_NO_SPACE = {errno.ENOSPC, errno.EDQUOT}


class UsageError(Exception):
    """Words and options of the command line that do not go together."""


def refuse_without_folder(option: str, path: Path) -> None:
    """Raises UsageError where a file that will be written at the end has no folder to lie in: better said at once."""
    folder = path.parent
    if not folder.is_dir():
        what = "is not a folder" if folder.exists() else "does not exist"
        raise UsageError(f"{option} {path}: the folder {folder} {what}; make it, or choose another")


class Command(TyperCommand):
    """A command that ends in an exit code and a message, whatever happens inside."""

    def invoke(self, ctx: Any) -> Any:
        debug = bool(ctx.params.get("debug"))
        try:
            return super().invoke(ctx)
        except (typer.Exit, typer.Abort):
            raise
        except UsageError as e:
            _say(f"error: {e}\nSee: {ctx.command_path} --help")
            raise typer.Exit(EXIT_MISUSE) from None
        except KeyboardInterrupt:
            _say("interrupted: nothing more was saved")
            raise typer.Exit(EXIT_INTERRUPTED) from None
        except BrokenPipeError:
            # The reader of our output (`| head`) has gone: not an error worth words.
            raise
        except Exception as e:
            if debug:
                traceback.print_exc(file=sys.stderr)
            _say(explain(e))
            raise typer.Exit(EXIT_ERROR) from None


def explain(error: BaseException) -> str:
    """One message for an error: its own for a SatrapError, what to do for what the machine lacks, else a bug report.

    >>> from satrap.errors import JobError
    >>> explain(JobError("train.lr: unknown key 'lr'"))
    "error: train.lr: unknown key 'lr'"
    >>> print(explain(OSError(28, "No space left on device", "runs/a/x.safetensors")))
    error: the disk is full: writing runs/a/x.safetensors: No space left on device
    Free some space or choose another place (--run-dir); checkpoints that were complete before are intact.
    """
    if isinstance(error, SatrapError):
        return f"error: {error}"
    if isinstance(error, OSError) and error.errno in _NO_SPACE:
        where = f"writing {error.filename}: " if error.filename else ""
        return (
            f"error: the disk is full: {where}{error.strerror}\n"
            "Free some space or choose another place (--run-dir); checkpoints that were complete before are intact."
        )
    if isinstance(error, MemoryError):
        return (
            "error: not enough memory. Smaller tables (default_dim), train.batch_size or data.shuffle_rows need less; "
            "checkpoints that were complete before are intact."
        )
    if isinstance(error, OSError) and error.filename:
        return f"error: {error.filename}: {error.strerror}"
    return (
        f"error: {type(error).__name__}: {error}\n"
        "This is a bug in satrap, not in your job or data. Run again with --debug for the traceback to report."
    )


def _say(message: str) -> None:
    head, sep, rest = message.partition(":")
    typer.echo(typer.style(head, fg=typer.colors.RED, bold=True) + sep + rest, err=True)
