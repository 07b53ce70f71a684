"""Which server owns which partition."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass

from satrap.errors import ServiceError

PART_MAX = 0xFFFF
"""Of an epoch and of moves: together they are the 32 bits of a placement's number."""


@dataclass(frozen=True, slots=True)
class Placement:
    """Partition → server, under a number that only rises. P partitions, S servers. Immutable, thread-safe.

    A partition is the same set of ids in every process, so the owner of an id follows from its mix alone.

    >>> placement = Placement.even(("tcp://127.0.0.1:7001", "tcp://127.0.0.1:7002"), partitions=4)
    >>> placement.owners, placement.of(1)
    ((0, 0, 1, 1), (2, 3))
    """

    epoch: int
    """It rises with every start of the job; a server of another epoch refuses."""
    addresses: tuple[str, ...]
    """Server → address, such as `tcp://127.0.0.1:7001`."""
    owners: tuple[int, ...]
    """[P] server of each partition. P is that of the servers' stores: a power of 2."""
    moves: int = 0
    """Partitions that have moved since the start."""

    def __post_init__(self) -> None:
        for what, n in (("epoch", self.epoch), ("moves", self.moves)):
            if not 0 <= n <= PART_MAX:
                raise ServiceError(f"the {what} of a placement must be 0 to {PART_MAX}, got {n}")
        if not self.addresses:
            raise ServiceError("a placement needs at least one server")
        if len(set(self.addresses)) < len(self.addresses):
            raise ServiceError(f"two servers of a placement have one address: {', '.join(self.addresses)}")
        if not self.owners or len(self.owners) & (len(self.owners) - 1):
            raise ServiceError(f"partitions must be a power of 2, got {len(self.owners)}")
        wrong = next((o for o in self.owners if not 0 <= o < self.servers), None)
        if wrong is not None:
            raise ServiceError(f"a partition is owned by server {wrong}; there are servers 0 to {self.servers - 1}")

    @classmethod
    def even(cls, addresses: Sequence[str], partitions: int, epoch: int = 0) -> Placement:
        """Runs of partitions of about equal length, in the order of the addresses."""
        if len(addresses) > partitions:
            raise ServiceError(
                f"{len(addresses)} servers for {partitions} partitions: some would own nothing; "
                f"set store.partitions to {1 << (len(addresses) - 1).bit_length()} or more, or start fewer servers"
            )
        return cls(epoch, tuple(addresses), tuple(p * len(addresses) // partitions for p in range(partitions)))

    @classmethod
    def numbered(cls, number: int, addresses: Sequence[str], owners: Sequence[int]) -> Placement:
        """A placement as messages have it."""
        return cls(epoch_of(number), tuple(addresses), tuple(owners), moves_of(number))

    def moved(self, partition: int, to: int, addresses: Sequence[str] = ()) -> Placement:
        """This one after a partition has moved to a server. `addresses`: of all servers, where some are new."""
        owners = (*self.owners[:partition], to, *self.owners[partition + 1 :])
        return Placement(self.epoch, tuple(addresses) or self.addresses, owners, self.moves + 1)

    def moves_to(self, servers: int) -> list[tuple[int, int]]:
        """(partition, to which server): the fewest moves after which servers 0 … S'-1 own all, each about as many.

        >>> Placement.even(("a", "b"), partitions=8).moves_to(3)
        [(3, 2), (7, 2)]
        """
        if not 1 <= servers <= self.partitions:
            raise ServiceError(
                f"{self.partitions} partitions can be on 1 to {self.partitions} servers, not on {servers}: "
                "store.partitions cannot be changed while a job runs"
            )
        have = [list(self.of(s)) for s in range(max(servers, self.servers))]
        least, more = divmod(self.partitions, servers)
        # Who has the most keeps the one that is over.
        order = sorted(range(servers), key=lambda s: (-len(have[s]), s))
        wanted = {s: least + (i < more) for i, s in enumerate(order)}
        spare = sorted(p for s, own in enumerate(have) for p in own[wanted.get(s, 0) :])
        lacking = [s for s in range(servers) for _ in range(wanted[s] - len(have[s]))]
        return list(zip(spare, lacking, strict=True))

    def moves_from(self, leaving: Collection[int], takers: Sequence[int]) -> list[tuple[int, int]]:
        """(partition, to which server): what some servers own goes to others, whoever has least.

        >>> Placement.even(("a", "b", "c"), partitions=4).moves_from({0}, [1, 2])
        [(0, 1), (1, 2)]
        """
        have = {s: len(self.of(s)) for s in takers}
        moves = []
        for partition, owner in enumerate(self.owners):
            if owner in leaving:
                to = min(takers, key=lambda s: (have[s], s))
                have[to] += 1
                moves.append((partition, to))
        return moves

    @property
    def number(self) -> int:
        """What requests carry: epoch and moves."""
        return self.epoch | self.moves << 16

    @property
    def owning(self) -> tuple[int, ...]:
        """The servers that own something."""
        return tuple(sorted(set(self.owners)))

    @property
    def servers(self) -> int:
        """S"""
        return len(self.addresses)

    @property
    def partitions(self) -> int:
        """P"""
        return len(self.owners)

    def of(self, server: int) -> tuple[int, ...]:
        """The partitions a server owns."""
        return tuple(p for p, owner in enumerate(self.owners) if owner == server)


def epoch_of(number: int) -> int:
    """The epoch in a placement's number."""
    return number & PART_MAX


def moves_of(number: int) -> int:
    """The moves in it."""
    return number >> 16
