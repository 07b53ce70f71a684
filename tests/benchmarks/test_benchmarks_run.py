"""Every benchmark at its smoke size: it runs, its lines are JSON, and its last line holds the figures it promises.

No test looks at a time: a benchmark that is slow today is no bug, one that no longer runs is.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

REPOSITORY = Path(__file__).resolve().parents[2]


def run(*arguments: str) -> list[dict[str, Any]]:
    done = subprocess.run(
        [sys.executable, "-m", "benchmarks", *arguments],
        cwd=REPOSITORY,
        env={
            **os.environ,
            "PYTHONPATH": os.pathsep.join(filter(None, [str(REPOSITORY), os.environ.get("PYTHONPATH")])),
        },
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return [json.loads(line) for line in done.stdout.splitlines()]


@pytest.mark.skipif(shutil.which(os.environ.get("CXX", "c++")) is None, reason="the raw limits need a C++ compiler")
def test_store_benchmark_checks_both_tables_alike_and_prints_every_ratio(tmp_path: Path) -> None:
    lines = run("store", "--smoke", "--dims", "16", "--threads", "1,2", "--data-dir", str(tmp_path))
    cases = [x for x in lines if "case" in x]
    assert [(c["case"]["format"], c["case"]["threads"]) for c in cases] == [
        *(("fp32", 1), ("fp32", 2)),
        *(("fp16", 1), ("fp16", 2)),
    ]
    for case in cases:
        assert case["lookup"]["satrap_vs_raw"] > 0
        assert case["update"]["satrap_vs_raw_gradient"] > 0
        assert case["step"]["satrap_mrows_per_s"] > 0
    # The hash is of the values read: threads must not change them.
    assert cases[0]["result_hash"] == cases[1]["result_hash"] != cases[2]["result_hash"]
    assert {"lookup_vs_raw_gather_dim_16", "update_vs_raw_read_modify_write", "commit"} <= lines[-1].keys()


def test_train_benchmark_runs_every_group_that_needs_no_other_environment(tmp_path: Path) -> None:
    lines = run("train", "--smoke", "--only", "sum,deep,read", "--data-dir", str(tmp_path))
    sides = {(x["group"], x["side"]): x for x in lines if "median_of" in x}
    satrap, torch = sides["deep", "satrap staleness 0"], sides["deep", "torch"]
    assert satrap["samples_per_s"] > 0
    assert satrap["cpu_s_per_million"] > 0
    # The same rows, network and optimizers have to learn about the same; torch's Adagrad is not row-wise.
    assert abs(satrap["test_auc"] - torch["test_auc"]) < 0.05
    assert lines[0]["bayes_auc"] > torch["test_auc"] > 0.6
    # The threads of the store change no bit of the model.
    assert sides["sum", "satrap"]["digest"] == sides["sum", "satrap 1 thread"]["digest"]
    assert lines[-1]["headline"] == "train"
    assert lines[-1]["sum_cpu_vs_torchrec"] is None


def test_first_auc_benchmark_clones_and_reaches_an_auc() -> None:
    if not (REPOSITORY / ".git").exists():
        pytest.skip("needs the repository, not an unpacked archive")
    lines = run("first-auc", "--smoke")
    assert lines[-1]["status"] == 0
    assert "AUC" in lines[-1]["test_auc_line"]


def test_unknown_benchmark_is_refused_with_the_names_there_are() -> None:
    done = subprocess.run(
        [sys.executable, "-m", "benchmarks", "sotre"], cwd=REPOSITORY, capture_output=True, text=True, check=False
    )
    assert done.returncode == 2
    assert "store" in done.stderr
    assert "first-auc" in done.stderr


def test_wire_benchmark_reads_alike_on_both_sides_and_prints_every_ratio() -> None:
    lines = run("wire", "--smoke", "--dims", "16")
    cases = [x for x in lines if "case" in x]
    assert {(c["case"]["operation"], c["case"]["wire"]) for c in cases} == {
        (o, w) for o in ("pull", "push") for w in ("fp32", "fp16", "int8")
    }
    for case in cases:
        assert case["satrap_vs_echo"] > 0
        assert case["satrap_ms_p99"] >= case["satrap_ms_p50"] > 0
    assert {"pull_vs_echo", "push_vs_echo", "pull_mrows_per_s_dim_16", "result_hash"} <= lines[-1].keys()
