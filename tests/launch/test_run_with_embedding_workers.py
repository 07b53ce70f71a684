"""Jobs with embedding workers on real processes: the bits of one process, and one that is killed."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import time
import urllib.request
from pathlib import Path

import pytest
from launched import ADULT, LIMIT_S, SHORT, command, digest, train

from satrap.errors import LaunchError
from satrap.launch import run
from satrap.launch.placing import Node, place
from satrap.observe.endpoint import read_targets
from satrap.observe.processes import EMBEDDING_WORKER_FIGURES
from satrap.observe.profile import read_profile
from satrap.observe.scrape import Scrape
from satrap.observe.stages import THREADS
from satrap.schema import load_job

pytest.importorskip("ray")


@pytest.mark.slow
def test_two_servers_and_an_embedding_worker_give_the_bits_of_one_process_at_staleness_0(
    tmp_path: Path, cluster: str, one_process: str
) -> None:
    shape = ("--servers", "2", "--workers", "1", "--embedding-workers", "1", "--address", cluster)
    train(tmp_path / "pooled", *SHORT, *shape)
    assert digest(tmp_path / "pooled") == one_process
    events = [json.loads(line) for line in (tmp_path / "pooled" / "metrics.jsonl").read_text().splitlines()]
    (profile,) = [read_profile(e) for e in events if e["kind"] == "profile"]
    assert profile is not None
    (pooler,) = profile.embedding_workers
    assert (pooler.name, pooler.clients) == ("embedding worker 0", 1)
    assert min(pooler.stages[s] for s in THREADS["engine"]) > 0
    # The worker itself neither dedups nor pools.
    assert "pool" not in profile.workers[0].stages


@pytest.mark.slow
def test_an_embedding_worker_that_is_killed_is_replaced_and_its_lost_gradients_are_counted(
    tmp_path: Path, cluster: str
) -> None:
    # The original drops twenty batches in silence.
    folder = tmp_path / "run"
    more = ("train.max_steps=160", "train.checkpoint.every_steps=20")
    log = (tmp_path / "log").open("w+")
    processes = ("--servers", "1", "--workers", "2", "--embedding-workers", "2", "--address", cluster)
    driver = subprocess.Popen(command(folder, *more, *processes), stdout=log, stderr=log)
    try:
        deadline = time.monotonic() + LIMIT_S
        while not list((folder / "checkpoints").glob("step-*")):
            assert driver.poll() is None, (tmp_path / "log").read_text()[-4000:]
            assert time.monotonic() < deadline
            time.sleep(0.1)
        target = next(t for t in read_targets(folder) if t.name == "embedding worker 1")
        text = urllib.request.urlopen(f"http://{target.address}/metrics", timeout=10).read().decode()
        now = Scrape.of(text, at=1.0)
        assert all(isinstance(figure(now, None), str) for figure in EMBEDDING_WORKER_FIGURES.values())
        assert (now.total("satrap_samples_pooled_total") or 0) > 0
        os.kill(target.pid, signal.SIGKILL)
        assert driver.wait(LIMIT_S) == 0, (tmp_path / "log").read_text()[-4000:]
    finally:
        log.close()
        if driver.poll() is None:
            os.kill(driver.pid, signal.SIGKILL)
            driver.wait()
    said = (tmp_path / "log").read_text()
    assert "embedding worker 1" in said.split("starting again from the last checkpoint")[0].splitlines()[-1]
    events = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    (restart,) = [e for e in events if e["kind"] == "restart"]
    assert "embedding worker 1" in restart["why"]
    assert restart["gradients_back"] is not None
    finished = [e for e in events if e["kind"] == "end"]
    assert len(finished) == 1


def test_more_embedding_workers_than_workers_are_refused(tmp_path: Path) -> None:
    with pytest.raises(LaunchError, match="embedding_workers must be 0 to 2, got 3: each serves one worker or more"):
        run(load_job(ADULT / "job.yaml"), workers=2, embedding_workers=3, run_dir=tmp_path)


def test_embedding_workers_are_placed_where_servers_are() -> None:
    gpu, memory = Node(id="a", ip="10.0.0.1", cpus=8, gpus=2), Node(id="b", ip="10.0.0.2", cpus=8, for_servers=True)
    places = place([gpu, memory], servers=1, workers=2, embedding_workers=2)
    assert [n.id for n in places.embedding_workers] == ["b", "b"]
    assert not places.one_machine
    assert place([memory], 1, 1, 1).one_machine
