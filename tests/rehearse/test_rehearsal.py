"""Small rehearsals for real: Ray nodes in namespaces or on loopback, machines lost, nothing left afterwards."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from satrap.rehearse.hosts import why_not
from satrap.rehearse.processes import alive, children

pytest.importorskip("ray")
ROOT = Path(__file__).parents[2]
ADULT = ROOT / "examples" / "adult"
REASON = why_not()
LIMIT_S = 600.0
pytestmark = pytest.mark.slow
in_namespaces = pytest.mark.skipif(REASON is not None, reason=REASON or "")


def command(out: Path, *more: str) -> list[str]:
    """A rehearsal of the small cluster: two servers, and a worker."""
    job = [str(ADULT / "job.yaml"), f"data.train={ADULT / 'train.parquet'}", "data.test=[]", "train.staleness=0"]
    job += ["train.max_steps=90", "train.epochs=9", "train.checkpoint.every_steps=20"]
    where = ["--cluster", str(ROOT / "deploy" / "clusters" / "gke-small.yaml"), "--worker-nodes", "1"]
    where += ["--prices", str(ROOT / "deploy" / "prices" / "google-us-central1.yaml"), "--out", str(out)]
    return [sys.executable, "-m", "satrap", "rehearse", *job, *where, *more]


def rehearse(out: Path, *more: str, code: int = 0) -> str:
    done = subprocess.run(command(out, *more), capture_output=True, text=True, timeout=LIMIT_S, check=False)
    assert done.returncode == code, done.stdout[-4000:] + done.stderr[-2000:]
    return done.stdout


def made_by(pid: int) -> list[str]:
    """Namespaces and bridges that a process has made."""
    names = subprocess.run(["ip", "netns", "list"], capture_output=True, text=True, check=True).stdout
    names += subprocess.run(["ip", "-o", "link", "show"], capture_output=True, text=True, check=True).stdout
    return re.findall(rf"\b(?:satrap-{pid}-|s[bv]{pid}[a-z])[\w-]*", names)


@in_namespaces
def test_a_server_node_is_lost_and_the_model_is_that_of_an_undisturbed_run(tmp_path: Path) -> None:
    # Without a journal: the group goes back to its checkpoint, the lost server to the other node.
    text = rehearse(tmp_path / "out", "--fail", "server@step:25", "--compare")
    assert "LOST servers-0" in text
    assert "all went on from step" in text
    assert "the two models are the same to the bit" in text
    assert text in (tmp_path / "out" / "rehearsal.log").read_text() + "\n"


def test_on_loopback_a_server_node_is_lost_and_comes_back_with_its_journal(tmp_path: Path) -> None:
    text = rehearse(tmp_path / "out", "--loopback", "--fail", "server@step:5", "store.durability=process")
    assert "on addresses of loopback, links not limited" in text
    # The cluster keeps run folders in a bucket:
    assert "note: `satrap deploy render` refuses this job on this cluster" in text
    assert "came back on 127.0.0.3 with all it had acknowledged" in text or "came back on 127.0.0.2" in text
    assert "ledger of gradients: sent" in text


@in_namespaces
def test_ctrl_c_leaves_no_process_no_namespace_and_no_bridge(tmp_path: Path) -> None:
    process = subprocess.Popen(command(tmp_path / "out"), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    deadline = time.monotonic() + LIMIT_S
    while not (tmp_path / "out" / "ray-02-servers-0.log").exists():
        assert process.poll() is None
        assert time.monotonic() < deadline
        time.sleep(0.05)
    assert made_by(process.pid)
    below = children(process.pid)
    process.send_signal(signal.SIGINT)
    assert process.wait(LIMIT_S) == 130
    while any(map(alive, below)) and time.monotonic() < deadline:
        time.sleep(0.1)
    assert [p for p in below if alive(p)] == []
    assert made_by(process.pid) == []


@in_namespaces
def test_what_a_killed_rehearsal_leaves_is_found_and_removed(tmp_path: Path) -> None:
    from satrap.rehearse.hosts import do, sweep

    gone = subprocess.Popen(["true"])
    gone.wait()
    do("ip", "netns", "add", f"satrap-{gone.pid}-ab-1")
    do("ip", "link", "add", f"sb{gone.pid}abc", "type", "bridge")
    mine = f"satrap-{os.getpid()}-ab-1"
    do("ip", "netns", "add", mine)
    try:
        # On this machine there may be more of others that were killed.
        swept = set(sweep())
        assert {f"sb{gone.pid}abc", f"satrap-{gone.pid}-ab-1"} <= swept
        assert mine not in swept
        assert made_by(gone.pid) == []
        assert made_by(os.getpid()) == [mine]
    finally:
        do("ip", "netns", "del", mine)


def test_a_machine_that_is_not_there_cannot_be_lost(tmp_path: Path) -> None:
    done = subprocess.run(
        command(tmp_path / "out", "--fail", "reader@step:5"),
        capture_output=True,
        text=True,
        timeout=LIMIT_S,
        check=False,
    )
    assert done.returncode == 1
    assert "there is no readers-0" in done.stderr
    assert not (tmp_path / "out").exists()
