"""One run at a time in a run folder."""

from __future__ import annotations

import os
import socket
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from satrap.durable.files import try_lock
from satrap.errors import CheckpointError

NAME = ".lock"
_CHARACTERS = 200
"""Of a lock file, shown in a message."""


@contextmanager
def claim(run: str | Path) -> Iterator[None]:
    """While it is entered, the run folder belongs to this run: another that claims it is refused.

    The operating system holds the lock and drops it when the process ends, however it ends; the file that carries it
    stays. Where the system or the file system has no such locks, nothing is refused. Makes the folder.

    Raises CheckpointError where the folder is taken or cannot be written.
    """
    run = Path(run)
    path = run / NAME
    try:
        run.mkdir(parents=True, exist_ok=True)
    except OSError as e:
        raise CheckpointError(f"the run folder {run} cannot be made: {e.strerror}; choose another run folder") from e
    try:
        fd = os.open(path, os.O_RDWR | os.O_CREAT | getattr(os, "O_CLOEXEC", 0), 0o644)
    except OSError as e:
        raise CheckpointError(f"cannot write in the run folder {run}: {e.strerror}; choose another run folder") from e
    try:
        if try_lock(fd):
            with suppress(OSError):  # a full disk; the name is for a message only
                os.ftruncate(fd, 0)
                os.write(fd, f"process {os.getpid()} on {socket.gethostname()}".encode())
            yield
        else:
            holder = os.pread(fd, _CHARACTERS, 0).decode(errors="replace") or "another process"
            raise CheckpointError(
                f"{run} is in use by another run ({holder}); two in one folder would remove each other's checkpoints. "
                "Wait for it, end it, or choose another run folder"
            )
    finally:
        os.close(fd)
