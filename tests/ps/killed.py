"""A server in a process of its own that a test may kill, and begin again where clients look for it."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import msgspec

from satrap.ps import Patience, Placement, RemoteService
from satrap.schema import Table

SOON = Patience(resend_s=0.05, transfer_deadline_s=60.0, step_deadline_s=60.0)

PROGRAM = """
import json, os, signal, sys, threading
from pathlib import Path
import msgspec
from satrap.ps import Keeping, Server
from satrap.schema import Table
o = json.loads(sys.argv[1])
tables = [msgspec.convert(t, Table) for t in o["tables"]]
keeping = Keeping(folder=Path(o["folder"]), level=o["level"], snapshot_bytes=o["snapshot_bytes"],
                  segment_bytes=o["segment_bytes"])
server = Server(tables, seed=0, partitions=8, threads=2, bind=o["bind"], index=o["index"], keeping=keeping)
print(server.address, flush=True)
server.serve_forever()
"""


class ServerProcess:
    """One server with a history in a folder."""

    def __init__(
        self, folder: Path, tables: Sequence[Table], *, index: int = 0, level: str = "process",
        snapshot_bytes: int = 1 << 30, segment_bytes: int = 1 << 16,
    ) -> None:  # fmt: skip
        self._options = {
            "folder": str(folder),
            "tables": [msgspec.to_builtins(t) for t in tables],
            "index": index,
            "level": level,
            "bind": "tcp://127.0.0.1:*",
            "snapshot_bytes": snapshot_bytes,
            "segment_bytes": segment_bytes,
        }
        self.begin()

    def begin(self) -> None:
        self.process = subprocess.Popen(
            [sys.executable, "-c", PROGRAM, json.dumps(self._options)], stdout=subprocess.PIPE, text=True
        )
        assert self.process.stdout is not None
        self.address = self.process.stdout.readline().strip()
        assert self.address, "the server did not begin"
        self._options["bind"] = self.address

    def kill(self) -> None:
        self.process.send_signal(signal.SIGKILL)
        self.process.wait()

    def close(self) -> None:
        if self.process.poll() is None:
            self.kill()
        if self.process.stdout is not None:
            self.process.stdout.close()


class Servers:
    """S of them, and clients. A context manager."""

    def __init__(
        self, folder: Path, tables: Sequence[Table], servers: int = 1, spare: int = 0, **options: object
    ) -> None:
        """`spare`: servers beside these, that own nothing."""
        self._tables, self._owning = tables, servers
        self.servers = [
            ServerProcess(folder / f"server-{i}", tables, index=i, **options)  # type: ignore[arg-type]
            for i in range(servers + spare)
        ]
        self.through([s.address for s in self.servers])
        self._clients: list[RemoteService] = []

    def connect(self, client: int = 0, **options: Any) -> RemoteService:
        options = {"patience": SOON, **options}
        service = RemoteService(self._tables, self.placement, seed=0, client=client, **options)
        self._clients.append(service)
        return service

    def through(self, addresses: list[str]) -> None:
        """Clients to come reach the servers at these addresses, in order: those of proxies."""
        self.addresses = addresses
        self.placement = Placement.even(addresses[: self._owning], 8)

    def __enter__(self) -> Servers:
        return self

    def __exit__(self, *_: object) -> None:
        for client in self._clients:
            client.close()
        for server in self.servers:
            server.close()
