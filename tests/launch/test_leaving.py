"""Machines and processes that are told to go: what they have goes elsewhere first, and the model stays the same."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from typing import Any

import pytest
from launched import LIMIT_S, ON_TWO, SYNCHRONOUS, Running, digest

from satrap.launch import notice
from satrap.launch.guard import Identity
from satrap.launch.notice import Notice
from satrap.launch.placing import Node
from satrap.observe.runlog import read_metrics
from satrap.ps import Placement


def leave(*words: str, env: dict[str, str] | None = None) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "satrap", "leave", *words],
        capture_output=True,
        text=True,
        timeout=LIMIT_S,
        check=False,
        env={**os.environ, **(env or {})},
    )


@pytest.mark.slow
def test_a_server_that_gets_sigterm_hands_over_while_training_goes_on(
    tmp_path: Path, cluster: str, undisturbed: str
) -> None:
    with Running(tmp_path / "run", [*SYNCHRONOUS, *ON_TWO, "--address", cluster]) as run:
        run.reaches(5)
        with run.slowly():
            os.kill(run.targets()["server 0"].pid, signal.SIGTERM)
            run.says("handed ")
            run.wait(lambda: "server 0" not in run.targets(), "the end of server 0")
        text = run.ends()
    assert "will be taken away: handing over to 1 other server" in text
    assert "and may go" in text
    assert not run.restarts()
    assert digest(run.run) == undisturbed
    end = next(r for r in read_metrics(run.run) if r["kind"] == "end")
    assert end["gradients"]["sent"] == end["gradients"]["applied"]
    assert "went_back" not in end["gradients"]


@pytest.mark.slow
def test_a_worker_that_gets_sigterm_has_all_save_and_begin_again_and_nothing_goes_back(
    tmp_path: Path, cluster: str, undisturbed: str
) -> None:
    # Checkpoints every 20 steps: it would be by chance that one is just saved.
    with Running(tmp_path / "run", [*SYNCHRONOUS, *ON_TWO, "--address", cluster]) as run:
        run.reaches(5)
        pid = run.targets()["worker 1"].pid
        os.kill(pid, signal.SIGTERM)
        run.says("going on from step")
        assert run.targets()["worker 1"].pid != pid
        text = run.ends()
    assert "all save now, and begin again without" in text
    (restart,) = run.restarts()
    assert (restart["gradients_back"], restart["exact"]) == (0, True)
    assert digest(run.run) == undisturbed


@pytest.mark.slow
def test_the_last_server_has_nobody_to_hand_over_to_so_all_save(tmp_path: Path, cluster: str) -> None:
    words = [*SYNCHRONOUS, "--servers", "1", "--workers", "1", "--address", cluster]
    with Running(tmp_path / "run", words) as run:
        run.reaches(5)
        os.kill(run.targets()["server 0"].pid, signal.SIGTERM)
        text = run.ends()
    assert "all save now, and begin again without" in text
    (restart,) = run.restarts()
    assert (restart["gradients_back"], restart["exact"]) == (0, True)


HOLDER = """
import time
from satrap.launch.notice import Notice
held = Notice()
print("held", flush=True)
while not held.leaves:
    time.sleep(0.02)
print(held.text(), flush=True)
time.sleep(%s)
held.release()
time.sleep(600)
"""


@pytest.fixture
def machine(tmp_path: Path) -> dict[str, str]:
    """The environment of a machine that nobody else is on."""
    (tmp_path / "tmp").mkdir()
    return {"TMPDIR": str(tmp_path / "tmp")}


def holder(machine: dict[str, str], seconds: float) -> subprocess.Popen[str]:
    process = subprocess.Popen(
        [sys.executable, "-c", HOLDER % seconds], stdout=subprocess.PIPE, text=True, env={**os.environ, **machine}
    )
    assert process.stdout is not None
    assert process.stdout.readline() == "held\n"
    return process


def test_the_command_waits_until_every_process_has_handed_over(machine: dict[str, str]) -> None:
    with holder(machine, 0.3) as process:
        try:
            done = leave("--within", "60", env=machine)
            assert process.stdout is not None
            said = "".join(process.stdout.readline() for _ in range(4))
        finally:
            process.kill()
    assert done.returncode == 0, done.stderr
    assert "nothing of satrap is left here" in done.stdout
    assert notice.said(said, "machine")
    assert notice.said(said, "process")


def test_it_ends_in_time_and_names_those_that_have_not(machine: dict[str, str]) -> None:
    with holder(machine, 600) as process:
        try:
            done = leave("--within", "0.5", env=machine)
        finally:
            process.kill()
    assert done.returncode == 1
    assert f"process {process.pid} still had something after 0.5 s" in done.stderr


def test_a_process_that_has_ended_is_not_waited_for_and_the_machine_may_stay(
    machine: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    with holder(machine, 600) as process:
        process.kill()
    assert leave("--within", "60", env=machine).returncode == 0
    monkeypatch.setattr(notice.tempfile, "gettempdir", lambda: machine["TMPDIR"])
    here = Notice()
    assert here.machine_leaves
    assert leave("--stays", env=machine).returncode == 0
    assert not here.leaves


def test_a_process_that_got_the_number_of_one_that_has_ended_is_not_waited_for(
    machine: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(notice.tempfile, "gettempdir", lambda: machine["TMPDIR"])
    noted = notice.folder() / str(os.getpid())  # alive, and begun later
    noted.write_text(str(Identity.of().started - 1))
    assert leave("--within", "0", env=machine).returncode == 0
    assert not noted.exists()
    noted.write_text(str(Identity.of().started))
    told = leave("--within", "0", env=machine)
    assert told.returncode == 1
    assert f"process {os.getpid()} still had something after 0 s" in told.stderr
    assert "satrap leave --stays" in told.stderr


def test_a_notice_that_nobody_took_back_is_forgotten(machine: dict[str, str], monkeypatch: pytest.MonkeyPatch) -> None:
    # One that had been left behind kept every later run away from its machine.
    monkeypatch.setattr(notice.tempfile, "gettempdir", lambda: machine["TMPDIR"])
    here, said = Notice(), notice.folder() / notice.LEAVING
    said.write_text("")
    assert here.machine_leaves
    long_ago = time.time() - notice.LEAVING_S - 1
    os.utime(said, (long_ago, long_ago))
    assert not here.machine_leaves
    assert not here.leaves


def test_a_preempted_machine_is_known_from_its_metadata_server(machine: dict[str, str]) -> None:
    answers = [b"FALSE", b"FALSE", b"TRUE"]
    asked: list[str | None] = []

    class Metadata(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            asked.append(self.headers.get("Metadata-Flavor"))
            self.send_response(200)
            self.end_headers()
            self.wfile.write(answers[len(asked) - 1])

        def log_message(self, *_: Any) -> None:
            pass

    with HTTPServer(("127.0.0.1", 0), Metadata) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        done = leave("--when", f"http://127.0.0.1:{server.server_address[1]}/preempted", env=machine)
        server.shutdown()
    assert done.returncode == 0
    assert asked == ["Google"] * 3


def test_what_leaves_goes_to_those_that_have_least() -> None:
    placement = Placement.even([f"tcp://10.0.0.{i}:1" for i in range(4)], partitions=16).moved(15, 0)
    moves = placement.moves_from({0}, [1, 2, 3])
    assert [p for p, _ in moves] == [0, 1, 2, 3, 15]
    for partition, to in moves:
        placement = placement.moved(partition, to)
    assert sorted(len(placement.of(s)) for s in range(4)) == [0, 5, 5, 6]


def test_no_process_is_placed_on_a_machine_that_goes_while_another_stays() -> None:
    from satrap.launch.fleet import Fleet, Member
    from satrap.launch.placing import place

    nodes = [Node(id=i, ip=f"10.0.0.{i}", cpus=4) for i in "ab"]

    class Session:
        private = False

        def nodes(self) -> list[Node]:
            return nodes

    fleet = Fleet(Session(), None, place(nodes, 1, 1), None, None, 30.0)  # type: ignore[arg-type]
    fleet.servers = [Member("server", 0, nodes[0], None)]
    fleet._leaving = {"a"}
    assert [n.id for n in fleet.nodes()] == ["b"]
    # All go: better there than nowhere.
    fleet._leaving = {"a", "b"}
    assert [n.id for n in fleet.nodes()] == ["a", "b"]


def test_a_machine_that_somebody_else_has_made_a_folder_for_is_not_believed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(notice.tempfile, "gettempdir", lambda: str(tmp_path))
    where = notice.folder()
    where.rmdir()
    where.symlink_to(tmp_path)
    from satrap.errors import LaunchError

    with pytest.raises(LaunchError, match="belongs to another user"):
        notice.folder()
    assert not Notice().machine_leaves
