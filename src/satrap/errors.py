"""Every error satrap raises on purpose.

    SatrapError
    ├── JobError          the job file or an option is wrong
    ├── DataError         the user's data does not fit the job
    ├── StoreError        a table cannot do what was asked
    ├── CheckpointError   a checkpoint is damaged, incomplete or does not fit
    │   └── SaveError     one could not be written where it should be; those before it are intact
    ├── JournalError      a server's journal or snapshot is damaged, does not fit, or cannot be written
    ├── ServiceError      a parameter server refused a request, or cannot be asked
    │   ├── ServerUnreachable   it did not answer in time
    │   ├── ServerLost          it answers, but the rows it had are gone
    │   └── WireError           a message is malformed, or larger than allowed
    ├── LaunchError       processes could not be started, or ended too often
    └── TrainingError     training cannot go on (a loss that is not finite, say)
        └── WorkerGone    another worker of the group has ended

A message says what went wrong, where (file, column, table, row, offset), the limit beside the value, and what to do
next. The command line prints it without a traceback; `--debug` shows one. Native and library errors are mapped to
these once, at the edge where they enter satrap.
"""

from __future__ import annotations

from collections.abc import Iterable
from difflib import get_close_matches


class SatrapError(Exception):
    """Base of the tree: catch this to catch everything satrap raises on purpose."""


class JobError(SatrapError):
    """A job file, an override or an option is wrong."""


class DataError(SatrapError):
    """The data does not fit the job: a missing column, a wrong type, a label that is not 0 or 1."""


class StoreError(SatrapError):
    """A table was asked for something it cannot do, or has no room left."""


class CheckpointError(SatrapError):
    """A checkpoint is damaged, incomplete, or does not fit the job."""


class SaveError(CheckpointError):
    """A checkpoint could not be written: a full disk, an object store that refuses. Those before it are intact, and the
    next attempt may succeed."""


class JournalError(SatrapError):
    """A server's journal or snapshot is damaged, does not fit its tables, or cannot be written. Where it cannot be
    written, what was asked was not done."""


class ServiceError(SatrapError):
    """A parameter server refused a request, or cannot be asked. The message names the server by number and address."""


class ServerUnreachable(ServiceError):  # noqa: N818
    """A server did not answer before the deadline. Its rows may still be there: the request can be tried again."""


class ServerLost(ServiceError):  # noqa: N818
    """A server answers, but it is a new life without the rows it had: training has to go back to a checkpoint."""


class WireError(ServiceError):
    """A message between processes is malformed or larger than allowed. Nothing of it was used."""


class LaunchError(SatrapError):
    """The processes of a job could not be started, or ended more often than they may."""


class TrainingError(SatrapError):
    """Training cannot go on."""


class WorkerGone(TrainingError):  # noqa: N818
    """Another worker of the group has ended, and with it the training of them all. Its own error says why."""


def did_you_mean(name: str, known: Iterable[str]) -> str:
    """The tail of a message about an unknown name: the nearest known one, or all of them when none is near.

    >>> did_you_mean("stalenes", ["staleness", "seed"])
    "did you mean 'staleness'?"
    >>> did_you_mean("x", ["staleness", "seed"])
    'known: seed, staleness'
    """
    names = sorted(known)
    near = get_close_matches(name, names, n=1, cutoff=0.6)
    return f"did you mean '{near[0]}'?" if near else f"known: {', '.join(names)}"
