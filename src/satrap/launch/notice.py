"""A machine that will be taken away says so before it goes: to the processes of satrap on it, and they to the driver.

    satrap leave ──► FOLDER/leaving ──► every process here ──► driver: partitions move away, or all save
                 ◄── FOLDER/<pid> is gone ◄── handed over ◄────────┘           and begin again elsewhere

FOLDER is `satrap-<user>-<host name>` among the temporary files of the machine, for its owner alone; a process's file
says when it began. A process that gets
SIGTERM is to go as well, by itself.
"""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import stat
import tempfile
import threading
import time
from pathlib import Path

from satrap.errors import LaunchError
from satrap.launch.guard import Identity

LEAVING = "leaving"
LEAVING_S = 900.0
"""After so long a machine that is still there stays: a notice that nobody took back must not keep runs away."""
LOOK_S = 0.2
METRIC = "satrap_leaves"
"""1 for a process, or a machine, that will be taken away."""


def folder() -> Path:
    """Where a machine's processes are noted; it is made. Raises LaunchError where it belongs to somebody else."""
    path = Path(tempfile.gettempdir()) / f"satrap-{os.getuid()}-{socket.gethostname()}"
    path.mkdir(mode=0o700, exist_ok=True)
    told = path.lstat()
    if not stat.S_ISDIR(told.st_mode) or told.st_uid != os.getuid():
        raise LaunchError(f"{path} belongs to another user: remove it")
    return path


class Notice:
    """That of this process. To be made in the main thread, where it is to hear SIGTERM. Thread-safe."""

    def __init__(self) -> None:
        self._terminated = False
        self._folder: Path | None = None
        with contextlib.suppress(OSError, LaunchError):  # then no machine can tell it
            self._folder = folder()
            self._own.write_text(str(Identity.of().started))
        if threading.current_thread() is threading.main_thread():
            self._hear()

    @property
    def _own(self) -> Path:
        assert self._folder is not None
        return self._folder / str(os.getpid())

    def _hear(self) -> None:
        """Has SIGTERM noted. The main thread of an actor waits in Ray, where no handler of Python's comes to run; so
        a thread reads the byte that the interpreter writes at once."""
        read, write = os.pipe()
        os.set_blocking(write, False)
        signal.signal(signal.SIGTERM, lambda *_: None)
        signal.set_wakeup_fd(write, warn_on_full_buffer=False)
        threading.Thread(target=self._read, args=(read,), name="satrap-notice", daemon=True).start()

    def _read(self, fd: int) -> None:
        while got := os.read(fd, 64):
            if signal.SIGTERM in got:
                self._terminated = True

    @property
    def machine_leaves(self) -> bool:
        """Whether this machine will be taken away."""
        if self._folder is None:
            return False
        try:
            return time.time() - (self._folder / LEAVING).stat().st_mtime < LEAVING_S
        except OSError:
            return False

    @property
    def leaves(self) -> bool:
        """Whether this process is to go, with its machine or without."""
        return self._terminated or self.machine_leaves

    def text(self) -> str:
        """For its metrics."""
        return (
            f"# HELP {METRIC} Whether it will be taken away.\n# TYPE {METRIC} gauge\n"
            f'{METRIC}{{what="process"}} {int(self.leaves)}\n{METRIC}{{what="machine"}} {int(self.machine_leaves)}\n'
        )

    def release(self) -> None:
        """This process has nothing any more that could be lost."""
        if self._folder is not None:
            self._own.unlink(missing_ok=True)


def said(text: str, what: str) -> bool:
    """Whether metrics say that a process, or its machine, will be taken away."""
    return f'{METRIC}{{what="{what}"}} 1\n' in text


def leave(within_s: float) -> list[int]:
    """Tells the processes of this machine that it will be taken away, and waits until they have handed over what they
    have; returns the numbers of those that have not. Raises LaunchError."""
    try:
        where = folder()
        (where / LEAVING).write_text("")
    except OSError as e:
        raise LaunchError(f"the processes of this machine cannot be told: {e}") from e
    deadline = time.monotonic() + within_s
    while (left := _holding(where)) and time.monotonic() < deadline:
        time.sleep(LOOK_S)
    return left


def stay() -> None:
    """The machine stays after all. Raises LaunchError."""
    (folder() / LEAVING).unlink(missing_ok=True)


def _holding(where: Path) -> list[int]:
    found = []
    for entry in where.iterdir():
        if not entry.name.isdigit():
            continue
        with contextlib.suppress(OSError):
            now, noted = Identity.of(int(entry.name)), entry.read_text()
            # Another process may have got the number since.
            if now.alive and noted == str(now.started):
                found.append(now.pid)
            else:
                entry.unlink(missing_ok=True)
    return sorted(found)
