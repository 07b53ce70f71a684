"""The folder of checkpoints: which is newest, which is best, what is kept, what a dead process left."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
from memory_rows import MemoryRows

from satrap import checkpoint
from satrap.errors import CheckpointError
from satrap.schema import Job

Save = Callable[..., Path]


@pytest.fixture
def run(tmp_path: Path, job: Job, rows: MemoryRows, save: Save) -> Path:
    """A run folder with checkpoints of steps 1 to 5."""
    for step in range(1, 6):
        save(tmp_path / "checkpoints", job, rows, step)
    return tmp_path


def steps(run: Path) -> list[int]:
    return [int(p.name[5:]) for p in checkpoint.checkpoints(run)]


def test_the_newest_is_found_from_the_run_folder_and_from_its_checkpoints(run: Path) -> None:
    newest = run / "checkpoints" / "step-00000005"
    assert checkpoint.latest(run) == checkpoint.latest(run / "checkpoints") == newest
    assert checkpoint.find(run) == checkpoint.find(newest) == newest
    assert checkpoint.load(run).step == 5


def test_an_empty_or_missing_folder_has_no_newest(tmp_path: Path) -> None:
    assert checkpoint.latest(tmp_path) is None
    assert checkpoint.latest(tmp_path / "nowhere") is None


def test_newest_is_by_step_not_by_name(tmp_path: Path, job: Job, rows: MemoryRows, save: Save) -> None:
    save(tmp_path, job, rows, 99_999_999)
    assert checkpoint.latest(save(tmp_path, job, rows, 100_000_000).parent) == tmp_path / "step-100000000"


def test_a_directory_without_manifest_is_not_a_checkpoint(run: Path) -> None:
    (run / "checkpoints" / "step-00000009").mkdir()
    assert steps(run)[-1] == 5


def test_retention_keeps_the_newest_and_the_best(run: Path) -> None:
    checkpoint.mark_best(run / "checkpoints" / "step-00000002")
    gone = checkpoint.retain(run, 2)
    assert [p.name[-1] for p in gone] == ["1", "3"]
    assert steps(run) == [2, 4, 5]
    assert checkpoint.best(run) == run / "checkpoints" / "step-00000002"
    assert sorted(p.name for p in (run / "checkpoints").iterdir())[0] == "best"  # nothing hidden is left


def test_retention_of_more_than_there_are_removes_nothing(run: Path) -> None:
    assert checkpoint.retain(run, 9) == []
    assert steps(run) == [1, 2, 3, 4, 5]


def test_best_is_none_until_named_and_an_error_when_it_is_gone(run: Path) -> None:
    assert checkpoint.best(run) is None
    (run / "checkpoints" / "best").write_text("step-00000077\n")
    with pytest.raises(CheckpointError, match="names 'step-00000077', which is not a checkpoint"):
        checkpoint.best(run)
    (run / "checkpoints" / "best").write_text("../../etc")
    with pytest.raises(CheckpointError, match="which is not a checkpoint"):
        checkpoint.best(run)


def test_what_a_dead_process_left_goes_at_the_next_save_and_nothing_else(
    run: Path, job: Job, rows: MemoryRows, save: Save
) -> None:
    folder = run / "checkpoints"
    for name in (".step-00000006.tmp-0123abcd", ".step-00000001.tmp-ffffffff"):
        (folder / name).mkdir()
        (folder / name / "rows-00001.satrap").write_bytes(b"half")
    (folder / ".best.tmp-0123abcd").write_bytes(b"st")
    mine = [".step-00000006.tmp-mine", ".git", "step-00000006.tmp-0123abcd", "my.tmp-0123abcd", ".step-6.tmp-0123abcd"]
    for name in mine:
        (folder / name).mkdir()
    save(folder, job, rows, 6)
    left = {p.name for p in folder.iterdir()}
    assert left == {*mine, *(f"step-0000000{i}" for i in range(1, 7))}


def test_saving_a_step_again_replaces_its_checkpoint(run: Path, job: Job, rows: MemoryRows, save: Save) -> None:
    path = save(run / "checkpoints", job, rows, 5, extra={"again": True})
    assert checkpoint.load(path).extra == {"again": True}
    assert steps(run) == [1, 2, 3, 4, 5]
    assert not [p for p in (run / "checkpoints").iterdir() if p.name.startswith(".")]


def test_the_old_checkpoint_counts_while_its_successor_has_not_taken_the_name(run: Path) -> None:
    folder = run / "checkpoints"
    (folder / "step-00000005").rename(folder / ".step-00000005.old-0123abcd")
    assert checkpoint.latest(run) == folder / ".step-00000005.old-0123abcd"
    assert checkpoint.retain(run, 9) == []
    assert checkpoint.latest(run) == folder / "step-00000005"
    checkpoint.verify(folder / "step-00000005")


def test_a_run_lists_its_checkpoints_with_what_they_are(run: Path, job: Job, rows: MemoryRows, save: Save) -> None:
    figures = {"evaluated_at": 6, "valid": {"a": {"auc": 0.5, "log_loss": 1.0}, "b": {"auc": 0.7}}}
    checkpoint.mark_best(save(run / "checkpoints", job, rows, 6, extra={"run": figures}))
    save(run / "checkpoints", job, rows, 7, extra={"run": {**figures, "evaluated_at": 6}})
    (run / "checkpoints" / "step-00000003" / "manifest.json").write_text("{")
    listed = checkpoint.kept(run)
    assert [k.step for k in listed] == [1, 2, 3, 4, 5, 6, 7]
    assert [k.step for k in listed if k.best] == [6]
    assert [k.step for k in listed if k.newest] == [7]
    assert [k.step for k in listed if k.problem] == [3]
    assert (listed[5].valid, listed[6].valid) == ({"auc": 0.6}, {})
    assert listed[6].rows == checkpoint.inspect(run).rows > 0
    assert listed[6].bytes < checkpoint.inspect(run).bytes_total
    (run / "checkpoints" / "best").write_text("step-00000077\n")
    assert not any(k.best for k in checkpoint.kept(run))


def test_a_checkpoint_is_named_through_its_run(run: Path) -> None:
    folder = run / "checkpoints"
    checkpoint.mark_best(folder / "step-00000002")
    assert checkpoint.find(run / "best") == checkpoint.find(folder / "best") == folder / "step-00000002"
    assert checkpoint.find(run / "latest") == folder / "step-00000005"
    assert checkpoint.find(run / "step-00000003") == folder / "step-00000003"
    with pytest.raises(CheckpointError, match="there is no such directory"):
        checkpoint.find(run / "step-00000044")
    (folder / "best").unlink()
    with pytest.raises(CheckpointError, match=r"does not set train\.checkpoint\.best\. The newest is "):
        checkpoint.find(run / "best")
