"""What the README shows is what runs."""

from __future__ import annotations

import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pyarrow.parquet as pq
import pytest
import torch
from cli_command import JOB, TIMEOUT_S, call, click_table, environment

ROOT = Path(__file__).parents[2]
README = (ROOT / "README.md").read_text(encoding="utf-8")


def test_the_python_example_trains_a_useful_model(tmp_path: Path) -> None:
    code = re.findall(r"```python\n(.*?)```", README, re.DOTALL)
    assert len(code) == 1
    (tmp_path / "example.py").write_text(code[0])
    (tmp_path / "examples").symlink_to(ROOT / "examples")
    done = subprocess.run(
        [sys.executable, "example.py"],
        cwd=tmp_path,
        env=environment(),
        capture_output=True,
        text=True,
        timeout=TIMEOUT_S,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    said = re.search(r"test AUC (\S+), saved in (\S+)", done.stdout)
    assert said is not None, done.stdout
    assert float(said[1]) > 0.87
    assert "imported before" not in done.stderr
    assert (tmp_path / said[2] / "manifest.json").is_file()


def commands() -> list[str]:
    """The satrap commands of the indented blocks, continued lines joined, without their remarks."""
    lines = re.findall(r"^    (satrap .*)$", README.replace("\\\n", " "), re.MULTILINE)
    return [re.sub(r"\s{2,}#.*", "", line) for line in lines]


@pytest.mark.parametrize("line", commands())
def test_every_command_is_one_that_satrap_understands(line: str, tmp_path: Path) -> None:
    # The files do not exist, so a command gets as far as missing them (1) but not wrong usage (2). Keys need no file.
    words = shlex.split(line)[1:]
    if words[0] == "leave":
        words.append("--help")  # it would tell all processes of this machine, those of other tests too
    outcome = call(tmp_path, *words, code=None)
    assert outcome.code == (0 if words[:2] == ["keys", "new"] or "--help" in words else 1), outcome.err
    assert "bug" not in outcome.err


def test_there_are_commands_to_check() -> None:
    assert len(commands()) > 5


RUN = "runs/clicks-20260101-120000"
ELSEWHERE = ("--servers", "--address", "satrap top", "satrap scale", "satrap leave", "satrap rehearse")
"""On several processes, or minutes long: tests/launch and tests/rehearse run these."""


def test_commands_run_in_the_order_of_the_page(tmp_path: Path) -> None:
    # As somebody types them who has a file of clicks, a model of torch and a bucket, which is a folder here.
    pq.write_table(click_table(), tmp_path / "clicks.parquet")
    for month in ("march", "april"):
        pq.write_table(click_table(300, seed=1), tmp_path / f"{month}.parquet")
    (tmp_path / "deploy").symlink_to(ROOT / "deploy")
    ran = 0
    for line in commands():
        if any(part in line for part in ELSEWHERE):
            continue
        runs = sorted((tmp_path / "runs").glob("clicks-*"))
        line = line.replace(RUN, f"runs/{runs[0].name}" if runs else RUN).replace("gs://models/ads", "bucket")
        if "model.pt" in line:
            torch.save({"user": torch.zeros(10, 16)}, tmp_path / "model.pt")
        words = shlex.split(line)[1:]
        words += ["--quick"] if words[0] == "calibrate" else []
        # The data would have to lie in a bucket, or on a volume: it says so.
        outcome = call(tmp_path, *words, code=1 if words[0] == "deploy" else 0)
        assert words[0] != "deploy" or "clicks.parquet" in outcome.err
        ran += 1
    assert ran > 12
    assert {"constants.yaml", "job.yaml", "scores.parquet", "rows", "bucket", "keys"} <= {
        p.name for p in tmp_path.iterdir()
    }


@pytest.mark.parametrize("target", ["demo", "test"])
def test_every_make_target_exists(target: str) -> None:
    assert f"    make {target} " in README
    env = {k: v for k, v in os.environ.items() if not k.startswith("MAKE")}
    done = subprocess.run(["make", "--dry-run", target], cwd=ROOT, env=env, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def test_every_file_it_names_is_there() -> None:
    named = set(re.findall(r"\]\(([^)#:]+)\)|`((?:src|native|docs|examples)/[^`*]*)`", README))
    paths = {a or b for a, b in named}
    assert len(paths) > 6
    assert [p for p in sorted(paths) if not (ROOT / p).exists()] == []


def test_the_table_it_shows_is_the_one_that_training_ends_in(clicks: Path, tmp_path: Path) -> None:
    def names(text: str) -> list[str]:
        return re.findall(r"^│ (\S.*?) +│", text, re.MULTILINE)

    (tmp_path / "job.yaml").write_text(JOB.format(data=clicks))
    assert names(README) == names(call(tmp_path, "train", "job.yaml", "train.max_steps=3").out)
