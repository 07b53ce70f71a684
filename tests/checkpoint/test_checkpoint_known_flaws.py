"""What went wrong with checkpoints in earlier systems, each as a test that fails if it comes back."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable
from pathlib import Path

import msgspec
import numpy as np
import pytest
from memory_rows import MemoryRows, dense_parts, filled, global_rows, job_of, push

from satrap import checkpoint
from satrap.checkpoint import manifest
from satrap.errors import CheckpointError
from satrap.ps import LocalService
from satrap.schema import SGD, Adagrad, Adam, Constant, Job, Optimizer, RowWiseAdagrad, Table

Save = Callable[..., Path]


def altered(saved: Path, **changes: object) -> None:
    """Rewrites the manifest with changes, intact as satrap would write it."""
    content = manifest.read(saved)
    (saved / "manifest.json").write_bytes(manifest.encode(msgspec.structs.replace(content, **changes)))


@pytest.mark.parametrize("rows", [0, 1])
def test_a_tiny_checkpoint_is_loaded_when_restore_returns(rows: int, tmp_path: Path, job: Job, save: Save) -> None:
    # Flaw 6: a load of a tiny checkpoint finished before its status was set, and then read "loading" for ever.
    path = save(tmp_path, job, filled(job, rows), 1)
    service = LocalService.of(job)
    assert checkpoint.load(path).restore_rows(service, threads=4) == ()
    assert [s.rows for s in service.stats().values()] == [rows, rows]
    assert service.clients() == {0: (0, 17), 3: (2, 5)}


@pytest.mark.parametrize(
    "optimizer", [Adam(), Adagrad(), SGD(momentum=0.9), RowWiseAdagrad()], ids=lambda o: type(o).__name__
)
def test_training_after_a_restore_equals_training_without_one(optimizer: Optimizer, tmp_path: Path, save: Save) -> None:
    # Flaw 7: Adam's bias correction was outside the rows, not checkpointed, and reset when a worker came back.
    job = job_of(Table(name="user", dim=6, optimizer=optimizer), partitions=4)
    straight, before = LocalService.of(job), LocalService.of(job)
    for seq in range(6):
        push(straight, seq)
    for seq in range(3):
        push(before, seq)
    path = save(tmp_path, job, before, 3)
    after = LocalService(job.resolved_tables(), seed=job.seed, partitions=16, threads=2)
    checkpoint.load(path).restore_rows(after)
    for seq in range(3, 6):
        push(after, seq)
    assert global_rows(after, "user") == global_rows(straight, "user")


def test_a_push_that_is_in_the_checkpoint_is_not_applied_again(tmp_path: Path, job: Job, save: Save) -> None:
    # A worker that resends after a restore must not step a row twice.
    service = LocalService.of(job)
    push(service, 5)
    path = save(tmp_path, job, service, 1)
    restored = LocalService.of(job)
    checkpoint.load(path).restore_rows(restored)
    push(restored, 5)
    assert global_rows(restored, "user") == global_rows(service, "user")


def test_size_follows_the_rows_that_are_there(tmp_path: Path, save: Save) -> None:
    # Flaw 10: size followed capacity: 48 GB for an empty default table.
    job = job_of(Table(name="user", dim=16, optimizer=SGD()), partitions=64)
    size = {}
    for rows in (0, 1000, 3000):
        path = save(tmp_path / str(rows), job, filled(job, rows), 1)
        size[rows] = sum(p.stat().st_size for p in path.iterdir())
    assert size[0] < 10_000
    # 8 + 64 bytes a row, and at most 1 KiB of headers and manifest a file.
    assert 3000 * 72 < size[3000] < 3000 * 72 + 64 * 1024 + size[0]
    assert 2000 * 72 <= size[3000] - size[1000] < 2000 * 72 + 64 * 128 * 3


def test_rows_of_before_a_load_are_gone_after_it(tmp_path: Path, job: Job, rows: MemoryRows, save: Save) -> None:
    # Flaw 13: load did not clear old rows.
    path = save(tmp_path, job, rows, 1)
    service = filled(job, 30, seed=9)
    service.set_clients({8: (8, 8)})
    checkpoint.load(path).restore_rows(service)
    assert global_rows(service, "user") == global_rows(rows, "user")
    assert service.clients() == rows.clients()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"dim": 5}, "table 'user': the checkpoint has dim 4, the job has dim 5; set dim to 4"),
        ({"optimizer": Adagrad()}, "has optimizer adam, the job has optimizer adagrad"),
        ({"name": "users"}, r"has the tables \['item', 'user'\], the job has \['item', 'users'\]"),
    ],
)
def test_a_load_under_another_configuration_is_refused_with_the_rows_untouched(
    change: dict[str, object], message: str, saved: Path, job: Job
) -> None:
    # Flaw 13: loading under another optimizer could crash.
    user, item = job.resolved_tables()
    service = filled(job_of(msgspec.structs.replace(user, **change), item), 20)
    before = dict(service.rows)
    with pytest.raises(CheckpointError, match=message):
        checkpoint.load(saved).restore_rows(service)
    assert service.rows == before


def test_momentum_that_was_not_there_when_saved_is_refused(tmp_path: Path, save: Save) -> None:
    # The same kind of optimizer, but its rows hold no momentum.
    job = job_of(Table(name="user", dim=4, optimizer=SGD()))
    path = save(tmp_path, job, filled(job, 20), 1)
    service = LocalService.of(job_of(Table(name="user", dim=4, optimizer=SGD(momentum=0.9))))
    with pytest.raises(CheckpointError, match=r"0 words of optimizer state .* 4: .*momentum was 0.0 and is 0.9"):
        checkpoint.load(path).restore_rows(service)


def test_settings_that_may_differ_are_loaded_and_noted(tmp_path: Path, save: Save) -> None:
    job = job_of(Table(name="user", dim=4, optimizer=Adam(lr=0.1)))
    path = save(tmp_path, job, filled(job, 20), 1)
    service = LocalService.of(job_of(Table(name="user", dim=4, optimizer=Adam(lr=0.2), initializer=Constant(value=1))))
    notes = checkpoint.load(path).restore_rows(service)
    assert [n.split(" was")[0] for n in notes] == ["table 'user': optimizer.lr", "table 'user': initializer"]
    assert service.stats()["user"].rows == 20


@pytest.mark.parametrize(("saved_with", "loaded_with"), [(1, 64), (64, 1), (4, 16), (16, 4)])
def test_fewer_or_more_files_than_partitions_load(
    saved_with: int, loaded_with: int, tmp_path: Path, save: Save
) -> None:
    # Flaw 13: fewer files than workers crashed.
    job = job_of(Table(name="user", dim=4, optimizer=Adam()))
    service = MemoryRows(job.resolved_tables(), saved_with)
    service.import_rows("user", filled(job, 100).export_rows("user", 0))
    path = save(tmp_path, job, service, 1)
    other = MemoryRows(job.resolved_tables(), loaded_with)
    checkpoint.load(path).restore_rows(other)
    assert global_rows(other, "user") == global_rows(service, "user")


def test_a_newer_version_is_refused_by_version_not_as_damage(saved: Path) -> None:
    # Flaw 13: no version.
    altered(saved, version=2, satrap="9.9")
    with pytest.raises(CheckpointError, match=r"version 2 \(written by satrap 9.9\), this satrap reads version 1"):
        checkpoint.load(saved)


def test_files_appear_only_under_a_temporary_name_until_all_are_there(
    tmp_path: Path, job: Job, rows: MemoryRows, save: Save
) -> None:
    # Flaw 13: no temp-and-rename. A reader that looks at any moment sees whole checkpoints only.
    seen = []

    class Watching(checkpoint.LocalFiles):
        def create(self, path: Path):  # type: ignore[no-untyped-def]
            seen.append((path.parent.name, checkpoint.latest(tmp_path)))
            return super().create(path)

    save(tmp_path, job, rows, 7, files=Watching())
    assert len(seen) == 4 + 4
    assert all(name.startswith(".step-00000007.tmp-") and newest is None for name, newest in seen)
    assert [p.name for p in tmp_path.iterdir()] == ["step-00000007"]


def test_no_file_of_a_checkpoint_is_a_pickle(saved: Path) -> None:
    # No code in data: every file is one of three formats that hold none.
    for path in saved.iterdir():
        data = path.read_bytes()
        if path.suffix == ".json":
            json.loads(data)
        elif path.suffix == ".satrap":
            assert data.startswith(b"SATRROWS")
        else:
            assert path.suffix == ".safetensors"
            header = int.from_bytes(data[:8], "little")
            json.loads(data[8 : 8 + header])


def test_an_id_in_two_files_is_refused_and_the_service_left_empty(tmp_path: Path, job: Job, save: Save) -> None:
    class Twice(MemoryRows):
        def export_rows(self, table: str, partition: int):  # type: ignore[no-untyped-def]
            block = super().export_rows(table, partition)
            if table == "user" and partition == 1:
                first = super().export_rows(table, 0)
                return dataclasses.replace(
                    block,
                    ids=np.concatenate([first.ids[:1], block.ids]),
                    values=np.concatenate([first.values[:1], block.values]),
                    state=np.concatenate([first.state[:1], block.state]),
                )
            return block

    source = Twice(job.resolved_tables())
    source.import_rows("user", filled(job, 60).export_rows("user", 0))
    source.import_rows("user", filled(job, 60).export_rows("user", 1))
    model, _ = dense_parts()
    path = save(tmp_path, job, source, 1, dense=model.state_dict())
    service = MemoryRows(job.resolved_tables())
    with pytest.raises(CheckpointError, match=r"table 'user' has .* an id is there twice"):
        checkpoint.load(path).restore_rows(service)
    assert service.stats()["user"].rows == 0
