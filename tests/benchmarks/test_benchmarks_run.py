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


def test_formats_benchmark_weighs_and_times_every_format() -> None:
    lines = run("formats", "--smoke", "--dims", "16")
    weighed = {(x["memory"]["format"], x["memory"]["optimizer"], x["memory"]["state"]) for x in lines if "memory" in x}
    assert {("int8", "rowwise_adagrad", "fp32"), ("bf16", "adamw", "int8"), ("fp32", "ftrl", "fp32")} <= weighed
    speed = next(x for x in lines if "speed" in x)
    assert {"fp32", "fp16", "bf16", "int8"} <= speed["update_vs_fp32"].keys()
    assert lines[-1]["update_vs_fp32"]["fp32"] == 1.0


@pytest.mark.skipif(shutil.which(os.environ.get("CXX", "c++")) is None, reason="the raw limits need a C++ compiler")
def test_capacity_benchmark_fills_times_and_trains_the_largest_table_beside_a_small_one(tmp_path: Path) -> None:
    parts = ("--only", "sizes,train,cold", "--folder", str(tmp_path))
    lines = run("capacity", "--smoke", "--data-dir", str(tmp_path), *parts)
    filled = {x["filled"]: x for x in lines if "filled" in x}
    assert list(filled) == [10_000, 40_000]
    for line in filled.values():
        assert line["fill_mrows_per_s"] > 0
        assert abs(line["held_bytes_a_row"] / line["planned_bytes_a_row"] - 1) < 0.05
        assert line["lookup_vs_raw"] > 0
        assert line["update_vs_raw"] > 0
    rounds = [x["trained"] for x in lines if "round" in x]
    assert rounds == 2 * [10_000, 40_000, 40_000, 10_000]
    assert any(x.get("returned_a_sample", 0) > 0 for x in lines), "rows have come back from disk"
    end = lines[-1]
    assert (end["rows"], end["parameters"], end["cold_rows"]) == (40_000, 40_000 * 64, 40_000)
    assert end["train_vs_smallest"] > 0
    assert end["cold_vs_smallest"] > 0


def test_capacity_benchmark_refuses_rows_that_memory_has_no_room_for() -> None:
    done = subprocess.run(
        [sys.executable, "-m", "benchmarks", "capacity", "--rows", "1000000000000"],
        cwd=REPOSITORY, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 1
    assert "rows would fit (--rows " in done.stderr


def test_durability_benchmark_measures_training_recovery_and_a_kill(tmp_path: Path) -> None:
    lines = run("durability", "--smoke", "--data-dir", str(tmp_path / "data"), "--folder", str(tmp_path))
    levels = [x["level"] for x in lines if "level" in x]
    assert levels == ["none", "process", "disk"]
    end = lines[-1]
    assert end["kill_to_next_gradient_s"] > 0
    assert end["recovery_cached_vs_read"] > 0
    assert end["snapshot_vs_write"] > 0
    assert {"process_costs", "disk_costs", "pause_ms_max", "commit"} <= end.keys()


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
    assert {(c["case"]["operation"], c["case"]["wire"], c["case"]["transport"]) for c in cases} == {
        (o, w, t) for o in ("pull", "push", "step") for w in ("fp32", "fp16", "int8") for t in ("tcp", "local")
    }
    for case in cases:
        assert case["satrap_vs_echo"] > 0
        assert case["satrap_ms_p99"] >= case["satrap_ms_p50"] > 0
    assert {"tcp_pull_vs_echo", "local_push_vs_echo", "local_pull_mrows_per_s_dim_16", "result_hash"} <= lines[
        -1
    ].keys()


def test_train_benchmark_on_servers_counts_all_processes_and_tells_what_a_delay_costs(tmp_path: Path) -> None:
    # Bug: the servers' CPU time left out of a figure that is compared with one process.
    groups = ["--only", "launched,deep,delay", "--delay-ms", "5"]
    lines = run("train", "--servers", "1", "--smoke", *groups, "--data-dir", str(tmp_path))
    ways = {(x["group"], x["way"]): x for x in lines if "median_of" in x}
    launched, processes = ways["launched", "full model"], ways["deep", "fp32"]
    assert launched["cpu_by_role"].keys() == {"driver", "ray", "servers", "workers"}
    assert launched["first_step_s"] > 0
    assert processes["cpu_by_role"]["servers"] > 0
    assert processes["cpu_by_role"]["workers"] > 0
    # The same model whoever starts the processes and whatever lies between them.
    assert launched["test_auc"] == processes["test_auc"] == ways["delay", "hybrid, delayed"]["test_auc"]
    assert lines[-1]["hybrid_kept_under_delay"] > 0
    assert lines[-1]["first_step_s"] > 0
    assert lines[-1]["synchronous_kept_under_delay"] is None  # a smoke run leaves it out


def test_peers_benchmark_tells_of_each_side_all_that_it_costs(tmp_path: Path) -> None:
    lines = run("peers", "--smoke", "--only", "satrap,torch,persia", "--data-dir", str(tmp_path))
    sides = {x["side"]: x for x in lines if "median_of" in x}
    assert sides.keys() == {"satrap", "satrap on servers", "torch"}
    for side in sides.values():
        told = ("samples_per_s", "cpu_s_per_million", "memory_mib", "first_batch_s", "lines")
        assert min(side[k] for k in told) > 0, side
    # Several processes hold more than one of them, and the libraries they share count once.
    assert sides["satrap"]["memory_mib"] < sides["satrap on servers"]["memory_mib"]
    # One model: at the same staleness the same bits, wherever the rows are.
    assert sides["satrap"]["test_auc"] == sides["satrap on servers"]["test_auc"]
    assert abs(sides["satrap"]["test_auc"] - sides["torch"]["test_auc"]) < 0.05
    assert [x["skipped"] for x in lines if "skipped" in x][-1] == "persia"
    assert lines[-1]["fp32_speed_vs_torch"] > 0
    assert lines[-1]["servers_cpu_vs_persia"] is None
    assert lines[-1]["goals"]["servers_cpu_vs_persia_at_most_0.4"] is None


def test_pooling_benchmark_pushes_the_same_gradients_both_ways_and_lists_save_bytes() -> None:
    lines = run("pooling", "--smoke", "--formats", "fp32")
    cases = {(x["case"]["values"], x["case"]["way"]): x for x in lines if "case" in x}
    for values in (1, 20):
        assert cases[values, "pooled"]["gradients"] == cases[values, "direct"]["gradients"] > 0
    # Bytes follow from the ids alone, however small the run.
    assert cases[20, "pooled"]["bytes_per_sample"] < cases[20, "direct"]["bytes_per_sample"]
    assert {"bytes_per_sample_ratio_20_fp32", "commit"} <= lines[-1].keys()


def test_modes_benchmark_pairs_its_runs_and_draws_what_it_found(tmp_path: Path) -> None:
    results = tmp_path / "runs.jsonl"
    smoke = ["modes", "--smoke", "--seeds", "1", "--data-dir", str(tmp_path), "--results", str(results)]
    lines = run(*smoke, "--plots", str(tmp_path / "plots"))
    assert all(0.5 < x["test_auc"] < lines[0]["bayes_auc"] for x in lines if "case" in x)
    modes = {(x["mode"], x["side"]["workers"], x["side"]["wire"]) for x in lines if "side" in x}
    assert {("synchronous", 1, "fp32"), ("hybrid 4", 2, "fp32"), ("asynchronous 4", 2, "fp32")} <= modes
    assert {("hybrid 8", 1, "fp16"), ("hybrid 8", 1, "int8")} <= modes
    assert {("bf16", 1, "fp32"), ("int8", 1, "fp32"), ("int8 nearest", 1, "fp32")} <= modes
    assert lines[-1]["headline"] == "modes"
    always = ["staleness-early.png", "staleness-heat.png", "modes-auc.png", "staleness-theory.png"]
    assert [p for p in lines[-1]["plots"] if p != "staleness-time.png"] == always  # that of time needs a quiet machine
    hybrid = next(x for x in lines if x.get("mode") == "hybrid 4" and x["side"]["batch"])
    assert max(hybrid["staleness_by_heat"].values()) > 0
    assert all((tmp_path / "plots" / name).stat().st_size > 10_000 for name in lines[-1]["plots"])
    assert len(results.read_text().splitlines()) == lines[0]["runs"]


def test_cold_benchmark_compares_all_sides_and_tells_what_the_disk_did(tmp_path: Path) -> None:
    lines = run("cold", "--smoke", "--folder", str(tmp_path))
    assert [x["side"] for x in lines if "side" in x] == ["small", "memory", "cold", "cold, nothing cached"]
    told = next(x for x in lines if x.get("told"))
    assert told["returned_a_batch"] > 0
    assert 1 <= told["write_amplification"] < 3
    assert told["cold"]["rows"] >= 0.7 * 20_000
    assert {"memory vs small", "cold vs small", "commit"} <= lines[-1].keys()


def test_plan_benchmark_predicts_and_measures_one_server_and_two(tmp_path: Path) -> None:
    lines = run("plan", "--smoke", "--data-dir", str(tmp_path))
    assert [x["servers"] for x in lines if "predicted" in x] == [1, 2]
    for x in lines:
        if "median_of" in x:
            assert x["off"].keys() >= {"samples_per_s", "worker_cpu_s_per_million", "servers_cpu_s_per_million"}
    assert lines[-1]["off"].keys() == {"1", "2"}
