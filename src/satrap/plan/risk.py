"""What chance does: colliding ids, uneven servers, machines that fail."""

from __future__ import annotations

import math

HASHES = 2.0**64


def expected_collisions(rows: float) -> float:
    """Expected number of pairs of texts with one 64-bit hash: n (n - 1) / 2^65.

    >>> round(expected_collisions(781.25e9))
    16544
    """
    return max(0.0, rows * (rows - 1) / 2 / HASHES)


def partition_imbalance(partitions: int, servers: int) -> float:
    """Rows of the fullest server over the mean, because a server owns whole partitions.

    >>> partition_imbalance(64, 12), round(partition_imbalance(1024, 12), 4)
    (1.125, 1.0078)
    """
    return math.ceil(partitions / servers) * servers / partitions


def chance_imbalance(items: float, servers: int) -> float:
    """Expected load of the busiest of S servers over the mean, when n items fall on them by a hash.

    The largest of S counts of mean m is about m + sqrt(2 m ln S), the tail of the normal distribution.

    >>> chance_imbalance(100, 1), round(chance_imbalance(30_000, 30), 3)
    (1.0, 1.082)
    """
    if servers == 1 or items <= 0:
        return 1.0
    return 1.0 + math.sqrt(2 * math.log(servers) * servers / items)


def partitions_needed(
    rows_of_largest_table: float, servers: int, *, most: float = 0xFFFFFFF0, even: float = 1.02
) -> int:
    """The least power of two with which no partition is too full and no server has over 2 % more than its share.

    >>> partitions_needed(781.25e9, 12), partitions_needed(1e6, 1)
    (512, 1)
    """
    partitions = 1
    while (
        partitions < servers
        or rows_of_largest_table / partitions > 0.9 * most
        or (partition_imbalance(partitions, servers) > even and partitions < 65_536)
    ):
        partitions *= 2
    return partitions


def young_interval_s(snapshot_s: float, mtbf_s: float) -> float:
    """Time of work between snapshots that loses least: sqrt(2 δ M) (Young 1974).

    >>> round(young_interval_s(60, 24 * 3600))
    3220
    """
    return math.sqrt(2 * snapshot_s * mtbf_s)


def daly_interval_s(snapshot_s: float, mtbf_s: float) -> float:
    """The same to higher order (Daly 2006, equation 37); M where a snapshot takes longer than 2 M.

    >>> round(daly_interval_s(60, 24 * 3600))
    3180
    """
    if snapshot_s >= 2 * mtbf_s:
        return mtbf_s
    x = snapshot_s / (2 * mtbf_s)
    return math.sqrt(2 * snapshot_s * mtbf_s) * (1 + math.sqrt(x) / 3 + x / 9) - snapshot_s


def useful_share(snapshot_s: float, interval_s: float, restart_s: float, mtbf_s: float) -> float:
    """Share of the time that ends up in the model, failures coming at random (the model of Daly 2006).

    >>> round(useful_share(60, 3180, 300, 24 * 3600), 3)
    0.96
    """
    period = interval_s + snapshot_s
    wall = mtbf_s * math.exp(restart_s / mtbf_s) * math.expm1(period / mtbf_s)
    return interval_s / wall
