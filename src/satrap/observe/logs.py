"""Logging: one logger, `satrap`, silent unless the program or the user asks.

Modules write `log = logging.getLogger("satrap")`. Warnings are for what the user should act on; what is merely
happening is info; progress and results are not logged but shown (`Progress`) and recorded (`RunLog`).
"""

from __future__ import annotations

import logging

log = logging.getLogger("satrap")
log.addHandler(logging.NullHandler())  # as a library: nothing is printed unless the program wants it


class _Short(logging.Formatter):
    """`satrap: warning: what happened`; debug lines say where they come from."""

    def format(self, record: logging.LogRecord) -> str:
        where = f" [{record.module}]" if record.levelno <= logging.DEBUG else ""
        line = f"satrap: {record.levelname.lower()}{where}: {record.getMessage()}"
        return f"{line}\n{self.formatException(record.exc_info)}" if record.exc_info else line


def log_to_stderr(level: int = logging.WARNING) -> None:
    """Prints records from `level` up on standard error; for programs, at their start. Called again, it replaces."""
    for old in [h for h in log.handlers if isinstance(h.formatter, _Short)]:
        log.removeHandler(old)
    handler = logging.StreamHandler()
    handler.setFormatter(_Short())
    log.addHandler(handler)
    log.setLevel(level)
