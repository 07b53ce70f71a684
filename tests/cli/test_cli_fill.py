"""`satrap fill` as a command."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from cli_command import JOB, Satrap


@pytest.fixture
def job(tmp_path: Path, clicks: Path) -> Path:
    path = tmp_path / "job.yaml"
    path.write_text(JOB.format(data=clicks))
    return path


def test_tables_are_filled_and_what_they_took_is_told_beside_the_plan(job: Path, called: Satrap) -> None:
    done = called("fill", job, "tables.user.format=int8", "--rows", "user=20k", "--rows", "1000")
    assert "user: 20,000 rows of 8 int8 in " in done.out
    assert "item: 1,000 rows of 8 fp32 in " in done.out
    assert " planned; memory grew by " in done.out
    told = json.loads(called("fill", job, "--rows", "item=30k", "--json", "-q").out)
    (item,) = told["tables"]
    assert (item["name"], item["rows"], told["checkpoint"]) == ("item", 30_000, None)
    assert abs(item["held_bytes"] / item["rows"] / item["planned_bytes_a_row"] - 1) < 0.05


def test_a_filled_run_is_inspected_and_trained(job: Path, called: Satrap) -> None:
    done = called("fill", job, "--rows", "user=2000", "--run-dir", "run")
    assert "train it with: satrap train --resume run" in done.out
    tables = {t["name"]: t["rows"] for t in json.loads(called("inspect", "run", "--json").out)["tables"]}
    assert tables == {"user": 2000, "item": 0, "genre": 0}
    called("train", "--resume", "run", "-q")
    again = called("fill", job, "--rows", "user=10", "--run-dir", "run", code=1)
    assert "already holds the checkpoints of a run" in again.err


def test_wrong_words_are_told(job: Path, called: Satrap) -> None:
    for words, message, code in (
        ((), "--rows is missing", 2),
        (("--rows", "usr=1k"), "the job has no table 'usr'; did you mean 'user'?", 1),
        (("--rows", "user=1k", "--rows", "user=2k"), "--rows user=2k: given twice for table user", 2),
        (("--rows", "user=many"), "'many' is no quantity", 1),
        (("--rows", "user=100T"), "do not fit", 1),
    ):
        assert message in called("fill", job, *words, code=code).err
