"""Nothing that runs code is reachable from a satrap socket."""

from __future__ import annotations

import ast
import pickle
import socket
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import zmq
from deployments import exact

import satrap
from satrap.errors import WireError
from satrap.observe.endpoint import Endpoint
from satrap.observe.scrape import scrape
from satrap.testing import Cluster
from satrap.train.plain import from_bytes
from satrap.wire import Code, Failure, Hello, decode, encode

ROOMS = ("ps", "pooling", "wire", "store", "testing", "launch", "observe")
"""Those that listen on a socket or read what came by one. Ray's own sockets, which `launch` uses, are not satrap's."""
MODULES = {"pickle", "cPickle", "_pickle", "cloudpickle", "dill", "shelve", "marshal", "joblib"}
CALLS = {
    "recv_pyobj", "send_pyobj", "recv_serialized", "send_serialized", "eval", "exec", "__import__", "import_module",
    "loads", "load",
}  # fmt: skip


class Bomb:
    """Tells when it is unpickled."""

    went_off = False

    def __reduce__(self) -> Any:
        return (set_off, ())


def set_off() -> None:
    Bomb.went_off = True


def uses(tree: ast.AST) -> Iterator[str]:
    """Modules and names of functions that a file imports or calls."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (a.name.split(".")[0] for a in node.names)
        elif isinstance(node, ast.ImportFrom):
            yield (node.module or "").split(".")[0]
            yield from (a.name for a in node.names)
        elif isinstance(node, ast.Call):
            if isinstance(node.func, ast.Name):
                yield node.func.id
            elif isinstance(node.func, ast.Attribute):
                yield node.func.attr


@pytest.mark.parametrize("room", ROOMS)
def test_no_room_behind_a_socket_knows_a_way_to_run_what_came(room: str) -> None:
    files = sorted((Path(satrap.__file__).parent / room).rglob("*.py"))
    assert files
    allowed = {("keys.py", "load")}  # the class method that reads key files
    found = {
        (f.name, name)
        for f in files
        for name in uses(ast.parse(f.read_text()))
        if name in MODULES | CALLS and (f.name, name) not in allowed
    }
    assert not found


def test_the_search_finds_what_it_looks_for() -> None:
    source = "import pickle\nfrom cloudpickle import dumps\nsocket.recv_pyobj()\nnp.load(f, allow_pickle=True)\neval(x)"
    assert {"pickle", "cloudpickle", "recv_pyobj", "load", "eval"} <= set(uses(ast.parse(source)))


def payloads() -> list[list[bytes]]:
    bomb = pickle.dumps(Bomb())
    hello = [bytes(f) for f in encode(Hello(request=1, client=0, fingerprint=bytes(32)))]
    objects = np.array([Bomb()], dtype=object)
    return [
        [bomb],
        [hello[0], bomb],
        [hello[0] + bomb],
        [hello[0][:40] + bomb],
        [pickle.dumps(objects)],
        [bomb] * 9,
        [b""],
    ]


@pytest.mark.parametrize("frames", payloads())
def test_a_pickled_payload_is_refused_as_no_message(frames: list[bytes]) -> None:
    pickle.loads(pickle.dumps(Bomb()))
    assert Bomb.went_off  # it does go off when anyone unpickles it
    Bomb.went_off = False
    with pytest.raises(WireError):
        decode(frames)
    with Cluster([exact()]) as cluster, zmq.Context() as context, context.socket(zmq.DEALER) as socket:
        socket.linger = 0
        socket.connect(cluster.servers[0].address)
        socket.send_multipart(frames)
        assert socket.poll(10_000)
        answer = decode(socket.recv_multipart())
        assert isinstance(answer, Failure)
        assert answer.code is Code.MALFORMED
        assert cluster.connect().stats()["t"].rows == 0  # the server goes on
    assert not Bomb.went_off


def test_a_pickle_sent_to_the_metrics_endpoint_is_no_request() -> None:
    bomb = pickle.dumps(Bomb())
    with Endpoint(lambda: "satrap_rows 3") as endpoint:
        host, _, port = endpoint.address.partition(":")
        for request in (bomb, b"POST /metrics HTTP/1.1\r\nContent-Length: %d\r\n\r\n%s" % (len(bomb), bomb)):
            with socket.create_connection((host, int(port)), timeout=10) as s:
                s.sendall(request)
                s.shutdown(socket.SHUT_WR)
                answer = b"".join(iter(lambda s=s: s.recv(4096), b""))
            assert b"200" not in answer
        assert scrape(endpoint.address).total("satrap_rows") == 3  # it goes on
    assert not Bomb.went_off


def test_workers_tell_each_other_tensors_and_json_and_no_objects() -> None:
    # torch.distributed has collectives for objects, which are pickled.
    found = {
        name
        for f in (Path(satrap.__file__).parent / "train").rglob("*.py")
        for name in uses(ast.parse(f.read_text()))
        if name in MODULES or "object" in name
    }
    assert not found
    with pytest.raises(ValueError):
        from_bytes(pickle.dumps(Bomb()))
    assert not Bomb.went_off


def test_a_client_ignores_what_is_no_message() -> None:
    with zmq.Context() as context, context.socket(zmq.ROUTER) as fake:
        fake.linger = 0
        port = fake.bind_to_random_port("tcp://127.0.0.1")
        from satrap.errors import ServerUnreachable
        from satrap.ps import Placement, RemoteService

        placement = Placement.even([f"tcp://127.0.0.1:{port}"], 8)
        with RemoteService([exact()], placement, seed=0, deadline_s=0.5) as client:
            pending = client._exchange.send(0, Hello(client=0, fingerprint=bytes(32)))
            sender, *_ = fake.recv_multipart()
            for frames in payloads():
                fake.send_multipart([sender, *frames])
            with pytest.raises(ServerUnreachable):
                client._exchange.wait(pending)
    assert not Bomb.went_off
