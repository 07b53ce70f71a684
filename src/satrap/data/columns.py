"""Which columns a job needs, and what type each may have."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum

import pyarrow as pa
import pyarrow.types as pat

from satrap.errors import DataError, did_you_mean
from satrap.schema import Feature, Job, Label, Numeric, Sequence


class Family(StrEnum):
    """What a column holds, lists and dictionaries unwrapped. Files of one dataset must agree on it."""

    INTEGER = "integers"
    BOOL = "bools"
    FLOAT = "floats"
    TEXT = "text"
    NULL = "nulls"
    OTHER = "something else"


@dataclass(frozen=True, slots=True)
class Shape:
    """A column's family, and whether each row holds a list."""

    family: Family
    is_list: bool

    def __str__(self) -> str:
        return f"lists of {self.family}" if self.is_list else str(self.family)


def shape_of(kind: pa.DataType) -> Shape:
    """What a column of this Arrow type holds.

    >>> str(shape_of(pa.list_(pa.dictionary(pa.int32(), pa.string()))))
    'lists of text'
    """
    is_list = is_list_type(kind)
    if is_list:
        kind = kind.value_type
    if pat.is_dictionary(kind):
        kind = kind.value_type
    return Shape(_family(kind), is_list)


def is_list_type(kind: pa.DataType) -> bool:
    """Whether each row is a list."""
    views = pat.is_list_view(kind) or pat.is_large_list_view(kind)
    return bool(pat.is_list(kind) or pat.is_large_list(kind) or pat.is_fixed_size_list(kind) or views)


def _family(kind: pa.DataType) -> Family:
    if pat.is_integer(kind):
        return Family.INTEGER
    if pat.is_boolean(kind):
        return Family.BOOL
    if pat.is_floating(kind) or pat.is_decimal(kind):
        return Family.FLOAT
    binary = pat.is_binary(kind) or pat.is_large_binary(kind) or pat.is_fixed_size_binary(kind)
    views = pat.is_string_view(kind) or pat.is_binary_view(kind)
    if pat.is_string(kind) or pat.is_large_string(kind) or binary or views:
        return Family.TEXT
    return Family.NULL if pat.is_null(kind) else Family.OTHER


_NUMBERS = frozenset({Family.INTEGER, Family.BOOL, Family.FLOAT, Family.NULL})


@dataclass(frozen=True, slots=True)
class Need:
    """One column that one part of the job reads."""

    column: str
    part: str
    """The job's key, for messages: features.age, data.label."""
    families: frozenset[Family]
    lists: frozenset[bool]
    """Which of single values (False) and lists (True) will do."""
    advice: str
    """What to do when the type does not fit."""
    text_for_ids: bool = False
    """Text of this column becomes ids or is compared: it is read dictionary-encoded."""

    def check(self, shape: Shape, kind: str, file: str) -> None:
        """Raises DataError unless a column of this shape will do."""
        if shape.family is not Family.NULL and (shape.family not in self.families or shape.is_list not in self.lists):
            raise DataError(f"{file}: column '{self.column}' holds {shape} ({kind}); {self.part} {self.advice}")


def needs_of(job: Job, *, labels: bool) -> tuple[Need, ...]:
    """Every column the job reads, once per use."""
    needs = [need for f in job.features for need in _feature_needs(f)]
    if labels:
        needs += [_label_need(x) for x in job.data.label]
        if job.data.weight is not None:
            numbers = _NUMBERS - {Family.BOOL}
            one = frozenset({False})
            needs.append(Need(job.data.weight, "data.weight", numbers, one, "needs one number of 0 or more a row"))
    return tuple(needs)


def _feature_needs(feature: Feature) -> list[Need]:
    column, part, either = column_of(feature), f"features.{feature.name}", frozenset({False, True})
    if isinstance(feature, Numeric):
        lists = frozenset({True}) if feature.width > 1 else either
        wanted = "numbers" if feature.width == 1 else f"a list of {feature.width} numbers a row"
        return [Need(column, part, _NUMBERS, lists, f"(numeric) needs {wanted}; make text a categorical feature")]
    ids = frozenset({Family.INTEGER, Family.BOOL, Family.TEXT})
    if isinstance(feature, Sequence):
        advice = "(sequence) needs lists of integers or text; a single value is a categorical feature"
        return [Need(column, part, ids, frozenset({True}), advice, text_for_ids=True)]
    if feature.buckets is not None:
        needs = [Need(column, part, _NUMBERS, either, "cuts numbers into buckets, so it needs numbers")]
    else:
        advice = (
            "(categorical) needs integers, bools or text, single or in lists; for floats give `buckets`, or make it a "
            "numeric feature; cast dates to integers or text"
        )
        needs = [Need(column, part, ids, either, advice, text_for_ids=True)]
    if feature.weights is not None:
        numbers = frozenset({Family.INTEGER, Family.FLOAT})
        needs.append(Need(feature.weights, f"{part}.weights", numbers, either, "needs one number an id"))
    return needs


def _label_need(label: Label) -> Need:
    one = frozenset({False})
    if isinstance(label.positive, str):
        advice = f"has positive: '{label.positive}', a text; write a number without quotes"
        return Need(label.column, "data.label", frozenset({Family.TEXT}), one, advice, text_for_ids=True)
    if label.positive is not None:
        advice = f"has positive: {label.positive}, a number; write text in quotes"
        return Need(label.column, "data.label", _NUMBERS, one, advice)
    return Need(label.column, "data.label", _NUMBERS, one, "needs 0 or 1, or `positive: VALUE` for the value that is 1")


def column_of(feature: Feature) -> str:
    """The column of the data a feature reads.

    >>> from satrap.schema import Categorical
    >>> column_of(Categorical(name="city")), column_of(Categorical(name="home", column="city"))
    ('city', 'city')
    """
    return feature.column or feature.name


def check_columns(
    needs: tuple[Need, ...], kinds: Mapping[str, pa.DataType], file: str, agreed: dict[str, tuple[Shape, str]]
) -> None:
    """Raises DataError where a file lacks a column, or its type does not fit the job or the files before it.

    `agreed` remembers each column's shape and the file that had it first. The same user as an integer in one file and
    as text in the next would be two ids, silently, so files must agree.
    """
    for need in needs:
        if need.column not in kinds:
            hint = did_you_mean(need.column, kinds)
            raise DataError(f"{file}: there is no column '{need.column}', which {need.part} reads; {hint}")
        kind = kinds[need.column]
        shape = shape_of(kind)
        need.check(shape, str(kind), file)
        if shape.family is Family.NULL:
            continue
        before, where = agreed.setdefault(need.column, (shape, file))
        numbers = {before.family, shape.family} <= _NUMBERS and not need.text_for_ids
        if before.is_list != shape.is_list or (before.family != shape.family and not numbers):
            raise DataError(
                f"column '{need.column}' holds {shape} in {file} but {before} in {where}; "
                "files of one dataset must agree, because equal values of different types become different ids"
            )
