"""Rows set aside for a cut: taken in as they come, handed out by partition. R rows of a block, P partitions."""

from __future__ import annotations

import threading
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from satrap.durable.rows import RowBlock
from satrap.store import Store

Ids = NDArray[np.uint64]


@dataclass(slots=True)
class _Run:
    """Rows by partition."""

    block: RowBlock
    starts: NDArray[np.int64]
    """[P + 1]"""

    def of(self, partition: int) -> RowBlock:
        """Those of a partition; views."""
        return part_of(self.block, slice(int(self.starts[partition]), int(self.starts[partition + 1])))


class Aside:
    """The rows of one table. For who changes rows, `add` is an append; whoever reads sorts them. Thread-safe."""

    def __init__(self, store: Store) -> None:
        """`store`: knows the partitions."""
        self._store = store
        self._fresh: list[RowBlock] = []
        self._runs: list[_Run] = []
        self._reading = threading.Lock()

    def add(self, block: RowBlock) -> None:
        """Takes rows in."""
        self._fresh.append(block)

    def of(self, partition: int) -> RowBlock | None:
        """The rows of a partition; None: there are none."""
        with self._reading:
            self._sort()
            parts = [p for r in self._runs if (p := r.of(partition)).ids.size]
        return joined(parts) if parts else None

    def drop(self, partitions: NDArray[np.bool_]) -> int:
        """Frees the rows of these partitions [P]; returns their bytes."""
        with self._reading:
            self._sort()
            runs, self._runs = self._runs, []
            held = sum(bytes_of(r.block) for r in runs)
            while runs:
                run = runs.pop()
                kept = ~np.repeat(partitions, np.diff(run.starts))
                sizes = np.where(partitions, 0, np.diff(run.starts))
                if kept.any():
                    starts = np.concatenate([[0], np.cumsum(sizes)])
                    self._runs.append(_Run(part_of(run.block, kept), starts))
            return held - sum(bytes_of(r.block) for r in self._runs)

    def _sort(self) -> None:
        n = len(self._fresh)
        if not n:
            return
        block = joined(self._fresh[:n])
        parts = self._store.partitions_of(block.ids)
        order = np.argsort(parts, kind="stable")
        starts = np.searchsorted(parts[order], np.arange(self._store.partitions + 1, dtype=np.uint64))
        self._runs.append(_Run(part_of(block, order), starts))
        del self._fresh[:n]


def bytes_of(block: RowBlock) -> int:
    """Of ids, values, state and marks."""
    marks = 0 if block.marks is None else block.marks.nbytes
    return block.ids.nbytes + block.values.nbytes + block.state.nbytes + marks


def joined(blocks: list[RowBlock]) -> RowBlock:
    """Rows of several blocks, one behind the other; all with marks, or none."""
    if len(blocks) == 1:
        return blocks[0]
    values: list[NDArray[Any]] = [b.values for b in blocks]
    marks = [b.marks for b in blocks if b.marks is not None]
    return RowBlock(
        np.concatenate([b.ids for b in blocks]),
        np.concatenate(values),
        np.concatenate([b.state for b in blocks]),
        np.concatenate(marks) if marks else None,
    )


def part_of(block: RowBlock, rows: Any) -> RowBlock:
    """Some rows of a block: a mask, indices or a slice."""
    marks = None if block.marks is None else block.marks[rows]
    return RowBlock(block.ids[rows], block.values[rows], block.state[rows], marks)
