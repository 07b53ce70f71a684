"""The proxy does to messages what it is told, and nothing else."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import zmq

from satrap.testing import FaultProxy, Faults


@contextmanager
def line(faults: Faults, seed: int = 0) -> Iterator[tuple[Any, Any, FaultProxy]]:
    """A client and a server socket with the proxy between them."""
    with zmq.Context() as context, context.socket(zmq.ROUTER) as server, context.socket(zmq.DEALER) as client:
        for s in (server, client):
            s.linger = 0
        port = server.bind_to_random_port("tcp://127.0.0.1")
        proxy = FaultProxy(f"tcp://127.0.0.1:{port}", faults, seed=seed)
        client.connect(proxy.address)
        try:
            yield client, server, proxy
        finally:
            proxy.stop()


def send(client: Any, count: int) -> None:
    for i in range(count):
        client.send_multipart([b"%d" % i, b"x" * 10])


def received(socket: Any, proxy: FaultProxy, planned: int, earlier: int = 0) -> list[int]:
    """Numbers of the messages that arrive, once the proxy has planned what becomes of `planned` in all; `earlier`: of
    those that pass, what has arrived before."""
    out: list[int] = []
    deadline, counts = time.monotonic() + 60, proxy.counts

    def all_here() -> bool:
        whole = counts["passed"] + counts["dropped"] == planned
        return whole and len(out) + earlier == counts["passed"] + counts["duplicated"]

    while not all_here():
        assert time.monotonic() < deadline
        if socket.poll(10):
            out.append(int(socket.recv_multipart()[-2]))
    assert not socket.poll(50)  # and no more
    return out


def test_without_faults_all_messages_pass_in_order_both_ways() -> None:
    with line(Faults()) as (client, server, proxy):
        send(client, 100)
        assert received(server, proxy, 100) == list(range(100))
        send(client, 1)
        sender = server.recv_multipart()[0]
        for i in range(50):
            server.send_multipart([sender, b"%d" % i, b"y"])
        assert received(client, proxy, 151, earlier=101) == list(range(50))
        assert proxy.counts["passed"] == 151


def test_dropped_messages_are_those_the_plan_says_every_time() -> None:
    seen = []
    for seed in (4, 4, 5):
        with line(Faults(drop=0.3), seed) as (client, server, proxy):
            send(client, 200)
            seen.append(received(server, proxy, 200))
            assert proxy.counts["dropped"] == 200 - len(seen[-1])
    assert seen[0] == seen[1] != seen[2]
    assert 100 < len(seen[0]) < 180


def test_repeated_messages_arrive_twice_and_reordered_ones_late() -> None:
    with line(Faults(duplicate=0.5)) as (client, server, proxy):
        send(client, 100)
        got = received(server, proxy, 100)
        assert len(got) == 100 + proxy.counts["duplicated"]
        assert set(got) == set(range(100))
        assert proxy.counts["duplicated"] > 20
    with line(Faults(reorder=0.5)) as (client, server, proxy):
        send(client, 100)
        got = received(server, proxy, 100)
        assert sorted(got) == list(range(100)) != got


@pytest.mark.parametrize("faults", [Faults(delay_ms=60), Faults(bytes_per_s=11_000 / 0.06)])
def test_a_message_takes_no_less_than_its_delay_or_its_bytes_need(faults: Faults) -> None:
    # Only a lower bound: how much longer a busy machine takes is no matter.
    with line(faults) as (client, server, _):
        begun = time.monotonic()
        client.send_multipart([b"0", b"x" * 11_000])
        assert server.poll(20_000)
        assert time.monotonic() - begun >= 0.059


def test_delayed_messages_keep_their_order() -> None:
    with line(Faults(delay_ms=20, bytes_per_s=1e6)) as (client, server, proxy):
        send(client, 100)
        assert received(server, proxy, 100) == list(range(100))


def test_faults_may_change_while_messages_pass() -> None:
    with line(Faults(drop=1.0)) as (client, server, proxy):
        send(client, 10)
        assert received(server, proxy, 10) == []
        proxy.faults = Faults()
        send(client, 10)
        assert received(server, proxy, 20) == list(range(10))


def test_clients_have_connections_of_their_own_to_the_server() -> None:
    with line(Faults()) as (client, server, proxy), zmq.Context() as context, context.socket(zmq.DEALER) as other:
        other.linger = 0
        other.connect(proxy.address)
        for s in (client, other):
            s.send_multipart([b"1", b""])
        senders = {server.recv_multipart()[0] for _ in range(2)}
        assert len(senders) == 2
