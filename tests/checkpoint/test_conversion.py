"""A checkpoint of one format in tables of another: converted row by row, noted, and trained on."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from memory_rows import global_rows, job_of, push
from numpy.typing import NDArray

from satrap import checkpoint
from satrap.ps import LocalService, PullRequest
from satrap.schema import Adam, Normal, Optimizer, Rounding, RowWiseAdagrad, StateFormat, Table, ValueFormat

Save = Callable[..., Path]


def table(form: ValueFormat, optimizer: Optimizer, rounding: Rounding | None = None) -> Table:
    return Table(name="t", dim=12, format=form, rounding=rounding, optimizer=optimizer, initializer=Normal(std=0.1))


def trained(a: Table, steps: int = 4) -> LocalService:
    service = LocalService.of(job_of(a))
    for seq in range(steps):
        push(service, seq)
    return service


def values(service: LocalService) -> NDArray[np.float32]:
    """Of all rows, by ascending id."""
    ids = np.sort(np.concatenate([service.export_rows("t", p).ids for p in range(service.partitions)]))
    return service.pull(PullRequest(ids={"t": ids}, create=False)).values["t"]


@pytest.mark.parametrize("ours", ValueFormat)
@pytest.mark.parametrize("theirs", ValueFormat)
def test_rows_of_any_format_load_into_any_other(
    theirs: ValueFormat, ours: ValueFormat, tmp_path: Path, save: Save
) -> None:
    a, b = table(theirs, RowWiseAdagrad()), table(ours, RowWiseAdagrad())
    service = trained(a)
    path = save(tmp_path, job_of(a), service, 1)
    restored = LocalService.of(job_of(b))
    notes = checkpoint.load(path).restore_rows(restored)
    if theirs is ours:
        assert notes == ()
        assert global_rows(restored, "t") == global_rows(service, "t")
        return
    assert notes == (f"table 't': format was {theirs.value} and is {ours.value}",)
    want, have = values(service), values(restored)
    step = {"fp32": 0.0, "fp16": 2.0**-11, "bf16": 2.0**-8}.get(ours.value)
    most = np.abs(want).max(axis=1, keepdims=True) * 1.125 / 254 if step is None else np.abs(want) * step
    assert (np.abs(want - have) <= most + 1e-7).all()
    assert restored.stats()["t"].rows == service.stats()["t"].rows
    assert restored.clients() == service.clients()
    push(restored, 9)  # and they go on


def test_moments_and_rounding_are_converted_and_noted(tmp_path: Path, save: Save) -> None:
    # Bugs: the word of the version taken for a moment; the width of the state refused, though formats alone differ.
    wide = table(ValueFormat.FP32, Adam(lr=0.01))
    narrow = table(ValueFormat.FP16, Adam(lr=0.01, state=StateFormat.INT8), Rounding.STOCHASTIC)
    service = trained(wide)
    there, back = LocalService.of(job_of(narrow)), LocalService.of(job_of(wide))
    path = save(tmp_path / "a", job_of(wide), service, 1)
    notes = checkpoint.load(path).restore_rows(there)
    assert [n.split("'t': ")[1] for n in notes] == [
        "optimizer.state was fp32 and is int8",
        "format was fp32 and is fp16",
        "rounding was None and is stochastic",
    ]
    np.testing.assert_array_equal(values(there), values(service).astype(np.float16).astype(np.float32))
    checkpoint.load(save(tmp_path / "b", job_of(narrow), there, 2)).restore_rows(back)
    np.testing.assert_array_equal(values(back), values(there))
    for partition in range(back.partitions):
        state = back.export_rows("t", partition).state
        want = service.export_rows("t", partition).state
        np.testing.assert_array_equal(state[:, -1], want[:, -1])
        near = np.abs(want[:, 12:24]) / 16 * 1.001
        assert (np.abs(state[:, 12:24] - want[:, 12:24]) <= near + want[:, 12:24].max() * 2.0**-28).all()


def test_a_resumed_table_rounds_as_the_uninterrupted_one(tmp_path: Path, save: Save) -> None:
    # Bug: versions begin at 0 after a load, and the random bits of every later update are others.
    a = table(ValueFormat.INT8, Adam(lr=0.01, state=StateFormat.INT8))
    whole = trained(a, 8)
    half = trained(a, 4)
    resumed = LocalService(job_of(a).resolved_tables(), seed=0, partitions=16, threads=1)
    checkpoint.load(save(tmp_path, job_of(a), half, 1)).restore_rows(resumed)
    for seq in range(4, 8):
        push(resumed, seq)
    assert global_rows(resumed, "t") == global_rows(whole, "t")
