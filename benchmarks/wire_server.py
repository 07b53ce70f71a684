"""The other process of `python -m benchmarks wire`: a parameter server, or an echo of the same bytes.

Prints its address, and ends when its input is closed. The echo has one answer ready for each operation and does not
look at what comes but for its first byte: what it costs is what the transport costs.
"""

from __future__ import annotations

import argparse
import sys
import threading
from typing import Any

import numpy as np
import zmq

from satrap.ps import LocalService, RowBlock, Server
from satrap.ps.server import bind_at, endpoint_of
from satrap.schema import RowWiseAdagrad, Table, WireFormat
from satrap.store import keep_freed_memory

TRANSPORTS = {"tcp": "tcp://127.0.0.1:*", "local": bind_at("127.0.0.1")}
"""What is bound: TCP over loopback, and what `satrap train` uses where all processes share a machine."""
SEED = 3
PARTITIONS = 64


def table_of(dim: int, wire: str) -> Table:
    """The table of a case."""
    return Table(name="t", dim=dim, optimizer=RowWiseAdagrad(lr=0.02), wire=WireFormat(wire))


def ids_of(rows: int) -> np.ndarray[Any, np.dtype[np.uint64]]:
    """Ids of all rows, the same in every process."""
    return np.random.default_rng(11).integers(1, 2**63, rows, np.uint64)


def fill(service: LocalService, ids: np.ndarray[Any, np.dtype[np.uint64]], dim: int) -> None:
    """Random values in all rows, the same in every process."""
    rng = np.random.default_rng(5)
    for at in range(0, ids.size, 1 << 17):
        part = ids[at : at + (1 << 17)]
        values = rng.random((part.size, dim), np.float32)
        service.import_rows("t", RowBlock(part, values, np.zeros((part.size, 1), np.float32)))


def serve(dim: int, rows: int, threads: int, bind: str) -> None:
    """A parameter server with `rows` rows."""
    server = Server([table_of(dim, "fp32")], seed=SEED, partitions=PARTITIONS, threads=threads, bind=bind)
    fill(server.service, ids_of(rows), dim)
    with server:
        print(server.address, flush=True)
        sys.stdin.read()


def echo(pull_bytes: list[int], push_bytes: list[int], bind: str) -> None:
    """Answers requests that begin with `l` by frames of `pull_bytes`, others by frames of `push_bytes`."""
    context: zmq.Context[zmq.Socket[bytes]] = zmq.Context(io_threads=1)
    socket = context.socket(zmq.ROUTER)
    socket.linger = 0
    socket.set_hwm(0)
    socket.bind(bind)
    answers = {True: [bytes(n) for n in pull_bytes], False: [bytes(n) for n in push_bytes]}

    def run() -> None:
        while True:
            sender, first, *_ = socket.recv_multipart(copy=False)
            socket.send_multipart([sender.bytes, *answers[first.bytes[:1] == b"l"]], copy=False)

    threading.Thread(target=run, daemon=True).start()
    print(endpoint_of(socket), flush=True)
    sys.stdin.read()


def main(argv: list[str]) -> int:
    """Runs one of the two until its input ends."""
    parser = argparse.ArgumentParser(prog="benchmarks wire_server")
    parser.add_argument("kind", choices=("serve", "echo"))
    parser.add_argument("--transport", choices=TRANSPORTS, default="tcp")
    parser.add_argument("--dim", type=int, default=16)
    parser.add_argument("--rows", type=int, default=0)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--pull-bytes", type=lambda s: [int(x) for x in s.split(",")], default=[])
    parser.add_argument("--push-bytes", type=lambda s: [int(x) for x in s.split(",")], default=[])
    options = parser.parse_args(argv)
    keep_freed_memory()  # the server does so itself, and the echo is to have what it has
    if options.kind == "serve":
        serve(options.dim, options.rows, options.threads, TRANSPORTS[options.transport])
    else:
        echo(options.pull_bytes, options.push_bytes, TRANSPORTS[options.transport])
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
