"""Paired comparisons: the same seeds on both sides, and an interval for the mean of the differences."""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import sqrt

T_975 = (12.706, 4.303, 3.182, 2.776, 2.571, 2.447, 2.365, 2.306, 2.262, 2.228, 2.201, 2.179, 2.160, 2.145, 2.131)
"""97.5 % quantile of Student's t with 1, 2, … degrees of freedom; beyond them the normal's, which is near."""


@dataclass(frozen=True, slots=True)
class Interval:
    """A mean and the half width of its 95 % confidence interval, from n values that are taken to be normal.

    >>> Interval.of([1.0, 2.0, 3.0])
    Interval(mean=2.0, half=2.48..., n=3)
    """

    mean: float
    half: float | None
    """None for one value: it says nothing of its own spread."""
    n: int

    @classmethod
    def of(cls, values: Sequence[float]) -> Interval:
        """The interval of the mean of independent values."""
        n = len(values)
        if n < 2:
            return cls(statistics.fmean(values), None, n)
        t = T_975[n - 2] if n - 2 < len(T_975) else 1.96
        return cls(statistics.fmean(values), t * statistics.stdev(values) / sqrt(n), n)


def paired(ours: Mapping[int, float], other: Mapping[int, float]) -> Interval | None:
    """Of `ours - other` over the seeds that both have; None without any."""
    both = sorted(ours.keys() & other.keys())
    return Interval.of([ours[s] - other[s] for s in both]) if both else None
