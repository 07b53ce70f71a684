"""Servers that stop, come back with their rows, come back without them, or were never there."""

from __future__ import annotations

import signal
import socket
import threading
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from deployments import exact, impatient, is_held, outcome, pull, push_of, u64, until
from killed import Servers

from satrap.errors import ServerLost, ServerUnreachable, ServiceError, StoreError
from satrap.ps import Patience, Placement, PullRequest, RemoteService, Server
from satrap.schema import SGD, Table
from satrap.testing import SOON, Cluster, Faults

IDS = np.arange(100, dtype=np.uint64)
WITHOUT_END = Patience(resend_s=0.05, transfer_deadline_s=100_000.0)
"""For requests that move many rows."""


def test_a_server_that_is_not_there_is_named_with_its_address_when_the_deadline_is_over() -> None:
    with Cluster([exact()], servers=2) as cluster:
        client = cluster.connect()
        pull(client, "t", IDS, create=True)
        cluster.stop(1)
        says = rf"server 1 \({cluster.placement.addresses[1]}\) has not answered for 0.3 s"
        with impatient(client), pytest.raises(ServerUnreachable, match=says):
            pull(client, "t", IDS)


def test_a_server_that_falls_silent_with_a_push_that_it_holds_is_called_so_at_the_deadline() -> None:
    # Once it had said that it holds a push, it was given the half hour that other workers may take.
    with Cluster([exact()]) as cluster:
        client = cluster.connect(patience=Patience(resend_s=0.05, step_deadline_s=1800.0))
        pull(client, "t", IDS, create=True)
        with impatient(client, 2.0):
            pending = client.submit_push(push_of(1, IDS, 1, merge=2))
            seen: list[ServiceError] = []

            def wait() -> None:
                try:
                    pending.result()
                except ServiceError as e:
                    seen.append(e)

            waiting = threading.Thread(target=wait, daemon=True)
            waiting.start()
            until(lambda: any(c.held for link in client._exchange._links for c in link.pending.values()))
            waiting.join(4.0)
            assert waiting.is_alive(), "as long as the server answers, the others of its step are waited for"
            cluster.servers[0].stop()
            waiting.join(60)
        assert isinstance(seen[0], ServerUnreachable)
        assert "has not answered for 2 s" in str(seen[0])


def test_a_stopped_server_is_not_given_the_time_that_many_rows_may_take(tmp_path: Path) -> None:
    # A run whose checkpoint was due when its server stopped waited ten minutes to begin again.
    with Servers(tmp_path, [exact()], servers=2) as cluster:
        client = cluster.connect(deadline_s=4.0, patience=WITHOUT_END)
        pull(client, "t", IDS, create=True)
        cluster.servers[1].process.send_signal(signal.SIGSTOP)
        says = rf"server 1 \({cluster.addresses[1]}\) has not answered for 1 s"
        with impatient(client, 1.0), pytest.raises(ServerUnreachable, match=says):
            client.cut()
        cluster.servers[1].process.send_signal(signal.SIGCONT)
        client.cut().close()


def test_a_server_that_is_busy_with_many_rows_is_given_the_time_it_takes() -> None:
    with Cluster([exact()]) as cluster:
        client = cluster.connect(deadline_s=4.0, patience=WITHOUT_END)
        pull(client, "t", IDS, create=True)
        busy, free = threading.Event(), threading.Event()

        def be_busy() -> list[Any]:
            busy.set()
            free.wait()
            return []

        cluster.servers[0]._command(be_busy)
        busy.wait()
        with ThreadPoolExecutor(1) as pool, impatient(client, 1.0):
            try:
                cleared = pool.submit(client.clear)
                # Longer than it takes to find a connection dead (2.5 s) and to give the server up after that.
                free.wait(5.0)
                assert not cleared.done()
            finally:
                free.set()
            cleared.result()
        assert client.stats()["t"].rows == 0


def test_whoever_hangs_up_where_a_server_was_does_not_make_the_keys_wrong() -> None:
    # A server that was stopped fails handshakes by the dozen, and the run ended for want of keys.
    with Cluster([exact()]) as cluster:
        client = cluster.connect()
        pull(client, "t", IDS, create=True)
        port = int(cluster.placement.addresses[0].rpartition(":")[2])
        cluster.stop(0)
        with socket.create_server(("127.0.0.1", port)) as there:
            taken: list[None] = []

            def hang_up() -> None:
                with suppress(OSError):
                    while True:
                        there.accept()[0].close()
                        taken.append(None)

            threading.Thread(target=hang_up, daemon=True).start()
            with impatient(client, 3.0), pytest.raises(ServerUnreachable):
                pull(client, "t", IDS)
            there.shutdown(socket.SHUT_RDWR)
        assert len(taken) > 3


def test_requests_that_were_under_way_when_a_server_stopped_are_answered_when_it_is_back() -> None:
    with Cluster([exact()], servers=2) as cluster:
        client = cluster.connect()
        pull(client, "t", IDS, create=True)
        rows = cluster.stop(0)
        pending = [client.submit_push(push_of(seq, IDS, seq)) for seq in (1, 2, 3)]
        read = client.submit_pull(PullRequest(ids={"t": IDS}, create=False))
        cluster.restart(0, rows)
        assert [outcome(p.result()) for p in pending] == [(100, {}, False)] * 3
        assert (read.result().values["t"] == -6).all()


@pytest.mark.parametrize("faults", [None, Faults(drop=0.2, duplicate=0.2, reorder=0.3)])
def test_pushes_resent_to_a_restarted_server_that_kept_its_rows_are_applied_once(faults: Faults | None) -> None:
    with Cluster([exact()], servers=2, faults=faults) as cluster:
        client = cluster.connect()
        pull(client, "t", IDS, create=True)
        pushing = threading.Thread(
            target=lambda: [p.result() for p in [client.submit_push(push_of(s, IDS, s)) for s in range(1, 31)]]
        )
        pushing.start()
        for _ in range(2):
            rows = cluster.stop(1)
            cluster.restart(1, rows)
        pushing.join()
        assert (pull(client, "t", IDS) == -sum(range(31))).all()


def test_a_restarted_server_without_its_rows_is_lost_and_says_so_to_everyone() -> None:
    # A flaw of an early system: training went on with fresh rows.
    with Cluster([exact()], servers=2) as cluster:
        client, other = cluster.connect(), cluster.connect(1)
        for each in (client, other):
            pull(each, "t", IDS, create=True)
        cluster.stop(1)
        cluster.restart(1)
        for call in (
            lambda: pull(client, "t", IDS),
            lambda: client.push(push_of(1, IDS, 1)),
            lambda: other.push(push_of(1, IDS, 1, client=1)),
            lambda: client.stats(),
        ):
            with pytest.raises(
                ServerLost, match=r"server 1 .* without the rows it had; go back to the last checkpoint"
            ):
                call()
        fresh = cluster.connect()
        assert fresh.stats()["t"].rows < IDS.size


def test_a_push_that_failed_may_be_tried_again_and_counts_once() -> None:
    with Cluster([exact()], servers=2) as cluster:
        client = cluster.connect()
        pull(client, "t", IDS, create=True)
        rows = cluster.stop(1)
        with impatient(client), pytest.raises(ServerUnreachable):
            client.push(push_of(1, IDS, 1))
        cluster.restart(1, rows)
        # Server 0 has applied its part: it gives the same acknowledgement again.
        assert outcome(client.push(push_of(1, IDS, 1))) == (100, {}, False)
        assert outcome(client.push(push_of(1, IDS, 1))) == (0, {}, True)
        assert outcome(client.push(push_of(2, IDS, 1))) == (100, {}, False)
        assert (pull(client, "t", IDS) == -2).all()


def test_a_push_given_up_after_a_failure_does_not_stop_the_next() -> None:
    with Cluster([exact()], servers=2) as cluster:
        client = cluster.connect()
        pull(client, "t", IDS, create=True)
        rows = cluster.stop(1)
        with impatient(client), pytest.raises(ServerUnreachable):
            client.push(push_of(1, IDS, 1))
        cluster.restart(1, rows)
        assert outcome(client.push(push_of(2, IDS, 1))) == (100, {}, False)


def test_a_part_that_one_server_had_before_is_told_from_the_rest() -> None:
    # A worker that was killed between two servers and began again with the same names.
    with Cluster([exact()], servers=2) as cluster:
        first = cluster.connect()
        pull(first, "t", IDS, create=True)
        rows = cluster.stop(1)
        with impatient(first, 2.0), pytest.raises(ServerUnreachable):  # server 0 has it by then
            first.push(push_of(1, IDS, 1))
        cluster.restart(1, rows)
        ack = cluster.connect().push(push_of(1, IDS, 1))
        assert not ack.duplicate
        assert ack.applied + ack.repeated == 100
        assert 0 < ack.repeated < 100
        assert (pull(first, "t", IDS) == -1).all()


def test_a_server_of_another_placement_refuses_and_its_held_pushes_are_dropped() -> None:
    with Cluster([exact()], servers=2) as cluster:
        old = cluster.connect()
        pull(old, "t", IDS, create=True)
        held: list[Any] = []

        def push() -> None:
            try:
                old.push(push_of(1, IDS, 1, merge=2))
            except ServiceError as e:
                held.append(e)

        waiting = threading.Thread(target=push)
        waiting.start()
        until(lambda: is_held(old))
        for server in cluster.servers:
            server.advance(1)
        waiting.join()
        assert "placement" in str(held[0])
        with pytest.raises(ServiceError, match="goes by placement 1, the request by placement 0"):
            pull(old, "t", IDS)
        placement = Placement.even(cluster.placement.addresses, 8, epoch=1)
        with RemoteService([exact()], placement, seed=0, client=1, patience=SOON) as new:
            assert outcome(new.push(push_of(1, IDS, 1, client=1))) == (100, {}, False)
        with pytest.raises(ServiceError, match="older"):
            cluster.servers[0].advance(0)


@pytest.mark.parametrize(
    ("tables", "options", "says"),
    [
        ([exact("t", 3)], {}, "configured otherwise"),
        ([exact("u", 2)], {}, "configured otherwise"),
        ([Table(name="t", dim=2, optimizer=SGD(lr=0.5))], {}, "configured otherwise"),
        ([exact()], {"seed": 1}, "another seed"),
    ],
)
def test_a_client_of_other_tables_is_refused(tables: list[Table], options: dict[str, Any], says: str) -> None:
    # A flaw of an early system: a client's configuration overwrote the servers'.
    with (
        Cluster([exact()], servers=2) as cluster,
        RemoteService(tables, cluster.placement, **{"seed": 0, **options}) as client,
        pytest.raises(ServiceError, match=says),
    ):
        client.stats()


def test_addresses_mixed_up_and_other_partitions_are_noticed() -> None:
    with Cluster([exact()], servers=2) as cluster:
        wrong = Placement(0, cluster.placement.addresses[::-1], cluster.placement.owners)
        with RemoteService([exact()], wrong, seed=0) as client, pytest.raises(ServiceError, match="mixed up"):
            client.stats()
        wrong = Placement.even(cluster.placement.addresses, 16)
        with RemoteService([exact()], wrong, seed=0) as client, pytest.raises(ServiceError, match="8 partitions"):
            client.stats()


def test_a_message_larger_than_the_server_takes_is_refused_by_size() -> None:
    from satrap.wire import Limits

    with Server([exact()], seed=0, partitions=8, threads=1, limits=Limits(rows=50)) as server:
        placement = Placement.even([server.address], 8)
        with RemoteService([exact()], placement, seed=0) as client:
            pull(client, "t", IDS[:50].copy())
            with pytest.raises(ServiceError, match="limit is 50"):
                pull(client, "t", IDS)


def test_rows_to_go_on_with_must_be_of_the_same_tables() -> None:
    with Cluster([exact()]) as cluster:
        rows = cluster.stop(0)
        with pytest.raises(ServiceError, match="other tables"):
            Server([exact("u")], seed=0, partitions=8, store=rows)


def test_an_address_in_use_is_refused_by_name() -> None:
    with Cluster([exact()]) as cluster, pytest.raises(ServiceError, match="Address already in use"):
        Server([exact()], seed=0, partitions=8, bind=cluster.servers[0].address)


def test_closing_a_client_frees_who_waits_in_it() -> None:
    with Cluster([exact()]) as cluster:
        client = cluster.connect()
        pull(client, "t", u64(1), create=True)
        seen: list[Any] = []

        def push() -> None:
            try:
                client.push(push_of(1, u64(1), 1, merge=2))
            except ServiceError as e:
                seen.append(e)

        waiting = threading.Thread(target=push)
        waiting.start()
        until(lambda: is_held(client))
        client.close()
        waiting.join()
        assert "closed" in str(seen[0])
        with pytest.raises(ServiceError, match="closed"):
            client.stats()


def test_a_refused_request_does_not_end_the_server() -> None:
    with Cluster([exact()]) as cluster:
        client = cluster.connect()
        with pytest.raises(StoreError):
            client.export_rows("t", 99)
        cluster.servers[0].service.store.pull_flat = None  # type: ignore[assignment, method-assign]
        with pytest.raises(ServiceError, match="TypeError"):
            pull(client, "t", u64(1))
        assert client.stats()["t"].rows == 0


def test_metrics_tell_what_was_done() -> None:
    with Cluster([exact()], servers=2) as cluster:
        client = cluster.connect(patience=Patience(resend_s=60.0))  # what is sent again is counted again
        pull(client, "t", IDS, create=True)
        client.push(push_of(1, IDS, 1))
        client.push(push_of(1, IDS, 1))
        lines = "\n".join(client.server_metrics()).splitlines()
        values = [line.rsplit(" ", 1) for line in lines if line and line[0] != "#"]

        def total(name: str) -> float:
            return sum(float(v) for n, v in values if n == name)

        assert total("satrap_gradients_applied_total") == 100
        assert total("satrap_rows_pulled_total") == 100
        assert total("satrap_duplicate_pushes_total") == 2
        assert total('satrap_rows{table="t"}') == 100
        assert total('satrap_request_seconds_count{kind="Push"}') == 4
        assert cluster.servers[0].metrics().startswith("# HELP")


def test_a_client_may_stop_the_servers() -> None:
    with Cluster([exact()], servers=2) as cluster:
        cluster.connect().stop_servers()
        for server in cluster.servers:
            server.stop()


def test_a_request_that_speaks_of_another_life_changes_nothing() -> None:
    # The client would see it in the answer too; but by then a push would have been counted in rows it does not mean.
    from satrap import wire
    from satrap.ps import LocalService, Role
    from satrap.ps.handling import Handler
    from satrap.ps.packing import Directory

    service = LocalService([exact()], seed=0, partitions=8, threads=1)
    handler = Handler(service, seed=0, index=0, epoch=0)
    hello = wire.Hello(request=1, client=0, fingerprint=Directory.of([exact()]).fingerprint(0))
    assert isinstance(handler.handle(b"a", hello, Role.ADMIN)[0][1], wire.Welcome)
    sections = (wire.Section(0, 1, 2),)
    requests = [
        wire.Pull(request=2, life=service.life + 2, sections=sections, ids=u64(1), create=True),
        wire.Push(
            request=3, life=service.life + 2, client=0, epoch=0, seq=1, sections=sections, ids=u64(1),
            gradients=np.zeros(8, np.uint8),
        ),
    ]  # fmt: skip
    for request in requests:
        answer = handler.handle(b"a", request, Role.ADMIN)[0][1]
        assert isinstance(answer, wire.Failure)
        assert answer.code is wire.Code.LIFE
    assert service.stats()["t"].rows == 0
    assert service.clients() == {}


@pytest.mark.parametrize("reset", ["clear", "set clients"])
def test_a_push_of_before_the_rows_were_replaced_that_comes_late_changes_nothing(reset: str) -> None:
    # The filter that knew it was replaced with the rows: a repeat that a network had kept back was applied once more.
    from satrap import wire
    from satrap.ps import LocalService, Role
    from satrap.ps.handling import Handler

    service = LocalService([exact()], seed=0, partitions=8, threads=1)
    handler = Handler(service, seed=0, index=0, epoch=0)
    sections, ids = (wire.Section(0, 1, 2),), u64(1)

    def push(client: int, request: int, seq: int) -> wire.Message:
        message = wire.Push(
            request=request, client=client, epoch=0, seq=seq, sections=sections, ids=ids,
            gradients=np.full(2, 1, np.float32).view(np.uint8),
        )  # fmt: skip
        return handler.handle(bytes([client]), message, Role.ADMIN)[0][1]

    for client in (0, 1):
        hello = wire.Hello(request=100 * client + 1, client=client, fingerprint=handler.fingerprint)
        handler.handle(bytes([client]), hello, Role.ADMIN)
    make = wire.Pull(request=2, sections=sections, ids=ids, create=True)
    handler.handle(b"\x00", make, Role.ADMIN)
    for client in (0, 1):
        for seq in (1, 2):
            assert isinstance(push(client, 100 * client + 2 + seq, seq), wire.AckReply)
    changes: wire.Message = wire.Clear(request=5) if reset == "clear" else wire.SetClients(request=5, clients={})
    handler.handle(b"\x00", changes, Role.ADMIN)
    handler.handle(b"\x00", wire.Pull(request=6, sections=sections, ids=ids, create=True), Role.ADMIN)
    before = pull(service, "t", ids)
    for client, request, seq in ((0, 4, 2), (0, 3, 1), (1, 104, 2)):
        answer = push(client, request, seq)
        assert isinstance(answer, wire.Failure)
        assert answer.code is wire.Code.DROPPED
    assert (pull(service, "t", ids) == before).all()
    assert service.clients() == {}
    for client, request in ((0, 7), (1, 105)):
        assert isinstance(push(client, request, 1), wire.AckReply)
    assert (pull(service, "t", ids) == before - 2).all()
