"""Killed servers of a job with a journal come back in place: training goes on, and its bits are those of no kill."""

from __future__ import annotations

from pathlib import Path

import pytest
from launched import ON_TWO, SYNCHRONOUS, Running, digest

pytest.importorskip("ray")


@pytest.mark.slow
def test_servers_killed_at_staleness_0_come_back_and_the_bits_are_those_of_an_undisturbed_run(
    tmp_path: Path, cluster: str, undisturbed: str
) -> None:
    # Without checkpoints: all that comes back is from the journal.
    durable = ("store.durability=process", "train.checkpoint.every_steps=null")
    with Running(tmp_path / "run", [*SYNCHRONOUS, *durable, *ON_TWO, "--address", cluster]) as run:
        run.reaches(5)
        for index in (0, 1):
            run.kill(f"server {index}")
            run.says(f"server {index} is back with everything it had acknowledged")
        said = run.ends()
    assert "starting again from the last checkpoint" not in said
    assert digest(run.run) == undisturbed
