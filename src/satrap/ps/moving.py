"""Moves partitions between servers that are in use: the coordinator (docs/decisions/0016-moving-partitions.md).

    Track ─► copy ─► Track ─► copy … ─► Release ─► copy ─► Accept ─► Place ─► Forget
    source            few ids left       source             target    all      source

U ids of a table, D values and K words of state a row.
"""

from __future__ import annotations

import logging
import os
import socket
from collections.abc import Callable, Collection, Sequence
from dataclasses import replace
from types import TracebackType
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray

from satrap import wire
from satrap.errors import ServiceError, StoreError
from satrap.ps.exchange import Call, Exchange, Patience
from satrap.ps.keys import ClientKeys
from satrap.ps.packing import Directory
from satrap.ps.placement import PART_MAX, Placement, epoch_of, moves_of
from satrap.schema import Table
from satrap.store import Store

ROUNDS_MAX = 8
"""Times that what has changed is copied before the source gives the partition up."""
FEW = 2048
"""Ids that are few enough for that."""
COPY_BYTES = 8 << 20
"""About this many bytes of rows travel in one message: what a server does between two requests of clients."""
UNDER_WAY = 4
"""Messages with rows that the target has not answered yet."""
LIMITS = wire.Limits(rows=1 << 27)
"""Of what it takes: the ids of a partition come in one message."""
COORDINATOR = (1 << 64) - 2
"""The client number that it says hello with."""

_log = logging.getLogger("satrap.ps")
M = TypeVar("M", bound=wire.Message)


class Mover:
    """The one coordinator of a job's moves. Not thread-safe.

    A move that fails, or is cut off, leaves the partition with its old or its new owner, or with none; `settle` finds
    out, of the same object or of a new one, and ends what was begun.
    """

    def __init__(
        self,
        tables: Sequence[Table],
        placement: Placement,
        *,
        seed: int,
        keys: ClientKeys | None = None,
        deadline_s: float = 30.0,
        patience: Patience | None = None,
        limits: wire.Limits | None = None,
        gone: Collection[int] = (),
    ) -> None:
        """`placement`: that of the servers. keys: an admin's. gone: servers that own nothing and answer no more. See
        `RemoteService` for all else."""
        self.placement, self._gone = placement, frozenset(gone)
        self._addresses = list(placement.addresses)
        self._reached = 0
        self._directory = Directory.of(tables)
        self._shapes = Store(tables, seed=seed, partitions=1, threads=1)
        self._transfer_s = (patience or Patience()).transfer_deadline_s
        self.rows = 0
        """Copied so far, those again that had changed."""
        who = f"coordinator (pid {os.getpid()} on {socket.gethostname()})"
        hello = wire.Hello(
            client=COORDINATOR,
            fingerprint=self._directory.fingerprint(seed),
            who=who,
            placement=placement.number,
        )
        self._exchange = Exchange(
            placement.addresses,
            hello,
            deadline_s=deadline_s,
            patience=patience or Patience(),
            limits=limits or LIMITS,
            keys=keys,
            welcome=lambda _, __: None,
        )

    def add(self, address: str) -> int:
        """Makes a server known that owns nothing yet; returns its number, which it must have been started with."""
        self._addresses.append(address)
        self._reach()
        return len(self._addresses) - 1

    def relocate(self, server: int, address: str) -> Placement:
        """Tells all servers that one has come back at another address, with all that it had. Returns the placement,
        whose number is higher, for clients to be told (`RemoteService.relocate`)."""
        self._addresses[server] = address
        self._reach()
        self.placement = Placement.numbered(self.placement.number + (1 << 16), self._addresses, self.placement.owners)
        self._place()
        return self.placement

    def _reach(self) -> None:
        self._reached += 1
        self._exchange.reach(self._reached, self._addresses)

    def settle(self) -> Placement:
        """Ends what an earlier coordinator began: afterwards every partition has one owner, all servers know it, and
        only owners have rows. Returns the placement.

        Raises ServiceError where a server does not answer that may have taken a partition.
        """
        owned = {s: self._ask(s, wire.Owned(), wire.OwnedReply) for s in self._there}
        newest = max(owned.values(), key=lambda o: moves_of(o.number) if o.owners else -1)
        if newest.owners and epoch_of(newest.number) == self.placement.epoch and newest.number > self.placement.number:
            self.placement = Placement.numbered(newest.number, newest.addresses, newest.owners)
        released = {p: (s, n) for s, o in owned.items() for p, n in o.released if moves_of(n) > self.placement.moves}
        for partition, (source, number) in sorted(released.items(), key=lambda x: x[1][1]):
            took = [s for s, o in owned.items() if (partition, number) in o.accepted]
            if took:
                self.placement = self._placed(partition, took[0], number)
            else:
                self._give_back(partition, source, number)
        self._place()
        for partition, owner in enumerate(self.placement.owners):
            for server in self._there:
                if server != owner:
                    self._ask(server, wire.Forget(partition=partition), wire.Done)
        return self.placement

    def _give_back(self, partition: int, source: int, number: int) -> None:
        """Has a server own again what it gave up. First all others hear of a placement with a higher number, so that
        none of them takes the partition any more, whatever is still under way."""
        after = max(number, self.placement.number) + (1 << 16)
        placement = self._placed(partition, source, after)
        for server in self._there:
            if server != source:
                self._ask(server, _place(placement), wire.Done)
        self.placement = placement
        last = self._ask(source, wire.Release(partition=partition, number=number), wire.Touched)
        self._ask(source, wire.Accept(partition=partition, number=after, clients=last.clients), wire.Done)

    def hand_over(
        self, leaving: Collection[int], takers: Sequence[int], moved: Callable[[int, int], None] = lambda done, of: None
    ) -> Placement:
        """Moves all partitions of some servers to others, as `scale` does."""
        moves = self.placement.moves_from(leaving, takers)
        for done, (partition, to) in enumerate(moves, 1):
            self.move(partition, to)
            moved(done, len(moves))
        return self.placement

    @property
    def _there(self) -> list[int]:
        """Servers that answer."""
        return [s for s in range(len(self._addresses)) if s not in self._gone]

    def scale(self, servers: int, moved: Callable[[int, int], None] = lambda done, of: None) -> Placement:
        """Moves partitions until servers 0 … S'-1 own all of them, each about as many. `moved` is told after each:
        how many have moved, of how many."""
        moves = self.placement.moves_to(servers)
        for done, (partition, to) in enumerate(moves, 1):
            self.move(partition, to)
            moved(done, len(moves))
        return self.placement

    def move(self, partition: int, to: int, stage: Callable[[str], None] = lambda name: None) -> Placement:
        """Moves a partition to a server. Returns the placement that clients are told of from then on.

        `stage` is told the name of each step that has been done: copied, released, accepted, placed.

        Raises ServiceError and its kinds; see `settle`.
        """
        source = self.placement.owners[partition]
        if source == to:
            return self.placement
        self._place()
        self._ask(to, wire.Forget(partition=partition), wire.Done)
        told = self._copy_all(partition, source, to)
        stage("copied")
        after = self._placed(partition, to, self.placement.number + (1 << 16))
        release = wire.Release(partition=partition, number=after.number, after=told)
        last = self._ask(source, release, wire.Touched)
        stage("released")
        if not self._finish(partition, last, source, to):
            # What was copied before is not what it should be; nothing changes any more, so all of it is copied again.
            last = self._ask(source, replace(release, after=0), wire.Touched)
            if not self._finish(partition, last, source, to):
                raise ServiceError(f"partition {partition} changed after it was given up")
        accept = wire.Accept(partition=partition, number=after.number, clients=last.clients)
        self._ask(to, accept, wire.Done)
        stage("accepted")
        self.placement = after
        self._place()
        stage("placed")
        self._ask(source, wire.Forget(partition=partition), wire.Done)
        return after

    def _copy_all(self, partition: int, source: int, to: int) -> int:
        """Copies the rows as they are, and then what has changed meanwhile, until that is little. Returns the request
        that was answered with it."""
        before, told = -1, 0
        for _ in range(ROUNDS_MAX):
            track = wire.Track(request=self._exchange.number(), partition=partition, after=told)
            touched = self._ask(source, track, wire.Touched)
            if told and not touched.continues:
                # The source has come back, and all of it is copied again.
                self._ask(to, wire.Forget(partition=partition), wire.Done)
            told = track.request
            self._copy(partition, touched, source, to)
            size = sum(s.rows for s in touched.sections)
            if touched.continues and (size <= FEW or size >= before > 0):
                break
            before = size
        return told

    def _finish(self, partition: int, last: wire.Touched, source: int, to: int) -> bool:
        """Copies what has changed of a partition that changes no more, and what bounded tables keep beside its rows.
        False: the target then has other rows than the source."""
        if not last.continues:
            # The source has forgotten what had changed.
            self._ask(to, wire.Forget(partition=partition), wire.Done)
        self._copy(partition, last, source, to)
        for name in sorted(self._shapes.bounded):
            wanted = wire.ExportRows(table=self._shapes.index(name), partition=partition, bound_only=True)
            kept = self._ask(source, wanted, wire.BlockReply)
            if self._ask(to, _import(kept), wire.Done).count != kept.total_rows:
                _log.warning("a copy of partition %d of table '%s' has other rows than it should", partition, name)
                return False
        return True

    def _copy(self, partition: int, touched: wire.Touched, source: int, to: int) -> None:
        """Gives the target the rows of these ids as they are at the source; removes those that are there no more."""
        for i, (section, part) in enumerate(zip(touched.sections, wire.row_slices(touched.sections), strict=True)):
            ids = touched.ids[part]
            if not touched.continues:
                rows = ids.size * self.placement.partitions
                reserve = wire.ReserveRows(table=section.table, rows=rows, partitions=(partition,))
                self._ask(to, reserve, wire.Done)
            # First, so that the target never has more rows than a bounded table may have.
            gone = touched.gone[i] if touched.gone else 0
            for at in range(0, gone, COPY_BYTES // 8):
                some = np.ascontiguousarray(ids[at : min(gone, at + COPY_BYTES // 8)])
                self._ask(to, wire.Erase(table=section.table, ids=some), wire.Done)
            self._copy_ids(section.table, ids[gone:], source, to)

    def _copy_ids(self, table: int, ids: NDArray[np.uint64], source: int, to: int) -> None:
        page = self._page_rows(table)
        # Rows of a bounded table come with the clocks of the moment at which they were read: one page after another.
        most = 1 if self._shapes.names[table] in self._shapes.bounded else UNDER_WAY
        under_way: list[Call] = []

        def give(message: wire.Message) -> None:
            while len(under_way) >= most:
                _expect(self._exchange.wait(under_way.pop(0)), wire.Done)
            under_way.append(self._send(to, message))

        for at in range(0, ids.size, page):
            wanted = np.ascontiguousarray(ids[at : at + page])
            block = self._ask(source, wire.ReadRows(table=table, ids=wanted), wire.BlockReply)
            self.rows += block.ids.size
            if block.ids.size < wanted.size:
                give(wire.Erase(table=table, ids=np.setdiff1d(wanted, block.ids)))
            if block.ids.size or block.bound is not None:
                give(_import(block))
        for call in under_way:
            _expect(self._exchange.wait(call), wire.Done)

    def _page_rows(self, table: int) -> int:
        spec = self._shapes.specs[table]
        return max(1, COPY_BYTES // (8 + spec.value_bytes + 4 * spec.state_words))

    def _placed(self, partition: int, owner: int, number: int) -> Placement:
        owners = list(self.placement.owners)
        owners[partition] = owner
        return Placement.numbered(number, self._addresses, owners)

    def _place(self) -> None:
        """Tells all servers the placement, as it is now."""
        calls = [self._send(s, _place(self.placement)) for s in self._there]
        for call in calls:
            _expect(self._exchange.wait(call), wire.Done)

    def _send(self, server: int, message: wire.Message) -> Call:
        # Whatever it goes by: no server must take it for a client that is behind.
        ahead = replace(message, placement=self.placement.epoch | PART_MAX << 16)
        return self._exchange.send(server, ahead, deadline_s=self._transfer_s)

    def _ask(self, server: int, message: wire.Message, kind: type[M]) -> M:
        try:
            return _expect(self._exchange.wait(self._send(server, message)), kind)
        except StoreError as e:
            raise ServiceError(f"{self._exchange.where(server)}, asked to {type(message).__name__}: {e}") from e

    def close(self) -> None:
        """Ends the connections."""
        self._exchange.close()

    def __enter__(self) -> Mover:
        return self

    def __exit__(self, kind: type[BaseException] | None, e: BaseException | None, at: TracebackType | None) -> None:
        self.close()


def _place(placement: Placement) -> wire.Place:
    return wire.Place(number=placement.number, addresses=placement.addresses, owners=placement.owners)


def _import(block: wire.BlockReply) -> wire.ImportRows:
    return wire.ImportRows(
        table=block.table,
        ids=block.ids,
        values=block.values,
        state=block.state,
        marks=block.marks,
        bound=block.bound,
    )


def _expect(answer: wire.Message, kind: type[M]) -> M:
    if not isinstance(answer, kind):
        raise ServiceError(f"a server answered with {type(answer).__name__} instead of {kind.__name__}")
    return answer
