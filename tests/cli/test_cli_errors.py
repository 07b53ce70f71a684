"""Everything a user can get wrong, and what the machine can do to them: one clear message, an exit code, no traceback.

A case that needs a process of its own has one: threads that are under way must not keep it from ending.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from cli_command import JOB, TIMEOUT_S, Outcome, Satrap, call, click_table, environment

from satrap.cli import validate


def message(outcome: Outcome) -> str:
    """The error as it was printed, after checking that it is one message and no traceback."""
    assert outcome.code == 1, f"exit code {outcome.code}\n{outcome.out}\n{outcome.err}"
    assert "Traceback" not in outcome.err + outcome.out
    assert outcome.err.count("error: ") == 1, outcome.err
    return outcome.err


@pytest.fixture
def job(tmp_path: Path, clicks: Path) -> Path:
    path = tmp_path / "job.yaml"
    path.write_text(JOB.format(data=clicks))
    return path


def test_a_wrong_column_is_named_with_the_nearest_one(satrap: Satrap, job: Path) -> None:
    said = message(satrap("train", job, "features.user.column=usr", code=1))
    assert "there is no column 'usr', which features.user reads; did you mean 'user'?" in said
    assert "train.parquet" in said


def test_a_wrong_type_is_named_with_what_is_needed(called: Satrap, job: Path) -> None:
    said = message(called("train", job, "features.price.column=user", code=1))
    assert "column 'user' holds text (string); features.price (numeric) needs numbers" in said


def test_a_label_that_is_not_zero_or_one_is_named_with_its_row(called: Satrap, job: Path, tmp_path: Path) -> None:
    table = click_table(1000)
    labels = table["click"].to_numpy().copy()
    labels[777] = 2
    bad = table.set_column(table.column_names.index("click"), "click", pa.array(labels))
    pq.write_table(bad, tmp_path / "bad.parquet")
    said = message(called("train", job, "data.train=bad.parquet", code=1))
    assert "bad.parquet" in said
    assert "'click'" in said
    assert "777" in said
    assert "is 2" in said or "holds 2" in said or "got 2" in said


def test_a_loss_that_is_not_finite_names_step_and_feature_and_spares_the_checkpoint(
    satrap: Satrap, job: Path, tmp_path: Path
) -> None:
    # Row 700 holds a number that float32 holds, but no sum of products does. Read in file order, so training is under
    # way and a checkpoint is there when it comes.
    table = click_table(1000)
    price = table["price"].to_numpy().copy()
    price[700:710] = 3e38
    pq.write_table(table.set_column(2, "price", pa.array(price)), tmp_path / "bad.parquet")
    settings = [
        "data.shuffle_rows=0",
        "data.valid=0",
        "train.checkpoint.every_steps=2",
        "features.price.transform=none",
    ]
    said = message(satrap("train", job, "data.train=bad.parquet", *settings, "--run-dir", "run", code=1))
    assert "price" in said
    assert "step" in said
    assert sorted(p.name for p in (tmp_path / "run/checkpoints").glob("step-*"))
    assert "step" in call(tmp_path, "inspect", "run").out


def test_an_unknown_key_is_named_with_the_nearest_one(satrap: Satrap, job: Path) -> None:
    job.write_text(job.read_text().replace("batch_size", "batchsize"))
    for command in ("train", "validate"):
        said = message(satrap(command, job, code=1))
        assert "job.yaml: train.batchsize: unknown key 'batchsize'; did you mean 'batch_size'?" in said


def test_an_unknown_override_is_named_with_the_nearest_one(called: Satrap, job: Path) -> None:
    said = message(called("train", job, "train.epoch=3", code=1))
    assert "train.epoch: unknown key 'epoch'; did you mean 'epochs'?" in said


@pytest.mark.parametrize("damage", ["truncated", "garbage", "empty"])
def test_an_unreadable_file_is_named(damage: str, called: Satrap, job: Path, clicks: Path, tmp_path: Path) -> None:
    whole = (clicks / "train.parquet").read_bytes()
    content = {"truncated": whole[: len(whole) // 2], "garbage": os.urandom(4096), "empty": b""}[damage]
    (tmp_path / "bad.parquet").write_bytes(content)
    assert "bad.parquet" in message(called("train", job, "data.train=bad.parquet", code=1))


def test_a_file_damaged_in_the_middle_is_named_when_training_reaches_it(
    satrap: Satrap, job: Path, clicks: Path, tmp_path: Path
) -> None:
    # The header of a page in the fourth row group: the file opens, and its columns are as they should be.
    content = bytearray((clicks / "train.parquet").read_bytes())
    page = pq.read_metadata(clicks / "train.parquet").row_group(3).column(0).data_page_offset
    content[page : page + 20] = b"\xff" * 20
    (tmp_path / "bad.parquet").write_bytes(bytes(content))
    assert "bad.parquet" in message(satrap("train", job, "data.train=bad.parquet", code=1))


def test_a_file_that_is_not_there_is_named_with_the_nearest_one(called: Satrap, job: Path, clicks: Path) -> None:
    said = message(called("train", job, f"data.train={clicks}/trian.parquet", code=1))
    assert "trian.parquet" in said
    assert "did you mean 'train.parquet'?" in said


def test_a_job_file_that_is_not_there_is_named_with_the_nearest_one(called: Satrap, job: Path) -> None:
    said = message(called("train", "jobb.yaml", code=1))
    assert "there is no job file jobb.yaml; did you mean 'job.yaml'?" in said


def test_a_label_column_that_is_not_there_is_named_with_the_nearest_one(called: Satrap, clicks: Path) -> None:
    said = message(called("train", clicks / "train.parquet", "--label", "clik", code=1))
    assert "did you mean 'click'?" in said


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["train"], "give a job file, or data files and --label"),
        (["train", "a.parquet"], "--label is missing: name the column of a.parquet"),
        (["train", "job.yaml", "--label", "click"], "the job file job.yaml already says what to train; --label cannot"),
        (["train", "job.yaml", "--resume", "run"], "--resume already says what to train; a job file cannot"),
        (["train", "a.yaml", "b.yaml"], "give one job file, not 2"),
    ],
)
def test_words_that_do_not_go_together_are_wrong_usage(words: list[str], said: str, tmp_path: Path) -> None:
    outcome = call(tmp_path, *words, code=2)
    assert said in outcome.err
    assert "See: satrap train --help" in outcome.err


@pytest.mark.parametrize(
    ("words", "option"),
    [
        (["predict", "run", "clicks.parquet", "--out", "no/scores.parquet"], "--out no/scores.parquet"),
        (["calibrate", "--out", "no/constants.yaml"], "--out no/constants.yaml"),
    ],
)
def test_a_file_that_has_no_folder_to_lie_in_is_refused_before_any_work(
    words: list[str], option: str, tmp_path: Path
) -> None:
    # The scores were computed first, and then it was called a bug in satrap.
    outcome = call(tmp_path, *words, code=2)
    assert f"{option}: the folder no does not exist; make it, or choose another" in outcome.err
    assert not (tmp_path / "no").exists()


def test_a_data_file_in_place_of_a_job_file_is_called_none(called: Satrap, clicks: Path) -> None:
    said = message(called("calibrate", clicks / "train.parquet", code=1))
    assert "train.parquet is not a job file: a job file is YAML" in said


@pytest.mark.parametrize("only", [0, 1])
def test_labels_of_one_class_are_warned_of_once(only: int, called: Satrap, job: Path, tmp_path: Path) -> None:
    # Training went on for epochs with an AUC of nan, and nobody was told why.
    table = click_table(1000)
    one = table.set_column(table.column_names.index("click"), "click", pa.array([only] * 1000, pa.int8()))
    pq.write_table(one, tmp_path / "one.parquet")
    words = ["train", job, "data.train=one.parquet", "data.valid=0", "train.epochs=2"]
    for run, more in (("a", []), ("b", ["train.max_steps=3"])):
        err = called(*words, *more, "--run-dir", run).err
        rows = "300" if more else "1,000"
        assert err.count("warning: ") == 1, err
        assert f"warning: the label 'click' is {only} in all {rows} rows trained on" in err
        assert (tmp_path / run / "metrics.jsonl").read_text().count('"kind":"warning"') == 1
    assert "warning" not in called(*words, "--quiet", "--run-dir", "c").err


def test_labels_of_both_classes_are_not_warned_of(called: Satrap, job: Path) -> None:
    assert "warning" not in called("train", job).err


def test_a_checkpoint_with_a_flipped_byte_is_refused_by_file(called: Satrap, job: Path, tmp_path: Path) -> None:
    call(tmp_path, "train", job, "--run-dir", "run", "train.max_steps=3")
    victim = max((tmp_path / "run/checkpoints").rglob("*.safetensors"), key=lambda p: p.stat().st_size)
    content = bytearray(victim.read_bytes())
    content[-1] ^= 1
    victim.write_bytes(bytes(content))
    assert victim.name in message(called("evaluate", "run", job, code=1))


def in_a_small_disk(home: Path, size_kib: int, *words: str | Path) -> subprocess.CompletedProcess[str]:
    """Runs satrap with `full/` as a file system of its own, in a mount namespace that ends with the process."""
    script = f'mount -t tmpfs -o size={size_kib}k tmpfs full && exec "$@" && exit; exit 99'
    command = ["unshare", "--map-root-user", "--mount", "sh", "-c", script, "sh", sys.executable, "-m", "satrap"]
    return subprocess.run(
        [*command, *map(str, words)],
        cwd=home,
        env=environment(),
        capture_output=True,
        text=True,
        timeout=TIMEOUT_S,
        check=False,
    )


@pytest.fixture
def small_disk(tmp_path: Path) -> Path:
    (tmp_path / "full").mkdir()
    if shutil.which("unshare") is None or in_a_small_disk(tmp_path, 64, "--version").returncode != 0:
        pytest.skip("this machine lets no process mount a small file system of its own")
    return tmp_path


@pytest.mark.parametrize("size_kib", [16, 200])
def test_a_full_disk_is_said_in_words(size_kib: int, small_disk: Path, job: Path) -> None:
    done = in_a_small_disk(small_disk, size_kib, "train", job, "--run-dir", "full/run", "default_dim=512")
    said = message(Outcome(done.returncode, done.stdout, done.stderr))
    assert "full/run" in said
    assert "No space left on device" in said


def test_a_full_disk_at_prediction_is_said_in_words(small_disk: Path, job: Path, clicks: Path) -> None:
    call(small_disk, "train", job, "--run-dir", "run", "train.max_steps=2")
    words = ["predict", "run", clicks / "test.parquet", "--out", "full/scores.csv", "--keep", "user"]
    done = in_a_small_disk(small_disk, 8, *words)
    assert "disk is full" in message(Outcome(done.returncode, done.stdout, done.stderr))


def test_an_exception_nobody_expected_is_called_a_bug(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    def broken(path: Path) -> None:
        raise ValueError("boom")

    monkeypatch.setattr(validate, "load_job", broken)
    outcome = call(tmp_path, "validate", "job.yaml", code=1)
    assert "ValueError: boom" in message(outcome)
    assert "This is a bug in satrap" in outcome.err
    assert "Traceback" in call(tmp_path, "validate", "job.yaml", "--debug", code=1).err


def test_debug_shows_the_traceback_of_an_expected_error_too(tmp_path: Path) -> None:
    outcome = call(tmp_path, "train", "none.yaml", "--debug", code=1)
    assert "Traceback" in outcome.err
    assert "JobError" in outcome.err


def test_ctrl_c_outside_training_ends_with_its_exit_code(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    def interrupted(path: Path) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(validate, "load_job", interrupted)
    assert "interrupted" in call(tmp_path, "validate", "job.yaml", code=130).err
