"""Several pushes as one optimizer step. U unique ids of a table in one push, D its dimension, W pushes."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from satrap.ps.heat import LAG_DOUBTED, Heat, room
from satrap.ps.protocol import STALENESS_BINS, Ack, PushRequest, Refused
from satrap.store import MISSING, NOT_ADMITTED, NOT_FINITE, Store, TicketFeature

UNKNOWN = STALENESS_BINS - 1
_REASONS = (
    (Refused.MISSING_ROW, MISSING),
    (Refused.NOT_FINITE, NOT_FINITE),
    (Refused.NOT_ADMITTED, NOT_ADMITTED),
)


def apply_merged(store: Store, pushes: Sequence[PushRequest], heat: Heat | None = None) -> list[Ack]:
    """Sums the gradients of W pushes per id, in the order given, and steps every row once.

    Returns what became of each push's own gradients: one that was merged counts as applied for everyone who sent a
    part of it. All pushes have been checked.
    """
    # To the ticket a push is one sample with one sequence a table: its kernels then find the unique ids and sum the
    # gradients in the order of the sequences, without a copy of either.
    features: list[TicketFeature] = []
    gradients: list[NDArray[np.float32] | None] = []
    for push in pushes:
        for table, ids in push.ids.items():
            if ids.size:
                features.append(TicketFeature(table, ids, np.array([0, ids.size]), None, length=ids.size))
                gradients.append(push.gradients[table][None])
    acks = [Ack() for _ in pushes]
    if not features:
        return acks
    ticket = store.ticket(features, 1)
    merged = ticket.unique()
    flat, outcomes = room(merged)
    store.push_many(
        merged,
        store.unpool(ticket, None, gradients),
        lr_factor=pushes[0].lr_factor,
        distinct=True,
        outcomes=outcomes,
        step=pushes[0].seq,
    )
    number = 0
    for push, ack in zip(pushes, acks, strict=True):
        for table, ids in push.ids.items():
            if ids.size:
                versions = None if push.versions is None else push.versions[table]
                mine = outcomes[table][ticket.positions(number)]
                returns = table in store.bounded
                _book(ack, mine, versions, returns)
                if heat is not None and heat.due and versions is not None:
                    heat.measured(table, ids, versions, mine, returns)
                number += 1
    if heat is not None:
        heat.stepped(merged, flat)
    return acks


def _book(ack: Ack, outcomes: NDArray[np.uint16], versions: NDArray[np.uint8] | None, returns: bool) -> None:
    """Enters the outcomes [U] of a push's gradients, pulled at `versions` [U], in its acknowledgement. `returns`: rows
    may have been evicted and made again since."""
    stepped = outcomes < MISSING
    applied = int(np.count_nonzero(stepped))
    ack.applied += applied
    if versions is None:
        ack.staleness[UNKNOWN] += applied
    else:
        lag = (outcomes - versions)[stepped] & 255
        if returns:
            lag[lag >= LAG_DOUBTED] = UNKNOWN
        ack.staleness += np.bincount(lag, minlength=STALENESS_BINS)
    if applied == outcomes.size:
        return
    for reason, code in _REASONS:
        n = int(np.count_nonzero(outcomes == code))
        if n:
            ack.refused[reason] = ack.refused.get(reason, 0) + n
