"""A process that must not outlive those it works for."""

from __future__ import annotations

import contextlib
import os
import select
import signal
import socket
import threading
import time
from dataclasses import dataclass

SLOW_LOOK_S = 0.5
"""How often a process is looked for where the kernel does not tell of its end."""


@dataclass(frozen=True, slots=True)
class Identity:
    """A process, told apart from a later one with its number."""

    machine: str
    pid: int
    started: int
    """Clock ticks from the start of the machine; 0 where it is not known."""

    @classmethod
    def of(cls, pid: int | None = None) -> Identity:
        """That of a process of this machine; None: this one."""
        pid = os.getpid() if pid is None else pid
        return cls(_machine(), pid, _started(pid))

    @property
    def here(self) -> bool:
        """Whether it belongs to this machine, in the same space of process numbers."""
        return self.machine == _machine()

    @property
    def alive(self) -> bool:
        """Whether it runs. Asked only where it is `here`."""
        return _started(self.pid) == self.started and _exists(self.pid)

    def kill(self, timeout_s: float) -> None:
        """Ends it, even where it was stopped, and waits until it is gone. Asked only where it is `here`."""
        deadline = time.monotonic() + timeout_s
        with contextlib.suppress(OSError):
            while self.alive and time.monotonic() < deadline:
                os.kill(self.pid, signal.SIGKILL)
                time.sleep(0.01)


def end_with(*others: Identity) -> None:
    """Ends this process, at once and without a word, when one of the others has ended. Those of other machines are not
    watched: Ray ends what belongs to a driver that is gone.

    A thread for each, which sleeps in the kernel until then.
    """
    for other in others:
        if other.here:
            threading.Thread(target=_watch, args=(other,), name=f"satrap-guard-{other.pid}", daemon=True).start()


def _watch(other: Identity) -> None:
    wait_for_end(other)
    os._exit(1)


def wait_for_end(other: Identity) -> None:
    """Returns when a process of this machine has ended."""
    try:
        fd = os.pidfd_open(other.pid)
    except (OSError, AttributeError):  # it has ended, or this kernel has no such thing
        fd = -1
    try:
        # Looked at after it was opened: from then on the number cannot come to mean another process.
        while other.alive:
            if fd >= 0:
                end = select.poll()
                end.register(fd, select.POLLIN)
                end.poll()
                return
            threading.Event().wait(SLOW_LOOK_S)
    finally:
        if fd >= 0:
            os.close(fd)


def _exists(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True


def _started(pid: int) -> int:
    """0 where it is not known, -1 for a process that has ended and that its parent has not asked about yet."""
    with contextlib.suppress(OSError, ValueError, IndexError), open(f"/proc/{pid}/stat", "rb") as f:
        # The name, in brackets, may hold anything.
        told = f.read().rpartition(b")")[2].split()
        return -1 if told[0] in (b"Z", b"X") else int(told[19])
    return 0


def _machine() -> str:
    """Names this machine and, where containers share one, the process numbers seen here."""
    with contextlib.suppress(OSError):
        with open("/proc/sys/kernel/random/boot_id") as f:
            boot = f.read().strip()
        return f"{boot}/{os.readlink('/proc/self/ns/pid')}"
    return socket.gethostname()
