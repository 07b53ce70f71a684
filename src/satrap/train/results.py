"""What training and evaluation hand back: figures, not objects that hold memory or files."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal

import msgspec

from satrap.observe.metrics import Metrics
from satrap.observe.profile import Profile
from satrap.observe.stages import StageSeconds
from satrap.ps.protocol import TableStats

__all__ = ["Evaluation", "HotTable", "Result", "Size", "StageSeconds", "Stopped"]

Stopped = Literal["done", "early_stopping", "interrupted"]


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
class HotTable:
    """The ids of a table that came most often."""

    seen: int
    """Sightings in the sample."""
    error: float
    """What a share may be too small by, beside the chance of the sample."""
    top: tuple[tuple[int, float], ...]
    """(id, share of the sightings), the most frequent first."""


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
    profile: Profile
    """Seconds by stage of all workers while training, and what `bottleneck` judges them by."""
    checkpoint: Path | None
    """The checkpoint of the model that `valid` and `test` describe; where it could not be saved (`unsaved`), the newest
    there is."""
    run_dir: Path
    plots: tuple[Path, ...] = ()
    tables: Mapping[str, TableStats] = field(default_factory=dict)
    """Size by table at the end."""
    staleness: tuple[int, ...] = ()
    """Gradients by updates that their row had between lookup and push: [0] none, [1] one, …"""
    saves_failed: int = 0
    """Checkpoints that could not be written."""
    unsaved: str | None = None
    """Why the last checkpoint that was due is not there: the model as it ended is nowhere but in memory. None where all
    is saved."""
    hot_ids: Mapping[str, HotTable] = field(default_factory=dict)
    """Table → the ids that came most often, of a sample of worker 0's batches."""

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
            "profile": msgspec.to_builtins(self.profile),
            "tables": {name: asdict(stats) for name, stats in self.tables.items()},
            "staleness": list(self.staleness),
            # As text: JSON readers round whole numbers beyond 2^53.
            "hot_ids": {
                name: {"seen": h.seen, "error": h.error, "top": [[str(i), share] for i, share in h.top]}
                for name, h in self.hot_ids.items()
            },
            "checkpoint": None if self.checkpoint is None else str(self.checkpoint),
            "saves_failed": self.saves_failed,
            "unsaved": self.unsaved,
        }
