"""What is saved is what comes back, to the bit, whatever the optimizer, the format and the number of partitions."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from memory_rows import POSITION, MemoryRows, dense_parts, dense_step, filled, global_rows, job_of, push

from satrap import checkpoint
from satrap.checkpoint.tensors import raw_bytes
from satrap.errors import CheckpointError
from satrap.ps import LocalService
from satrap.schema import (
    SGD,
    Adagrad,
    Adam,
    AdamW,
    Ftrl,
    Job,
    Normal,
    Optimizer,
    RowWiseAdagrad,
    Table,
    ValueFormat,
)

OPTIMIZERS = [
    SGD(),
    SGD(momentum=0.9),
    Adagrad(),
    RowWiseAdagrad(),
    Adam(),
    AdamW(),
    Ftrl(),
]
Save = Callable[..., Path]


@pytest.mark.parametrize("format", list(ValueFormat))
@pytest.mark.parametrize("optimizer", OPTIMIZERS, ids=lambda o: type(o).__name__ + str(getattr(o, "momentum", "")))
def test_trained_rows_come_back_bit_exact_in_any_number_of_partitions(
    optimizer: Optimizer, format: ValueFormat, tmp_path: Path, save: Save
) -> None:
    job = job_of(
        Table(name="user", dim=5, format=format, optimizer=optimizer, initializer=Normal(std=0.1)),
        Table(name="item", dim=8, format=format, optimizer=optimizer),
    )
    for partitions in (1, 4, 64):
        service = LocalService(job.resolved_tables(), seed=3, partitions=partitions, threads=1)
        for seq in range(3):
            push(service, seq)
        path = save(tmp_path / str(partitions), job, service, 3)
        loaded = checkpoint.load(path)
        for other in (1, 4, 64):
            fresh = LocalService(job.resolved_tables(), seed=3, partitions=other, threads=1)
            assert loaded.restore_rows(fresh) == ()
            for table in ("user", "item"):
                assert global_rows(fresh, table) == global_rows(service, table)
            assert fresh.clients() == {1: (0, 2)}


def test_everything_beside_the_rows_comes_back(tmp_path: Path, job: Job, rows: MemoryRows, save: Save) -> None:
    model, optimizer = dense_parts()
    generator = np.random.default_rng(5)
    rng = {"torch": torch.get_rng_state(), "numpy": generator.bit_generator.state}
    extra = {"auc": 0.75, "losses": [float("nan"), float("inf"), 0.1], "pair": (1, "ü"), "none": None, "big": 2**70}
    path = save(
        tmp_path, job, rows, 12, dense=model.state_dict(), optimizer=optimizer.state_dict(), rng=rng, extra=extra
    )
    loaded = checkpoint.load(path)
    assert (loaded.step, loaded.position, loaded.job, path.name) == (12, POSITION, job, "step-00000012")
    assert repr(loaded.extra) == repr(extra)  # repr: a NaN equals nothing
    assert loaded.rng["numpy"] == rng["numpy"]
    assert torch.equal(loaded.rng["torch"], rng["torch"])
    assert loaded.manifest.clients == {0: (0, 17), 3: (2, 5)}

    # The restored network goes on bit for bit like the one that was saved.
    twin, twin_optimizer = dense_parts(seed=99)
    twin.load_state_dict(loaded.dense)
    twin_optimizer.load_state_dict(loaded.optimizer)
    for _ in range(3):
        dense_step(model, optimizer)
        dense_step(twin, twin_optimizer)
    for a, b in zip(model.state_dict().values(), twin.state_dict().values(), strict=True):
        assert torch.equal(a, b)


def test_tensors_of_every_kind_come_back(tmp_path: Path, job: Job, rows: MemoryRows, save: Save) -> None:
    # safetensors by itself refuses tensors that share memory, and a slice would drag its whole storage along.
    base = torch.randn(4, 6)
    dense = {
        "tied": base,
        "tied.again": base,
        "transposed": base.T,
        "slice": base[1:3, ::2],
        "scalar": torch.tensor(3),
        "empty": torch.empty(0, 7),
        "bf16": torch.randn(3).bfloat16(),
        "half": torch.randn(3).half(),
        "flag": torch.tensor([True, False]),
        "bytes": torch.arange(5, dtype=torch.uint8),
        "double": torch.tensor([float("nan"), -0.0], dtype=torch.float64),
        "parameter": torch.nn.Parameter(torch.ones(2)),
    }
    loaded = checkpoint.load(save(tmp_path, job, rows, 1, dense=dense, optimizer=None))
    assert loaded.optimizer is None
    assert loaded.dense.keys() == dense.keys()
    for name, tensor in dense.items():
        back = loaded.dense[name]
        assert (back.dtype, back.shape) == (tensor.dtype, tensor.shape)
        assert bytes(raw_bytes(back)) == bytes(raw_bytes(tensor))
    loaded.dense["tied"].add_(1)  # loaded tensors are writable, and each its own
    assert torch.equal(loaded.dense["tied.again"], base)


def test_tables_without_rows_stay_empty(tmp_path: Path, job: Job, save: Save) -> None:
    service = filled(job, 0)
    path = save(tmp_path, job, service, 0)
    assert not list(path.glob("rows-*"))
    other = filled(job, 5)
    checkpoint.load(path).restore_rows(other)
    assert all(s.rows == 0 for s in other.stats().values())


def test_number_of_threads_does_not_change_the_files(tmp_path: Path, save: Save) -> None:
    job = job_of(Table(name="user", dim=4, optimizer=Adam()), partitions=16)
    service = LocalService.of(job)
    push(service, 1, rows=1000)
    one, four = (save(tmp_path / str(n), job, service, 1, threads=n) for n in (1, 4))
    names = sorted(p.name for p in one.iterdir())
    assert names == sorted(p.name for p in four.iterdir())
    assert len(names) == 4 + 16
    for name in names:
        if name != "manifest.json":
            assert (one / name).read_bytes() == (four / name).read_bytes()
    fresh = LocalService.of(job)
    checkpoint.load(four).restore_rows(fresh, threads=4)
    assert global_rows(fresh, "user") == global_rows(service, "user")


@pytest.mark.parametrize(
    ("part", "value", "named"),
    [
        ("optimizer", {"state": {0: {"hook": print}}}, "state.0.hook"),
        ("rng", {"sampler": object()}, "sampler"),
        ("extra", {"best": torch.ones(1)}, "best"),
        ("extra", {1.5: "a float as key"}, "1.5"),
        ("dense", {"w": [1.0]}, "'w'"),
        ("dense", {"w": torch.eye(3).to_sparse()}, "'w'"),
        ("extra", {"path": "\udcff"}, "JSON"),
    ],
)
def test_a_value_without_plain_form_is_refused_by_name(
    part: str, value: object, named: str, tmp_path: Path, job: Job, rows: MemoryRows, save: Save
) -> None:
    with pytest.raises(CheckpointError, match=named.replace("(", r"\(")):
        save(tmp_path, job, rows, 1, **{part: value})
    assert list(tmp_path.iterdir()) == []
