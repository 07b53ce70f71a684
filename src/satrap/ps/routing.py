"""Ids of a batch by the server that owns them. U unique ids of a table, P partitions, S servers."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from satrap.errors import ServiceError
from satrap.ps.packing import Directory, joined
from satrap.ps.placement import Placement
from satrap.store import gather, route
from satrap.wire import Message, Moved


@dataclass(frozen=True, slots=True)
class Share:
    """What one server has of a batch: its tables in the order of their numbers, without those it has no id of."""

    server: int
    names: Sequence[str]
    numbers: Sequence[int]
    rows: Sequence[int]
    """Ids by table."""
    ids: NDArray[np.uint64]
    """One table behind the other."""
    orders: Sequence[NDArray[np.uint32] | None]
    """Where the ids of each table stand in the batch; None: as they came."""


class Router:
    """Divides batches. Immutable, thread-safe."""

    def __init__(self, directory: Directory, placement: Placement) -> None:
        self._directory, self.servers = directory, placement.servers
        self._bits = placement.partitions.bit_length() - 1
        self._owners = np.array(placement.owners, np.uint16)

    def divide(self, ids: Mapping[str, NDArray[np.uint64]]) -> list[Share]:
        """Shares of the servers that have one, by server."""
        names = [n for n in self._directory.ordered(ids) if ids[n].size]
        if not names:
            return []
        number = self._directory.numbers
        if self.servers == 1:
            found = [ids[n] for n in names]
            rows = [x.size for x in found]
            return [Share(0, names, [number[n] for n in names], rows, joined(found), [None] * len(names))]
        parts: list[list[tuple[str, NDArray[np.uint32]]]] = [[] for _ in range(self.servers)]
        for name in names:
            order, counts = route(ids[name], self._bits, self._owners, self.servers)
            ends = np.cumsum(counts).tolist()
            start = 0
            for server, end in enumerate(ends):
                if end > start:
                    parts[server].append((name, order[start:end]))
                start = end
        return [self._share(server, part, ids) for server, part in enumerate(parts) if part]

    def _share(
        self, server: int, part: Sequence[tuple[str, NDArray[np.uint32]]], ids: Mapping[str, NDArray[np.uint64]]
    ) -> Share:
        rows = [order.size for _, order in part]
        own = np.empty(sum(rows), np.uint64)
        at = 0
        for name, order in part:
            gather(ids[name], order, own[at : at + order.size])
            at += order.size
        names = [name for name, _ in part]
        return Share(
            server, names, [self._directory.numbers[n] for n in names], rows, own, [order for _, order in part]
        )


class Routes:
    """By which placement a client goes now. Changed by who holds the client's lock."""

    def __init__(self, directory: Directory, placement: Placement) -> None:
        self._directory = directory
        self._set(placement)

    def _set(self, placement: Placement) -> None:
        self.placement = placement
        self.router = Router(self._directory, placement)
        self.owning = placement.owning
        """The servers that own something, ascending."""

    @property
    def number(self) -> int:
        """Of the placement."""
        return self.placement.number

    def follow(self, moved: Moved) -> bool:
        """Goes by the placement in an answer from now on, where that is newer."""
        placement = Placement.numbered(moved.number, moved.addresses, moved.owners)
        if (placement.epoch, placement.partitions) != (self.placement.epoch, self.placement.partitions):
            raise ServiceError(
                f"a server speaks of placement {placement.epoch} with {placement.partitions} partitions; this client "
                f"goes by placement {self.placement.epoch} with {self.placement.partitions}"
            )
        if placement.moves <= self.placement.moves:
            return False
        self._set(placement)
        return True


def newest(answers: Iterable[Message]) -> Moved | None:
    """The newest placement that answers tell of; None where all of them are answers."""
    return max((a for a in answers if isinstance(a, Moved)), key=lambda a: a.number, default=None)
