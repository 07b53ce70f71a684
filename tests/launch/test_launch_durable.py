"""A killed server of a job with a journal comes back in place: training goes on, and its bits are those of no kill."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import time
from pathlib import Path

import pytest
from launched import LIMIT_S, command, digest, train

from satrap.observe.endpoint import TARGETS_FILE

pytest.importorskip("ray")

JOB = ("train.max_steps=600", "train.staleness=0", "train.eval_every_steps=null", "store.durability=process")
SHAPE = ("--servers", "2", "--workers", "2")


def server_pids(run: Path) -> dict[int, int]:
    groups = json.loads((run / TARGETS_FILE).read_text())
    labels = [g["labels"] for g in groups]
    return {int(x["index"]): int(x["pid"]) for x in labels if x["role"] == "server"}


@pytest.mark.slow
def test_servers_killed_at_staleness_0_come_back_and_the_bits_are_those_of_an_undisturbed_run(
    tmp_path: Path, cluster: str
) -> None:
    words = (*JOB, *SHAPE, "--address", cluster)
    train(tmp_path / "whole", *words)
    path = tmp_path / "log"
    with path.open("w+") as log:
        driver = subprocess.Popen(command(tmp_path / "run", *words), stdout=log, stderr=log)
        try:
            for kills, index in enumerate((0, 1), 1):
                deadline = time.monotonic() + LIMIT_S
                while "first step" not in path.read_text() or path.read_text().count("is back with") < kills - 1:
                    assert driver.poll() is None, path.read_text()[-4000:]
                    assert time.monotonic() < deadline, path.read_text()[-4000:]
                    time.sleep(0.05)
                os.kill(server_pids(tmp_path / "run")[index], signal.SIGKILL)
            assert driver.wait(timeout=LIMIT_S) == 0, path.read_text()[-4000:]
        finally:
            driver.kill()
            driver.wait()
    said = path.read_text()
    assert said.count("is back with everything it had acknowledged") == 2
    assert "starting again from the last checkpoint" not in said
    assert digest(tmp_path / "run") == digest(tmp_path / "whole")
