"""Decoded rows in memory: joining, picking and cutting them. The same layout as a Batch, without a position.

R rows, N ids, n numbers a row, T labels a row.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

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


def pick(block: Block, order: I64) -> Block:
    """The rows of these numbers, in this order."""
    return Block(
        rows=len(order),
        numeric=np.take(block.numeric, order, axis=0, mode="clip"),
        ids={name: _pick_ids(jagged, order) for name, jagged in block.ids.items()},
        labels=np.take(block.labels, order, axis=0, mode="clip"),
        weights=None if block.weights is None else block.weights[order],
    )


def _pick_ids(jagged: Jagged, order: I64) -> Jagged:
    if jagged.offsets is None:
        # mode="clip" skips numpy's bounds pass; the order comes from this package and is in range.
        weights = None if jagged.weights is None else np.take(jagged.weights, order, mode="clip")
        return Jagged(np.take(jagged.values, order, mode="clip"), None, weights)
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
