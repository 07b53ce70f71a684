"""Jobs on real processes: Ray starts them, ZeroMQ and torch.distributed join them, and none stays behind."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from satrap import checkpoint

pytest.importorskip("ray")

ADULT = Path(__file__).parents[2] / "examples" / "adult"
LIMIT_S = 240.0


def command(run: Path, *more: str) -> list[str]:
    job = [str(ADULT / "job.yaml"), f"data.train={ADULT / 'train.parquet'}", "data.test=[]", "train.threads=1"]
    return [sys.executable, "-m", "satrap", "train", *job, "--run-dir", str(run), *more]


def train(run: Path, *more: str) -> str:
    done = subprocess.run(command(run, *more), capture_output=True, text=True, timeout=LIMIT_S, check=False)
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-4000:]
    return done.stdout + done.stderr


def children(pid: int) -> list[int]:
    """Every process below this one."""
    below: dict[int, list[int]] = {}
    for entry in Path("/proc").iterdir():
        try:
            parent = int((entry / "stat").read_text().rpartition(")")[2].split()[1])
            below.setdefault(parent, []).append(int(entry.name))
        except (OSError, ValueError, IndexError):
            continue
    found, todo = [], [pid]
    while todo:
        more = below.get(todo.pop(), [])
        found += more
        todo += more
    return found


def alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


@pytest.mark.slow
def test_two_servers_give_the_bits_of_one_process_at_staleness_0(tmp_path: Path) -> None:
    steps = ("train.max_steps=40", "train.staleness=0")
    train(tmp_path / "one", *steps)
    train(tmp_path / "servers", *steps, "--servers", "2", "--workers", "1")
    one, servers = (checkpoint.digest(checkpoint.latest(tmp_path / n)) for n in ("one", "servers"))
    assert one == servers


def is_rays_agent(pid: int) -> bool:
    """Two helpers of a private Ray see by themselves that it has ended, a minute or so later."""
    return b"Agent" in Path(f"/proc/{pid}/cmdline").read_bytes()


@pytest.mark.slow
@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="reads /proc")
def test_a_driver_that_is_killed_leaves_no_process_behind_but_rays_agents(tmp_path: Path) -> None:
    more = ("train.epochs=500", "train.early_stopping=null", "--servers", "1", "--workers", "2")
    log = (tmp_path / "log").open("w+")
    driver = subprocess.Popen(command(tmp_path / "run", *more), stdout=log, stderr=log, start_new_session=True)
    try:
        deadline = time.monotonic() + LIMIT_S
        while "valid at step" not in (tmp_path / "log").read_text():
            assert driver.poll() is None, (tmp_path / "log").read_text()[-4000:]
            assert time.monotonic() < deadline, (tmp_path / "log").read_text()[-4000:]
            time.sleep(0.2)
        below = [p for p in children(driver.pid) if not is_rays_agent(p)]
        assert len(below) >= 4
        driver.kill()
        driver.wait()
        deadline = time.monotonic() + 60
        while any(alive(p) for p in below) and time.monotonic() < deadline:
            time.sleep(0.2)
        assert [p for p in below if alive(p)] == []
    finally:
        log.close()
        if driver.poll() is None:
            os.kill(driver.pid, signal.SIGKILL)
            driver.wait()


@pytest.mark.slow
def test_a_mistake_in_the_data_is_one_message_and_exit_code_1(tmp_path: Path) -> None:
    wrong = command(tmp_path / "run", "data.weight=incom", "--servers", "1", "--workers", "1")
    done = subprocess.run(wrong, capture_output=True, text=True, timeout=LIMIT_S, check=False)
    assert done.returncode == 1
    assert "incom" in done.stderr
    assert "Traceback" not in done.stdout + done.stderr
