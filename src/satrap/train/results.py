"""What training and evaluation hand back: figures, not objects that hold memory or files."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

from satrap.observe.metrics import Metrics
from satrap.ps.protocol import TableStats

Stopped = Literal["done", "early_stopping", "interrupted"]


@dataclass(slots=True)
class StageSeconds:
    """Seconds spent in, and waited for, each stage of a run. The engine thread's and the main thread's run at once."""

    read_wait: float = 0.0
    """Engine thread: waiting for the reader to deliver a batch."""
    prepare: float = 0.0
    """Engine thread: unique ids."""
    lookup: float = 0.0
    """Engine thread: rows and pooling."""
    push: float = 0.0
    """Engine thread: gradients per id and their application."""
    lookup_wait: float = 0.0
    """Main thread: waiting for the engine thread to have a batch ready."""
    compute: float = 0.0
    """Main thread: forward, backward, dense optimizer."""
    drain_wait: float = 0.0
    """Main thread: waiting for the last pushes before a checkpoint, an evaluation or the end."""
    evaluation: float = 0.0
    """Evaluations in the middle of training."""
    checkpoint: float = 0.0
    """Saving checkpoints."""

    def as_dict(self) -> dict[str, float]:
        """By name, for logs."""
        return asdict(self)


@dataclass(frozen=True, slots=True)
class Size:
    """What the tables hold."""

    rows: int
    value_bytes: int
    state_bytes: int
    overhead_bytes: int

    @classmethod
    def of(cls, stats: Mapping[str, TableStats]) -> Size:
        """The sum over tables."""
        return cls(
            rows=sum(s.rows for s in stats.values()),
            value_bytes=sum(s.value_bytes for s in stats.values()),
            state_bytes=sum(s.state_bytes for s in stats.values()),
            overhead_bytes=sum(s.overhead_bytes for s in stats.values()),
        )

    @property
    def bytes_per_row(self) -> float:
        """Values, optimizer state and overhead; 0 where there are no rows."""
        return (self.value_bytes + self.state_bytes + self.overhead_bytes) / self.rows if self.rows else 0.0


@dataclass(frozen=True, slots=True)
class Evaluation:
    """How good a model is on some data: the figures of `Metrics` by label, and their plain mean over labels."""

    by_label: Mapping[str, Metrics]
    """Label column → figures, with ROC and reliability points."""

    @property
    def samples(self) -> int:
        """Samples measured."""
        return min(m.samples for m in self.by_label.values())

    @property
    def auc(self) -> float:
        """Area under the ROC curve, in [0, 1]; NaN where a label has only one class."""
        return self._mean("auc")

    @property
    def auc_error_bound(self) -> float:
        """The AUC lies within ± this; 0 where it is exact."""
        return max(m.auc_error_bound for m in self.by_label.values())

    @property
    def log_loss(self) -> float:
        """Mean cross-entropy, natural logarithm."""
        return self._mean("log_loss")

    @property
    def normalized_entropy(self) -> float:
        """Log loss over that of predicting the mean label for all; below 1 beats that."""
        return self._mean("normalized_entropy")

    @property
    def calibration(self) -> float:
        """Mean prediction over mean label; 1 is right."""
        return self._mean("calibration")

    @property
    def ece(self) -> float:
        """Expected calibration error."""
        return self._mean("ece")

    @property
    def note(self) -> str | None:
        """What is undefined and why, or why the AUC is not exact."""
        notes = {name: m.note for name, m in self.by_label.items() if m.note}
        return "; ".join(n if len(self.by_label) == 1 else f"{k}: {n}" for k, n in notes.items()) or None

    def _mean(self, name: str) -> float:
        return float(sum(getattr(m, name) for m in self.by_label.values()) / len(self.by_label))

    def figures(self) -> dict[str, Any]:
        """The figures without curves, for logs and tables; with those of each label where there are several."""
        own = {name: getattr(self, name) for name in _FIGURES}
        if len(self.by_label) > 1:
            own["labels"] = {k: {n: getattr(m, n) for n in _FIGURES} for k, m in self.by_label.items()}
        return own

    def to_dict(self) -> dict[str, Any]:
        """Plain values, for JSON; `from_dict` gives it back."""
        return {name: m.to_dict() for name, m in self.by_label.items()}

    @classmethod
    def from_dict(cls, tree: Mapping[str, Any]) -> Evaluation:
        """From `to_dict`."""
        return cls({name: Metrics(**m) for name, m in tree.items()})


_FIGURES = ("samples", "auc", "auc_error_bound", "log_loss", "normalized_entropy", "calibration", "ece")


@dataclass(frozen=True, slots=True)
class Result:
    """What a run came to."""

    stopped: Stopped
    steps: int
    """Optimizer steps of the run, those before a resume included."""
    epochs: int
    """Passes over the data completed."""
    samples: int
    """Samples trained on, those before a resume included."""
    samples_per_s: float
    """Of this `fit`, while training: without evaluations and checkpoints."""
    seconds: float
    """Wall time of `fit`."""
    loss: float
    """Mean training loss over the last logging interval."""
    valid: Evaluation | None
    """The last validation, or the best one where early stopping chose it."""
    test: Evaluation | None
    size: Size
    """Rows and their bytes at the end."""
    gradients: Mapping[str, int]
    """The ledger: gradients (one per unique id and batch) sent, applied, duplicates, and refused by reason."""
    staleness_mean: float
    """Measured: updates that rows had between lookup and push, mean over gradients. NaN where not measured."""
    staleness_max: int
    stages: StageSeconds
    checkpoint: Path | None
    """The checkpoint of the model that `valid` and `test` describe."""
    run_dir: Path
    plots: tuple[Path, ...] = ()

    @property
    def rows(self) -> int:
        """Rows of all tables."""
        return self.size.rows

    def figures(self) -> dict[str, Any]:
        """Plain figures, for logs and JSON."""
        return {
            "stopped": self.stopped,
            "steps": self.steps,
            "epochs": self.epochs,
            "samples": self.samples,
            "samples_per_s": self.samples_per_s,
            "seconds": self.seconds,
            "loss": self.loss,
            "valid": None if self.valid is None else self.valid.figures(),
            "test": None if self.test is None else self.test.figures(),
            "size": {**asdict(self.size), "bytes_per_row": self.size.bytes_per_row},
            "gradients": dict(self.gradients),
            "staleness_mean": self.staleness_mean,
            "staleness_max": self.staleness_max,
            "stages_s": self.stages.as_dict(),
            "checkpoint": None if self.checkpoint is None else str(self.checkpoint),
        }
