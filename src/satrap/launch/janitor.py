"""Ends what a driver has left behind when it was killed.

Most of a private Ray ends with the driver by itself; two of its helpers stay for a minute. So the driver has a small
process beside it, which does nothing until the driver is gone: then it ends every process that has a file of the
driver's Ray session open. Each of them has: its log. (The environment of a process tells less: what sets its title
writes over it.)

Run as a file of its own: it imports nothing that takes time.
"""

import contextlib
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Iterator

SWEEP_S = 10.0
QUIET_S = 1.5
"""Nothing has been found for so long: nothing is left."""
DONE = b"done\n"


@contextlib.contextmanager
def janitor() -> Iterator[None]:
    """While it is entered, the processes of this driver's private Ray do not outlive it by more than a moment.

    Where there is no /proc, it does nothing.
    """
    if not os.path.isdir("/proc/self/fd"):
        yield
        return
    command = [sys.executable, "-I", "-S", __file__, str(os.getpid())]
    # A session of its own: what is sent to the driver's process group is not for it.
    with subprocess.Popen(command, stdin=subprocess.PIPE, start_new_session=True) as process:
        try:
            yield
        finally:
            with contextlib.suppress(OSError):
                process.communicate(DONE)


def sweep(driver: int) -> int:
    """Kills every process of the Ray sessions that a driver of this number started; returns how many there were."""
    session, found = re.compile(rf"/session_[\d_-]+_{driver}(/|$)"), 0
    for name in os.listdir("/proc"):
        if not name.isdigit() or int(name) == os.getpid():
            continue
        with contextlib.suppress(OSError):
            if any(session.search(_target(f"/proc/{name}/fd/{fd}")) for fd in os.listdir(f"/proc/{name}/fd")):
                os.kill(int(name), signal.SIGKILL)
                found += 1
    return found


def _target(link: str) -> str:
    try:
        return os.readlink(link)
    except OSError:  # closed meanwhile
        return ""


def main() -> None:
    """Waits for the end of standard input; unless it was told that all is done, sweeps until nothing is left."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    if sys.stdin.buffer.read() == DONE:
        return
    begun = found_at = time.monotonic()
    while (now := time.monotonic()) < begun + SWEEP_S and now < found_at + QUIET_S:
        if sweep(int(sys.argv[1])):
            found_at = now
        time.sleep(0.1)


if __name__ == "__main__":
    main()
