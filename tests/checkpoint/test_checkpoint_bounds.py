"""Checkpoints of bounded tables: a resumed one goes on as if nothing had been, wherever it is loaded."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import msgspec
import numpy as np
from memory_rows import job_of, push

from satrap import checkpoint
from satrap.ps import LocalService
from satrap.schema import Admission, Capacity, Expiry, Job, RowWiseAdagrad, Table

Save = Callable[..., Path]

BOUNDED = Table(
    name="user",
    dim=4,
    optimizer=RowWiseAdagrad(),
    capacity=Capacity(rows=600),
    expire=Expiry(steps=5),
    admit=Admission(sightings=2, window=4000),
)
PLAIN = Table(name="item", dim=4, optimizer=RowWiseAdagrad())


def service_of(job: Job, partitions: int = 4) -> LocalService:
    return LocalService(job.resolved_tables(), seed=3, partitions=partitions, threads=1)


def trained(job: Job, steps: int) -> LocalService:
    service = service_of(job)
    for seq in range(1, steps + 1):
        push(service, seq)
    return service


def contents(service: LocalService) -> list[bytes]:
    blocks = [service.export_rows(t.name, p) for t in service.tables() for p in range(service.partitions)]
    parts = [x for b in blocks for x in (b.ids, b.values, b.state, b.marks, b.bound)]
    return [b"" if x is None else x.tobytes() for x in parts]


def test_a_resumed_bounded_table_goes_on_as_if_nothing_had_been(tmp_path: Path, save: Save) -> None:
    job = job_of(BOUNDED, PLAIN)
    service = trained(job, 20)
    assert service.stats()["user"].evicted > 0
    fresh = service_of(job)
    assert checkpoint.load(save(tmp_path, job, service, 20)).restore_rows(fresh) == ()
    assert contents(fresh) == contents(service)
    assert fresh.stats()["user"].refused == service.stats()["user"].refused
    for seq in range(21, 60):
        push(service, seq)
        push(fresh, seq)
    assert contents(fresh) == contents(service)
    assert service.stats()["user"].expired > 0


def test_a_sketch_without_any_row_is_kept(tmp_path: Path, save: Save) -> None:
    # Nothing is admitted yet, so no partition has a row; the sightings must not be lost.
    job = job_of(msgspec.structs.replace(BOUNDED, admit=Admission(sightings=200, window=4000)))
    service = trained(job, 1)
    assert service.stats()["user"].rows == 0
    checkpoint.load(save(tmp_path, job, service, 1)).restore_rows(fresh := service_of(job))
    assert contents(fresh) == contents(service)


def test_rows_keep_their_marks_in_another_number_of_partitions(tmp_path: Path, save: Save) -> None:
    job = job_of(BOUNDED)
    service = trained(job, 20)
    checkpoint.load(save(tmp_path, job, service, 20)).restore_rows(wide := service_of(job, partitions=16))
    marks = [[], []]  # type: list[list[bytes]]
    for found, s in zip(marks, (service, wide), strict=True):
        for p in range(s.partitions):
            block = s.export_rows("user", p)
            assert block.marks is not None
            found += [bytes(m) for m in block.marks]
    # A partition of 16 has a smaller share: what was beyond it went.
    assert wide.stats()["user"].rows <= 600
    assert len(set(marks[1]) - set(marks[0])) == 0
    push(wide, 21)


def test_rows_beyond_a_smaller_capacity_go_and_the_load_says_so(tmp_path: Path, save: Save) -> None:
    job = job_of(BOUNDED)
    path = save(tmp_path, job, trained(job, 20), 20)
    small = job_of(msgspec.structs.replace(BOUNDED, capacity=Capacity(rows=100)))
    notes = checkpoint.load(path).restore_rows(fresh := service_of(small))
    assert 90 <= fresh.stats()["user"].rows <= 100
    assert any("rows had no room" in n for n in notes)
    assert any("capacity" in n for n in notes)


def test_a_plain_checkpoint_loads_into_a_bounded_table_and_back(tmp_path: Path, save: Save) -> None:
    plain, bounded = job_of(PLAIN), job_of(msgspec.structs.replace(BOUNDED, name="item"))
    service = trained(plain, 1)
    path = save(tmp_path / "plain", plain, service, 1)
    (rows,) = list(path.glob("rows-00000*"))
    assert rows.read_bytes()[8] == 1  # files without bounded tables are those of before there were any
    checkpoint.load(path).restore_rows(fresh := service_of(bounded))
    assert fresh.stats()["item"].rows == service.stats()["item"].rows
    path = save(tmp_path / "bounded", bounded, fresh, 1)
    assert next(iter(path.glob("rows-00000*"))).read_bytes()[8] == 2
    checkpoint.load(path).restore_rows(again := service_of(plain))
    a = [replace(service.export_rows("item", p), marks=None, bound=None) for p in range(4)]
    b = [again.export_rows("item", p) for p in range(4)]
    for x, y in zip(a, b, strict=True):
        np.testing.assert_array_equal(x.ids, y.ids)
        np.testing.assert_array_equal(x.values, y.values)


def test_marks_of_other_rules_are_not_taken_for_ones_own(tmp_path: Path, save: Save) -> None:
    job = job_of(BOUNDED)
    path = save(tmp_path, job, trained(job, 20), 20)
    other = job_of(msgspec.structs.replace(BOUNDED, capacity=Capacity(rows=600, evict="frequency"), expire=None))
    checkpoint.load(path).restore_rows(fresh := service_of(other))
    for p in range(4):
        marks = fresh.export_rows("user", p).marks
        assert marks is not None
        assert set(marks.reshape(-1).tolist()) == {2}  # as rows just made


def test_inspect_tells_what_a_bounded_table_has_done(tmp_path: Path, save: Save) -> None:
    job = job_of(BOUNDED, PLAIN)
    service = trained(job, 20)
    user, item = checkpoint.inspect(save(tmp_path, job, service, 20)).tables
    assert item.bound is None
    assert user.bound is not None
    assert user.bound.evicted == service.stats()["user"].evicted > 0
