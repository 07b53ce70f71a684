"""Several pushes as one optimizer step. U unique ids of a table in one push, D its dimension, W pushes."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from satrap.ps.protocol import STALENESS_BINS, Ack, PushRequest, Refused
from satrap.store import MISSING, NOT_FINITE, Store, TicketFeature

UNKNOWN = STALENESS_BINS - 1


def apply_merged(store: Store, pushes: Sequence[PushRequest]) -> list[Ack]:
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
    outcomes = {table: np.empty(ids.size, np.uint16) for table, ids in merged.items()}
    store.push_many(
        merged,
        store.unpool(ticket, None, gradients),
        lr_factor=pushes[0].lr_factor,
        distinct=True,
        outcomes=outcomes,
    )
    number = 0
    for push, ack in zip(pushes, acks, strict=True):
        for table, ids in push.ids.items():
            if ids.size:
                versions = None if push.versions is None else push.versions[table]
                _book(ack, outcomes[table][ticket.positions(number)], versions)
                number += 1
    return acks


def _book(ack: Ack, outcomes: NDArray[np.uint16], versions: NDArray[np.uint8] | None) -> None:
    """Enters the outcomes [U] of a push's gradients, pulled at `versions` [U], in its acknowledgement."""
    stepped = outcomes < MISSING
    applied = int(np.count_nonzero(stepped))
    ack.applied += applied
    if versions is None:
        ack.staleness[UNKNOWN] += applied
    else:
        lag = (outcomes - versions)[stepped] & 255
        ack.staleness += np.bincount(lag, minlength=STALENESS_BINS)
    if applied == outcomes.size:
        return
    for reason, code in ((Refused.MISSING_ROW, MISSING), (Refused.NOT_FINITE, NOT_FINITE)):
        n = int(np.count_nonzero(outcomes == code))
        if n:
            ack.refused[reason] = ack.refused.get(reason, 0) + n
