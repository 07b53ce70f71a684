"""A Ray cluster of one machine that all tests share: starting one for each run would take most of the time."""

from __future__ import annotations

import os
import secrets
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import pytest
from launched import LIMIT_S, ON_TWO, SHORT, SYNCHRONOUS, digest, train

from satrap.launch.session import PRIORITY
from satrap.rehearse.processes import children

# Before Ray is imported: it reads this once. On loopback alone, with a token of this session; and not behind everything
# else, where Ray has its workers by itself: other tests that compute would hold them up, and they fall silent.
os.environ |= {"RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0", **PRIORITY}
os.environ |= {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": secrets.token_hex(32)}


START = """
import os, runpy
from satrap.launch.guard import Identity, end_with
end_with(Identity.of(os.getppid()))
runpy.run_module("ray.scripts.scripts", run_name="__main__")
"""
"""`ray start` that ends with the tests, however they end."""


@pytest.fixture(scope="session")
def head() -> Iterator[tuple[str, int]]:
    """A Ray cluster of one node, on loopback: its address, and the process below which all of it is."""
    pytest.importorskip("ray")
    folder = tempfile.mkdtemp(prefix="satrap-ray-")  # short: it holds Unix sockets
    with socket.create_server(("127.0.0.1", 0)) as s:
        port = s.getsockname()[1]
    start = [
        sys.executable, "-c", START, "start", "--head", "--block", "--node-ip-address=127.0.0.1",
        f"--port={port}", "--num-cpus=8", "--include-dashboard=false", f"--temp-dir={folder}",
        "--object-store-memory=80000000", "--disable-usage-stats",
    ]  # fmt: skip
    with (Path(folder) / "start.log").open("w") as log:
        head = subprocess.Popen(start, stdout=log, stderr=log, start_new_session=True)
    try:
        deadline = time.monotonic() + LIMIT_S
        while "Ray runtime started" not in (Path(folder) / "start.log").read_text():
            assert head.poll() is None, (Path(folder) / "start.log").read_text()
            assert time.monotonic() < deadline
            time.sleep(0.1)
        yield f"127.0.0.1:{port}", head.pid
    finally:
        # At once: asked to end, it would take half a minute.
        for pid in [*children(head.pid), head.pid]:
            with suppress(OSError):
                os.kill(pid, signal.SIGKILL)
        head.wait()
        shutil.rmtree(folder, ignore_errors=True)


@pytest.fixture(scope="session")
def cluster(head: tuple[str, int]) -> str:
    """The address of a Ray cluster, whose token this process has as well."""
    return head[0]


@pytest.fixture(scope="session")
def undisturbed(cluster: str, tmp_path_factory: pytest.TempPathFactory) -> str:
    """The digest of a run that nothing happens to: two servers, two workers, staleness 0."""
    run = tmp_path_factory.mktemp("undisturbed") / "run"
    train(run, *SYNCHRONOUS, *ON_TWO, "--address", cluster)
    return digest(run)


@pytest.fixture(scope="session")
def one_process(tmp_path_factory: pytest.TempPathFactory) -> str:
    """The digest of `SHORT` in one process."""
    run = tmp_path_factory.mktemp("one") / "run"
    train(run, *SHORT)
    return digest(run)
