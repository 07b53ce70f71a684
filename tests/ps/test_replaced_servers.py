"""Servers that come back elsewhere, and servers that were replaced and then wake: two never speak for the same rows."""

from __future__ import annotations

import signal
from pathlib import Path

import numpy as np
import pytest
from deployments import exact, impatient, pull, push_of, u64
from killed import SOON, ServerProcess
from test_ledger_under_faults import TABLES, Worker, check
from test_moving import mover_of, push_while

from satrap.errors import JournalError, ServerLost, ServerUnreachable, ServiceError
from satrap.ps import Keeping, Placement, RemoteService, Server
from satrap.testing import Cluster


@pytest.mark.parametrize("merge", [1, 2])
def test_a_server_that_comes_back_at_another_address_goes_on_where_it_was(merge: int, tmp_path: Path) -> None:
    # As on another machine: its history is on storage that both reach, its address is not.
    with Cluster(TABLES, servers=2, bind="", history=tmp_path) as cluster, mover_of(cluster) as mover:
        services = [cluster.connect(c) for c in range(2)]
        workers = [Worker(s, c, window=3, merge=merge) for c, s in enumerate(services)]

        def moves() -> None:
            mover.move(0, 1)
            cluster.stop(0)
            before = cluster.servers[0].address
            cluster.servers[0] = cluster._server(0)
            assert cluster.servers[0].address != before
            placement = mover.relocate(0, cluster.servers[0].address)
            for service in services:
                service.relocate(placement)
            cluster.placement = placement
            mover.move(1, 1)

        push_while(workers, moves)
        check(cluster.connect(9), workers)


def test_what_a_machine_took_with_it_is_told_to_the_push_that_follows(tmp_path: Path) -> None:
    # The journal there is older than what was acknowledged: never is training continued as if nothing were missing.
    layout, ids = [exact()], np.arange(50, dtype=np.uint64)
    with Cluster(layout, servers=1, bind="", history=tmp_path / "new") as cluster:
        service = cluster.connect(0)
        pull(service, "t", ids, create=True)
        service.push(push_of(1, ids, 1.0))
        (tmp_path / "old").mkdir()
        for f in (tmp_path / "new" / "server-0").iterdir():
            if f.is_file():
                (tmp_path / "old" / f.name).write_bytes(f.read_bytes())
        service.push(push_of(2, ids, 1.0))
        cluster.stop(0)
        (tmp_path / "old" / ".lock").unlink()
        keeping = Keeping(folder=tmp_path / "old")
        bind = cluster.servers[0].address
        with (
            Server(layout, seed=0, partitions=8, threads=1, bind=bind, keeping=keeping),
            pytest.raises(ServerLost, match=r"has forgotten push \(0, 2\), which it had acknowledged"),
        ):
            service.push(push_of(3, ids, 1.0))


def test_a_server_that_sleeps_keeps_its_history_to_itself(tmp_path: Path) -> None:
    # While it might wake and acknowledge something, nobody else may begin with what it has written.
    layout = [exact()]
    server = ServerProcess(tmp_path, layout)
    try:
        server.process.send_signal(signal.SIGSTOP)
        with pytest.raises(JournalError, match=f"process {server.process.pid} keeps its history there"):
            Server(layout, seed=0, partitions=8, threads=1, keeping=Keeping(folder=tmp_path))
        server.kill()
        Server(layout, seed=0, partitions=8, threads=1, keeping=Keeping(folder=tmp_path)).stop()
    finally:
        server.close()


def test_a_server_that_was_replaced_and_wakes_is_asked_by_nobody_and_refuses_who_does(tmp_path: Path) -> None:
    layout, ids = [exact()], u64(1, 2, 3)
    zombie = ServerProcess(tmp_path / "zombie", layout)
    try:
        old = RemoteService(layout, Placement.even([zombie.address], 8), seed=0, patience=SOON)
        pull(old, "t", ids, create=True)
        old.push(push_of(1, ids, 1.0))
        zombie.process.send_signal(signal.SIGSTOP)
        with impatient(old), pytest.raises(ServerUnreachable):
            old.push(push_of(2, ids, 1.0))
        with Server(layout, seed=0, partitions=8, threads=1, epoch=1) as replaced:
            new = RemoteService(layout, Placement.even([replaced.address], 8, epoch=1), seed=0, patience=SOON)
            pull(new, "t", ids, create=True)
            new.push(push_of(1, ids, 5.0))
            zombie.process.send_signal(signal.SIGCONT)
            astray = RemoteService(layout, Placement.even([zombie.address], 8, epoch=1), seed=0, patience=SOON)
            with pytest.raises(ServiceError, match="goes by placement 0, the request by placement 1"):
                pull(astray, "t", ids)
            # And a worker of before, which woke with it, changes nothing at the servers of now.
            with (
                RemoteService(layout, Placement.even([replaced.address], 8), seed=0, patience=SOON) as late,
                pytest.raises(ServiceError, match="goes by placement 1, the request by placement 0"),
            ):
                late.push(push_of(9, ids, 100.0))
            np.testing.assert_array_equal(pull(new, "t", ids), -5.0)
            for service in (old, new, astray):
                service.close()
    finally:
        zombie.close()
