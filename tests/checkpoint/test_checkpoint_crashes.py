"""The process dies, the power goes, or the disk refuses at any single operation: the old checkpoint or the new one is
there, whole, and never a mix. The file layer under the saver is `satrap.testing.faulty_files`."""

from __future__ import annotations

import errno
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from memory_rows import MemoryRows, filled, job_of, save_step

from satrap import checkpoint
from satrap.durable.files import Files
from satrap.errors import CheckpointError
from satrap.schema import Adagrad, Job, Table
from satrap.testing.faulty_files import FaultyFiles, Killed

JOB = job_of(Table(name="user", dim=2, optimizer=Adagrad()), partitions=2)
OLD, NEW = filled(JOB, 6, seed=1), filled(JOB, 6, seed=2)
SURVIVES = {"killed": 1.0, "power lost, names undone": 0.0, "power lost, half the names undone": 0.5}


@contextmanager
def faulty(**options: object) -> Iterator[FaultyFiles]:
    files = FaultyFiles(**options)  # type: ignore[arg-type]
    try:
        yield files
    finally:
        files.close()


def save(folder: Path, rows: MemoryRows, step: int, files: Files) -> Path:
    return save_step(folder, JOB, rows, step, files=files)


def first(folder: Path, files: Files) -> None:
    save(folder, NEW, 20, files)


def next_step(folder: Path, files: Files) -> None:
    save(folder, NEW, 20, files)


def same_step(folder: Path, files: Files) -> None:
    save(folder, NEW, 10, files)


def best_and_retention(folder: Path, files: Files) -> None:
    checkpoint.mark_best(save(folder, NEW, 20, files), files)
    checkpoint.retain(folder, 1, files)


@pytest.mark.parametrize("survives", SURVIVES.values(), ids=SURVIVES)
@pytest.mark.parametrize("scenario", [first, next_step, same_step, best_and_retention])
def test_a_crash_at_any_operation_leaves_the_old_or_the_new_checkpoint(
    scenario: Callable[[Path, Files], None], survives: float, tmp_path: Path
) -> None:
    base = tmp_path / "base"
    base.mkdir()
    if scenario is not first:
        checkpoint.mark_best(save(base, OLD, 10, checkpoint.LOCAL))
    with faulty() as files:
        scenario(_copy(base, tmp_path / "whole"), files)
        operations = files.count
    old = checkpoint.latest(base)
    new = checkpoint.latest(tmp_path / "whole")
    assert new is not None
    allowed = {checkpoint.digest(new)} | ({checkpoint.digest(old)} if old else {None})
    seen = set()
    for k in range(1, operations + 1):
        work = _copy(base, tmp_path / str(k))
        with faulty(kill_at=k) as files:
            with pytest.raises(Killed):
                scenario(work, files)
            if survives < 1:
                files.lose_power(survives)
            found = checkpoint.latest(work)
            digest = checkpoint.digest(found) if found else None
            assert digest in allowed, f"operation {k}, {files.log[-1]}: {found}"
            for other in checkpoint.checkpoints(work)[:-1]:
                checkpoint.verify(other, threads=1)
            assert scenario is first or checkpoint.best(work) in checkpoint.checkpoints(work)
            seen.add(digest)
            if k % 11 == 0:  # the next save puts everything right
                save(work, NEW, 30, checkpoint.LOCAL)
                assert not [p for p in work.iterdir() if p.name.startswith(".")]
        shutil.rmtree(work)
    # With power lost, names may be undone up to the very last operation; without, both outcomes must have occurred.
    assert seen == allowed or survives < 1


def test_power_loss_right_after_save_returned_keeps_the_new_checkpoint(tmp_path: Path) -> None:
    # The folder itself was new: forgetting to sync its parent loses every checkpoint in it.
    for step, folder in ((10, tmp_path / "run" / "checkpoints"), (10, tmp_path / "run" / "checkpoints")):
        with faulty() as files:
            path = save(folder, NEW, step, files)
            files.lose_power(0.0)
        checkpoint.verify(path)


@pytest.mark.parametrize("step", [10, 20], ids=["same step", "next step"])
def test_a_disk_that_refuses_any_operation_leaves_the_last_good_checkpoint_and_no_leftovers(
    step: int, tmp_path: Path
) -> None:
    base = tmp_path / "base"
    base.mkdir()
    old = checkpoint.digest(save(base, OLD, 10, checkpoint.LOCAL))
    with faulty() as files:
        new = checkpoint.digest(save(_copy(base, tmp_path / "whole"), NEW, step, files))
        log = files.log
    for k in range(1, len(log) + 1):

        def refuse(operation: str, path: Path, count: int, k: int = k) -> None:
            if count == k:
                raise OSError((errno.ENOSPC, errno.EIO, errno.EACCES)[k % 3], "refused", str(path))

        work = _copy(base, tmp_path / str(k))
        with faulty(fail=refuse) as files:
            failed = ""
            try:
                save(work, NEW, step, files)
            except CheckpointError as e:
                failed = str(e)
        assert not failed or ("refused" in failed and str(work) in failed)
        found = checkpoint.latest(work)
        assert found is not None
        assert checkpoint.digest(found) in ({old, new} if failed else {new}), log[k - 1]
        # Only what is of no more use than to be cleaned up at the next save may stay: the old one of the same step,
        # when it was its own removal that was refused.
        hidden = [p.name for p in work.iterdir() if p.name.startswith(".")]
        if failed:
            assert not [n for n in hidden if ".tmp-" in n], log[k - 1]
        else:
            assert len(hidden) <= 1
        if hidden or k % 11 == 0:
            save(work, NEW, step + 1, checkpoint.LOCAL)
            assert not [p for p in work.iterdir() if p.name.startswith(".")]
        shutil.rmtree(work)


def test_a_full_disk_is_told_with_bytes_needed_and_free_before_anything_is_written(tmp_path: Path) -> None:
    old = save(tmp_path, OLD, 10, checkpoint.LOCAL)
    with faulty(free=1234) as files:
        with pytest.raises(CheckpointError) as told:
            save(tmp_path, NEW, 20, files)
        assert files.count == 0
    message = str(told.value)
    assert "No space left" in message
    assert "1,234 bytes" in message
    assert str(old) in message
    needed = int(message.split("it needs ")[1].split(" bytes")[0].replace(",", ""))
    assert needed >= sum(p.stat().st_size for p in old.iterdir())


def test_a_folder_that_cannot_be_written_is_told(tmp_path: Path, job: Job, rows: MemoryRows) -> None:
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(CheckpointError, match=r"cannot save the checkpoint .*file.*There is no earlier checkpoint"):
        save_step(tmp_path / "file" / "checkpoints", job, rows, 1)


def test_a_failure_in_one_thread_ends_the_save(tmp_path: Path) -> None:
    job = job_of(Table(name="user", dim=2, optimizer=Adagrad()), partitions=16)
    rows = filled(job, 200)

    def refuse(operation: str, path: Path, count: int) -> None:
        if path.name == "rows-00009.satrap" and operation == "write":
            raise OSError(errno.ENOSPC, "No space left on device", str(path))

    with faulty(fail=refuse) as files:
        with pytest.raises(CheckpointError, match=r"rows-00009\.satrap.*it needs .* bytes, free there: "):
            save_step(tmp_path, job, rows, 1, files=files, threads=4)
        assert list(tmp_path.iterdir()) == []


def _copy(base: Path, target: Path) -> Path:
    shutil.copytree(base, target)
    return target
