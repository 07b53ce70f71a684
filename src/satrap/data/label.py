"""What a label column means: which of its values is 1."""

from __future__ import annotations

from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from satrap.data.columns import Family, shape_of
from satrap.data.sample import Sample
from satrap.errors import DataError
from satrap.schema import Label

_YES = frozenset({"1", "true", "yes", "y", "t", "positive", "pos", "click", "clicked", "bought", ">50k", ">50k."})
_NO = frozenset({"0", "false", "no", "n", "f", "negative", "neg", "none", "<=50k", "<=50k.", "-1"})


def infer_label(sample: Sample, column: str, positive: str | int | None) -> tuple[Label, str]:
    """The label of a column, and a note on how its values are read.

    0 and 1, or bools, are taken as they are. Of two other values, the one whose name says yes is 1 (or whose
    counterpart says no), else the larger of two numbers, else the rarer of two texts.
    Raises DataError for a label with missing values, with one text only, or with more than two values.
    """
    values = sample.table.column(column)
    shape = shape_of(values.type)
    if shape.is_list or shape.family in (Family.OTHER, Family.NULL):
        raise DataError(f"{sample.file}: column '{column}' holds {shape} ({values.type}); a label is one value a row")
    if values.null_count:
        raise DataError(
            f"{sample.file}: the label column '{column}' has {values.null_count:,} missing values in a sample of "
            f"{len(values):,} rows; remove such rows from the data"
        )
    counts = _counted(values)
    if positive is not None:
        return _given(sample, column, positive, counts, shape.family)
    if shape.family is Family.BOOL or (shape.family is not Family.TEXT and set(counts) <= {0, 1}):
        rate = sum(n for value, n in counts.items() if value) / max(1, len(values))
        return Label(column=column), f"{column}: the label, 1 in {rate:.1%} of the sample"
    if len(counts) != 2:
        shown = ", ".join(repr(v) for v in list(counts)[:5]) + (", …" if len(counts) > 5 else "")
        values_found = "only one value" if len(counts) == 1 else f"{len(counts):,} different values"
        raise DataError(
            f"{sample.file}: the label column '{column}' has {values_found} in the sample ({shown}); "
            "a label is 0 or 1, or has two values. Name the value that means 1: --positive VALUE (in Python, positive=)"
        )
    chosen, why = _of_two(counts)
    if isinstance(chosen, float) and not chosen.is_integer():
        raise DataError(f"{sample.file}: the label column '{column}' has the values {list(counts)}; a label is 0 or 1")
    value = chosen if isinstance(chosen, str) else int(chosen)
    other = next(v for v in counts if v != chosen)
    rate = counts[chosen] / len(values)
    note = f"{column}: the label; {value!r} is 1 ({why}; {rate:.1%} of the sample), {other!r} is 0"
    return Label(column=column, positive=value), note


def _counted(values: pa.ChunkedArray) -> dict[Any, int]:
    """How often each value comes up; bytes as text."""
    entries = [(e["values"], e["counts"]) for e in pc.value_counts(values.combine_chunks()).to_pylist()]
    return {v.decode("utf-8", "replace") if isinstance(v, bytes) else v: n for v, n in entries}


def _given(
    sample: Sample, column: str, positive: str | int, counts: dict[Any, int], family: Family
) -> tuple[Label, str]:
    """A `positive` the user named, brought to the column's type."""
    value: str | int = positive
    if family is Family.TEXT:
        value = str(positive)
    elif isinstance(positive, str):
        spelled = {"true": 1, "false": 0}.get(positive.lower())
        try:
            value = int(positive) if spelled is None else spelled
        except ValueError:
            raise DataError(f"{sample.file}: column '{column}' holds {family}; positive '{positive}' is none") from None
    share = sum(n for v, n in counts.items() if v == value)
    if share == 0:
        shown = ", ".join(repr(v) for v in list(counts)[:5])
        raise DataError(f"{sample.file}: no row of the sample has {column} = {value!r}; values there: {shown}")
    rate = share / sum(counts.values())
    return Label(column=column, positive=value), f"{column}: the label; {value!r} is 1 ({rate:.1%} of the sample)"


def _of_two(counts: dict[Any, int]) -> tuple[Any, str]:
    """Which of two values is 1, and why.

    >>> _of_two({"<=50K": 3, ">50K": 1}), _of_two({1: 5, 2: 9}), _of_two({"cat": 3, "dog": 1})
    (('>50K', 'by its name'), (2, 'the larger'), ('dog', 'the rarer'))
    """
    a, b = counts
    if not isinstance(a, str):
        return max(counts), "the larger"
    names = {value: str(value).strip().lower() for value in counts}
    for one, other in ((a, b), (b, a)):
        yes = names[one] in _YES and names[other] not in _YES
        if yes or (names[other] in _NO and names[one] not in _NO):
            return one, "by its name"
    return min(counts, key=lambda v: (counts[v], str(v))), "the rarer"
