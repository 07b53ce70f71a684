"""Batches and pooled vectors as what messages are made of, and back.

B samples, N ids of a feature, F pooled features of a run, D values a row, n ids of a sequence in a batch.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from satrap.errors import StoreError, WireError
from satrap.pooling.memory import vectors
from satrap.pooling.plan import Ids, Plan
from satrap.pooling.protocol import Gradients
from satrap.ps.packing import LEAST_GRADIENT_SCALE, LEAST_VALUE_SCALE, joined, pack, scale_for, unpack
from satrap.wire import Lookup, Section

_NONE = np.empty(0, np.uint8)


class Lists(NamedTuple):
    """The ids of one feature, as they came."""

    values: NDArray[np.uint64]
    offsets: NDArray[np.int64] | None
    weights: NDArray[np.float32] | None


def batch_fields(plan: Plan, ids: Mapping[str, Ids], samples: int) -> dict[str, Any]:
    """The fields of a `Lookup` that tell of a batch. Arrays are the batch's own where they lie so in memory."""
    found = [ids[f.name] for f in plan.features]
    weighted = [x.weights is not None and f.max_length is None for f, x in zip(plan.features, found, strict=True)]
    lengths = [np.diff(x.offsets).astype(np.uint32) for x in found if x.offsets is not None]
    weights = [x.weights for x, has in zip(found, weighted, strict=True) if has and x.weights is not None]
    return {
        "sections": tuple(Section(i, x.values.size, 1) for i, x in enumerate(found)),
        "samples": samples,
        "listed": tuple(x.offsets is not None for x in found),
        "weighted": tuple(weighted),
        "ids": joined([x.values for x in found]) if found else np.empty(0, np.uint64),
        "lengths": np.concatenate(lengths) if lengths else np.empty(0, np.uint32),
        "weights": joined(weights) if weights else np.empty(0, np.float32),
    }


def batch_of(plan: Plan, m: Lookup) -> dict[str, Lists]:
    """The ids of a batch by feature. Raises StoreError where the features are not the plan's."""
    if [s.table for s in m.sections] != list(range(len(plan.features))):
        raise StoreError(f"a lookup names {len(m.sections)} features, the job has {len(plan.features)}, in its order")
    out: dict[str, Lists] = {}
    at = row = weight = 0
    for f, s, listed, weighted in zip(plan.features, m.sections, m.listed, m.weighted, strict=True):
        offsets = None
        if listed:
            offsets = np.zeros(m.samples + 1, np.int64)
            np.cumsum(m.lengths[row : row + m.samples], out=offsets[1:])
            row += m.samples
        weights = m.weights[weight : weight + s.rows] if weighted else None
        weight += s.rows if weighted else 0
        out[f.name] = Lists(m.ids[at : at + s.rows], offsets, weights)
        at += s.rows
    return out


def pack_values(
    plan: Plan,
    pooled: NDArray[np.float32],
    sequences: Sequence[NDArray[np.float32]],
    masks: Sequence[NDArray[np.bool_]],
) -> dict[str, Any]:
    """Sections and values of pooled vectors."""
    sections, values = _pack(plan, Gradients(pooled, sequences), masks, LEAST_VALUE_SCALE)
    return {"sections": sections, "values": values}


def pack_gradients(plan: Plan, gradients: Gradients | None, masks: Sequence[NDArray[np.bool_]]) -> dict[str, Any]:
    """Sections and gradients of a push."""
    if gradients is None:
        return {"sections": (), "gradients": _NONE}
    sections, values = _pack(plan, gradients, masks, LEAST_GRADIENT_SCALE)
    return {"sections": sections, "gradients": values}


def _pack(
    plan: Plan, arrays: Gradients, masks: Sequence[NDArray[np.bool_]], least: float
) -> tuple[tuple[Section, ...], NDArray[np.uint8]]:
    rows: list[NDArray[np.float32]] = []
    sections: list[Section] = []
    runs = plan.runs
    if arrays.pooled is not None:
        for i, run in enumerate(runs):
            part = arrays.pooled[:, run.columns] if len(runs) > 1 else arrays.pooled
            rows.append(np.ascontiguousarray(part).reshape(-1, run.dim))
            sections.append(Section(i, rows[-1].shape[0], run.dim, run.format))
    for i, (f, x, mask) in enumerate(zip(plan.sequences, arrays.sequences, masks, strict=True)):
        if x is not None:
            rows.append(x[mask])
            sections.append(Section(len(runs) + i, rows[-1].shape[0], f.dim, f.format))
    scaled = tuple(s._replace(scale=scale_for(s.format, x, least)) for s, x in zip(sections, rows, strict=True))
    return scaled, pack(scaled, rows, [None] * len(rows))


def unpack_arrays(
    plan: Plan,
    sections: tuple[Section, ...],
    values: NDArray[np.uint8],
    samples: int,
    masks: Sequence[NDArray[np.bool_]],
    *,
    copy: bool,
) -> Gradients:
    """The arrays that travelled; None for what was left out. Without `copy` they may be read-only views of `values`.
    Raises WireError where they are not those of a batch like this."""
    runs = plan.runs
    _check(plan, sections, samples, masks)
    found = {s.table: x for s, x in zip(sections, unpack(sections, values), strict=True)}
    pooled: NDArray[np.float32] | None = None
    if any(i in found for i in range(len(runs))) or not runs:
        if not copy and len(runs) == 1:
            pooled = found[0].reshape(samples, plan.columns)
        else:
            pooled = vectors(samples, plan.columns)
            for i, run in enumerate(runs):
                pooled[:, run.columns] = found[i].reshape(samples, run.features * run.dim)
    sequences: list[NDArray[np.float32] | None] = []
    for i, (f, mask) in enumerate(zip(plan.sequences, masks, strict=True)):
        rows = found.get(len(runs) + i)
        if rows is None:
            sequences.append(None)
            continue
        padded = vectors(*mask.shape, f.dim)
        padded[~mask] = 0.0
        padded[mask] = rows
        sequences.append(padded)
    return Gradients(pooled, sequences)


def _check(plan: Plan, sections: tuple[Section, ...], samples: int, masks: Sequence[NDArray[np.bool_]]) -> None:
    """Raises WireError unless each section is one of the batch's, and the runs are all there or none."""
    runs = plan.runs
    want = [(samples * r.features, r.dim, r.format) for r in runs]
    want += [(int(np.count_nonzero(m)), f.dim, f.format) for f, m in zip(plan.sequences, masks, strict=True)]
    for s in sections:
        if s.table >= len(want) or s[1:4] != want[s.table]:
            raise WireError(
                f"part {s.table} of a batch's vectors has {s.rows} rows of {s.dim} as {s.format.value}, expected "
                + (f"{want[s.table][0]} of {want[s.table][1]}" if s.table < len(want) else f"{len(want)} parts")
            )
    there = sum(s.table < len(runs) for s in sections)
    if there not in (0, len(runs)):
        raise WireError(f"{there} of the {len(runs)} parts of a batch's pooled vectors are there")
