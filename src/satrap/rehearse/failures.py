"""Machines that are lost by plan: which, and when."""

from __future__ import annotations

import re
from dataclasses import dataclass

from satrap.errors import JobError

GROUPS = {"server": "servers", "worker": "workers", "reader": "readers"}
_FORM = re.compile(r"(server|worker|reader)s?(?:\.(\d+))?@(?:step:(\d+)|(\d+(?:\.\d+)?)s)")


@dataclass(frozen=True, slots=True, kw_only=True)
class Failure:
    """One machine, once."""

    group: str
    """servers, workers or readers."""
    index: int = 0
    """Its number in the group, from 0."""
    step: int | None = None
    """It is lost when the log of the run has come to this step."""
    seconds: float | None = None
    """Or so long after the first step."""

    @property
    def node(self) -> str:
        """`servers-0`"""
        return f"{self.group}-{self.index}"

    @property
    def when(self) -> str:
        """`step 200`"""
        return f"step {self.step:,}" if self.step is not None else f"{self.seconds:g} s after the first step"


def failure_of(text: str) -> Failure:
    """A failure from the words of the command line. Raises JobError.

    >>> failure_of("server@step:200")
    Failure(group='servers', index=0, step=200, seconds=None)
    >>> failure_of("worker.1@60s").when
    '60 s after the first step'
    """
    found = _FORM.fullmatch(text)
    if found is None:
        raise JobError(
            f"--fail {text}: say which machine is lost and when, as server@step:200, worker@60s or reader.0@step:50"
        )
    kind, index, step, seconds = found.groups()
    return Failure(
        group=GROUPS[kind],
        index=int(index or 0),
        step=None if step is None else int(step),
        seconds=None if seconds is None else float(seconds),
    )
