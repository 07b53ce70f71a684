"""Decoded rows in memory: joining, picking and cutting them. The same layout as a Batch, without a position.

R rows, N ids, n numbers a row, T labels a row.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from satrap.data.batch import Batch, Jagged, Position

I64 = NDArray[np.int64]


@dataclass(frozen=True, slots=True)
class Block:
    """R decoded rows."""

    rows: int
    numeric: NDArray[np.float32]
    """[R, n]"""
    ids: dict[str, Jagged]
    labels: NDArray[np.float32]
    """[R, T]"""
    weights: NDArray[np.float32] | None
    """[R], or None."""


def to_batch(block: Block, position: Position) -> Batch:
    """The block as a batch; arrays are shared."""
    return Batch(block.rows, block.numeric, block.ids, block.labels, block.weights, position)


def join(blocks: Sequence[Block]) -> Block:
    """Blocks of one job one behind the other. A single one is returned as it is."""
    if len(blocks) == 1:
        return blocks[0]
    first = blocks[0]
    return Block(
        rows=sum(b.rows for b in blocks),
        numeric=np.concatenate([b.numeric for b in blocks]),
        ids={name: _join_ids([b.ids[name] for b in blocks]) for name in first.ids},
        labels=np.concatenate([b.labels for b in blocks]),
        weights=None if first.weights is None else np.concatenate([b.weights for b in blocks if b.weights is not None]),
    )


def _join_ids(parts: Sequence[Jagged]) -> Jagged:
    values = np.concatenate([p.values for p in parts])
    weights = None if parts[0].weights is None else np.concatenate([p.weights for p in parts if p.weights is not None])
    if all(p.offsets is None for p in parts):
        return Jagged(values, None, weights)
    lengths = [np.ones(len(p.values), np.int64) if p.offsets is None else np.diff(p.offsets) for p in parts]
    return Jagged(values, offsets_of(np.concatenate(lengths)), weights)


def offsets_of(lengths: I64) -> I64:
    """Offsets [R + 1] of lists of these lengths [R].

    >>> offsets_of(np.array([2, 0, 3])).tolist()
    [0, 2, 2, 5]
    """
    offsets = np.zeros(len(lengths) + 1, np.int64)
    np.cumsum(lengths, out=offsets[1:])
    return offsets


class Gatherer:
    """Picks rows out of several blocks. Not thread-safe: it keeps its working memory from call to call."""

    def __init__(self) -> None:
        self._scratch: dict[str, NDArray[Any]] = {}

    def gather(self, blocks: Sequence[Block], order: I64) -> Block:
        """The rows of these numbers, in this order, of blocks one behind the other.

        Columns of one id a row share one allocation, so large that the system backs it with huge pages: in pieces of
        fresh memory, page faults would cost as much as the gathering itself.
        """
        first = blocks[0]
        single = [name for name in first.ids if all(b.ids[name].offsets is None for b in blocks)]
        columns = dict(zip(single, np.empty((len(single), len(order)), np.uint64), strict=True))
        return Block(
            rows=len(order),
            numeric=self._pick("numeric", [b.numeric for b in blocks], order),
            ids={name: self._pick_ids([b.ids[name] for b in blocks], order, columns.get(name)) for name in first.ids},
            labels=self._pick("labels", [b.labels for b in blocks], order),
            weights=self._pick_optional([b.weights for b in blocks], order),
        )

    def _pick_ids(self, parts: Sequence[Jagged], order: I64, out: NDArray[np.uint64] | None) -> Jagged:
        if out is None:
            return _pick_lists(_join_ids(parts), order)
        np.take(self._join("ids", [p.values for p in parts]), order, mode="clip", out=out)
        return Jagged(out, None, self._pick_optional([p.weights for p in parts], order))

    def _pick_optional(self, parts: Sequence[NDArray[Any] | None], order: I64) -> NDArray[Any] | None:
        there = [p for p in parts if p is not None]
        return self._pick("weights", there, order) if there else None

    def _pick(self, use: str, parts: Sequence[NDArray[Any]], order: I64) -> NDArray[Any]:
        # mode="clip" skips numpy's bounds pass; the order comes from this package and is in range.
        return np.take(self._join(use, parts), order, axis=0, mode="clip")

    def _join(self, use: str, parts: Sequence[NDArray[Any]]) -> NDArray[Any]:
        if len(parts) == 1:
            return parts[0]
        rows = sum(len(p) for p in parts)
        scratch = self._scratch.get(use)
        if scratch is None or len(scratch) < rows:
            scratch = self._scratch[use] = np.empty((rows, *parts[0].shape[1:]), parts[0].dtype)
        return np.concatenate(parts, out=scratch[:rows])


def _pick_lists(jagged: Jagged, order: I64) -> Jagged:
    assert jagged.offsets is not None
    starts = jagged.offsets[order]
    lengths = jagged.offsets[order + 1] - starts
    offsets = offsets_of(lengths)
    at = np.arange(offsets[-1], dtype=np.int64)
    at += np.repeat(starts - offsets[:-1], lengths)
    weights = None if jagged.weights is None else np.take(jagged.weights, at, mode="clip")
    return Jagged(np.take(jagged.values, at, mode="clip"), offsets, weights)


def cut(block: Block, start: int, stop: int) -> Block:
    """Rows start … stop; arrays are views of the block's, but for offsets, which begin at 0 again."""
    ids = {}
    for name, jagged in block.ids.items():
        if jagged.offsets is None:
            a, b, offsets = start, stop, None
        else:
            bounds = jagged.offsets[start : stop + 1]
            a, b = int(bounds[0]), int(bounds[-1])
            offsets = bounds - a
        ids[name] = Jagged(jagged.values[a:b], offsets, None if jagged.weights is None else jagged.weights[a:b])
    return Block(
        rows=stop - start,
        numeric=block.numeric[start:stop],
        ids=ids,
        labels=block.labels[start:stop],
        weights=None if block.weights is None else block.weights[start:stop],
    )
