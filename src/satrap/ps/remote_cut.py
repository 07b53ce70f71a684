"""A cut over S servers: each keeps the rows that it owns (docs/decisions/0019-checkpoints-behind.md)."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from typing import Protocol

from satrap import wire
from satrap.errors import ServiceError, StoreError
from satrap.ps.placement import Placement
from satrap.ps.protocol import RowBlock, TableStats
from satrap.schema import Table


class Asking(Protocol):
    """What it needs of a client."""

    def tables(self) -> Sequence[Table]:
        """See `RowStorage.tables`."""

    def read_partition(self, table: str, partition: int, owner: Callable[[], int], cut: int = 0) -> RowBlock:
        """The rows of a partition, asked of a server."""

    def ask(self, server: int, request: wire.Message) -> wire.Message:
        """The answer of one server."""

    def tell(self, server: int, request: wire.Message) -> None:
        """Sends a request to one server, and does not wait for its answer."""


class RemoteCut:
    """Implements `Cut` on servers. Thread-safe."""

    def __init__(
        self,
        client: Asking,
        number: int,
        placement: Placement,
        stats: Mapping[str, TableStats],
        clients: Mapping[int, tuple[int, int]],
    ) -> None:
        """`number`: as the servers know it. `placement`: when it was made, whatever it is since."""
        self._client, self._number, self._placement = client, number, placement
        self._stats, self._clients = dict(stats), dict(clients)
        self._closed = False

    @property
    def partitions(self) -> int:
        """See `Cut.partitions`."""
        return self._placement.partitions

    def tables(self) -> Sequence[Table]:
        """See `Cut.tables`."""
        return self._client.tables()

    def stats(self) -> Mapping[str, TableStats]:
        """See `Cut.stats`."""
        return self._stats

    def clients(self) -> dict[int, tuple[int, int]]:
        """See `Cut.clients`."""
        return dict(self._clients)

    def export_rows(self, table: str, partition: int) -> RowBlock:
        """See `Cut.export_rows`."""
        owner = self._placement.owners[partition]
        return self._client.read_partition(table, partition, lambda: owner, self._number)

    def done(self, partition: int) -> None:
        """See `Cut.done`."""
        request = wire.CutDone(number=self._number, partition=partition, placement=self._placement.number)
        answer = self._client.ask(self._placement.owners[partition], request)
        if not isinstance(answer, wire.Done):
            raise ServiceError(f"a server answered with {type(answer).__name__} instead of Done")

    def close(self) -> None:
        """See `Cut.close`. A server that does not answer gives it up when it is asked for another, or after a while."""
        if self._closed:
            return
        self._closed = True
        for server in sorted(set(self._placement.owners)):
            with suppress(ServiceError, StoreError):
                self._client.ask(server, self._all_done())

    def abandon(self) -> None:
        """`close` of one that failed: servers are told, and not waited for, as one of them may not answer."""
        self._closed = True
        for server in sorted(set(self._placement.owners)):
            with suppress(ServiceError):
                self._client.tell(server, self._all_done())

    def _all_done(self) -> wire.CutDone:
        return wire.CutDone(number=self._number, partition=None, placement=self._placement.number)
