"""What a run tells while it trains: the log of the run folder, the live display, and the figures of the result."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from time import perf_counter
from types import TracebackType
from typing import Any

import numpy as np

from satrap import checkpoint
from satrap.data.batch import Batch
from satrap.observe import BinaryMetrics, Progress, RunLog, cpu_seconds, describe, rss_bytes
from satrap.observe.machine import threads_cpu_seconds
from satrap.observe.profile import WorkerTime
from satrap.observe.stages import StageSeconds
from satrap.ps.protocol import STALENESS_BINS, Ack
from satrap.schema import Job
from satrap.train.evaluation import add
from satrap.train.results import Evaluation, Result
from satrap.train.state import RunState
from satrap.train.step import Outcome

_log = logging.getLogger("satrap.train")

BINS = 1 << 14
"""Of the histogram behind the training AUC: it is read every few steps, and its error bound is logged with it."""


Display = Callable[..., Progress]
"""Makes the display of a run, called as `Progress` is."""


STORE_THREAD = "satrap-store"
"""What the native store calls its threads."""


_DOING = {"evaluation": "evaluating", "checkpoint": "saving a checkpoint"}


class Report:
    """Collects figures step by step; every `log_every_steps` they become a record and a line of the display.

    Of several workers one `writes`; the others collect what the result needs. Loss and samples are of all workers, the
    training AUC, the staleness and the seconds of the one that writes. Used by the main thread.
    """

    def __init__(
        self,
        job: Job,
        run_dir: Path,
        service: Any,
        progress: bool | Display | None,
        *,
        writes: bool = True,
        seconds: StageSeconds | None = None,
    ) -> None:
        self._job, self._run_dir, self._service, self._show = job, run_dir, service, progress
        self._log: RunLog | None = None
        self._writes = writes
        self._every = job.train.log_every_steps
        self.seconds = seconds or StageSeconds()
        self._interval_stages: dict[str, float] = {}
        self._interval_stages_cpu: dict[str, float] = {}
        self._cpu_s, self._store_cpu_s = 0.0, 0.0
        self.loss = float("nan")
        """Mean over the last interval that was logged."""
        self._metrics = [BinaryMetrics(bins=BINS, exact_samples=0) for _ in job.data.label]
        self._interval_loss, self._interval_steps = 0.0, 0
        self.staleness = np.zeros(STALENESS_BINS, np.int64)
        """Gradients by row updates between lookup and push; the last bin: unknown."""
        self.applied = 0
        """Gradients of this worker that were applied, those before a resume included."""
        self.applied_before = 0
        """Those before a resume."""
        self._training_s, self._training_samples = 0.0, 0
        self._interval_s, self._interval_samples = 0.0, 0
        self._running_since: float | None = None
        self._progress: Progress | None = None
        self._warned = False

    def __enter__(self) -> Report:
        self._open = ExitStack()
        if self._writes:
            self._open.enter_context(checkpoint.claim(self._run_dir))
            self._log = self._open.enter_context(RunLog(self._run_dir))
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._open.close()

    def notify(self, message: str) -> None:
        """A line for the user, now. A signal handler may call it: a line that would have to go inside one that is
        just being written is left out."""
        with suppress(RuntimeError):
            if self._progress is not None:
                self._progress.say(message)

    def started(self, state: RunState, steps_total: int | None, samples_total: int | None) -> None:
        """Training begins at the state's step, or goes on from it."""
        job = self._job
        if self._log is None:
            return
        make, show = (self._show, None) if callable(self._show) else (Progress, self._show)
        display = make(show=show, total_samples=samples_total, epochs=job.train.epochs, title=job.name)
        self._progress = self._open.enter_context(display)
        self._log.event(
            "start",
            step=state.step,
            job=job.name,
            seed=job.seed,
            staleness=job.train.staleness,
            batch_size=job.train.batch_size,
            steps_total=steps_total,
            machine=describe(),
        )

    @contextmanager
    def training(self) -> Iterator[None]:
        """While it is entered, time counts as training time: the base of samples per second."""
        self._running_since = perf_counter()
        cpu, store_cpu = cpu_seconds(), threads_cpu_seconds(STORE_THREAD)
        try:
            yield
        finally:
            self._tick()
            self._running_since = None
            self._cpu_s += cpu_seconds() - cpu
            self._store_cpu_s += threads_cpu_seconds(STORE_THREAD) - store_cpu

    def _tick(self) -> None:
        now = perf_counter()
        assert self._running_since is not None
        self._training_s += now - self._running_since
        self._interval_s += now - self._running_since
        self._running_since = now

    def stepped(self, state: RunState, outcome: Outcome, batch: Batch | None, lr_factor: float) -> None:
        """Takes a step in; logs where an interval ends. `batch`: this worker's, None where its data has ended."""
        if batch is not None:
            add(self._metrics, outcome.logits, batch)
        self._interval_loss += outcome.loss
        self._interval_steps += 1
        self._training_samples += outcome.samples
        self._interval_samples += outcome.samples
        if state.step % self._every == 0:
            self._tick()
            self._log_interval(state, outcome, lr_factor)

    def trained_elsewhere(self, samples: int) -> None:
        """Takes in what workers out of step with this one have trained since it was last called."""
        self._training_samples += samples

    def _log_interval(self, state: RunState, outcome: Outcome, lr_factor: float) -> None:
        self.loss = self._interval_loss / self._interval_steps
        if self._log is not None:
            self._write_interval(self._log, state, outcome, lr_factor)
        self._interval_loss, self._interval_steps = 0.0, 0
        self._interval_s, self._interval_samples = 0.0, 0

    def _write_interval(self, log: RunLog, state: RunState, outcome: Outcome, lr_factor: float) -> None:
        results = [m.result() for m in self._metrics]
        record = {
            "epoch": state.epoch,
            "samples": state.samples,
            "loss": self.loss,
            "auc": sum(r.auc for r in results) / len(results),
            "auc_error_bound": max(r.auc_error_bound for r in results),
            "samples_per_s": self._interval_samples / self._interval_s if self._interval_s else 0.0,
            "staleness_mean": self.staleness_mean,
            "staleness_max": self.staleness_max,
            "gradient_norm": outcome.gradient_norm,
            "lr_factor": lr_factor,
            "rss_bytes": rss_bytes(),
            "rows": sum(s.rows for s in self._service.stats().values()),
            "stages_s": _grown(self._interval_stages, self.seconds.as_dict()),
            "stages_cpu_s": _grown(self._interval_stages_cpu, dict(self.seconds.cpu)),
        }
        log.train(step=state.step, **record)
        if self._progress is not None:
            self._progress.update(step=state.step, staleness=self.staleness_mean, **record)

    def epoch_ended(self, state: RunState) -> None:
        """The AUC so far is that of the epoch so far: the first steps of a run would drag it down for ever."""
        self._warn_of_one_class(state)
        for m in self._metrics:
            m.clear()

    def pushed(self, ack: Ack) -> None:
        """Takes an acknowledgement in."""
        self.staleness += ack.staleness
        self.applied += ack.applied

    def evaluated(self, split: str, state: RunState, evaluation: Evaluation) -> None:
        """Logs an evaluation, with its curves."""
        if self._log is None:
            return
        for name, m in evaluation.by_label.items():
            several = len(evaluation.by_label) > 1
            self._log.evaluation(split, m, state.step, label=name if several else None)
            if self._progress is not None:
                self._progress.evaluation(f"{split} {name}" if several else split, m, state.step)

    def saved(self, step: int, path: Path) -> None:
        """Logs a checkpoint."""
        if self._log is None:
            return
        inside = path.is_relative_to(self._run_dir)
        self._log.event("checkpoint", step=step, path=str(path.relative_to(self._run_dir) if inside else path))

    def save_failed(self, step: int, problem: str) -> None:
        """Logs that a checkpoint, or its removal, has failed, and says so on the screen."""
        if self._show is False:
            _log.error("step %d: %s", step, problem)
        self.notify(f"step {step}: {problem}")
        if self._log is not None:
            self._log.event("checkpoint_failed", step=step, problem=problem)

    def finished(self, state: RunState, result: Result) -> None:
        """The last record."""
        if self._log is None:
            return
        if result.stopped != "interrupted":
            self._warn_of_one_class(state)
        self._log.event("end", step=state.step, **result.figures())

    def _warn_of_one_class(self, state: RunState) -> None:
        """Says, once a run, that the labels of the epoch so far are all 0 or all 1: its AUC would be n/a in silence."""
        if self._log is None or self._warned:
            return
        for label, m in zip(self._job.data.label, self._metrics, strict=True):
            if m.samples and m.positives in (0, m.samples):
                self._warned = True
                problem = (
                    f"the label '{label.column}' is {int(m.positives > 0)} in all {m.samples:,} rows trained on: there "
                    "is nothing to tell apart, and the AUC is undefined. Is it the right column (data.label), and the "
                    "right value for 1 (its `positive`)?"
                )
                self.notify(f"warning: {problem}")
                self._log.event("warning", step=state.step, problem=problem)

    @contextmanager
    def busy(self, what: str) -> Iterator[None]:
        """Accounts for the time of an evaluation or a checkpoint, for which training waits."""
        start = perf_counter()
        if self._progress is not None:
            self._progress.doing(_DOING[what])
        try:
            yield
        finally:
            if self._progress is not None:
                self._progress.doing(None)
            self.seconds.add(what, perf_counter() - start)

    def time_of(self, rank: int) -> WorkerTime:
        """Where the time of this worker went."""
        return WorkerTime.of(
            self.seconds,
            rank=rank,
            training_s=self._training_s,
            cpu_s=self._cpu_s,
            store_cpu_s=self._store_cpu_s,
        )

    @property
    def samples_trained(self) -> int:
        """Of all workers, since the start or the resume."""
        return self._training_samples

    @property
    def samples_per_s(self) -> float:
        """While training: without evaluations and checkpoints."""
        return self._training_samples / self._training_s if self._training_s else 0.0

    @property
    def staleness_mean(self) -> float:
        """Updates that rows had between lookup and push, mean over the gradients of which it is known."""
        known = self.staleness[:-1]
        return float(known @ np.arange(len(known)) / known.sum()) if known.any() else float("nan")

    @property
    def staleness_max(self) -> int:
        """The most updates a row had between lookup and push."""
        return int(np.flatnonzero(self.staleness[:-1]).max(initial=0))

    def to_dict(self) -> dict[str, Any]:
        """What the next figures depend on, as plain values: a resumed run logs what the uninterrupted one would."""
        return {
            "loss": self.loss,
            "interval_loss": self._interval_loss,
            "interval_steps": self._interval_steps,
            "staleness": self.staleness.tolist(),
            "applied": self.applied,
            "metrics": [m.to_dict() for m in self._metrics],
        }

    def restore(self, saved: Mapping[str, Any] | None) -> None:
        """Goes on from `to_dict`; from nothing where a worker was not there before."""
        if saved is None:
            return
        self.loss = saved["loss"]
        self._interval_loss, self._interval_steps = saved["interval_loss"], saved["interval_steps"]
        self.staleness[:] = saved["staleness"]
        self.applied = self.applied_before = saved.get("applied", 0)
        self._metrics = [BinaryMetrics.from_dict(m) for m in saved["metrics"]]


def _grown(before: dict[str, float], now: Mapping[str, float]) -> dict[str, float]:
    """What has grown since the last call with the same `before`, and by how much; microseconds are enough."""
    grown = {k: round(v - before.get(k, 0.0), 6) for k, v in now.items()}
    before.update(now)
    return {k: v for k, v in grown.items() if v > 0}
