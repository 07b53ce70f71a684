"""A job from files alone: what each column probably is, said in one line each.

The rules are few and fixed: integers, bools and text are ids; floats are numbers; lists of ids are multi-valued;
lists of floats of one length are vectors. What looks odd gets a warning, never a silent exception to the rules.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from satrap.data.columns import Family, shape_of
from satrap.data.files import AnyFormat, Paths, find_files
from satrap.data.label import infer_label
from satrap.data.sample import SAMPLE_ROWS, Sample, take_sample
from satrap.errors import JobError, did_you_mean
from satrap.schema import Categorical, Data, Feature, Job, Numeric, Pooling, Train

_HEAVY_TAIL_SKEW = 2.0
"""Skewness above which non-negative numbers are put on a log scale (that of an exponential distribution)."""
_DISTINCT_MIN_ROWS = 50
"""Rows a sample needs before `all values differ` says something."""
_STEPS_AN_EPOCH = 150
"""Steps that an epoch should have at least: few rows in large batches would hardly be trained on."""
_BATCH_MIN = 64


@dataclass(frozen=True, slots=True)
class Inference:
    """What was inferred, and why."""

    job: Job
    notes: list[str]
    """One line a column; what deserves a look begins with `warning:`."""


def infer_job(
    paths: Paths,
    label: str | Sequence[str],
    *,
    positive: str | int | None = None,
    valid: float | Sequence[str] = 0.1,
    test: Sequence[str] = (),
    format: AnyFormat = "auto",
    weight: str | None = None,
    exclude: Sequence[str] = (),
    name: str | None = None,
    sample_rows: int = SAMPLE_ROWS,
    filesystem: Any = None,
) -> Inference:
    """A job for data files and the name of the label column (or several), from a sample of at most `sample_rows` rows.

    `positive`: the label value that means 1, where it is not 0 and 1. `weight`: a column of sample weights. `exclude`:
    columns to leave out. The other settings are those of `Data`.
    Raises JobError for a column that is not there, or if no column is left to learn from; DataError for files that
    cannot be read and for labels that cannot be told apart.
    """
    given = [paths] if isinstance(paths, str | Path) else list(paths)
    files = find_files(given, format, filesystem)
    sample = take_sample(files, sample_rows)
    labels = [label] if isinstance(label, str) else list(label)
    _require_columns(sample, labels, "label")
    _require_columns(sample, [weight] if weight is not None else [], "weight")
    _require_columns(sample, exclude, "exclude")
    inferred = [infer_label(sample, column, positive) for column in labels]
    notes = [note for _, note in inferred]
    if weight is not None:
        notes.append(f"{weight}: sample weights")
    features: list[Feature] = []
    for column in sample.table.column_names:
        if column in labels or column == weight:
            continue
        if column in exclude:
            notes.append(f"{column}: left out, as asked")
            continue
        feature, lines = _criteo(column) if sample.format == "criteo" else _feature(column, sample.table.column(column))
        notes += lines
        features += [feature] if feature is not None else []
    if not features:
        raise JobError(f"{files[0].name}: no column is left to learn from beside {', '.join(labels)}")
    data = Data(
        train=tuple(str(p) for p in given),
        label=tuple(found for found, _ in inferred),
        valid=float(valid) if isinstance(valid, int | float) else tuple(valid),
        test=tuple(test),
        format=format,
        weight=weight,
    )
    train = Train(batch_size=batch_size_for(sample.rows))
    if train.batch_size != Train().batch_size:
        notes.append(f"{sample.rows:,} rows → batches of {train.batch_size:,}, so that an epoch has steps enough")
    job = Job(data=data, features=tuple(features), train=train, name=name or _job_name(files[0].name))
    return Inference(job, notes)


def batch_size_for(rows: int | None) -> int:
    """Samples of a step for so many rows of data: the default, or less where that would make too few steps.

    >>> batch_size_for(None), batch_size_for(10_000_000), batch_size_for(50_000), batch_size_for(100)
    (4096, 4096, 256, 64)
    """
    most = Train().batch_size
    if rows is None:
        return most
    fit = max(1, rows // _STEPS_AN_EPOCH)
    return max(_BATCH_MIN, min(most, 1 << (fit.bit_length() - 1)))


def _job_name(path: str) -> str:
    """
    >>> _job_name("/data/clicks.csv.gz")
    'clicks'
    """
    stem = Path(path).name.split(".")[0]
    return stem or "job"


def _require_columns(sample: Sample, columns: Sequence[str], what: str) -> None:
    for column in columns:
        if column not in sample.table.column_names:
            hint = did_you_mean(column, sample.table.column_names)
            raise JobError(f"{what}: {sample.file} has no column '{column}'; {hint}")


def _criteo(column: str) -> tuple[Feature, list[str]]:
    if column.startswith("I"):
        feature = Numeric(name=column, transform="log", scale="standard", indicator=True)
        return feature, [f"{column}: a count of the Criteo format → numeric, log, standardised, missing indicated"]
    return Categorical(name=column), [f"{column}: hexadecimal ids of the Criteo format → categorical"]


def _feature(column: str, values: pa.ChunkedArray) -> tuple[Feature | None, list[str]]:
    """The feature for a column, if it can be one, and its notes."""
    shape = shape_of(values.type)
    if shape.family is Family.NULL or values.null_count == len(values):
        return None, [f"warning: {column}: left out, no value in the sample"]
    if shape.family is Family.OTHER:
        return None, [f"warning: {column}: left out, {values.type} is neither number nor text; cast it to one of them"]
    if shape.is_list:
        return _list_feature(column, values, shape.family)
    if shape.family is Family.FLOAT:
        return _number(column, values)
    distinct = pc.count_distinct(values, mode="only_valid").as_py()
    there = len(values) - values.null_count
    missing = f", {values.null_count / len(values):.1%} missing" if values.null_count else ""
    notes = [f"{column}: {shape}, {_count(distinct, 'distinct value')}{missing} → categorical"]
    if distinct == 1 and there == len(values):
        notes.append(f"warning: {column}: the same value in every row of the sample; it can teach nothing")
    elif distinct == there and there >= _DISTINCT_MIN_ROWS:
        notes.append(
            f"warning: {column}: a different value in every row of the sample, as a row number or key would have; "
            f"leave it out if it is one"
        )
    elif shape.family is Family.INTEGER and distinct > there / 2 and there >= _DISTINCT_MIN_ROWS:
        notes.append(
            f"warning: {column}: mostly different integers; if it measures something, make it numeric, not categorical"
        )
    return Categorical(name=column), notes


def _number(column: str, values: pa.ChunkedArray) -> tuple[Feature, list[str]]:
    numbers = values.combine_chunks().cast(pa.float64()).to_numpy(zero_copy_only=False)
    finite = numbers[np.isfinite(numbers)]
    notes, tail = [], _heavy_tailed(finite)
    missing = f", {1 - len(finite) / len(numbers):.1%} missing or not finite" if len(finite) < len(numbers) else ""
    how = "heavy-tailed and never negative → numeric, log, standardised" if tail else "→ numeric, standardised"
    notes.append(f"{column}: floats{missing}, {how}" if tail else f"{column}: floats{missing} {how}")
    if len(finite) and finite.min() == finite.max() and len(finite) == len(numbers):
        notes.append(f"warning: {column}: the same value in every row of the sample; it can teach nothing")
    elif len(finite) and len(finite) < len(numbers) and np.equal(finite, np.rint(finite)).all():
        notes.append(
            f"warning: {column}: whole numbers stored as floats, as happens when a column of integers has gaps; "
            "if they are ids, cast the column to integers"
        )
    return Numeric(name=column, transform="log" if tail else "none", scale="standard", indicator=bool(missing)), notes


def _heavy_tailed(finite: np.ndarray[Any, np.dtype[np.float64]]) -> bool:
    """Whether numbers are never negative and skewed far to the right, as amounts and counts are."""
    if len(finite) < 2 or finite.min() < 0:
        return False
    deviation = finite.std()
    if deviation <= 1e-12 * abs(finite.mean()):
        return False
    return bool((((finite - finite.mean()) / deviation) ** 3).mean() > _HEAVY_TAIL_SKEW)


def _list_feature(column: str, values: pa.ChunkedArray, family: Family) -> tuple[Feature | None, list[str]]:
    lengths = pc.list_value_length(values).drop_null().to_numpy()
    if family is Family.FLOAT:
        if len(lengths) and lengths.min() == lengths.max() and lengths[0] > 0:
            width = int(lengths[0])
            note = f"{column}: lists of {width} floats → numeric of width {width}, standardised"
            return Numeric(name=column, width=width, scale="standard"), [note]
        shown = f"{lengths.min()} to {lengths.max()}" if len(lengths) else "no"
        return None, [f"warning: {column}: left out, lists of {shown} floats; a numeric feature needs one length"]
    flat = pc.list_flatten(values)
    distinct = pc.count_distinct(flat, mode="only_valid").as_py()
    mean = float(lengths.mean()) if len(lengths) else 0.0
    return Categorical(name=column, pooling=Pooling.MEAN), [
        f"{column}: lists of {family}, {mean:.1f} a row on average, {_count(distinct, 'distinct value')} → "
        "categorical, mean pooling"
    ]


def _count(n: int, what: str) -> str:
    return f"{n:,} {what}{'' if n == 1 else 's'}"
