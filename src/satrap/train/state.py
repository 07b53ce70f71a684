"""Everything a run must remember beside weights and rows, so that it can go on as if it had never stopped."""

from __future__ import annotations

from dataclasses import dataclass, field, fields
from typing import Any

import numpy as np
import torch

from satrap.data.batch import Position
from satrap.schema import Train
from satrap.train.results import Evaluation


@dataclass(slots=True)
class RunState:
    """Counters of a run. Whole after every step: a checkpoint between any two steps can be resumed."""

    step: int = 0
    """Optimizer steps applied."""
    samples: int = 0
    epoch: int = 0
    """The epoch whose data is being read. (The position of an epoch's last batch may already be in the next one.)"""
    position: Position = field(default_factory=Position)
    """Where the data goes on."""
    evaluation_due: bool = False
    """An epoch or an `eval_every_steps` has been completed and not been evaluated."""
    evaluated_at: int = -1
    """Step of the last validation."""
    valid: Evaluation | None = None
    """The last validation."""
    best: Evaluation | None = None
    best_step: int = -1
    without_improvement: int = 0
    """Validations since the best one."""

    def judge(self, evaluation: Evaluation, train: Train) -> None:
        """Takes a validation in; where the job asks for the best, decides whether it is the best so far."""
        self.valid, self.evaluated_at, self.evaluation_due = evaluation, self.step, False
        stopping = train.early_stopping
        metric = train.checkpoint.best if stopping is None else stopping.metric
        if metric is None:
            return
        least = 0.0 if stopping is None else stopping.min_delta
        if self.best is None or _gain(evaluation, self.best, metric) > least:
            self.best, self.best_step, self.without_improvement = evaluation, self.step, 0
        else:
            self.without_improvement += 1

    def to_dict(self) -> dict[str, Any]:
        """Plain data, for a checkpoint; `position` and `step` have their own place there."""
        tree = {f.name: getattr(self, f.name) for f in fields(self) if f.name not in ("position", "step")}
        for name in ("valid", "best"):
            if tree[name] is not None:
                tree[name] = tree[name].to_dict()
        return tree

    @classmethod
    def from_dict(cls, tree: dict[str, Any], *, step: int, position: Position) -> RunState:
        """The state a checkpoint holds."""
        known = {f.name for f in fields(cls)}
        values = {k: v for k, v in tree.items() if k in known}
        for name in ("valid", "best"):
            if values.get(name) is not None:
                values[name] = Evaluation.from_dict(values[name])
        return cls(**values, step=step, position=position)


def _gain(now: Evaluation, best: Evaluation, metric: str) -> float:
    """How much better; NaN (an AUC without both classes) is no gain."""
    return now.auc - best.auc if metric == "auc" else best.log_loss - now.log_loss


def random_state(device: torch.device) -> dict[str, Any]:
    """The state of the global random generators that a module may draw from: torch's and numpy's."""
    name, keys, place, has_gauss, gauss = np.random.get_state(legacy=True)
    numpy = {
        "name": name,
        "keys": torch.from_numpy(np.asarray(keys, np.uint32).view(np.int32).copy()),
        "place": int(place),
        "has_gauss": int(has_gauss),
        "gauss": float(gauss),
    }
    tree: dict[str, Any] = {"torch": torch.get_rng_state(), "numpy": numpy}
    if device.type == "cuda":
        tree["cuda"] = torch.cuda.get_rng_state(device)
    return tree


def set_random_state(tree: dict[str, Any], device: torch.device) -> None:
    """Puts the generators back to a state that `random_state` took."""
    torch.set_rng_state(tree["torch"])
    n = tree["numpy"]
    keys = n["keys"].numpy().view(np.uint32)
    np.random.set_state((n["name"], keys, n["place"], n["has_gauss"], n["gauss"]))
    if device.type == "cuda" and "cuda" in tree:
        torch.cuda.set_rng_state(tree["cuda"], device)
