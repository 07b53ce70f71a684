"""Pulls from S servers. U unique ids of a table, D its dimension."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import compress

import numpy as np
from numpy.typing import NDArray

from satrap.errors import WireError
from satrap.ps.exchange import Call, Exchange
from satrap.ps.packing import Directory, unpack
from satrap.ps.protocol import Rows
from satrap.ps.pushes import Name
from satrap.ps.routing import Routes, Share, newest
from satrap.store import decode_rows, scatter
from satrap.wire import Moved, Pull, RowsReply, Section, row_slices, value_slices


@dataclass(slots=True)
class PendingPull:
    """A pull under way: one call a server. Rows that have moved meanwhile are pulled again; those of other servers are
    not: a bounded table would count a use of them once more."""

    exchange: Exchange
    directory: Directory
    ids: Mapping[str, NDArray[np.uint64]]
    shares: Sequence[Share]
    calls: Sequence[Call]
    servers: int
    again: Callable[[Moved, Mapping[str, NDArray[np.uint64]]], PendingPull]
    """Pulls some ids by a newer placement."""

    def result(self) -> Rows:
        """The rows, in the order of the request. Raises ServiceError and its kinds, and StoreError."""
        answers = [self.exchange.wait(call) for call in self.calls]
        moved = newest(answers)
        if moved is None:
            return self._rows()
        gone = [isinstance(answer, Moved) for answer in answers]
        if all(gone):
            return self.again(moved, self.ids).result()
        return self._with_rest(moved, gone)

    def _with_rest(self, moved: Moved, gone: Sequence[bool]) -> Rows:
        """The rows of the servers that have answered, and those of the others (`gone`) from where they are now."""
        places: dict[str, list[NDArray[np.uint32]]] = {}
        for share in compress(self.shares, gone):
            for name, order in zip(share.names, share.orders, strict=True):
                assert order is not None
                places.setdefault(name, []).append(order)
        at = {name: np.concatenate(orders) for name, orders in places.items()}
        rest = self.again(moved, {name: self.ids[name][order] for name, order in at.items()}).result()
        values, versions = self._room(self.ids)
        for share, call, away in zip(self.shares, self.calls, gone, strict=True):
            if not away:
                _spread(share, self._reply(share, call), values, versions)
        for name, order in at.items():
            values[name][order], versions[name][order] = rest.values[name], rest.versions[name]
        return Rows(values=values, versions=versions)

    def _room(
        self, ids: Mapping[str, NDArray[np.uint64]]
    ) -> tuple[dict[str, NDArray[np.float32]], dict[str, NDArray[np.uint8]]]:
        """For the values and versions of some ids."""
        dims = {name: self.directory.tables[self.directory.numbers[name]].dim for name in ids}
        values = {name: np.empty((x.size, dims[name]), np.float32) for name, x in ids.items()}
        return values, {name: np.empty(x.size, np.uint8) for name, x in ids.items()}

    def _rows(self) -> Rows:
        replies = [self._reply(share, call) for share, call in zip(self.shares, self.calls, strict=True)]
        values: dict[str, NDArray[np.float32]] = {}
        versions: dict[str, NDArray[np.uint8]] = {}
        if self.servers == 1 and replies:
            names, reply = self.shares[0].names, replies[0]
            values.update(zip(names, unpack(reply.sections, reply.values), strict=True))
            versions.update(zip(names, (reply.versions[part] for part in row_slices(reply.sections)), strict=True))
        left = {name: x for name, x in self.ids.items() if name not in values}
        more_values, more_versions = self._room(left)
        values.update(more_values)
        versions.update(more_versions)
        if self.servers > 1:
            for share, reply in zip(self.shares, replies, strict=True):
                _spread(share, reply, values, versions)
        return Rows(values={n: values[n] for n in self.ids}, versions=versions, hints=self._hints())

    def _reply(self, share: Share, call: Call) -> RowsReply:
        reply = self.exchange.wait(call)
        assert isinstance(call.message, Pull)
        asked = [s[:4] for s in call.message.sections]
        if not isinstance(reply, RowsReply) or [s[:4] for s in reply.sections] != asked:
            raise WireError(f"{self.exchange.where(share.server)} answered a pull with other rows than were asked for")
        return reply

    def _hints(self) -> dict[str, NDArray[np.uint32]]:
        """The request number to each server: it knows itself what it found then."""
        numbers = np.zeros(self.servers, np.uint64)
        for share, call in zip(self.shares, self.calls, strict=True):
            numbers[share.server] = call.message.request
        return dict.fromkeys(self.ids, numbers.view(np.uint32))


def _spread(
    share: Share,
    reply: RowsReply,
    values: Mapping[str, NDArray[np.float32]],
    versions: Mapping[str, NDArray[np.uint8]],
) -> None:
    """Puts one server's rows where the request has their ids."""
    sections = reply.sections
    places = zip(share.names, share.orders, sections, value_slices(sections), row_slices(sections), strict=True)
    for name, order, s, part, rows in places:
        assert order is not None
        decode_rows(reply.values[part].data, s.rows, s.dim, s.format, s.scale, values[name], order)
        scatter(reply.versions[rows], order, versions[name])


class Pulling:
    """Sends pulls. Thread-safe."""

    def __init__(self, exchange: Exchange, directory: Directory, routes: Routes) -> None:
        self._exchange, self._directory, self._routes = exchange, directory, routes

    def submit(
        self,
        ids: Mapping[str, NDArray[np.uint64]],
        create: bool,
        after: Mapping[int, Name],
        again: Callable[[Moved, Mapping[str, NDArray[np.uint64]]], PendingPull],
    ) -> PendingPull:
        """Sends one message to each server that has a share. `after`: server → push that its rows must have seen."""
        placement = self._routes.placement
        shares = self._routes.router.divide(ids)
        tables = self._directory.tables
        calls = [
            self._exchange.send(
                share.server,
                Pull(
                    sections=tuple(
                        Section(k, rows, tables[k].dim, tables[k].wire)
                        for k, rows in zip(share.numbers, share.rows, strict=True)
                    ),
                    ids=share.ids,
                    create=create,
                    after=after.get(share.server),
                    request=self._exchange.number(),
                    life=self._exchange.life(share.server),
                    placement=placement.number,
                ),
            )
            for share in shares
        ]
        return PendingPull(self._exchange, self._directory, ids, shares, calls, placement.servers, again)
