"""Runs that get more servers, or fewer, while they train: the model is the one of a run that nothing happened to."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
from launched import LIMIT_S, ON_TWO, SYNCHRONOUS, Running, digest

from satrap.observe.processes import plural

pytestmark = pytest.mark.slow


def scale(run: Path, servers: int, code: int = 0) -> str:
    words = [sys.executable, "-m", "satrap", "scale", str(run), "--servers", str(servers)]
    done = subprocess.run(words, capture_output=True, text=True, timeout=LIMIT_S, check=False)
    assert done.returncode == code, done.stdout + done.stderr
    return done.stdout + done.stderr


@pytest.mark.parametrize(("servers", "durability"), [(3, "none"), (1, "process")])
def test_servers_come_and_go_while_it_trains_and_the_model_is_the_same(
    tmp_path: Path, cluster: str, undisturbed: str, servers: int, durability: str
) -> None:
    words = [*SYNCHRONOUS, *ON_TWO, "--address", cluster, f"store.durability={durability}"]
    with Running(tmp_path / "run", words) as run:
        run.reaches(5)
        with run.slowly():
            assert "1 to 64 servers, not on 65" in scale(run.run, 65, code=1)
            assert plural(servers, "server") in scale(run.run, servers)
            assert sum(n.startswith("server") for n in run.targets()) == servers
            if servers < 2:
                # Bug: the second server gets the number of one that clients know to be gone, and all wait for it.
                assert "their numbers are not given again" in scale(run.run, 2, code=1)
        text = run.ends()
    assert "partitions and" in text
    assert not run.restarts()
    assert digest(run.run) == undisturbed


def test_a_run_that_has_ended_is_not_scaled(tmp_path: Path) -> None:
    (tmp_path / "job.yaml").write_text("")
    assert "has no servers that run" in scale(tmp_path, 2, code=1)
