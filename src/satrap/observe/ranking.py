"""Figures from scores: pure functions of arrays, used by `BinaryMetrics`.

N samples, M bins in ascending order of score; weights are sample weights, 1 where there are none.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]


def binned_auc(negative: Floats, positive: Floats) -> tuple[float, float]:
    """Area under the ROC curve of binned scores, and how far off it can be.

    `negative` and `positive` [M] are the weights in each bin. A pair in one bin counts one half, as a tie; the truth
    is between none and all of them, so the error is at most half the share of such pairs. NaN for one class alone.

    >>> binned_auc(np.array([3.0, 1.0]), np.array([1.0, 3.0]))
    (0.75, 0.1875)
    """
    pairs = negative.sum() * positive.sum()
    if not pairs > 0:
        return float("nan"), float("nan")
    below = np.cumsum(negative) - 0.5 * negative
    tied = float((positive * negative).sum())
    return float((positive * below).sum()) / float(pairs), 0.5 * tied / float(pairs)


def exact_auc(scores: NDArray[np.float32], labels: NDArray[np.bool_], weights: Floats | None = None) -> float:
    """Area under the ROC curve by sorting, ties counted one half. Whole numbers throughout without weights.

    `scores` float32 [N], finite. NaN for one class alone.

    >>> exact_auc(np.float32([0.1, 0.4, 0.4, 0.8]), np.array([False, True, False, True]))
    0.875
    """
    if weights is None:
        # One uint64 a sample, (order of the score, label), sorts several times faster than an argsort.
        key = (_ordered(scores).astype(np.uint64) << np.uint64(1)) | labels
        key.sort()
        positive = (key & np.uint64(1)).astype(np.int64)
        key >>= np.uint64(1)
        ends = _group_ends(key)
        p, n = _sums(positive, ends), _sums(1 - positive, ends)
        pairs = int(p.sum()) * int(n.sum())
        # Twice the number of ordered pairs: below 2^63 for any N below 2^32.
        return int((p * (2 * np.cumsum(n) - n)).sum()) / (2 * pairs) if pairs else float("nan")
    order = np.argsort(scores, kind="stable")
    ends = _group_ends(scores[order])
    w = weights[order]
    wp = np.where(labels[order], w, 0.0)
    area, _ = binned_auc(_sums(w - wp, ends), _sums(wp, ends))
    # Tied samples are ties here, not samples too close to tell apart, so there is no error to report.
    return area


def _ordered(scores: NDArray[np.float32]) -> NDArray[np.uint32]:
    """float32 → uint32 in the same order; -0 and 0 are one."""
    bits = (scores + np.float32(0)).view(np.uint32)
    sign = np.uint32(0x80000000)
    return np.where(bits & sign, ~bits, bits | sign)


def _group_ends(ascending: NDArray[np.generic]) -> NDArray[np.int64]:
    """Last index of each run of equal values."""
    return np.append(np.flatnonzero(ascending[1:] != ascending[:-1]), len(ascending) - 1).astype(np.int64)


def _sums(values: NDArray[Any], ends: NDArray[np.int64]) -> NDArray[Any]:
    """Sum of each run that ends at `ends`."""
    total = np.cumsum(values)[ends]
    total[1:] -= total[:-1].copy()
    return total


def roc_points(negative: Floats, positive: Floats, points: int) -> list[tuple[float, float]]:
    """About `points` points (false positive rate, true positive rate) of the ROC curve, (0, 0) to (1, 1).

    Spread evenly along the curve, so that its steep start is as well drawn as its flat end. Empty for one class alone.

    >>> roc_points(np.array([3.0, 1.0]), np.array([1.0, 3.0]), 10)
    [(0.0, 0.0), (0.25, 0.75), (1.0, 1.0)]
    """
    n, p = negative.sum(), positive.sum()
    if not n * p > 0:
        return []
    fpr = np.append(0.0, np.cumsum(negative[::-1]) / n)
    tpr = np.append(0.0, np.cumsum(positive[::-1]) / p)
    picked = np.unique(np.searchsorted(fpr + tpr, np.linspace(0.0, fpr[-1] + tpr[-1], points)).clip(max=len(fpr) - 1))
    if picked[0] != 0:
        picked = np.append(0, picked)
    # Rounding of the sums may leave the end at 0.999…; it is 1 by definition.
    curve = [(float(fpr[i]), float(tpr[i])) for i in picked]
    curve[-1] = (1.0, 1.0)
    return curve


def reliability(negative: Floats, positive: Floats, predicted: Floats, groups: int) -> list[tuple[float, float, float]]:
    """(mean predicted, observed rate, weight) of up to `groups` groups of equal weight, in ascending score.

    `predicted` [M] is the probability each bin stands for. Groups of equal weight, not equal width: click rates crowd
    near 0, where groups of equal width would put everything into the first. A bin is never divided.
    """
    weight = negative + positive
    filled = np.flatnonzero(weight)
    if not len(filled):
        return []
    w, p, q = weight[filled], positive[filled], predicted[filled]
    total = np.cumsum(w)
    # A bin belongs to the group in which its middle falls.
    group = np.minimum(((total - 0.5 * w) / total[-1] * groups).astype(np.int64), groups - 1)
    starts = np.flatnonzero(np.diff(group, prepend=-1))
    mass = np.add.reduceat(w, starts)
    mean, rate = np.add.reduceat(w * q, starts) / mass, np.add.reduceat(p, starts) / mass
    return [(float(a), float(b), float(c)) for a, b, c in zip(mean, rate, mass, strict=True)]


def calibration_error(points: list[tuple[float, float, float]]) -> float:
    """Expected calibration error: the weighted mean of |predicted - observed| over reliability groups.

    (Naeini et al., AAAI 2015, with groups of equal weight.) NaN without any.

    >>> calibration_error([(0.25, 0.5, 3.0), (0.5, 0.5, 1.0)])
    0.1875
    """
    weight = sum(w for _, _, w in points)
    return sum(w * abs(p - o) for p, o, w in points) / weight if weight > 0 else float("nan")


def score_histogram(
    negative: Floats, positive: Floats, predicted: Floats, columns: int
) -> list[tuple[float, float, float]]:
    """(right edge, negatives, positives) of `columns` columns of equal width in probability, from 0 on.

    They end where all but a thousandth of the weight lies below, for click rates fill a corner of [0, 1]; what is
    above counts in the last. Empty without weight.
    """
    share = np.cumsum(negative + positive)
    if not len(share) or not share[-1] > 0:
        return []
    end = float(predicted[np.searchsorted(share, 0.999 * share[-1])]) or 1.0
    column = np.minimum(np.minimum(predicted / end, 1.0) * columns, columns - 1).astype(np.int64)
    n = np.bincount(column, weights=negative, minlength=columns)
    p = np.bincount(column, weights=positive, minlength=columns)
    return [(end * (i + 1) / columns, float(n[i]), float(p[i])) for i in range(columns)]
