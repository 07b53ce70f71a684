"""Row storage over S servers: partitions from their owners, blocks to them. R rows, D dimension, K words of state."""

from __future__ import annotations

import secrets
from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeVar, cast

import numpy as np
from numpy.typing import NDArray

from satrap import wire
from satrap.errors import ServiceError, StoreError, WireError
from satrap.ps.exchange import Call, Exchange, Patience
from satrap.ps.packing import Directory
from satrap.ps.protocol import RowBlock, TableStats
from satrap.ps.remote_cut import RemoteCut
from satrap.ps.routing import Routes, newest
from satrap.schema import Table
from satrap.store import Store, bound_partition

PAGE_BYTES = 64 << 20
"""About this much of a block travels in one message."""

M = TypeVar("M", bound=wire.Message)


class RemoteRows:
    """Implements `RowStorage`. Thread-safe."""

    def __init__(
        self,
        exchange: Exchange,
        directory: Directory,
        routes: Routes,
        shapes: Store,
        patience: Patience,
        follow: Callable[[wire.Moved], None],
    ) -> None:
        """`follow`: has the owner go by a newer placement."""
        self._exchange, self._directory, self._routes, self._shape = exchange, directory, routes, shapes
        self._transfer_s = patience.transfer_deadline_s
        self._follow = follow

    @property
    def partitions(self) -> int:
        """P: parts each table is cut into."""
        return self._routes.placement.partitions

    def tables(self) -> Sequence[Table]:
        """The tables as configured."""
        return self._directory.tables

    def stats(self) -> Mapping[str, TableStats]:
        """Size by table, over all servers."""
        replies = self._everywhere(lambda _: wire.Stats(placement=self._routes.number), wire.StatsReply)
        sizes = [np.array(reply.sizes, np.int64).reshape(len(self._directory.tables), 8) for reply in replies]
        total = np.sum(sizes, axis=0).tolist()
        return {t.name: TableStats(*size) for t, size in zip(self._directory.tables, total, strict=True)}

    def export_rows(self, table: str, partition: int) -> RowBlock:
        """See `RowStorage.export_rows`."""
        if not 0 <= partition < self.partitions:
            raise StoreError(f"table '{table}' has partitions 0 to {self.partitions - 1}, not {partition}")
        return self.read_partition(table, partition, lambda: self._routes.placement.owners[partition])

    def read_partition(self, table: str, partition: int, owner: Callable[[], int], cut: int = 0) -> RowBlock:
        """The rows of a partition, page by page, of the server that is its owner whenever that is asked. `cut`: as of
        this one; 0: as they are."""
        number = self._number(table)
        pages: list[wire.BlockReply] = []
        rows = 0
        while not pages or rows < pages[0].total_rows:
            request = wire.ExportRows(
                table=number,
                partition=partition,
                first_row=rows,
                rows_max=self._page_rows(table),
                placement=self._routes.number,
                cut=cut,
            )
            answer = self.ask(owner(), request)
            if isinstance(answer, wire.Moved):
                self._follow(answer)
                pages, rows = [], 0
                continue
            page = _expect(answer, wire.BlockReply)
            if (pages and page.total_rows != pages[0].total_rows) or page.first_row != rows:
                raise StoreError(f"table '{table}': partition {partition} changed while it was exported")
            if not page.ids.size and page.total_rows > rows:
                raise WireError(f"table '{table}': an empty page of partition {partition}")
            pages.append(page)
            rows += page.ids.size
        if len(pages) == 1:
            return RowBlock(pages[0].ids, pages[0].values, pages[0].state, pages[0].marks, pages[0].bound)
        marks = [p.marks for p in pages if p.marks is not None]
        return RowBlock(
            np.concatenate([p.ids for p in pages]),
            np.concatenate([p.values for p in pages]),
            np.concatenate([p.state for p in pages]),
            np.concatenate(marks) if marks else None,
            pages[0].bound,
        )

    def reserve_rows(self, table: str, rows: int) -> None:
        """See `RowStorage.reserve_rows`."""
        number = self._number(table)

        def request(server: int) -> wire.Message:
            owned = self._routes.placement.of(server)
            return wire.ReserveRows(table=number, rows=rows, partitions=owned, placement=self._routes.number)

        self._everywhere(request, wire.Done, self._transfer_s)

    def import_rows(self, table: str, block: RowBlock) -> None:
        """See `RowStorage.import_rows`."""
        self._shape.check_rows(table, block.ids, block.values, block.state)
        number, page = self._number(table), self._page_rows(table)
        if block.bound is not None and bound_partition(block.bound) < self.partitions:
            self._import_bound(number, block)
        rest: list[tuple[NDArray[np.uint64], NDArray[Any], NDArray[np.float32], NDArray[np.uint8] | None]]
        rest = [(block.ids, block.values, block.state, block.marks)]
        while rest:
            sent = []
            for ids, values, state, marks in rest:
                for share in self._routes.router.divide({table: ids}):
                    order = share.orders[0]
                    for at in range(0, share.ids.size, page):
                        part = slice(at, at + page)
                        rows = part if order is None else order[part]
                        request = wire.ImportRows(
                            table=number,
                            ids=share.ids[part],
                            values=np.ascontiguousarray(values[rows]),
                            state=np.ascontiguousarray(state[rows]),
                            marks=None if marks is None else np.ascontiguousarray(marks[rows]),
                            placement=self._routes.number,
                        )
                        sent.append(self._exchange.send(share.server, request, deadline_s=self._transfer_s))
            again = (m for m in self._not_taken(sent) if isinstance(m, wire.ImportRows))
            rest = [(m.ids, m.values, m.state, m.marks) for m in again]

    def _import_bound(self, number: int, block: RowBlock) -> None:
        """What a bounded table keeps for a partition, before the rows, whose marks are relative to it."""
        assert block.bound is not None
        partition, values = bound_partition(block.bound), cast(NDArray[Any], block.values)
        rest: list[wire.Message] = [wire.Done()]
        while rest:
            request = wire.ImportRows(
                table=number,
                ids=block.ids[:0],
                values=values[:0],
                state=block.state[:0],
                bound=block.bound,
                placement=self._routes.number,
            )
            owner = self._routes.placement.owners[partition]
            rest = self._not_taken([self._exchange.send(owner, request, deadline_s=self._transfer_s)])

    def erase(self, table: str, ids: NDArray[np.uint64]) -> int:
        """Removes rows for good; returns how many were there."""
        self._shape.check_ids({table: ids}, distinct=True)
        number, erased = self._number(table), 0
        rest = [ids]
        while rest:
            sent = [
                self._exchange.send(s.server, wire.Erase(table=number, ids=s.ids, placement=self._routes.number))
                for x in rest
                for s in self._routes.router.divide({table: x})
            ]
            rest = [m.ids for m in self._not_taken(sent) if isinstance(m, wire.Erase)]
            erased += sum(c.answer.count for c in sent if isinstance(c.answer, wire.Done))
        return erased

    def _not_taken(self, calls: Sequence[Call]) -> list[wire.Message]:
        """The requests whose rows have moved meanwhile; the client then goes by the newer placement."""
        answers = [self._exchange.wait(c) for c in calls]
        moved = newest(answers)
        if moved is not None:
            self._follow(moved)
        return [c.message for c, a in zip(calls, answers, strict=True) if isinstance(a, wire.Moved)]

    def clear(self) -> None:
        """See `RowStorage.clear`."""
        self._everywhere(lambda _: wire.Clear(placement=self._routes.number), wire.Done, self._transfer_s)

    def clients(self) -> dict[int, tuple[int, int]]:
        """See `RowStorage.clients`: the newest push that any server has applied. A client pushes only to the servers
        that have rows of its batch, so the others may know an older one."""
        newest: dict[int, tuple[int, int]] = {}
        for reply in self._everywhere(lambda _: wire.Clients(placement=self._routes.number), wire.ClientsReply):
            for client, name in reply.clients.items():
                newest[client] = max(name, newest.get(client, name))
        return dict(sorted(newest.items()))

    def cut(self) -> RemoteCut:
        """See `Cuttable.cut`."""
        while True:
            # Each time another: a server that was asked before has not seen what came to it since.
            number, placement = secrets.randbits(63) | 1, self._routes.placement
            request = wire.Cut(number=number, placement=placement.number)
            calls = [self._exchange.send(s, request, deadline_s=self._transfer_s) for s in set(placement.owners)]
            cut = RemoteCut(self, number, placement, {}, {})
            try:
                moved = newest([self._exchange.wait(c) for c in calls])
                if moved is None:
                    return RemoteCut(self, number, placement, self.stats(), self.clients())
            except (StoreError, ServiceError):
                cut.abandon()
                raise
            self._follow(moved)

    def set_clients(self, clients: Mapping[int, tuple[int, int]]) -> None:
        """See `RowStorage.set_clients`."""
        self._everywhere(lambda _: wire.SetClients(clients=dict(clients), placement=self._routes.number), wire.Done)

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
        return max(1, PAGE_BYTES // (8 + spec.value_bytes + 4 * spec.state_words))

    def ask(self, server: int, request: wire.Message) -> wire.Message:
        """The answer of one server."""
        return self._exchange.wait(self._exchange.send(server, request, deadline_s=self._transfer_s))

    def tell(self, server: int, request: wire.Message) -> None:
        """Sends a request to one server, and does not wait for its answer."""
        self._exchange.send(server, request)

    def _everywhere(
        self, request: Callable[[int], wire.Message], kind: type[M], deadline_s: float | None = None
    ) -> list[M]:
        """The answers of all servers that own something, asked at once."""
        while True:
            calls = [self._exchange.send(s, request(s), deadline_s=deadline_s) for s in self._routes.owning]
            answers = [self._exchange.wait(c) for c in calls]
            moved = newest(answers)
            if moved is None:
                return [_expect(a, kind) for a in answers]
            self._follow(moved)


def _expect(answer: wire.Message, kind: type[M]) -> M:
    if not isinstance(answer, kind):
        raise ServiceError(f"a server answered with {type(answer).__name__} instead of {kind.__name__}")
    return answer
