"""Servers in threads of this process, on loopback, and clients of them."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from types import TracebackType
from typing import Any

from satrap.ps import ClientKeys, Keeping, LocalService, Patience, Placement, RemoteService, Server, ServerKeys
from satrap.ps.server import bind_at
from satrap.schema import Table
from satrap.testing.proxy import FaultProxy, Faults

SOON = Patience(resend_s=0.05, transfer_deadline_s=60.0, step_deadline_s=60.0)
"""Waits as short as a test's."""


class Cluster:
    """S servers of the same tables, each behind a proxy where there are `faults`.

    >>> from satrap.schema import SGD
    >>> with Cluster([Table(name="t", dim=2, optimizer=SGD())], servers=2) as cluster:
    ...     cluster.connect().stats()["t"].rows
    0
    """

    def __init__(
        self,
        tables: Sequence[Table],
        *,
        servers: int = 1,
        partitions: int = 8,
        seed: int = 0,
        threads: int = 1,
        epoch: int = 0,
        faults: Faults | None = None,
        keys: ServerKeys | None = None,
        bind: str = "tcp://127.0.0.1:*",
        history: Path | None = None,
    ) -> None:
        """`bind`: of every server, `*` for what differs; "" for sockets that are local to this machine. `faults`: None
        means no proxy; its random numbers follow from `seed` and the server's number. `history`: every server keeps
        its own below this folder."""
        self._tables, self._keys = tuple(tables), keys
        self._options: dict[str, Any] = {"seed": seed, "partitions": partitions, "threads": threads, "epoch": epoch}
        self._bind, self._history = bind, history
        self._faults = faults
        self._clients: list[RemoteService] = []
        self.servers = [self._server(i) for i in range(servers)]
        self.proxies = (
            []
            if faults is None
            else [FaultProxy(s.address, faults, seed=1000 * seed + i) for i, s in enumerate(self.servers)]
        )
        addresses = [p.address for p in self.proxies] or [s.address for s in self.servers]
        self.placement = Placement.even(addresses, partitions, epoch)

    def _server(self, index: int, **options: Any) -> Server:
        bind = self._bind or bind_at("127.0.0.1")
        if self._history is not None:
            options["keeping"] = Keeping(folder=self._history / f"server-{index}")
        return Server(self._tables, index=index, keys=self._keys, **{"bind": bind, **self._options, **options}).start()

    def connect(self, client: int = 0, *, keys: ClientKeys | None = None, **options: Any) -> RemoteService:
        """A new client of all servers. Ends with the cluster."""
        options = {"patience": SOON, "seed": self._options["seed"], **options}
        service = RemoteService(self._tables, self.placement, client=client, keys=keys, **options)
        self._clients.append(service)
        return service

    def grow(self) -> str:
        """Starts one more server, which owns nothing; returns where clients are to reach it."""
        index = len(self.servers)
        self.servers.append(self._server(index))
        if self._faults is None:
            return self.servers[index].address
        self.proxies.append(FaultProxy(self.servers[index].address, self._faults, seed=index))
        return self.proxies[index].address

    def stop(self, server: int) -> LocalService:
        """Stops a server; returns the rows it had. Its address stays in the placement."""
        self.servers[server].stop()
        return self.servers[server].service

    def restart(self, server: int, rows: LocalService | None = None) -> None:
        """Starts a stopped server again, with these rows or with none, where clients look for it."""
        if self.proxies:
            self.servers[server] = self._server(server, store=rows)
            self.proxies[server].move(self.servers[server].address)
        else:
            self.servers[server] = self._server(server, store=rows, bind=self.servers[server].address)

    def close(self) -> None:
        """Ends clients, proxies and servers."""
        for client in self._clients:
            client.close()
        for proxy in self.proxies:
            proxy.stop()
        for server in self.servers:
            server.stop()

    def __enter__(self) -> Cluster:
        return self

    def __exit__(self, kind: type[BaseException] | None, e: BaseException | None, at: TracebackType | None) -> None:
        self.close()
