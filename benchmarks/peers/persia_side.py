"""The original Persia, from its wheel, metered from outside: NATS, parameter server, embedding worker, trainer, loader.

The programs are those of `examples/clicks/persia`; they, and Persia, run by an interpreter of their own (CPython 3.9).
Every process counts. The trainer tells `samples N` as each step begins, and `test AUC X` at the end.
"""

from __future__ import annotations

import os
import re
import shutil
import socket
import subprocess
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks.harness import REPOSITORY, cpu_seconds_of, pss_mib
from benchmarks.outside import Watched, metered

PROGRAMS = REPOSITORY / "examples" / "clicks" / "persia"
BESIDE_PATH = "/usr/sbin"
"""Where Debian puts nats-server, which is not on every path."""
STARTS_S, ENDS_S = 60.0, 900.0
"""How long a process may take until it listens, and the whole run."""


@dataclass(frozen=True, slots=True)
class Persia:
    """An installation."""

    python: str
    nats: str
    binaries: Path
    """Folder of its parameter server and embedding worker."""
    programs: Path = PROGRAMS

    @classmethod
    def find(cls, python: str | None) -> Persia | str:
        """The installation of an interpreter, or why there is none."""
        if python is None:
            return "no --persia-python: an interpreter that has it; examples/clicks/README.md says how to make one"
        ask = "import os, persia; print(os.path.dirname(persia.__file__))"
        try:
            done = subprocess.run([python, "-c", ask], capture_output=True, text=True, check=False)
        except OSError as e:
            return f"{python}: {e.strerror}"
        if done.returncode:
            return f"{python} cannot import persia: {(done.stderr.strip().splitlines() or ['no reason told'])[-1]}"
        nats = shutil.which("nats-server", path=os.pathsep.join([os.environ.get("PATH", ""), BESIDE_PATH]))
        if nats is None:
            return "there is no nats-server; Debian's package of that name has it"
        return cls(python, nats, Path(done.stdout.strip()))


def run(
    persia: Persia, arrays: Path, *, batch: int, steps: int | None, warm: int, length: int, threads: int = 1
) -> dict[str, Any]:
    """One run over `steps` batches (None: all), metered over `length` samples after `warm`.

    `threads`: of the trainer's network; five processes share the cores. Raises RuntimeError where it fails.
    """
    import numpy as np

    rows = len(np.load(arrays / "train_label.npy", mmap_mode="r"))
    began = time.time()
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(ignore_cleanup_errors=True)))
        roles = _Roles(persia, folder, stack)
        roles.environment |= {"DATA": str(arrays), "BATCH": str(batch), "THREADS": str(threads)}
        roles.environment["STEPS"] = str(min(steps or rows, rows // batch))
        roles.start_all()
        trainer, told = roles.made["trainer"], _Told(folder / "trainer")

        def over() -> bool:
            return trainer.poll() is not None or time.time() - began > ENDS_S or roles.failed() is not None

        watched = Watched(told.samples, roles.cpu, roles.memory, over)
        figures = metered(watched, warm=warm, length=length)
        while not over():
            time.sleep(0.05)
        list(told.samples())
        if figures is None or told.auc is None or trainer.poll() != 0:
            raise RuntimeError(f"Persia did not train to the end; {roles.failed() or 'trainer'}:\n{roles.said()}")
        return {**figures, "test_auc": told.auc, "first_batch_s": told.first_at - began}


class _Told:
    """What the trainer has told."""

    def __init__(self, path: Path) -> None:
        self._path, self._at = path, 0
        self.first_at = 0.0
        self.auc: float | None = None

    def samples(self) -> Iterator[int]:
        """The lines `samples N` that are new."""
        text = self._path.read_bytes()
        end = text.rfind(b"\n") + 1
        news, self._at = text[self._at : end].decode(errors="replace"), max(end, self._at)
        for line in news.splitlines():
            if found := re.fullmatch(r"samples (\d+)", line):
                self.first_at = self.first_at or time.time()
                yield int(found[1])
            elif found := re.fullmatch(r"test AUC ([\d.]+)", line):
                self.auc = float(found[1])


class _Roles:
    """Its processes, all of which end with `stack`."""

    def __init__(self, persia: Persia, folder: Path, stack: ExitStack) -> None:
        self._persia, self._folder, self._stack = persia, folder, stack
        self.made: dict[str, subprocess.Popen[bytes]] = {}
        path = os.pathsep.join(filter(None, [str(persia.programs), os.environ.get("PYTHONPATH")]))
        self._nats_port = _free_port()
        self.environment = {
            "PYTHONPATH": path,
            "PERSIA_NATS_URL": f"nats://127.0.0.1:{self._nats_port}",
            "PERSIA_SOCKET_IFNAME": "lo",
            "LOG_LEVEL": "error",
        }

    def start_all(self) -> None:
        """One after the other: each needs those before it. The loader comes last, or it waits ten seconds for a
        trainer that does not listen yet."""
        programs, here = self._persia.programs, "127.0.0.1"
        config = ["--global-config", str(programs / "global_config.yml")]
        config += [
            "--embedding-config",
            str(programs / "embedding_config.yml"),
            "--replica-index=0",
            "--replica-size=1",
        ]
        self._start(
            "nats", self._persia.nats, "-c", str(programs / "nats.conf"), "-a", here, "-p", str(self._nats_port)
        )
        self._listens("nats", self._nats_port)
        for role, program in (("servers", "parameter-server"), ("embedding workers", "worker")):
            port = _free_port()
            self._start(role, str(self._persia.binaries / f"persia-embedding-{program}"), "--port", str(port), *config)
            self._listens(role, port)
        one = {"RANK": "0", "LOCAL_RANK": "0", "WORLD_SIZE": "1", "REPLICA_INDEX": "0", "REPLICA_SIZE": "1"}
        self.environment |= one
        self._start("trainer", self._persia.python, str(programs / "train.py"))
        self._await(lambda: b"ready" in (self._folder / "trainer").read_bytes(), "trainer")
        self._start("loader", self._persia.python, str(programs / "data_loader.py"))

    def cpu(self) -> dict[str, float]:
        """Role → CPU seconds so far."""
        return {role: cpu_seconds_of(p.pid) for role, p in self.made.items()}

    def memory(self) -> float:
        """MiB of all."""
        return sum(pss_mib(p.pid) for p in self.made.values())

    def failed(self) -> str | None:
        """A process that has ended though it should not have."""
        ended = ((role, p.poll()) for role, p in self.made.items())
        return next((f"{r} ended with {s}" for r, s in ended if s or (s == 0 and r not in ("trainer", "loader"))), None)

    def said(self) -> str:
        """The last of what each has printed."""
        return "\n".join(
            f"--- {role}\n{(self._folder / role).read_text(errors='replace')[-1500:]}" for role in self.made
        )

    def _start(self, role: str, *command: str) -> None:
        with (self._folder / role).open("wb") as said:
            environment = {**os.environ, **self.environment}
            process = subprocess.Popen(
                command, cwd=self._folder, env=environment, stdout=said, stderr=said, stdin=subprocess.DEVNULL
            )
        self.made[role] = process
        self._stack.callback(_end, process)

    def _listens(self, role: str, port: int) -> None:
        def answers() -> bool:
            with socket.socket() as s:
                return s.connect_ex(("127.0.0.1", port)) == 0

        self._await(answers, role)

    def _await(self, done: Any, role: str) -> None:
        deadline = time.monotonic() + STARTS_S
        while not done():
            if self.failed() or time.monotonic() > deadline:
                raise RuntimeError(f"Persia's {role} did not start within {STARTS_S:g} s:\n{self.said()}")
            time.sleep(0.05)


def _end(process: subprocess.Popen[bytes]) -> None:
    if process.poll() is None:
        process.kill()
    process.wait()


def _free_port() -> int:
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        port: int = s.getsockname()[1]
        return port


def user_files(programs: Path = PROGRAMS) -> Sequence[Path]:
    """What a user of it writes."""
    return sorted(p for p in programs.iterdir() if p.suffix in (".py", ".yml", ".conf"))
