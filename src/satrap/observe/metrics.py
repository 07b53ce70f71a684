"""How good predictions of 0 and 1 are: one accumulator, fed batch by batch, merged across workers.

N samples of one update, M bins.
"""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from satrap.errors import TrainingError
from satrap.observe.kept import KeptScores, pack, unpack
from satrap.observe.ranking import (
    Floats,
    binned_auc,
    calibration_error,
    exact_auc,
    reliability,
    roc_points,
    score_histogram,
)

_CHUNK = 16_384  # samples handled at once: temporaries stay in the cache
_BEND = 64.0  # bins are even in z / sqrt(64 + z²): finest where logits of clicks lie, |z| < 8, and never cut off
_MOST_BINS = 1 << 24  # 256 MiB; a state that asks for more is damaged
_LARGEST = float(np.finfo(np.float32).max)
_ROC_POINTS, _GROUPS, _COLUMNS = 201, 20, 50


@dataclass(frozen=True, slots=True, kw_only=True)
class Metrics:
    """Figures over everything an accumulator has seen. What is undefined is NaN, and `note` says why."""

    samples: int
    positives: int
    weight: float
    """Sum of sample weights; equals `samples` without weights."""
    auc: float
    """Area under the ROC curve: the chance that a positive scores above a negative, ties counting one half."""
    auc_error_bound: float
    """The true figure is within ± this of `auc`. 0 where it is exact."""
    log_loss: float
    """Mean cross-entropy, natural logarithm."""
    normalized_entropy: float
    """Log loss over that of predicting the mean label for all (He et al., ADKDD 2014). Below 1 beats that."""
    calibration: float
    """Mean prediction over mean label (He et al. 2014). 1 is right, above 1 predicts too many positives."""
    ece: float
    """Expected calibration error over 20 groups of equal weight."""
    roc: list[tuple[float, float]] = field(default_factory=list)
    """(false positive rate, true positive rate), up to 202 points."""
    reliability: list[tuple[float, float, float]] = field(default_factory=list)
    """(mean predicted, observed rate, weight) of the groups of `ece`."""
    scores: list[tuple[float, float, float]] = field(default_factory=list)
    """(right edge, negatives, positives) of 50 columns of probability; the last holds what is above it, too."""
    note: str | None = None
    """What is undefined and why, or why the AUC is not exact."""

    def to_dict(self) -> dict[str, Any]:
        """Plain values, for JSON."""
        return asdict(self)


class BinaryMetrics:
    """Accumulates AUC, log loss, normalized entropy and calibration of predictions against labels 0 and 1.

    The AUC comes from a histogram of scores, with a bound on its error; it is exact, by sorting, while no more than
    `exact_samples` samples were seen (5 bytes each, 13 with weights). Sums are float64. Not thread-safe.

    >>> m = BinaryMetrics()
    >>> m.update([0, 1, 0, 1], probabilities=[0.1, 0.4, 0.35, 0.8])
    >>> r = m.result()
    >>> r.auc, r.auc_error_bound, r.samples, round(r.log_loss, 4)
    (1.0, 0.0, 4, 0.4189)
    """

    def __init__(self, *, bins: int = 1 << 19, exact_samples: int = 1 << 23) -> None:
        """`bins` (M): 8 MiB and an AUC error below 1e-5 on logits of standard deviation 1, as given;
        65,536 make `result` eight times cheaper and the bound eight times wider, which suits figures while training.
        `exact_samples`: 0 never keeps scores."""
        if not 2 <= bins <= _MOST_BINS or exact_samples < 0:
            raise ValueError(
                f"bins must be 2 to {_MOST_BINS:,} and exact_samples 0 or more, got {bins:,} and {exact_samples:,}"
            )
        self._bins = bins
        self._exact_samples = exact_samples
        self.clear()

    def clear(self) -> None:
        """Forgets everything seen."""
        self._histogram: Floats = np.zeros(2 * self._bins)  # bin and label: [M, 2] laid flat
        self._samples = self._positives = 0
        self._weight = self._positive_weight = self._loss = self._predicted = 0.0
        self._kept = KeptScores() if self._exact_samples else None
        self._dropped: str | None = None if self._exact_samples else "scores are not kept"

    @property
    def samples(self) -> int:
        """Samples seen."""
        return self._samples

    @property
    def positives(self) -> int:
        """Samples whose label is 1, added so far."""
        return self._positives

    def update(
        self,
        labels: ArrayLike,
        logits: ArrayLike | None = None,
        *,
        probabilities: ArrayLike | None = None,
        weights: ArrayLike | None = None,
    ) -> None:
        """Takes in N samples, given by their logits or by their probabilities: [N] or [N, 1], labels 0 or 1.

        Scores are ranked as float32. Weights are finite and not negative; one of 0 leaves its sample out of every
        figure but the counts. Raises TrainingError, with nothing taken in, for a score that is NaN or infinite or a
        label or weight out of range; ValueError for shapes that differ.
        """
        given = logits if probabilities is None else probabilities
        if given is None or (logits is not None and probabilities is not None):
            raise ValueError("give either logits or probabilities")
        score = _flat(given)
        y, w = _flat(labels), None if weights is None else _flat(weights)
        _check(y, score, w, probability=probabilities is not None)
        truth = y > 0.5
        for i in range(0, len(score), _CHUNK):
            at = slice(i, i + _CHUNK)
            self._add(truth[at], score[at], None if w is None else w[at], probability=probabilities is not None)
        self._keep(truth, score, w, probability=probabilities is not None)

    def _add(self, truth: NDArray[np.bool_], score: NDArray[Any], w: NDArray[Any] | None, *, probability: bool) -> None:
        if probability:
            # 0 and 1 would cost an infinite loss; as in scikit-learn they count as the nearest value of their type.
            eps = float(np.finfo(score.dtype).eps)
            p = score.astype(np.float64)
            z = np.log(np.maximum(p, 1e-300)) - np.log1p(-np.minimum(p, 1 - 2**-53))
            q = np.clip(p, eps, 1 - eps)
            loss = -np.log(np.where(truth, q, 1 - q))
        else:
            z = score.astype(np.float64)
            e = np.exp(-np.abs(z))
            p = np.where(z >= 0, 1.0, e) / (1 + e)
            loss = np.where(truth, np.maximum(-z, 0), np.maximum(z, 0)) + np.log1p(e)
        # In float64 this never swaps two different float32 scores, so bins are in the order of the scores.
        place = z / np.sqrt(z * z + _BEND)
        cell = np.minimum(((place + 1) * (self._bins / 2)).astype(np.int64), self._bins - 1) * 2 + truth
        self._samples += len(z)
        self._positives += int(np.count_nonzero(truth))
        if w is None:
            np.add.at(self._histogram, cell, 1.0)
            self._weight += len(z)
            self._positive_weight += float(np.count_nonzero(truth))
            self._loss += float(loss.sum())
            self._predicted += float(p.sum())
        else:
            u = w.astype(np.float64)
            np.add.at(self._histogram, cell, u)
            self._weight += float(u.sum())
            self._positive_weight += float(u[truth].sum())
            self._loss += float((u * loss).sum())
            self._predicted += float((u * p).sum())

    def _keep(
        self, truth: NDArray[np.bool_], score: NDArray[Any], w: NDArray[Any] | None, *, probability: bool
    ) -> None:
        if self._kept is None or not len(score):
            return
        if self._samples > self._exact_samples:
            self._drop(f"more than {self._exact_samples:,} samples")
        elif not self._kept.add(score.astype(np.float32), truth, w, probability=probability):
            self._drop("logits and probabilities were mixed")

    def _drop(self, why: str) -> None:
        self._kept, self._dropped = None, why

    def merge(self, other: BinaryMetrics) -> None:
        """Takes in all that `other` has seen, as if it had been seen here. Raises ValueError for other bins."""
        if other._bins != self._bins:
            raise ValueError(f"cannot merge histograms of {self._bins} and {other._bins} bins")
        if not other._samples:
            return
        self._histogram += other._histogram
        self._samples += other._samples
        self._positives += other._positives
        self._weight += other._weight
        self._positive_weight += other._positive_weight
        self._loss += other._loss
        self._predicted += other._predicted
        if self._kept is None:
            return
        if other._kept is None:
            self._drop(other._dropped or "scores are not kept")
        elif self._samples > self._exact_samples:
            self._drop(f"more than {self._exact_samples:,} samples")
        elif not self._kept.extend(other._kept):
            self._drop("logits and probabilities were mixed")

    def auc(self) -> tuple[float, float]:
        """AUC from the histogram and the bound on its error; cheap beside `result`. NaN for one class alone."""
        return binned_auc(*self._classes())

    def log_loss(self) -> float:
        """Mean log loss; NaN where nothing with weight was seen."""
        return self._loss / self._weight if self._weight > 0 else math.nan

    def result(self) -> Metrics:
        """All figures. Changes nothing; more may be taken in afterwards."""
        negative, positive = self._classes()
        # The few bins that hold anything give the same figures as all of them, many times faster.
        held = np.flatnonzero((negative > 0) | (positive > 0))
        negative, positive, predicted = negative[held], positive[held], self._probabilities(held)
        note = self._undefined(float(negative.sum()), float(positive.sum()))
        auc, bound = math.nan, math.nan
        if note is None and self._kept is not None:
            auc, bound = exact_auc(*self._kept.arrays()), 0.0
        elif note is None:
            auc, bound = binned_auc(negative, positive)
            note = f"AUC from a histogram of {self._bins:,} bins ({self._dropped}): within ±{bound:.1g}"
        rate = self._positive_weight / self._weight if self._weight > 0 else math.nan
        entropy = -(rate * math.log(rate) + (1 - rate) * math.log1p(-rate)) if 0 < rate < 1 else math.nan
        groups = reliability(negative, positive, predicted, _GROUPS)
        return Metrics(
            samples=self._samples,
            positives=self._positives,
            weight=self._weight,
            auc=auc,
            auc_error_bound=bound,
            log_loss=self.log_loss(),
            normalized_entropy=self.log_loss() / entropy,
            calibration=self._predicted / self._positive_weight if self._positive_weight > 0 else math.nan,
            ece=calibration_error(groups),
            roc=roc_points(negative, positive, _ROC_POINTS),
            reliability=groups,
            scores=score_histogram(negative, positive, predicted, _COLUMNS),
            note=note,
        )

    def _undefined(self, negative: float, positive: float) -> str | None:
        if not self._weight > 0:
            return f"nothing was measured: {'all weights are 0' if self._samples else 'no samples'}"
        for label, weight in ((1, positive), (0, negative)):
            if not weight > 0:
                what = f"all {self._samples:,} labels are {1 - label}"
                if (self._positives if label else self._samples - self._positives) > 0:
                    what = f"every label {label} has weight 0"
                return f"AUC and normalized entropy are undefined: {what}"
        return None

    def _classes(self) -> tuple[Floats, Floats]:
        both = self._histogram.reshape(-1, 2)
        return both[:, 0], both[:, 1]

    def _probabilities(self, at: NDArray[np.int64]) -> Floats:
        """The probability in the middle of each bin; as given, no score in it is further than 1e-5 away."""
        place = (at + 0.5) * (2 / self._bins) - 1
        z = np.clip(place * np.sqrt(_BEND / (1 - place * place)), -700, 700)
        return np.asarray(1 / (1 + np.exp(-z)), np.float64)

    def to_dict(self) -> dict[str, Any]:
        """The whole state as plain JSON values; `from_dict` goes on from it bit for bit."""
        state: dict[str, Any] = {
            "version": 1,
            "bins": self._bins,
            "exact_samples": self._exact_samples,
            "histogram": pack(self._histogram),
            "dropped": self._dropped,
            **{k: getattr(self, f"_{k}") for k in _SUMS},
        }
        if self._kept is not None:
            state["kept"] = self._kept.to_dict()
        return state

    @classmethod
    def from_dict(cls, state: dict[str, Any]) -> BinaryMetrics:
        """An accumulator from `to_dict`. Raises ValueError for what `to_dict` did not write."""
        if state.get("version") != 1:
            raise ValueError(f"metrics state of version {state.get('version')}, this release reads version 1")
        try:
            return cls._from_state(state)
        except (KeyError, TypeError) as e:
            raise ValueError(f"metrics state is damaged: {type(e).__name__}: {e}") from e

    @classmethod
    def _from_state(cls, state: dict[str, Any]) -> BinaryMetrics:
        self = cls(bins=int(state["bins"]), exact_samples=int(state["exact_samples"]))
        self._histogram = unpack(state["histogram"], np.float64, 2 * self._bins)
        for k in _SUMS:
            setattr(self, f"_{k}", type(getattr(self, f"_{k}"))(state[k]))
        self._dropped = state["dropped"]
        self._kept = KeptScores.from_dict(state["kept"], self._samples) if "kept" in state else None
        return self


_SUMS = ("samples", "positives", "weight", "positive_weight", "loss", "predicted")


def _flat(values: ArrayLike) -> NDArray[Any]:
    a = np.asarray(values)
    if a.ndim == 2 and a.shape[1] == 1:
        a = a[:, 0]
    if a.ndim != 1:
        raise ValueError(f"expected [N] or [N, 1], got shape {a.shape}; keep one BinaryMetrics for each label")
    return a if a.dtype in (np.float32, np.float64) else a.astype(np.float64)


def _check(y: NDArray[Any], score: NDArray[Any], w: NDArray[Any] | None, *, probability: bool) -> None:
    if y.shape != score.shape or (w is not None and w.shape != score.shape):
        raise ValueError(f"labels {y.shape}, scores {score.shape} and weights {None if w is None else w.shape} differ")
    if not (good := np.abs(score) <= _LARGEST).all():
        raise TrainingError(f"{np.count_nonzero(~good)} of {len(score)} scores are NaN or infinite as float32")
    if probability and len(score) and (score.min() < 0 or score.max() > 1):
        raise TrainingError(f"probabilities must be in [0, 1], got {score.min():g} to {score.max():g}")
    if not ((y == 0) | (y == 1)).all():
        raise TrainingError(f"labels must be 0 or 1, got {y[(y != 0) & (y != 1)][0]:g}")
    if w is not None and not (good := np.isfinite(w) & (w >= 0)).all():
        raise TrainingError(f"sample weights must be finite and not negative, got {w[~good][0]:g}")
