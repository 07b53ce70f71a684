"""Runs of `satrap train` on real processes, watched from outside and disturbed at a step that was waited for."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Any

from satrap import checkpoint
from satrap.errors import ServiceError, TrainingError
from satrap.observe.endpoint import Target, read_targets
from satrap.observe.runlog import read_metrics
from satrap.observe.scrape import Scrape, scrape
from satrap.rehearse.processes import alive, children

ADULT = Path(__file__).parents[2] / "examples" / "adult"
LIMIT_S = 600.0
"""For a machine that is busy with other things; nothing waits this long by itself."""
SYNCHRONOUS = ("train.staleness=0", "train.max_steps=100", "train.checkpoint.every_steps=20")
"""So often saved that a kill goes back to something."""
ON_TWO = ("--servers", "2", "--workers", "2")
SHORT = ("train.staleness=0", "train.max_steps=40")


def command(run: Path, *more: str) -> list[str]:
    """A command line that trains on the Adult data."""
    job = [str(ADULT / "job.yaml"), f"data.train={ADULT / 'train.parquet'}", "data.test=[]", "train.threads=1"]
    return [sys.executable, "-m", "satrap", "train", *job, "--run-dir", str(run), *more]


def train(run: Path, *more: str, code: int = 0) -> str:
    """Trains to the end; returns all that was printed."""
    done = subprocess.run(command(run, *more), capture_output=True, text=True, timeout=LIMIT_S, check=False)
    assert done.returncode == code, done.stdout[-2000:] + done.stderr[-4000:]
    return done.stdout + done.stderr


def digest(run: Path) -> str:
    """Names the content of a run's newest checkpoint."""
    return str(checkpoint.digest(checkpoint.latest(run)))


@dataclass
class Running:
    """`satrap train` under way. A context manager: what is left of it at the end is killed."""

    run: Path
    words: list[str]
    env: dict[str, str] = field(default_factory=dict)
    resume: bool = False
    """The run goes on from its newest checkpoint; `words` then are options alone."""
    prefix: tuple[str, ...] = ()
    """A command that runs another one, such as `ip netns exec NAME`."""

    def __enter__(self) -> Running:
        self.log = self.run.with_suffix(".log")
        with self.log.open("w") as out:
            self.process = subprocess.Popen(
                [*self.prefix, *self._command()],
                stdout=out,
                stderr=out,
                start_new_session=True,
                env={**os.environ, **self.env},
            )
        self.below: set[int] = set()
        return self

    def _command(self) -> list[str]:
        if self.resume:
            return [sys.executable, "-m", "satrap", "train", "--resume", str(self.run), *self.words]
        return command(self.run, *self.words)

    def __exit__(self, kind: type[BaseException] | None, e: BaseException | None, at: TracebackType | None) -> None:
        left = self.below | set(children(self.process.pid))
        self.process.kill()
        self.process.wait()
        for pid in left:
            with suppress(OSError):
                os.kill(pid, signal.SIGKILL)

    @property
    def text(self) -> str:
        """What it has printed."""
        return self.log.read_text()

    def wait(self, what: Callable[[], Any], why: str, every_s: float = 0.02) -> Any:
        """What `what` returns as soon as that is true."""
        deadline = time.monotonic() + LIMIT_S
        while not (found := what()):
            assert self.process.poll() is None, f"ended while waiting for {why}:\n{self.text[-4000:]}"
            assert time.monotonic() < deadline, f"waited for {why} in vain:\n{self.text[-4000:]}"
            time.sleep(every_s)
        return found

    def says(self, text: str) -> None:
        """Returns when it has printed this."""
        self.wait(lambda: text in self.text, text)

    def targets(self) -> dict[str, Target]:
        """Its servers and workers, by name."""
        return {t.name: t for t in read_targets(self.run)}

    def ask(self, name: str) -> Scrape | None:
        """The metrics of a process; None where it is not there."""
        with suppress(ServiceError, TrainingError, KeyError):
            return scrape(self.targets()[name].address)
        return None

    def step(self) -> float:
        """At which step worker 0 is."""
        said = self.ask("worker 0")
        return 0.0 if said is None else said.total("satrap_worker_steps_total") or 0.0

    def reaches(self, step: int) -> None:
        """Returns when it has come as far as a step, and not to its end."""
        self.wait(lambda: self.step() >= step, f"step {step}")

    def saves(self) -> None:
        """Returns when it has trained on from a step that a checkpoint is of: a slow disk is steps behind."""

        def trained_on() -> bool:
            saved = [int(p.name.removeprefix("step-")) for p in (self.run / "checkpoints").glob("step-*")]
            return bool(saved) and self.step() > max(saved)

        self.wait(trained_on, "a step after a checkpoint")

    @contextmanager
    def slowly(self) -> Iterator[None]:
        """It trains at a tenth of its pace: what is done meanwhile comes before its end, however slow the machine is
        at that."""
        pid, over = self.targets()["worker 1"].pid, threading.Event()  # the others wait for it

        def pace() -> None:
            with suppress(ProcessLookupError):
                while not over.wait(0.02):
                    os.kill(pid, signal.SIGSTOP)
                    over.wait(0.2)
                    os.kill(pid, signal.SIGCONT)

        thread = threading.Thread(target=pace)
        thread.start()
        try:
            yield
        finally:
            over.set()
            thread.join()

    def kill(self, *names: str) -> None:
        """Kills servers and workers, all at once."""
        targets = self.targets()
        for name in names:
            os.kill(targets[name].pid, signal.SIGKILL)

    def ends(self, code: int = 0) -> str:
        """Waits for its end; returns all it printed."""
        assert self.process.wait(LIMIT_S) == code, self.text[-6000:]
        return self.text

    def restarts(self) -> list[dict[str, Any]]:
        """What the log of the run says of restarts."""
        return [r for r in read_metrics(self.run) if r["kind"] == "restart"]


def all_end(pids: list[int], within_s: float) -> list[int]:
    """Those that are still there after a time."""
    deadline = time.monotonic() + within_s
    while any(map(alive, pids)) and time.monotonic() < deadline:
        time.sleep(0.1)
    return [p for p in pids if alive(p)]
