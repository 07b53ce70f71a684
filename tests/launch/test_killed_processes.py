"""Servers and workers that are killed: replaced, and the model is the one of a run that nothing happened to."""

from __future__ import annotations

import os
import signal
from pathlib import Path

import pytest
from launched import ON_TWO, SYNCHRONOUS, Running, digest, train

from satrap.rehearse.processes import alive, children, title

pytestmark = pytest.mark.slow


def disturbed(folder: Path, cluster: str, *more: str) -> Running:
    return Running(folder / "run", [*SYNCHRONOUS, *ON_TWO, "--address", cluster, *more])


def test_a_killed_server_is_replaced_and_the_model_is_the_same(tmp_path: Path, cluster: str, undisturbed: str) -> None:
    # A flaw of an early system: after its server is killed and restarted, training never resumes, and ends with exit
    # code 0 as if the data had run out.
    with disturbed(tmp_path, cluster) as run:
        run.saves()
        run.kill("server 0")
        text = run.ends()
    assert "server 0 (pid " in text
    assert "has ended: starting again from the last checkpoint (restart 1 of 3, placement 1)" in text
    (restart,) = run.restarts()
    assert restart["step"] >= 20
    assert restart["gradients_back"] > 0
    assert f"{restart['gradients_back']:,} acknowledged gradients after it went back" in text
    assert f"{restart['gradients_back']:,} went back to a checkpoint" in text
    assert digest(run.run) == undisturbed


def test_a_killed_worker_is_replaced_and_the_model_is_the_same(tmp_path: Path, cluster: str, undisturbed: str) -> None:
    with disturbed(tmp_path, cluster) as run:
        run.saves()
        before = run.targets()
        run.kill("worker 1")
        run.says("going on from step")
        after = run.targets()
        run.ends()
    (restart,) = run.restarts()
    assert restart["exact"]  # the servers have counted, and were not touched
    assert restart["gradients_back"] > 0
    assert {n for n in before if before[n].pid != after[n].pid} == {"worker 1"}
    assert digest(run.run) == undisturbed


def test_a_server_and_worker_0_killed_at_once_are_one_restart(tmp_path: Path, cluster: str, undisturbed: str) -> None:
    with disturbed(tmp_path, cluster) as run:
        run.saves()
        run.kill("server 1", "worker 0")
        run.ends()
    assert 1 <= len(run.restarts()) <= 2  # two where the second death was seen after the first was dealt with
    assert digest(run.run) == undisturbed


def test_a_kill_while_a_checkpoint_is_saved_leaves_whole_checkpoints_alone(
    tmp_path: Path, cluster: str, undisturbed: str
) -> None:
    with disturbed(tmp_path, cluster) as run:
        run.saves()
        saving = run.run / "checkpoints"
        run.wait(lambda: list(saving.glob("*tmp*")), "a checkpoint that is being saved", every_s=0.001)
        run.kill("worker 0")
        run.ends()
    assert len(run.restarts()) == 1
    assert not list((run.run / "checkpoints").glob("*tmp*"))
    assert digest(run.run) == undisturbed


def test_a_server_killed_while_the_group_is_starting_is_replaced(
    tmp_path: Path, head: tuple[str, int], undisturbed: str
) -> None:
    with disturbed(tmp_path, head[0]) as run:
        driver = run.process.pid

        def a_server() -> list[int]:
            return [p for p in children(head[1]) if title(p).startswith("ray::ServerProcess")]

        os.kill(run.wait(a_server, "a server")[0], signal.SIGKILL)
        run.says("while it was starting: starting again")
        run.ends()
    assert not alive(driver)
    assert digest(run.run) == undisturbed


def test_without_restarts_a_killed_worker_ends_the_run_with_a_message(tmp_path: Path, cluster: str) -> None:
    with disturbed(tmp_path, cluster, "--restarts", "0") as run:
        run.saves()
        run.kill("worker 1")
        text = run.ends(code=1)
    assert "has ended, and no restart is allowed" in text
    assert f"satrap train --resume {run.run}" in text
    assert "Traceback" not in text
    train(run.run, "--quiet", code=1)  # the folder is free again, and says what to do with it
