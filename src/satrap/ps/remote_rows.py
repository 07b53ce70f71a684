"""Row storage over S servers: partitions from their owners, blocks to them. R rows, D dimension, K words of state."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray

from satrap import wire
from satrap.errors import ServiceError, StoreError, WireError
from satrap.ps.exchange import Exchange, Patience
from satrap.ps.packing import Directory
from satrap.ps.placement import Placement
from satrap.ps.protocol import RowBlock, TableStats
from satrap.ps.routing import Router
from satrap.schema import Table
from satrap.store import Store

PAGE_BYTES = 64 << 20
"""About this much of a block travels in one message."""

M = TypeVar("M", bound=wire.Message)


class RemoteRows:
    """Implements `RowStorage`. Thread-safe."""

    def __init__(
        self, exchange: Exchange, directory: Directory, placement: Placement, shapes: Store, patience: Patience
    ) -> None:
        self._exchange, self._directory, self._placed, self._shape = exchange, directory, placement, shapes
        self._router = Router(directory, placement)
        self._transfer_s = patience.transfer_deadline_s

    @property
    def partitions(self) -> int:
        """P: parts each table is cut into."""
        return self._placed.partitions

    def tables(self) -> Sequence[Table]:
        """The tables as configured."""
        return self._directory.tables

    def stats(self) -> Mapping[str, TableStats]:
        """Size by table, over all servers."""
        replies = self._everywhere(lambda _: wire.Stats(placement=self._placed.epoch), wire.StatsReply)
        sizes = [np.array(reply.sizes, np.int64).reshape(len(self._directory.tables), 4) for reply in replies]
        total = np.sum(sizes, axis=0).tolist()
        return {t.name: TableStats(*size) for t, size in zip(self._directory.tables, total, strict=True)}

    def export_rows(self, table: str, partition: int) -> RowBlock:
        """See `RowStorage.export_rows`."""
        number = self._number(table)
        if not 0 <= partition < self.partitions:
            raise StoreError(f"table '{table}' has partitions 0 to {self.partitions - 1}, not {partition}")
        pages: list[wire.BlockReply] = []
        rows = 0
        while not pages or rows < pages[0].total_rows:
            request = wire.ExportRows(
                table=number,
                partition=partition,
                first_row=rows,
                rows_max=self._page_rows(table),
                placement=self._placed.epoch,
            )
            page = self._ask(self._placed.owners[partition], request, wire.BlockReply)
            if (pages and page.total_rows != pages[0].total_rows) or page.first_row != rows:
                raise StoreError(f"table '{table}': partition {partition} changed while it was exported")
            if not page.ids.size and page.total_rows > rows:
                raise WireError(f"table '{table}': an empty page of partition {partition}")
            pages.append(page)
            rows += page.ids.size
        if len(pages) == 1:
            return RowBlock(pages[0].ids, pages[0].values, pages[0].state)
        return RowBlock(
            np.concatenate([p.ids for p in pages]),
            np.concatenate([p.values for p in pages]),
            np.concatenate([p.state for p in pages]),
        )

    def reserve_rows(self, table: str, rows: int) -> None:
        """See `RowStorage.reserve_rows`."""
        number = self._number(table)

        def request(server: int) -> wire.Message:
            owned = self._placed.of(server)
            return wire.ReserveRows(table=number, rows=rows, partitions=owned, placement=self._placed.epoch)

        self._everywhere(request, wire.Done, self._transfer_s)

    def import_rows(self, table: str, block: RowBlock) -> None:
        """See `RowStorage.import_rows`."""
        self._shape.check_rows(table, block.ids, block.values, block.state)
        number, page = self._number(table), self._page_rows(table)
        values: NDArray[Any] = block.values
        calls = []
        for share in self._router.divide({table: block.ids}):
            order = share.orders[0]
            for at in range(0, share.ids.size, page):
                part = slice(at, at + page)
                rows = part if order is None else order[part]
                request = wire.ImportRows(
                    table=number,
                    ids=share.ids[part],
                    values=np.ascontiguousarray(values[rows]),
                    state=np.ascontiguousarray(block.state[rows]),
                    placement=self._placed.epoch,
                )
                calls.append(self._exchange.send(share.server, request, deadline_s=self._transfer_s))
        for call in calls:
            self._exchange.wait(call)

    def erase(self, table: str, ids: NDArray[np.uint64]) -> int:
        """Removes rows for good; returns how many were there."""
        self._shape.check_ids({table: ids}, distinct=True)
        number = self._number(table)
        calls = [
            self._exchange.send(s.server, wire.Erase(table=number, ids=s.ids, placement=self._placed.epoch))
            for s in self._router.divide({table: ids})
        ]
        return sum(_expect(self._exchange.wait(c), wire.Done).count for c in calls)

    def clear(self) -> None:
        """See `RowStorage.clear`."""
        self._everywhere(lambda _: wire.Clear(placement=self._placed.epoch), wire.Done, self._transfer_s)

    def clients(self) -> dict[int, tuple[int, int]]:
        """See `RowStorage.clients`: the newest push that any server has applied. A client pushes only to the servers
        that have rows of its batch, so the others may know an older one."""
        newest: dict[int, tuple[int, int]] = {}
        for reply in self._everywhere(lambda _: wire.Clients(placement=self._placed.epoch), wire.ClientsReply):
            for client, name in reply.clients.items():
                newest[client] = max(name, newest.get(client, name))
        return dict(sorted(newest.items()))

    def set_clients(self, clients: Mapping[int, tuple[int, int]]) -> None:
        """See `RowStorage.set_clients`."""
        self._everywhere(lambda _: wire.SetClients(clients=dict(clients), placement=self._placed.epoch), wire.Done)

    def server_metrics(self) -> list[str]:
        """What each server has done so far, in the text format of Prometheus."""
        return [r.text for r in self._everywhere(lambda _: wire.Metrics(), wire.MetricsReply)]

    def stop_servers(self) -> None:
        """Ends all servers."""
        self._everywhere(lambda _: wire.Stop(), wire.Done)

    def _number(self, table: str) -> int:
        return self._shape.index(table)

    def _page_rows(self, table: str) -> int:
        spec = self._shape.specs[self._number(table)]
        return max(1, PAGE_BYTES // (8 + spec.value_bytes + 4 * spec.state_floats))

    def _ask(self, server: int, request: wire.Message, kind: type[M]) -> M:
        call = self._exchange.send(server, request, deadline_s=self._transfer_s)
        return _expect(self._exchange.wait(call), kind)

    def _everywhere(
        self, request: Callable[[int], wire.Message], kind: type[M], deadline_s: float | None = None
    ) -> list[M]:
        """The answers of all servers, asked at once."""
        calls = [self._exchange.send(s, request(s), deadline_s=deadline_s) for s in range(self._placed.servers)]
        return [_expect(self._exchange.wait(c), kind) for c in calls]


def _expect(answer: wire.Message, kind: type[M]) -> M:
    if not isinstance(answer, kind):
        raise ServiceError(f"a server answered with {type(answer).__name__} instead of {kind.__name__}")
    return answer
