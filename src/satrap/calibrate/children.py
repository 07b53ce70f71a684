"""Parameter servers in processes of their own, to measure with."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from types import TracebackType

from satrap.errors import LaunchError


class ServerChild:
    """Such a process. End it with `close`."""

    def __init__(self, job_file: Path, index: int, threads: int) -> None:
        """Starts it; ask for `address` when it is needed."""
        command = [sys.executable, "-m", "satrap.calibrate.serve", str(job_file), str(index), str(threads)]
        self._process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)

    def _line(self) -> str:
        assert self._process.stdout is not None
        line = self._process.stdout.readline().strip()
        if not line:
            raise LaunchError(f"the server to measure with ended while it was starting (exit {self._process.wait()})")
        return line

    def start(self) -> ServerChild:
        """Waits until it listens."""
        self.address = self._line()
        return self

    def cpu_s(self) -> float:
        """CPU-seconds that it has used so far."""
        assert self._process.stdin is not None
        self._process.stdin.write("cpu\n")
        self._process.stdin.flush()
        return float(self._line())

    def close(self) -> None:
        """Has it end."""
        assert self._process.stdin is not None
        self._process.stdin.close()
        self._process.wait()

    def __enter__(self) -> ServerChild:
        return self.start()

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, t: TracebackType | None) -> None:
        self.close()
