"""Mean and deviation of numeric features, in one pass."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest
from data_reference import job_of, whole_epoch, write
from hypothesis import given
from hypothesis import strategies as st

from satrap.data import Reader, measure
from satrap.data.measure import Moments
from satrap.errors import DataError
from satrap.schema import DLRM, Categorical, DeepFM, Job, Numeric


def measured(path: Path, *features: Numeric, **data: Any) -> tuple[Numeric, ...]:
    job = job_of(*features, data={"train": (str(path),), **data})
    return measure(job).numeric_features


@given(st.lists(st.lists(st.floats(-1e3, 1e3), max_size=20), max_size=8), st.floats(-1e9, 1e9))
def test_moments_of_chunks_are_those_of_the_whole(chunks: list[list[float]], shift: float) -> None:
    moments = Moments()
    for chunk in chunks:
        moments.add(np.array(chunk) + shift)
    whole = np.concatenate([np.array(c) + shift for c in chunks]) if any(chunks) else np.zeros(1)
    assert moments.count == sum(map(len, chunks))
    if moments.count:
        assert moments.mean == pytest.approx(whole.mean(), rel=1e-12, abs=1e-9)
        assert moments.std == pytest.approx(whole.std(), rel=1e-6, abs=1e-5)


def test_small_deviation_around_a_large_mean_is_right(tmp_path: Path) -> None:
    # The textbook formula, mean of squares less square of mean, has no correct digit here.
    values = 1e9 + np.random.default_rng(0).normal(size=20_000)
    path = write(tmp_path / "a.parquet", {"x": values, "y": [0] * len(values)}, row_group_size=1000)
    (feature,) = measured(path, Numeric(name="x", scale="standard"))
    assert feature.mean == pytest.approx(values.mean(), rel=1e-14)
    assert feature.std == pytest.approx(values.std(), rel=1e-7)


def test_measured_features_have_mean_zero_and_deviation_one_after_their_transform(tmp_path: Path) -> None:
    rng = np.random.default_rng(1)
    columns = {"a": rng.exponential(size=5000) * 100, "b": rng.normal(size=(5000, 3)).tolist(), "y": [0] * 5000}
    path = write(tmp_path / "a.parquet", columns, row_group_size=700)
    features = measured(
        path, Numeric(name="a", transform="log", scale="standard"), Numeric(name="b", width=3, scale="standard")
    )
    batch = whole_epoch(job_of(*features), path)
    assert batch.numeric[:, 0].mean() == pytest.approx(0, abs=1e-4)
    assert batch.numeric[:, 0].std() == pytest.approx(1, abs=1e-4)
    assert batch.numeric[:, 1:].std() == pytest.approx(1, abs=1e-4)


def test_missing_and_infinite_values_do_not_count(tmp_path: Path) -> None:
    path = write(tmp_path / "a.parquet", {"x": [1.0, None, float("nan"), float("inf"), 3.0], "y": [0] * 5})
    (feature,) = measured(path, Numeric(name="x", scale="standard"))
    assert (feature.mean, feature.std) == (2.0, 1.0)


@pytest.mark.parametrize("values", [[0.1] * 7, [None] * 7])
def test_constant_or_missing_features_get_deviation_one(tmp_path: Path, values: list[Any]) -> None:
    # A deviation of 0 would divide by zero, one of rounding errors would blow the constant up.
    path = write(tmp_path / "a.parquet", {"x": values, "y": [0] * 7})
    (feature,) = measured(path, Numeric(name="x", scale="standard"))
    assert feature.std == 1.0


def test_numbers_whose_square_is_infinite_are_refused_with_advice(tmp_path: Path) -> None:
    path = write(tmp_path / "a.parquet", {"x": [3e300, -3e300], "y": [0, 1]})
    with pytest.raises(DataError, match=r"features\.x: column 'x' has numbers too large to scale .* transform: log"):
        measured(path, Numeric(name="x", scale="standard"))


def test_validation_rows_are_not_measured(tmp_path: Path) -> None:
    values = np.arange(1000.0)
    path = write(tmp_path / "a.parquet", {"x": values, "y": [0] * 1000}, row_group_size=300)
    (feature,) = measured(path, Numeric(name="x", scale="standard"), valid=0.3)
    job = job_of(Numeric(name="x"), data={"valid": 0.3})
    train = np.concatenate([b.numeric[:, 0] for b in Reader(job, path, seed=0, shuffle=False, split="train").epoch()])
    assert len(train) < 800
    assert feature.mean == pytest.approx(train.mean(), rel=1e-6)


def test_what_is_given_or_not_asked_for_is_left_alone_and_nothing_is_read(tmp_path: Path) -> None:
    job: Job = job_of(
        Numeric(name="x", scale="standard", mean=1.0, std=2.0), Numeric(name="z"), data={"train": ("nowhere.parquet",)}
    )
    assert measure(job) is job


def test_only_the_columns_measured_are_read(tmp_path: Path) -> None:
    # The job's other columns may be missing in no file, but reading them would cost as much as an epoch.
    path = write(tmp_path / "a.parquet", {"x": [1.0, 3.0]})
    job = job_of(Categorical(name="absent"), Numeric(name="x", scale="standard"), data={"train": (str(path),)})
    expected = msgspec.structs.replace(job.features[1], mean=2.0, std=1.0)
    assert measure(job).features == (job.features[0], expected)


@pytest.mark.parametrize("model", [DLRM(), DeepFM()])
def test_jobs_whose_model_needs_embeddings_are_measured(tmp_path: Path, model: DLRM | DeepFM) -> None:
    # Measuring reads through a job of the numbers alone, which such a model refused: it has no embeddings.
    path = write(tmp_path / "a.parquet", {"x": [1.0, 3.0], "u": [1, 2], "y": [0, 1]})
    job = job_of(Categorical(name="u"), Numeric(name="x", scale="standard"), data={"train": (str(path),)})
    found = measure(msgspec.structs.replace(job, model=model)).numeric_features[0]
    assert (found.mean, found.std) == (2.0, 1.0)
