"""Jobs on real processes: Ray starts them, ZeroMQ and torch.distributed join them, and none stays behind."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
from launched import LIMIT_S, SHORT, Running, all_end, command, digest, train

from satrap.launch import janitor
from satrap.observe import read_metrics
from satrap.rehearse.processes import children, title

pytest.importorskip("ray")
pytestmark = pytest.mark.slow
LINUX = pytest.mark.skipif(not sys.platform.startswith("linux"), reason="reads /proc")


def test_two_servers_give_the_bits_of_one_process_at_staleness_0(tmp_path: Path, one_process: str) -> None:
    train(tmp_path / "servers", *SHORT, "--servers", "2", "--workers", "1")
    assert digest(tmp_path / "servers") == one_process


@LINUX
def test_a_driver_that_is_killed_leaves_no_process_behind_not_even_rays(tmp_path: Path) -> None:
    # Two helpers of a private Ray see by themselves that it has ended, but only a minute later.
    more = ["train.epochs=500", "train.early_stopping=null", "--servers", "1", "--workers", "2"]
    with Running(tmp_path / "run", more) as run:
        run.says("valid at step")
        run.below = set(children(run.process.pid))
        assert any("gent" in title(p) for p in run.below)
        assert sum(title(p).startswith("ray::") for p in run.below) >= 3
        run.process.kill()
        run.process.wait()
        assert all_end(sorted(run.below), within_s=40) == []


@LINUX
def test_the_sweep_ends_what_has_a_file_of_the_drivers_ray_session_open_and_nothing_else(tmp_path: Path) -> None:
    folders = [tmp_path / f"session_2026-01-02_03-04-05_678901_{pid}" for pid in (4194305, 14194305)]
    sleepers = []
    for folder in folders:
        folder.mkdir()
        with (folder / "log").open("w") as log:
            sleepers.append(subprocess.Popen(["sleep", "60"], stdout=log))
    try:
        assert janitor.sweep(4194305) == 1
        assert sleepers[0].wait(10) == -9
        assert sleepers[1].poll() is None
    finally:
        for s in sleepers:
            s.kill()
            s.wait()


def test_a_mistake_in_the_data_is_one_message_and_exit_code_1(tmp_path: Path, cluster: str) -> None:
    wrong = command(tmp_path / "run", "data.weight=incom", "--servers", "1", "--workers", "1", "--address", cluster)
    done = subprocess.run(wrong, capture_output=True, text=True, timeout=LIMIT_S, check=False)
    assert done.returncode == 1
    assert "incom" in done.stderr
    assert "Traceback" not in done.stdout + done.stderr


def test_profile_of_servers_and_workers_names_everyone(tmp_path: Path, cluster: str) -> None:
    # What only worker 0 knows is a third of the story: servers that are busy, and workers that wait, were not told.
    run = tmp_path / "run"
    shape = ("--servers", "1", "--workers", "2", "--address", cluster)
    said = train(run, *shape, "--profile", "--quiet", "train.max_steps=20")
    assert "worker 1: dense" in said
    assert "server 0: " in said
    assert "server 0: " in (run / "profile.txt").read_text()
    records = read_metrics(run)
    whole = next(r["profile"] for r in records if r["kind"] == "profile")
    assert [w["rank"] for w in whole["workers"]] == [0, 1]
    assert whole["servers"][0]["handled_s"]["Push"] > 0
    assert all(w["stages"]["reduce"] > 0 for w in whole["workers"])


def test_a_cluster_that_wants_a_token_is_named_with_what_to_set(
    cluster: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Ray keeps its token to itself towards an address that is spelled out, and says only that it failed to connect.
    monkeypatch.delenv("RAY_AUTH_MODE")
    monkeypatch.setenv("RAY_gcs_rpc_server_reconnect_timeout_s", "1")
    text = train(tmp_path / "run", "--address", cluster, code=1)
    assert "no Ray cluster answers at" in text
    assert "set RAY_AUTH_MODE=token here too" in text
    assert not os.path.exists(tmp_path / "run")
