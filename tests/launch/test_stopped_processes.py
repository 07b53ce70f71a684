"""Servers and workers that are stopped, not killed: they hold a job up, and must do no harm when they wake."""

from __future__ import annotations

import os
import re
import signal
from pathlib import Path

import pytest
from launched import ON_TWO, SYNCHRONOUS, Running, digest

from satrap.rehearse.processes import alive

pytestmark = pytest.mark.slow


def disturbed(folder: Path, cluster: str, *more: str) -> Running:
    return Running(folder / "run", [*SYNCHRONOUS, *ON_TWO, "--address", cluster, *more])


def test_processes_that_are_stopped_for_a_while_are_waited_for_and_nothing_goes_back(
    tmp_path: Path, cluster: str, undisturbed: str
) -> None:
    with disturbed(tmp_path, cluster) as run:
        for name in ("server 0", "worker 1"):
            run.reaches(5)
            pid = run.targets()[name].pid
            os.kill(pid, signal.SIGSTOP)
            run.says(f"{name} (pid {pid}) has not answered for 5 s: the others wait for it")
            os.kill(pid, signal.SIGCONT)
            run.says(f"{name} (pid {pid}) answers again")
        run.ends()
    assert run.restarts() == []
    assert digest(run.run) == undisturbed


def test_a_server_that_stays_silent_past_its_deadline_is_replaced_and_does_not_wake(
    tmp_path: Path, cluster: str, undisturbed: str
) -> None:
    with disturbed(tmp_path, cluster, "--server-deadline", "4") as run:
        run.saves()
        pid = run.targets()["server 1"].pid
        os.kill(pid, signal.SIGSTOP)
        run.says("starting again from the last checkpoint")
        assert not alive(pid)
        text = run.ends()
    # A client says so after 4 s; on a busy machine Ray may take it for ended before.
    why = re.search(r"server 1 \((ipc://@satrap-|pid).*: starting again from the last checkpoint", text)
    assert why is not None
    assert "has not answered for 4 s" in why[0] or "has ended" in why[0]
    assert digest(run.run) == undisturbed


def test_a_stopped_server_does_not_outlive_a_life_that_ended_because_of_another(
    tmp_path: Path, cluster: str, undisturbed: str
) -> None:
    # Nobody has waited for it for long when the run begins again, so nobody has told the driver of it.
    with disturbed(tmp_path, cluster) as run:
        run.saves()
        pid = run.targets()["server 1"].pid
        os.kill(pid, signal.SIGSTOP)
        run.kill("worker 1")
        run.says("starting again from the last checkpoint")
        assert not alive(pid)
        run.ends()
    assert len(run.restarts()) == 1
    assert digest(run.run) == undisturbed


def test_a_silent_server_with_a_history_is_replaced_in_place_and_nothing_goes_back(
    tmp_path: Path, cluster: str, undisturbed: str
) -> None:
    with disturbed(tmp_path, cluster, "--server-deadline", "16", "store.durability=process") as run:
        run.reaches(5)
        pid = run.targets()["server 1"].pid
        os.kill(pid, signal.SIGSTOP)
        run.says(f"server 1 (pid {pid}) has not answered for 8 s: it is ended")
        run.says("server 1 is back with everything it had acknowledged")
        assert not alive(pid)
        run.ends()
    assert run.restarts() == []
    assert digest(run.run) == undisturbed


def test_a_stopped_worker_0_does_not_keep_the_run_from_its_successor(
    tmp_path: Path, cluster: str, undisturbed: str
) -> None:
    # It holds the lock of the run folder, and would save into it when it wakes.
    with disturbed(tmp_path, cluster) as run:
        run.saves()
        pid = run.targets()["worker 0"].pid
        os.kill(pid, signal.SIGSTOP)
        run.kill("server 0")
        run.says("starting again from the last checkpoint")
        assert not alive(pid)
        run.ends()
    assert len(run.restarts()) == 1
    assert digest(run.run) == undisturbed
