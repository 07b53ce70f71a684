"""The log of a run: `metrics.jsonl`, one JSON object a line, and the same figures as TensorBoard events.

Every record has `kind` and `time` (seconds since 1970). What is not a number is null. The kinds:

    start       step (0, or the step a resume goes on from), and what the trainer tells of the run and the machine
    train       step, epoch, samples (so far), loss, auc (so far), samples_per_s, staleness_mean, staleness_max,
                lr_factor, rss_bytes, rows; and of the interval, by stage, stages_s (the clock) and stages_cpu_s
    eval        split (train | valid | test), step, label where there are several, and the fields of `Metrics`:
                auc, auc_error_bound, log_loss, normalized_entropy, calibration, ece, samples, positives, roc,
                reliability, scores, note
    checkpoint  step, path
    checkpoint_failed  step, problem: what was not written, or not removed
    warning     step, problem: what will make the figures useless, such as labels that are all 0
    end         step, stopped, the figures of the result, and: tables (rows and bytes of each), staleness (gradients
                by updates between lookup and push), hot_ids (of worker 0's sample), profile (`observe.profile`)
    restart     step (that all went back to), why, placement_epoch, gradients_back, exact
    revived     process (a server that came back with all it had), host, seconds
    profile     profile: that of `end`, with the servers; of runs on servers

Fields may be added to any kind. A resume appends: it starts with a `start` record of its own, and what earlier records
say of later steps no longer counts (`read_metrics` leaves it out).
"""

from __future__ import annotations

import logging
import math
import threading
import time
from pathlib import Path
from types import TracebackType
from typing import Any

import msgspec

from satrap.errors import TrainingError
from satrap.observe.events import EventFile
from satrap.observe.files import append, cut_partial_line, open_for_append
from satrap.observe.metrics import Metrics

log = logging.getLogger("satrap")

METRICS_FILE = "metrics.jsonl"
EVENTS_FOLDER = "events"
_CURVELESS = {"kind", "time", "step", "split", "label"}  # what a record is about, as against a figure to draw


class RunLog:
    """Appends to the log of one run folder. Thread-safe. A line is one write, so a kill leaves whole lines.

    >>> import tempfile
    >>> folder = tempfile.mkdtemp()
    >>> with RunLog(folder) as run:
    ...     run.event("start", step=0)
    ...     run.train(step=20, loss=0.7, auc=float("nan"))
    >>> [(r["kind"], r["step"]) for r in read_metrics(folder)], read_metrics(folder)[1]["auc"]
    ([('start', 0), ('train', 20)], None)
    """

    def __init__(self, run_dir: str | Path, *, tensorboard: bool = True) -> None:
        """Opens the folder, made if missing; a half line at the end of an old log is cut off.

        Raises TrainingError where it cannot be written. `tensorboard` False leaves out the events.
        """
        self.run_dir = Path(run_dir)
        self.path = self.run_dir / METRICS_FILE
        try:
            self.run_dir.mkdir(parents=True, exist_ok=True)
            if self.path.exists() and (cut := cut_partial_line(self.path)):
                log.warning("%s: cut off %d bytes of a record that was not finished", self.path, cut)
        except OSError as e:
            raise TrainingError(f"cannot write {self.path}: {e.strerror}; give a folder you may write to") from e
        self._file = open_for_append(self.path)
        self._events = EventFile(self.run_dir / EVENTS_FOLDER) if tensorboard else None
        self._lock = threading.Lock()

    def event(self, kind: str, **fields: Any) -> None:
        """A record of any kind. `start` with a `step` above 0 takes back what the log says of later steps."""
        self._write({"kind": kind, **fields})
        if kind == "start" and self._events is not None and fields.get("step", 0) > 0:
            with self._lock:
                self._events.restart(int(fields["step"]) + 1)

    def train(self, *, step: int, **fields: Any) -> None:
        """Progress of training at `step`; numbers become curves `train/<field>`."""
        self._write({"kind": "train", "step": step, **fields}, curves="train")

    def evaluation(self, split: str, metrics: Metrics, step: int, *, label: str | None = None, **fields: Any) -> None:
        """Figures of an evaluation at `step`, of one label; numbers become curves `<split>/<field>`."""
        name = {} if label is None else {"label": label}
        record = {"kind": "eval", "split": split, "step": step, **name, **metrics.to_dict(), **fields}
        self._write(record, curves=split if label is None else f"{split}/{label}")

    def _write(self, record: dict[str, Any], curves: str | None = None) -> None:
        record = {"kind": record["kind"], "time": round(time.time(), 3), **record}
        line = msgspec.json.encode(record, enc_hook=_plain) + b"\n"
        with self._lock:
            append(self._file, self.path, line)
            if curves is not None and self._events is not None:
                points = {f"{curves}/{k}": float(v) for k, v in record.items() if k not in _CURVELESS and _drawable(v)}
                if points:
                    self._events.scalars(points, int(record["step"]))

    def close(self) -> None:
        """Closes the files. Closing twice does nothing."""
        with self._lock:
            self._file.close()
            if self._events is not None:
                self._events.close()

    def __enter__(self) -> RunLog:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def _plain(value: Any) -> Any:
    """numpy scalars and arrays, paths and anything else that JSON does not have."""
    if hasattr(value, "tolist"):
        return value.tolist()
    if isinstance(value, Path):
        return str(value)
    raise NotImplementedError(f"a log record cannot hold {type(value).__name__}")


def _drawable(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def read_metrics(run_dir: str | Path) -> list[dict[str, Any]]:
    """The records of a run that count, in order: what a resume took back and a half last line are left out.

    `run_dir` is a run folder or a metrics file. Raises TrainingError naming the line where one is not JSON, or where
    there is no such file.
    """
    path = Path(run_dir)
    path = path / METRICS_FILE if path.is_dir() else path
    try:
        lines = path.read_bytes().split(b"\n")
    except OSError as e:
        raise TrainingError(f"cannot read {path}: {e.strerror}; is it the folder of a run?") from e
    records: list[dict[str, Any]] = []
    for number, line in enumerate(lines[:-1], 1):  # what follows the last newline is not a whole record
        try:
            record = msgspec.json.decode(line, type=dict[str, Any])
        except msgspec.DecodeError as e:
            raise TrainingError(f"{path}, line {number}: not a JSON object ({e})") from e
        if record.get("kind") == "start":
            step = record.get("step") or 0
            records = [r for r in records if (r.get("step") or 0) <= step and r.get("kind") != "end"]
        records.append(record)
    return records
