"""What training and evaluation hand back: figures, not objects that hold memory or files."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal

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
    """How good a model is on some data. Of several labels, the figures are the mean over labels."""

    rows: int
    auc: float
    """Area under the ROC curve, in [0, 1]; NaN where the data has only one class."""
    auc_error: float
    """The AUC lies within ±this; 0 where it is exact."""
    log_loss: float
    """Mean binary cross-entropy, in nats."""
    normalized_entropy: float
    """Log loss relative to that of always predicting the mean label; below 1 is better than that."""
    calibration: float
    """Mean prediction over mean label; 1 is right on average."""
    by_label: Mapping[str, Mapping[str, float]] = field(default_factory=dict)
    """The same figures by label column, where there are several."""

    def as_dict(self) -> dict[str, Any]:
        """Plain figures, for JSON."""
        return asdict(self)


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
    """Of this process, while training: without evaluations and checkpoints."""
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
