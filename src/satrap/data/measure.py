"""Mean and standard deviation of numeric features, in one pass over the training rows."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any

import msgspec
import numpy as np
from numpy.typing import NDArray

from satrap.data.columns import column_of, needs_of
from satrap.data.numbers import transformed
from satrap.data.opening import open_source
from satrap.data.order import held_out
from satrap.data.source import Piece
from satrap.data.stages import in_background
from satrap.errors import DataError
from satrap.schema import MLP, Job, Numeric


@dataclass(slots=True)
class Moments:
    """Count, mean and squared deviations of the values so far.

    Chunks are merged by the update of Chan, Golub and LeVeque (1979), which does not subtract large sums, so a mean of
    1e9 with a deviation of 1 comes out right.
    """

    count: int = 0
    mean: float = 0.0
    squares: float = 0.0

    def add(self, values: NDArray[np.float64]) -> None:
        """Takes in values [N], all finite.

        >>> m = Moments(); m.add(np.array([1.0, 2.0])); m.add(np.array([6.0]))
        >>> m.mean, round(m.std, 6)
        (3.0, 2.160247)
        """
        if len(values) == 0:
            return
        with np.errstate(over="ignore", invalid="ignore"):  # an overflow shows in the result, which is checked
            mean = float(values.mean())
            squares = float(np.square(values - mean).sum())
        total = self.count + len(values)
        apart = mean - self.mean
        self.mean += apart * len(values) / total
        self.squares += squares + apart * apart * self.count * len(values) / total
        self.count = total

    @property
    def std(self) -> float:
        """Standard deviation of the values as a whole population."""
        return math.sqrt(self.squares / self.count) if self.count else 0.0


def measure(job: Job, *, filesystem: Any = None) -> Job:
    """A copy of the job in which every `scale: standard` feature has its mean and std; the same job if none lacks them.

    Reads the columns of those features once, over the training rows alone (not those held out for validation), in
    float64. Values that are missing or not finite do not count. A feature that is constant gets std 1.
    Raises DataError for data that cannot be read or does not fit.
    """
    wanted = [f for f in job.numeric_features if f.scale == "standard" and f.mean is None]
    if not wanted:
        return job
    # A model of its own as well: one that needs embeddings would refuse a job without them.
    part = msgspec.structs.replace(job, features=tuple(wanted), tables=(), model=MLP())
    source = open_source(job.data.train, needs_of(part, labels=False), format=job.data.format, filesystem=filesystem)
    moments = {f.name: Moments() for f in wanted}
    for values in in_background(lambda: source.pieces(0, 0), lambda p: _values(p, job, wanted), name="satrap-measure"):
        for name, chunk in values.items():
            moments[name].add(chunk)
    return msgspec.structs.replace(job, features=tuple(_measured(f, moments) for f in job.features))


def _values(pieces: Iterator[Piece], job: Job, wanted: list[Numeric]) -> Iterable[dict[str, NDArray[np.float64]]]:
    """The finite values of each feature in the training rows of each piece."""
    valid = job.data.valid
    fraction = float(valid) if isinstance(valid, int | float) else 0.0
    for piece in pieces:
        kept: NDArray[np.bool_] | slice = slice(None)
        if fraction > 0.0:
            kept = ~held_out(job.seed, piece.row, piece.columns.num_rows, fraction)
        chunks = {}
        for f in wanted:
            values = transformed(f, piece.columns.column(column_of(f)), piece, column_of(f))[kept].ravel()
            chunks[f.name] = values[np.isfinite(values)]
        yield chunks


def _measured(feature: Any, moments: dict[str, Moments]) -> Any:
    if feature.name not in moments:
        return feature
    found = moments[feature.name]
    if not (math.isfinite(found.mean) and math.isfinite(found.std)):
        raise DataError(
            f"features.{feature.name}: column '{column_of(feature)}' has numbers too large to scale (above 1e150); "
            "give transform: log, or a mean and std"
        )
    # Rounding leaves a constant with a deviation below the last digit of its values: to divide by it would make noise.
    constant = found.std <= 1e-12 * abs(found.mean)
    return msgspec.structs.replace(feature, mean=found.mean, std=1.0 if constant else found.std)
