"""Rows out of a checkpoint and into another: exact, and from the state dicts of others too."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from safetensors.torch import save_file
from samples import click_job
from torch import nn

from satrap import checkpoint
from satrap.checkpoint.export import NAME, Exported, export
from satrap.checkpoint.foreign import ExportedRows, ParquetRows, Rows, TensorRows, keys_of, state_dict
from satrap.data.hashing import hash_strings
from satrap.errors import CheckpointError, JobError, TrainingError
from satrap.ps import LocalService
from satrap.schema import Adagrad, Job, Rounding, Table, ValueFormat, override
from satrap.testing.faulty_objects import Busy, FaultyObjects
from satrap.train import Result, Trainer
from satrap.train.importing import fill, import_rows

FORMS: Any = ("parquet", "safetensors")


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> tuple[Job, Result]:
    folder = tmp_path_factory.mktemp("trained")
    job = click_job(folder, max_steps=12)
    return job, Trainer(job, run_dir=folder / "run", progress=False, plots=False).fit()


def rows_of(path: Path | str) -> LocalService:
    loaded = checkpoint.load(path)
    service = LocalService.of(loaded.job)
    loaded.restore_rows(service)
    return service


def same_rows(a: LocalService, b: LocalService, *, state: bool) -> bool:
    for table in a.tables():
        for p in range(a.partitions):
            x, y = a.export_rows(table.name, p), b.export_rows(table.name, p)
            if x.ids.tobytes() != y.ids.tobytes() or x.values.tobytes() != y.values.tobytes():
                return False
            if state and x.state.tobytes() != y.state.tobytes():
                return False
    return True


def imported(job: Job, path: Path | str, run: Path, **options: Any) -> tuple[Path, tuple[str, ...]]:
    exported = Exported.open(path)
    return import_rows(job, {t: ExportedRows(exported, t) for t in exported.tables()}, run_dir=run, **options)


@pytest.mark.parametrize("state", [True, False])
@pytest.mark.parametrize("form", FORMS)
def test_what_is_exported_comes_back_to_the_bit(
    form: Any, state: bool, trained: tuple[Job, Result], tmp_path: Path
) -> None:
    job, result = trained
    assert result.checkpoint is not None
    contents = export(result.checkpoint, tmp_path / "rows", form=form, state=state)
    assert {t.spec.name: t.rows for t in contents.tables} == {n: s.rows for n, s in result.tables.items()}
    path, notes = imported(job, tmp_path / "rows", tmp_path / "again", dense=checkpoint.load(result.checkpoint).dense)
    assert notes == ()
    assert same_rows(rows_of(result.checkpoint), rows_of(path), state=state)
    assert same_rows(rows_of(result.checkpoint), rows_of(path), state=True) == state
    # The model is the same one, so it is as good; and training goes on from it.
    assert Trainer.from_checkpoint(path).evaluate(job.data.test) == result.test
    again = Trainer(job, run_dir=tmp_path / "again", progress=False, plots=False).fit(resume=True)
    assert (again.steps, again.stopped) == (12, "done")


@pytest.mark.parametrize("form", FORMS)
def test_every_bit_of_every_value_is_kept_nans_of_each_kind_too(form: Any, tmp_path: Path) -> None:
    from checkpoint_rows import random_checkpoint

    saved, rows = random_checkpoint(tmp_path)
    export(saved, tmp_path / "rows", form=form, state=True)
    exported = Exported.open(tmp_path / "rows")
    for table in rows.tables():
        blocks = [b for p in range(rows.partitions) if len((b := rows.export_rows(table.name, p)).ids)]
        back = list(exported.blocks(table.name))
        assert [(x.ids.tobytes(), x.values.tobytes(), x.state.tobytes()) for x in back] == [
            (x.ids.tobytes(), x.values.tobytes(), x.state.tobytes()) for x in blocks
        ]


def test_other_programs_read_an_export(trained: tuple[Job, Result], tmp_path: Path) -> None:
    from safetensors.numpy import load_file

    _, result = trained
    assert result.checkpoint is not None
    for form in FORMS:
        export(result.checkpoint, tmp_path / form, form=form, tables=["user"])
    table = pq.read_table(tmp_path / "parquet" / "user")
    assert table.num_rows == result.tables["user"].rows
    assert sorted(table["id"].to_pylist()) == list(range(50))
    parts = [load_file(p) for p in sorted((tmp_path / "safetensors" / "user").iterdir())]
    assert np.concatenate([p["ids"] for p in parts]).tolist() == table["id"].to_pylist()
    assert np.concatenate([p["values"] for p in parts]).tolist() == table["values"].to_pylist()
    assert not (tmp_path / "parquet" / "tags").exists()
    with pytest.raises(CheckpointError, match="it has no table 'usr'; did you mean 'user'"):
        export(result.checkpoint, tmp_path / "x", tables=["usr"])


@pytest.mark.parametrize("form", FORMS)
def test_every_file_of_an_export_flipped_cut_exchanged_or_deleted_is_refused_by_name(
    form: Any, trained: tuple[Job, Result], tmp_path: Path
) -> None:
    _, result = trained
    assert result.checkpoint is not None
    export(result.checkpoint, tmp_path / "rows", form=form, state=True)
    paths = sorted(p for p in (tmp_path / "rows").rglob("*") if p.is_file())
    assert len(paths) > 8

    def read() -> None:
        exported = Exported.open(tmp_path / "rows")
        exported.dense()
        for table in exported.tables():
            list(exported.blocks(table))

    read()
    for path in paths:
        data = path.read_bytes()
        for bad in (data[:-1], data + b"\0", data[: len(data) // 3], bytes([data[0] ^ 4]) + data[1:], None):
            path.unlink()
            if bad is not None:
                path.write_bytes(bad)
            with pytest.raises(CheckpointError) as told:
                read()
            assert path.name in str(told.value)
            path.write_bytes(data)
    a, b = (p for p in paths if p.parent.name == "user" and p.name[:5] in ("00001", "00002"))
    kept = a.read_bytes()
    a.write_bytes(b.read_bytes())
    b.write_bytes(kept)
    with pytest.raises(CheckpointError, match="user"):
        read()


def test_an_export_that_was_not_finished_and_a_folder_in_use_are_refused(
    trained: tuple[Job, Result], tmp_path: Path
) -> None:
    _, result = trained
    assert result.checkpoint is not None
    export(result.checkpoint, tmp_path / "rows")
    with pytest.raises(CheckpointError, match="not empty"):
        export(result.checkpoint, tmp_path / "rows")
    (tmp_path / "rows" / NAME).unlink()
    with pytest.raises(CheckpointError, match="or one that was not finished"):
        Exported.open(tmp_path / "rows")


def test_an_export_goes_to_an_object_store_and_comes_back_through_its_bad_moments(
    trained: tuple[Job, Result], tmp_path: Path
) -> None:
    job, result = trained
    assert result.checkpoint is not None
    checkpoint.use_filesystem("faulty://exports", FaultyObjects(fail=Busy(1)), pause_s=0)
    export(result.checkpoint, "faulty://exports/rows", state=True)
    path, _ = imported(job, "faulty://exports/rows", tmp_path / "run")
    assert same_rows(rows_of(result.checkpoint), rows_of(path), state=True)


def test_a_state_dict_of_embedding_bags_is_rows_by_index(tmp_path: Path) -> None:
    job = click_job(tmp_path)
    torch.manual_seed(0)
    bags = nn.ModuleDict({t: nn.EmbeddingBag(60, 4) for t in ("user", "tags", "history")})
    save_file(bags.state_dict(), tmp_path / "bags.safetensors")
    torch.save(
        {"state_dict": {f"ebc.embedding_bags.{k}": v for k, v in bags.state_dict().items()}}, tmp_path / "rec.pt"
    )
    for file in ("bags.safetensors", "rec.pt"):
        tensors = state_dict(tmp_path / file)
        sources = {t: TensorRows(tensors[keys_of(t, tensors)[0]], file) for t in ("user", "tags", "history")}
        path, notes = import_rows(job, sources, run_dir=tmp_path / Path(file).stem)
        assert notes == ()
        service = rows_of(path)
        ids = np.arange(60, dtype=np.uint64)
        from satrap.ps import PullRequest

        found = service.pull(PullRequest(ids={t: ids for t in sources}, create=False)).values
        for table, bag in bags.items():
            assert found[table].tobytes() == bag.weight.detach().numpy().tobytes()
        assert service.stats()["user"].rows == 60


def test_rows_without_state_begin_as_rows_that_were_just_made(tmp_path: Path) -> None:
    from satrap.ps import PullRequest

    table = Table(name="user", dim=3, optimizer=Adagrad(initial_accumulator=0.25))
    service, made = (LocalService([table], seed=0, partitions=4) for _ in range(2))
    ids = np.arange(9, dtype=np.uint64)
    fill(service, {"user": TensorRows(torch.ones(9, 3), "here")})
    made.pull(PullRequest(ids={"user": ids}, create=True))
    for p in range(4):
        assert service.export_rows("user", p).state.tobytes() == made.export_rows("user", p).state.tobytes()
    assert service.export_rows("user", 0).values.flat[0] == 1


def test_the_state_of_another_optimizer_is_left_and_said(trained: tuple[Job, Result], tmp_path: Path) -> None:
    job, result = trained
    assert result.checkpoint is not None
    export(result.checkpoint, tmp_path / "rows", state=True)
    other = override(job, ["train.embedding_optimizer={kind: adam}"])
    _, notes = imported(other, tmp_path / "rows", tmp_path / "run")
    assert len(notes) == 3
    assert all("has the state of rowwise_adagrad, the job's optimizer is adam: it begins anew" in n for n in notes)


def test_a_parquet_file_of_ids_or_texts_is_rows(tmp_path: Path) -> None:
    from satrap.ps import PullRequest

    table = Table(name="user", dim=2, optimizer=Adagrad())
    values = [[1.0, 2.0], [3.0, 4.0], [5.0, 6.0]]
    texts = ["ann", "bob", "a name of more than sixteen bytes"]
    for ids, expected in (
        (pa.array([1, -2, 3]), np.array([1, -2, 3], np.int64).view(np.uint64)),
        (pa.array(texts), hash_strings(texts)),
    ):
        pq.write_table(pa.table({"id": ids, "values": values}), tmp_path / "rows.parquet")
        service = LocalService([table], seed=0)
        fill(service, {"user": ParquetRows(tmp_path / "rows.parquet")})
        found = service.pull(PullRequest(ids={"user": expected}, create=False)).values["user"]
        assert found.tolist() == values


class _Pieces:
    optimizer = None
    spec = None

    def __init__(self, *pieces: Rows) -> None:
        self.name, self._pieces = "mine", pieces

    def pieces(self) -> Any:
        return iter(self._pieces)


def test_rows_that_do_not_fit_are_refused_and_what_is_rounded_is_said() -> None:
    half = Table(name="user", dim=2, format=ValueFormat.FP16, optimizer=Adagrad())
    ids = np.arange(2, dtype=np.uint64)

    def filled(values: Any, ids: Any = ids) -> tuple[str, ...]:
        rows = Rows(ids, np.asarray(values, np.float32))
        return fill(LocalService([half], seed=0), {"user": _Pieces(rows)})

    assert filled([[1, 2], [3, 0.5]]) == ()
    assert "were rounded to fp16" in filled([[1, 2], [3, 0.1]])[0]
    with pytest.raises(CheckpointError, match="beyond what fp16"):
        filled([[1, 2], [3, 1e6]])
    with pytest.raises(CheckpointError, match="its vectors have 3 numbers, table 'user' has dim 2"):
        filled([[1, 2, 3], [3, 1, 2]])
    with pytest.raises(CheckpointError, match="an id is there twice"):
        filled([[1, 2], [3, 4]], np.zeros(2, np.uint64))
    with pytest.raises(JobError, match="the job has no table 'item' for mine"):
        fill(LocalService([half], seed=0), {"item": _Pieces()})


def test_code_in_a_state_dict_is_never_run(tmp_path: Path) -> None:
    class Evil:
        def __reduce__(self) -> Any:
            return Path(tmp_path / "run").touch, ()

    torch.save({"user.weight": torch.zeros(2, 2), "x": Evil()}, tmp_path / "evil.pt")
    with pytest.raises(CheckpointError, match="without running code that is in it"):
        state_dict(tmp_path / "evil.pt")
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("name", ["no.pt", "no.safetensors", "no.parquet"])
def test_a_file_that_is_not_there_is_called_just_that(name: str, tmp_path: Path) -> None:
    # A missing .pt "cannot be read without running code that is in it".
    with pytest.raises(CheckpointError, match=f"{name}: there is no such file"):
        (ParquetRows if name.endswith("parquet") else state_dict)(tmp_path / name)


def test_dense_weights_that_do_not_fit_are_refused_or_begin_fresh(trained: tuple[Job, Result], tmp_path: Path) -> None:
    job, _ = trained
    other = override(job, ["model.hidden=[8]"])
    dense = dict(Trainer(other, run_dir=tmp_path / "none", progress=False).model.state_dict())
    with pytest.raises(TrainingError, match="the dense weights do not fit the job's model"):
        import_rows(job, {}, run_dir=tmp_path / "a", dense=dense)
    _, notes = import_rows(job, {}, run_dir=tmp_path / "b", dense=dense, fresh_dense=True)
    assert any("they begin fresh" in n for n in notes)
    with pytest.raises(JobError, match="already holds the checkpoints of a run"):
        import_rows(job, {}, run_dir=tmp_path / "b")


def test_a_forged_export_names_no_file_outside_its_folder(trained: tuple[Job, Result], tmp_path: Path) -> None:
    from satrap.checkpoint.sealed import seal

    _, result = trained
    assert result.checkpoint is not None
    export(result.checkpoint, tmp_path / "rows", tables=["user"])
    tree = json.loads((tmp_path / "rows" / NAME).read_text())
    del tree["sha256"]
    tree["tables"][0]["spec"]["name"] = "../../etc"
    (tmp_path / "rows" / NAME).write_bytes(seal(tree))
    exported = Exported.open(tmp_path / "rows")
    with pytest.raises(CheckpointError, match=r"rows/%2E\.%2F\.\.%2Fetc/0000\d\.parquet: missing"):
        list(exported.blocks("../../etc"))


@pytest.mark.parametrize("keep", [1.0, 0.0, 0.5], ids=["killed", "power lost", "half the names lost"])
def test_an_export_killed_at_any_operation_is_whole_or_refused(
    keep: float, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import os

    from checkpoint_rows import random_checkpoint

    from satrap.testing.faulty_files import FaultyFiles, Killed

    for sync in ("fsync", "fdatasync"):  # what is lost is what was not synced, whatever the real disk does
        monkeypatch.setattr(os, sync, lambda fd: None)
    saved, _ = random_checkpoint(tmp_path)
    options: Any = {"state": True, "tables": ["a/b"], "threads": 1}
    whole = FaultyFiles()
    export(saved, tmp_path / "whole", out_files=whole, **options)
    exported = Exported.open(tmp_path / "whole")
    rows = [b.ids.tobytes() for b in exported.blocks("a/b")]
    refused = 0
    for k in range(1, whole.count + 1):
        files, out = FaultyFiles(kill_at=k), tmp_path / str(k)
        with pytest.raises(Killed):
            export(saved, out, out_files=files, **options)
        if keep < 1:
            files.lose_power(keep)
        files.close()
        try:
            exported = Exported.open(out)
        except CheckpointError:
            refused += 1
            continue
        assert [b.ids.tobytes() for b in exported.blocks("a/b")] == rows
        exported.dense()
    whole.close()
    # Only the very last, syncs of what is there already, may leave it whole.
    assert whole.count - 3 <= refused <= whole.count


def test_the_worked_example_of_the_page_is_how_an_export_begins() -> None:
    import re

    import msgspec

    from satrap.checkpoint.export import FORMAT, VERSION, Contents, ExportedFile, ExportedTable
    from satrap.checkpoint.sealed import seal

    file = ExportedFile(partition=3, rows=2, bytes=99, sha256="ab" * 32)
    table = ExportedTable(spec=Table(name="user", dim=2, optimizer=Adagrad()), state_width=2, rows=2, files=(file,))
    contents = Contents(
        format=FORMAT, version=VERSION, satrap="0.1.0", created="2026-01-01T00:00:00+00:00", step=7, form="parquet",
        tables=(table,), dense_bytes=1, dense_sha256="cd" * 32,
    )  # fmt: skip
    data = seal(msgspec.to_builtins(contents))
    page = Path(__file__).parents[2] / "docs" / "formats" / "export.md"
    shown = re.findall(r"^    [0-9a-f]{8}  ((?:[0-9a-f]{2} ){16}) ", page.read_text(), re.MULTILINE)
    assert len(shown) == 3
    assert data.startswith(bytes.fromhex("".join(shown)))


@pytest.mark.parametrize("form", FORMS)
def test_an_export_takes_the_memory_of_one_partition(form: Any, tmp_path: Path) -> None:
    import tracemalloc

    from checkpoint_rows import save_rows

    table = Table(name="wide", dim=64, optimizer=Adagrad())
    service = LocalService([table], seed=0, partitions=16)
    fill(service, {"wide": TensorRows(torch.zeros(16_000, 64), "zeros")})
    saved = save_rows(service, tmp_path / "saved")
    tracemalloc.start()
    try:
        contents = export(saved, tmp_path / form, form=form, state=True, threads=1)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert contents.tables[0].rows == 16_000
    assert peak < 16_000 * (8 + 4 * 128) / 4


NARROW = [(ValueFormat.BF16, None), (ValueFormat.BF16, Rounding.NEAREST), (ValueFormat.INT8, None)]


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize(("stored", "rounding"), NARROW, ids=["bf16", "bf16 nearest", "int8"])
@pytest.mark.parametrize("state", [True, False])
def test_narrow_rows_are_exported_as_the_numbers_they_are_and_come_back(
    form: Any, stored: ValueFormat, rounding: Rounding | None, state: bool, tmp_path: Path
) -> None:
    # Bug: the bits of a bf16 value, or the codes of an int8 row, are exported as if they were numbers.
    tables = [f"tables=[{{name: {n}, dim: 4, format: {stored.value}}}]" for n in ("user",)]
    job = override(click_job(tmp_path, max_steps=12), tables)
    if rounding is not None:
        job = override(job, [f"tables.user.rounding={rounding.value}"])
    result = Trainer(job, run_dir=tmp_path / "run", progress=False, plots=False).fit()
    assert result.checkpoint is not None
    contents = export(result.checkpoint, tmp_path / "rows", form=form, state=state)
    entry = next(t for t in contents.tables if t.spec.name == "user")
    assert (entry.spec.format, entry.spec.rounding) == (ValueFormat.FP32, None)
    assert entry.state_width == (1 if state else 0)  # without the count of updates
    there = rows_of(result.checkpoint)
    ids = np.sort(np.concatenate([there.export_rows("user", p).ids for p in range(there.partitions)]))
    blocks = list(Exported.open(tmp_path / "rows").blocks("user"))
    values = np.concatenate([b.values for b in blocks])[np.argsort(np.concatenate([b.ids for b in blocks]))]
    assert np.array_equal(values, there.store.lookup("user", ids))
    path, notes = imported(job, tmp_path / "rows", tmp_path / "again", dense=checkpoint.load(result.checkpoint).dense)
    back = rows_of(path)
    assert back.stats()["user"].rows == len(ids)
    if stored is ValueFormat.BF16:
        assert notes == ()
        assert np.array_equal(back.store.lookup("user", ids), values)
    else:
        step = np.abs(values).max(axis=1, keepdims=True) * 1.125 / 254
        assert (np.abs(back.store.lookup("user", ids) - values) <= step * 1.01).all()
    if state:
        for p in range(there.partitions):
            a, b = there.export_rows("user", p).state, back.export_rows("user", p).state
            assert a[:, 0].tobytes() == b[:, 0].tobytes()
    again = Trainer(job, run_dir=tmp_path / "again", progress=False, plots=False).fit(resume=True)
    assert again.steps == 12


@pytest.mark.parametrize("stored", [ValueFormat.BF16, ValueFormat.INT8])
def test_rows_of_others_go_into_narrow_tables_and_what_is_rounded_is_said(stored: ValueFormat) -> None:
    table = Table(name="user", dim=3, format=stored, optimizer=Adagrad(initial_accumulator=0.25))
    service, made = (LocalService([table], seed=0, partitions=4) for _ in range(2))
    values = torch.tensor([[0.1, -3.0, 2.5]]).repeat(9, 1)
    notes = fill(service, {"user": TensorRows(values, "here")})
    assert notes == (f"table 'user': the values of here were rounded to {stored.value}",)
    ids = np.arange(9, dtype=np.uint64)
    assert np.abs(service.store.lookup("user", ids) - values.numpy()).max() <= 3.0 * 1.125 / 254
    made.store.pull("user", ids, create=True)
    for p in range(4):
        assert service.export_rows("user", p).state.tobytes() == made.export_rows("user", p).state.tobytes()
    exact = LocalService([table], seed=0)
    assert fill(exact, {"user": TensorRows(torch.zeros(9, 3), "here")}) == ()
