"""A job on two hosts for real: a Ray node on each, servers on one, workers on the other, a link of limited speed."""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from hosts import Host, Network, why_not
from launched import LIMIT_S, SYNCHRONOUS, Running, all_end, command, digest

from satrap.observe.endpoint import read_targets
from satrap.ps import Keys
from satrap.rehearse.processes import title

pytest.importorskip("ray")
REASON = why_not()
pytestmark = [pytest.mark.slow, pytest.mark.skipif(REASON is not None, reason=REASON or "")]


@pytest.fixture(scope="module")
def network(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Network]:
    with Network(tmp_path_factory.mktemp("network")) as network:
        yield network


@pytest.fixture
def keys(tmp_path: Path) -> Path:
    Keys.new().save(tmp_path / "keys")
    return tmp_path / "keys"


def on_two(network: Network, folder: Path, *more: str) -> Running:
    """Driven from the workers' host."""
    words = [*SYNCHRONOUS, "--servers", "2", "--workers", "2", "--address", network.address, *more]
    return Running(folder / "run", words, env=network.env, prefix=network.hosts[1].prefix)


def fails(network: Network, folder: Path, *more: str) -> str:
    words = command(folder / "run", "--servers", "1", "--workers", "1", "--address", network.address, *more)
    done = subprocess.run(
        [*network.hosts[1].prefix, *words],
        capture_output=True,
        text=True,
        timeout=LIMIT_S,
        check=False,
        env={**os.environ, **network.env},
    )
    assert done.returncode == 1, done.stdout[-2000:] + done.stderr[-4000:]
    assert "Traceback" not in done.stderr
    return done.stderr


def of_satrap(host: Host) -> list[int]:
    """Servers and workers on a host."""
    return [p for p in host.pids() if title(p).startswith(("ray::ServerProcess", "ray::WorkerProcess"))]


def test_servers_on_one_host_and_workers_on_the_other_train_the_model_of_one_host(
    network: Network, tmp_path: Path, keys: Path, undisturbed: str
) -> None:
    servers, workers = network.hosts
    before = network.sent_bytes(servers)
    with on_two(network, tmp_path, "--keys", str(keys)) as run:
        run.wait(lambda: read_targets(run.run), "servers and workers")
        kinds = {h.ip: {title(p).split("::")[1][:6] for p in of_satrap(h)} for h in network.hosts}
        run.ends()
    assert kinds == {servers.ip: {"Server"}, workers.ip: {"Worker"}}
    assert digest(run.run) == undisturbed
    assert network.sent_bytes(servers) - before > 1_000_000  # the rows of all steps went over the link


def test_without_keys_a_job_on_two_hosts_does_not_start(network: Network, tmp_path: Path) -> None:
    text = fails(network, tmp_path)
    assert "rows and gradients travel between them: make keys with `satrap keys new DIR`" in text


def test_a_host_with_the_keys_of_another_installation_is_told_so(network: Network, tmp_path: Path, keys: Path) -> None:
    # The folder is at the same path on every host, and holds something else on one of them.
    other = tmp_path / "other"
    Keys.new().save(other)
    workers = network.hosts[1]
    mount: Any = [*workers.prefix, "mount", "--bind", str(other), str(keys)]
    subprocess.run(mount, check=True)
    try:
        text = fails(network, tmp_path, "--keys", str(keys))
    finally:
        subprocess.run([*workers.prefix, "umount", str(keys)], check=True)
    assert "server 0 (tcp://" in text
    assert "has another key than this client knows" in text


def test_a_worker_with_the_key_of_a_lesser_role_is_told_what_it_lacks(
    network: Network, tmp_path: Path, keys: Path
) -> None:
    shutil.copy(keys / "reader.key", keys / "admin.key")
    text = fails(network, tmp_path, "--keys", str(keys))
    assert "needs the role" in text
    assert "this key has the role reader" in text


def test_a_driver_that_is_killed_leaves_nothing_on_either_host(network: Network, tmp_path: Path, keys: Path) -> None:
    # The servers' host has another space of process numbers: there, only Ray knows that the driver is gone.
    with on_two(network, tmp_path, "--keys", str(keys), "train.max_steps=100000", "train.epochs=2000") as run:
        run.says("valid at step")
        left = [p for h in network.hosts for p in of_satrap(h)]
        assert len(left) == 4
        # nsenter is what was started; the driver is below it.
        for pid in [p for p in network.hosts[1].pids() if "satrap train" in title(p)]:
            subprocess.run(["kill", "-9", str(pid)], check=True)
        assert all_end(left, within_s=LIMIT_S) == []
