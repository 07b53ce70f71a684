"""Checkpoints on an object store: whole or not there, whatever it answers and wherever the process dies."""

from __future__ import annotations

import errno
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import fsspec
import pytest
from memory_rows import MemoryRows, filled, global_rows, job_of, save_step

from satrap import checkpoint
from satrap.checkpoint import ObjectFiles, place, places
from satrap.checkpoint.objects import RANGE_BYTES
from satrap.errors import CheckpointError, SaveError
from satrap.schema import Adagrad, Table
from satrap.testing.faulty_files import Killed
from satrap.testing.faulty_objects import Busy, FaultyObjects, unavailable

JOB = job_of(Table(name="user", dim=2, optimizer=Adagrad()), partitions=2)
OLD, NEW = filled(JOB, 6, seed=1), filled(JOB, 6, seed=2)
RUN = "faulty://bucket/runs/a"


def store(objects: dict[str, bytes] | None = None, **options: Any) -> tuple[FaultyObjects, ObjectFiles]:
    fs = FaultyObjects(objects, **options)
    return fs, ObjectFiles(fs, pause_s=0)


def save(rows: MemoryRows, step: int, files: ObjectFiles) -> Path:
    return save_step(place(RUN), JOB, rows, step, files=files)


def next_step(files: ObjectFiles) -> None:
    save(NEW, 20, files)


def same_step(files: ObjectFiles) -> None:
    save(NEW, 10, files)


def best_and_retention(files: ObjectFiles) -> None:
    checkpoint.mark_best(save(NEW, 20, files), files)
    checkpoint.retain(place(RUN), 1, files)


def test_a_checkpoint_comes_back_from_an_object_store_as_it_was_saved(tmp_path: Path) -> None:
    fs, files = store()
    path = save(NEW, 20, files)
    assert str(path) == f"{RUN}/step-00000020"
    local = save_step(tmp_path, JOB, NEW, 20)
    # The same layout as on a disk: a folder copied from the bucket is a checkpoint.
    assert {n.rpartition("/")[2] for n in fs.objects} == {p.name for p in local.iterdir()}
    assert checkpoint.digest(path, files=files) == checkpoint.digest(local)
    rows = MemoryRows(JOB.resolved_tables(), 8)
    checkpoint.load(path, files=files).restore_rows(rows)
    assert global_rows(rows, "user") == global_rows(NEW, "user")
    assert rows.clients() == NEW.clients()


@pytest.mark.parametrize("url", ["memory://models/runs", "file://{}/models"])
def test_any_scheme_of_fsspec_is_opened_by_its_url(url: str, tmp_path: Path) -> None:
    where = place(url.format(tmp_path))
    try:
        save_step(where, JOB, OLD, 10)
        checkpoint.mark_best(save_step(where, JOB, NEW, 20))
        assert [str(p) for p in checkpoint.checkpoints(str(where))] == [
            str(where / f"step-000000{n}") for n in (10, 20)
        ]
        assert checkpoint.find(f"{where}/best") == checkpoint.find(f"{where}/step-00000020") == checkpoint.find(where)
        assert checkpoint.verify(where).step == 20
        assert checkpoint.inspect(where).path == where / "step-00000020"
    finally:
        fsspec.filesystem("memory").store.clear()


def test_a_scheme_that_nothing_serves_is_told_and_settings_in_a_url_are_refused() -> None:
    with pytest.raises(CheckpointError, match="cannot open nosuch://bucket/a"):
        checkpoint.load("nosuch://bucket/a")
    with pytest.raises(CheckpointError, match="no settings behind"):
        place("s3://bucket/a?region=eu")
    with pytest.raises(CheckpointError, match="names no bucket"):
        place("s3://")


def test_a_bucket_of_google_that_cannot_be_reached_is_told_soon(monkeypatch: pytest.MonkeyPatch) -> None:
    # Left to itself, pyarrow tries for a quarter of an hour, in which Ctrl-C does nothing.
    monkeypatch.setenv("CLOUD_STORAGE_EMULATOR_ENDPOINT", "http://127.0.0.1:9")
    monkeypatch.setattr(places, "GCS_PATIENCE_S", 0.2)
    with pytest.raises(CheckpointError, match=r"cannot read gs://nobody/models") as told:
        checkpoint.find("gs://nobody/models")
    assert "error_info" not in str(told.value)


def test_a_url_is_never_a_file_of_this_machine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    url = place("gs://bucket/models")
    for use in (url.mkdir, url.exists, url.read_bytes, lambda: os.listdir(url)):
        with pytest.raises(TypeError, match="gs://bucket/models is not a file of this machine"):
            use()
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("scenario", [next_step, same_step, best_and_retention])
def test_a_process_killed_at_any_request_leaves_the_old_or_the_new_checkpoint(
    scenario: Callable[[ObjectFiles], None],
) -> None:
    base, files = store()
    checkpoint.mark_best(save(OLD, 10, files), files)
    whole, files = store(dict(base.objects))
    old, before = checkpoint.digest(place(RUN), files=files), whole.count
    scenario(files)
    new, requests = checkpoint.digest(place(RUN), files=files), whole.count - before
    seen = set()
    for k, late in [(k, late) for k in range(1, requests + 1) for late in (False, True)]:
        killed, files = store(dict(base.objects), kill_at=k, late=late)
        with pytest.raises(Killed):
            scenario(files)
        _, files = store(killed.objects)
        digest = checkpoint.digest(place(RUN), files=files)
        assert digest in (old, new), f"request {k}, {killed.log[-1]}"
        for path in checkpoint.checkpoints(place(RUN), files):
            checkpoint.verify(path, threads=1, files=files)
        assert checkpoint.best(place(RUN), files) in checkpoint.checkpoints(place(RUN), files)
        seen.add(digest)
        save(NEW, 30, files)  # the next save puts everything right
        there = {n.split("/")[3] for n in killed.objects}
        assert there == {p.name for p in checkpoint.checkpoints(place(RUN), files)} | {"best"}
    assert seen == {old, new}


@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EIO, errno.EACCES])
def test_a_store_that_refuses_for_good_is_told_and_leaves_the_last_good_checkpoint(code: int) -> None:
    base, files = store()
    old = save(OLD, 10, files)
    whole, files = store(dict(base.objects))
    save(NEW, 20, files)
    for k in range(1, whole.requests + 1):

        def refuse(request: str, name: str, count: int, k: int = k) -> None:
            if count >= k:
                raise OSError(code, "refused", name)

        fs, files = store(dict(base.objects), fail=refuse)
        told = ""
        try:
            path = save(NEW, 20, files)
        except SaveError as e:
            told = str(e)
        fs.fail = None
        # From the put of the manifest on it is saved, whatever cannot be cleaned up behind it.
        assert ("bucket/runs/a/step-00000020/manifest.json" in fs.objects) == (not told)
        if told:
            assert "cannot save the checkpoint faulty://bucket/runs/a/step-00000020: refused" in told
            assert checkpoint.latest(place(RUN), files) == old
        else:
            assert checkpoint.latest(place(RUN), files) == path
        save(NEW, 20, files)
        assert len(checkpoint.checkpoints(place(RUN), files)) == 2


def test_a_store_that_is_busy_now_and_then_is_asked_again() -> None:
    fs, files = store(fail=Busy(2))
    path = save(NEW, 20, files)
    rows = MemoryRows(JOB.resolved_tables())
    checkpoint.load(path, files=files).restore_rows(rows)
    assert global_rows(rows, "user") == global_rows(NEW, "user")
    assert fs.requests > 30


def test_a_request_is_made_as_often_as_told_and_no_more() -> None:
    # Retries of an object inside those of its file once made 25 attempts, and minutes, of 5.
    def fails(request: str, name: str, count: int) -> None:
        if request == "put" and "rows-00000" in name:
            raise unavailable(request, name)

    fs = FaultyObjects(fail=fails)
    with pytest.raises(SaveError, match="503 Slow Down"):
        save(NEW, 20, ObjectFiles(fs, attempts=4, pause_s=0))
    assert sum(line.startswith("put") and "rows-00000" in line for line in fs.log) == 4


def test_a_store_that_cannot_be_read_is_told_by_url_and_answer() -> None:
    fs, files = store()
    path = save(NEW, 20, files)

    def fails(request: str, name: str, count: int) -> None:
        raise unavailable(request, name)

    fs.fail = fails
    for read in (checkpoint.load, checkpoint.verify, checkpoint.inspect, checkpoint.digest):
        with pytest.raises(CheckpointError, match=r"cannot read faulty://bucket/runs/a\S*: 503 Slow Down"):
            read(path, files=files)
    for look in (checkpoint.find, checkpoint.latest, checkpoint.best, checkpoint.checkpoints):
        with pytest.raises(CheckpointError, match=r"cannot read faulty://bucket/runs/a\S*: 503 Slow Down"):
            look(place(RUN), files)


def test_objects_too_large_for_one_request_are_sent_in_parts_and_begun_anew_after_one_failed(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("satrap.checkpoint.objects.WHOLE_BYTES", 100)
    failed: list[str] = []

    def fails_once(request: str, name: str, count: int) -> None:
        if request == "part" and "rows" in name and name not in failed:
            failed.append(name)
            raise unavailable(request, name)

    fs, files = store(fail=fails_once)
    path = save(NEW, 20, files)
    assert failed
    assert checkpoint.verify(path, files=files).tables[0].rows == 6
    assert any(line.startswith("part") and "rows" in line for line in fs.log)


def test_an_object_that_is_not_there_as_it_was_put_is_noticed_before_it_is_published() -> None:
    fs, files = store()
    real = fs.pipe_file

    def cuts(path: str, value: bytes, **options: Any) -> None:
        real(path, value[:-1] if "rows" in path else value, **options)

    fs.pipe_file = cuts
    with pytest.raises(SaveError, match=r"was put with \d+ bytes, and is \d+ bytes"):
        save(NEW, 20, files)
    assert not fs.objects


@pytest.mark.parametrize("name", ["manifest.json", "dense.safetensors", "rows-00001.satrap"])
def test_every_object_flipped_cut_or_deleted_is_refused_by_its_url(name: str) -> None:
    fs, files = store()
    path = save(NEW, 20, files)
    key = f"bucket/runs/a/step-00000020/{name}"
    good = fs.objects[key]
    for bad in (
        good[:-1],
        good[: len(good) // 2] + bytes([good[len(good) // 2] ^ 1]) + good[len(good) // 2 + 1 :],
        b"",
    ):
        fs.objects[key] = bad
        with pytest.raises(CheckpointError, match=f"{path / name}"):
            checkpoint.verify(path, files=files)
    del fs.objects[key]
    with pytest.raises(CheckpointError, match=name):
        checkpoint.verify(path, files=files)


def test_reading_by_ranges_gives_every_byte_whatever_is_asked_for() -> None:
    fs, files = store()
    data = bytes(range(256)) * 100
    fs.objects["bucket/x"] = data
    reader = files.open(place("faulty://bucket/x"))
    for size in (1, 7, 5000, RANGE_BYTES):
        reader.seek(size)
        found = bytearray()
        while n := reader.readinto(buffer := memoryview(bytearray(size))):
            found += buffer[:n]
        assert found == data[size:]


def test_a_run_folder_says_where_its_checkpoints_are(tmp_path: Path) -> None:
    fs = FaultyObjects()
    checkpoint.use_filesystem("faulty://pointed", fs, pause_s=0)
    run = tmp_path / "run"
    where = checkpoint.kept_at(run, "faulty://pointed/models")
    assert str(where) == "faulty://pointed/models/run"
    checkpoint.keep_at(run, where)
    path = save_step(where, JOB, NEW, 20)
    assert (run / "checkpoints").read_text() == "faulty://pointed/models/run\n"
    assert checkpoint.latest(run) == checkpoint.find(run) == checkpoint.find(run / "latest") == path
    moved = run.rename(tmp_path / "moved")
    assert checkpoint.kept_at(moved, None) == where
    (moved / "checkpoints").write_bytes(b"\xff\xfe")
    with pytest.raises(CheckpointError, match="says where the checkpoints are"):
        checkpoint.latest(moved)
