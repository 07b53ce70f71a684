"""`satrap report` on runs that were really trained."""

from __future__ import annotations

from pathlib import Path

from cli_command import JOB, Satrap


def test_report_of_one_run_and_of_two_compared(called: Satrap, clicks: Path, tmp_path: Path) -> None:
    (tmp_path / "job.yaml").write_text(JOB.format(data=clicks))
    for name, staleness in (("a", 0), ("b", 4)):
        called("train", "job.yaml", "--quiet", "--run-dir", name, f"train.staleness={staleness}", "train.max_steps=20")
    assert "a/report.html" in called("report", "a").out
    one = (tmp_path / "a" / "report.html").read_text()
    assert "It balances" in one
    assert "Where the time went" in one
    called("report", "a", "b", "--out", "both.html")
    both = (tmp_path / "both.html").read_text()
    assert "2 runs compared" in both
    assert "train.staleness" in both


def test_report_of_a_folder_that_is_no_run_says_what_is_there(called: Satrap, tmp_path: Path) -> None:
    assert "no such run folder" in called("report", "nowhere", code=1).err
