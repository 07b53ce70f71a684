"""Which server owns which partition."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from satrap.errors import ServiceError


@dataclass(frozen=True, slots=True)
class Placement:
    """Partition → server, under a number that only rises. P partitions, S servers. Immutable, thread-safe.

    A partition is the same set of ids in every process, so the owner of an id follows from its mix alone.

    >>> placement = Placement.even(("tcp://127.0.0.1:7001", "tcp://127.0.0.1:7002"), partitions=4)
    >>> placement.owners, placement.of(1)
    ((0, 0, 1, 1), (2, 3))
    """

    epoch: int
    """Every request carries it; a server of another epoch refuses. It rises whenever servers or owners change."""
    addresses: tuple[str, ...]
    """Server → address, such as `tcp://127.0.0.1:7001`."""
    owners: tuple[int, ...]
    """[P] server of each partition. P is that of the servers' stores: a power of 2."""

    def __post_init__(self) -> None:
        if self.epoch < 0:
            raise ServiceError(f"the epoch of a placement must be 0 or more, got {self.epoch}")
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
