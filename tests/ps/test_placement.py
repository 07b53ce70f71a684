"""Which server owns which partition."""

from __future__ import annotations

import pytest

from satrap.errors import ServiceError
from satrap.ps import Placement


def addresses(servers: int) -> tuple[str, ...]:
    return tuple(f"tcp://127.0.0.1:{7000 + s}" for s in range(servers))


@pytest.mark.parametrize("servers", [1, 2, 3, 5, 8, 64])
def test_even_placement_owns_every_partition_once_in_shares_that_differ_by_one_at_most(servers: int) -> None:
    placement = Placement.even(addresses(servers), 64)
    shares = [placement.of(s) for s in range(servers)]
    assert sorted(p for share in shares for p in share) == list(range(64))
    assert max(map(len, shares)) - min(map(len, shares)) <= 1
    assert list(placement.owners) == sorted(placement.owners)


def test_more_servers_than_partitions_are_refused_with_the_setting_to_change() -> None:
    with pytest.raises(ServiceError, match=r"store\.partitions to 8"):
        Placement.even(addresses(5), 4)


@pytest.mark.parametrize(
    ("epoch", "where", "owners", "says"),
    [
        (-1, addresses(1), (0,), "epoch"),
        (0, (), (0,), "at least one"),
        (0, addresses(1) * 2, (0, 1), "one address"),
        (0, addresses(2), (0, 1, 0), "power of 2"),
        (0, addresses(2), (), "power of 2"),
        (0, addresses(2), (0, 2), "owned by server 2"),
    ],
)
def test_a_placement_that_cannot_be_is_refused(
    epoch: int, where: tuple[str, ...], owners: tuple[int, ...], says: str
) -> None:
    with pytest.raises(ServiceError, match=says):
        Placement(epoch, where, owners)
