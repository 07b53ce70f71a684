"""How the rows of an epoch are dealt to the workers that train together.

    row groups in the epoch's order   0  1  2  3  4  5  6        W = 2
    worker 0                          0     2     4     6a
    worker 1                             1     3     5     6b    the last one is cut, so that all have as many rows

W workers.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple


class Shard(NamedTuple):
    """Which of the workers one is."""

    rank: int = 0
    """0 … world - 1."""
    world: int = 1
    """W"""


ALL = Shard()
"""One worker has every row."""


@dataclass(frozen=True, slots=True)
class Part:
    """Rows start … stop of one row group, which has `of` rows."""

    file: int
    group: int
    start: int
    stop: int
    of: int

    @property
    def rows(self) -> int:
        """How many they are."""
        return self.stop - self.start

    def cut(self, rows: int) -> tuple[Part, Part]:
        """The first `rows` of it and the others."""
        at = self.start + rows
        return Part(self.file, self.group, self.start, at, self.of), Part(self.file, self.group, at, self.stop, self.of)


def share(total: int, rank: int, world: int) -> int:
    """What worker `rank` has of a total that is divided evenly.

    >>> [share(10, r, 4) for r in range(4)]
    [2, 3, 2, 3]
    """
    return total * (rank + 1) // world - total * rank // world


def deal(groups: Sequence[tuple[int, int, int]], world: int) -> list[list[Part]]:
    """The parts of each worker, from (file, row group, rows) in the epoch's order. A pure function.

    Row groups go round the workers. What some then have more than others is cut off the end of theirs and given to
    those that have less, so all have the same number of rows, or one more: no worker waits at the end of the epoch for
    those that still have data, and files of fewer row groups than workers, often of a single one, serve as well. Who
    has a part of a row group reads that row group from its beginning.

    >>> [[(p.group, p.start, p.stop) for p in hand] for hand in deal([(0, 0, 6), (0, 1, 5), (0, 2, 4)], world=2)]
    [[(0, 0, 6), (2, 0, 1)], [(1, 0, 5), (2, 1, 4)]]
    """
    whole = [Part(file, group, 0, rows, rows) for file, group, rows in groups if rows]
    hands = [whole[rank::world] for rank in range(world)]
    total = sum(p.rows for p in whole)
    spare: deque[Part] = deque()
    for rank, hand in enumerate(hands):
        over = sum(p.rows for p in hand) - share(total, rank, world)
        while over > 0:
            last = hand.pop()
            if last.rows > over:
                kept, last = last.cut(last.rows - over)
                hand.append(kept)
            over -= last.rows
            spare.append(last)
    for rank, hand in enumerate(hands):
        under = share(total, rank, world) - sum(p.rows for p in hand)
        while under > 0:
            first = spare.popleft()
            if first.rows > under:
                first, rest = first.cut(under)
                spare.appendleft(rest)
            under -= first.rows
            hand.append(first)
    return hands


def runs_of(total: int, run_rows: int, shard: Shard) -> list[tuple[int, int]]:
    """(first row, rows) of a stream's runs of `run_rows` that are this worker's: they go round the workers.

    >>> runs_of(10, 3, Shard(0, 2)), runs_of(10, 3, Shard(1, 2))
    ([(0, 3), (6, 3)], [(3, 3), (9, 1)])
    """
    step = run_rows * shard.world
    return [(a, min(run_rows, total - a)) for a in range(shard.rank * run_rows, total, step)]
