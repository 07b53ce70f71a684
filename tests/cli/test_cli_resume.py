"""Ctrl-C saves and ends; `--resume` goes on, and arrives at the very model of a run that nobody interrupted."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from cli_command import JOB, TIMEOUT_S, Satrap, call, environment


@pytest.fixture
def job(tmp_path: Path, clicks: Path) -> Path:
    path = tmp_path / "job.yaml"
    path.write_text(JOB.format(data=clicks))
    return path


def interrupt_when_it_trains(home: Path, *words: str | Path) -> tuple[int, str, str]:
    """Starts a run into `run/`, sends SIGINT once its log has lines, and returns exit code and output."""
    command = [sys.executable, "-m", "satrap", *map(str, words), "--run-dir", "run"]
    process = subprocess.Popen(
        command, cwd=home, env=environment(), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    log = home / "run" / "metrics.jsonl"
    ends = time.monotonic() + TIMEOUT_S
    while time.monotonic() < ends and process.poll() is None and not (log.exists() and log.read_text().count("\n") > 3):
        time.sleep(0.02)
    assert process.poll() is None, process.communicate()
    os.kill(process.pid, signal.SIGINT)
    out, err = process.communicate(timeout=TIMEOUT_S)
    return process.returncode, out, err


def test_an_interrupted_run_resumes_to_the_bit(job: Path, called: Satrap, tmp_path: Path) -> None:
    # With staleness, a checkpoint drains the pipeline, and so a run with one more checkpoint is another run;
    # synchronous training has no such excuse.
    settings = ["train.staleness=0", "train.epochs=60", "train.log_every_steps=10", "data.valid=0"]
    code, out, err = interrupt_when_it_trains(tmp_path, "train", job, *settings)
    assert code == 130, out + err
    assert "satrap train --resume run" in out
    assert "Traceback" not in err
    step = json.loads(called("inspect", "run", "--json").out)["step"]
    assert 0 < step < 60 * 30
    called("train", "--resume", "run")
    called("train", job, *settings, "--run-dir", "whole")
    resumed, whole = (json.loads(called("inspect", x, "--json").out)["step"] for x in ("run", "whole"))
    assert resumed == whole == 60 * 30
    assert called("inspect", "run", "--digest").out == called("inspect", "whole", "--digest").out


def test_a_finished_run_can_be_made_longer(job: Path, called: Satrap, tmp_path: Path) -> None:
    called("train", job, "--run-dir", "run", "train.staleness=0")
    called("train", "--resume", "run", "--epochs", "2")
    called("train", job, "--run-dir", "whole", "train.staleness=0", "--epochs", "2")
    assert called("inspect", "run", "--digest").out == called("inspect", "whole", "--digest").out


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        (
            [],
            "Finished already at epoch 1, step 28: nothing was left to train. To train on: satrap train --resume run "
            "train.epochs=2",
        ),
        (
            ["train.max_steps=3"],
            "Finished already at epoch 0, step 3: nothing was left to train. To train on: satrap "
            "train --resume run train.max_steps=6",
        ),
    ],
)
def test_resuming_a_finished_run_says_so_and_how_to_train_on(
    settings: list[str], said: str, job: Path, called: Satrap
) -> None:
    # It drew the table of results again, with samples/s of n/a, and said nothing.
    called("train", job, "--run-dir", "run", *settings)
    out = called("train", "--resume", "run").out
    assert said in out
    assert "n/a" not in out
    on = said.partition("satrap train ")[2].split()
    assert "Finished already" not in called("train", *on).out


def test_a_run_resumes_with_its_rows_in_another_format(job: Path, called: Satrap) -> None:
    # Bug: a format can be chosen at the start of a run alone, and a table that has grown too large keeps its own.
    called("train", job, "--run-dir", "run")
    called("train", "--resume", "run", "--epochs", "2", "default_format=int8")
    tables = json.loads(called("inspect", "run", "--json").out)["tables"]
    assert {t["format"] for t in tables} == {"int8"}
    assert all(t["rows"] > 0 for t in tables)


def test_resuming_with_another_model_is_refused(job: Path, called: Satrap) -> None:
    called("train", job, "--run-dir", "run", "train.max_steps=2")
    outcome = called("train", "--resume", "run", "model.hidden=[7]", code=1)
    assert "model.hidden.0: a resumed run keeps its data, features, tables and model" in outcome.err


def test_resuming_something_that_is_no_run_is_refused(called: Satrap, tmp_path: Path) -> None:
    assert "there is no such run folder" in call(tmp_path, "train", "--resume", "nowhere", code=1).err
