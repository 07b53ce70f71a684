"""Pooling in this process, of rows from any parameter service. U unique ids of a table, D its dim."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from satrap.observe.stages import StageSeconds
from satrap.pooling.memory import vectors
from satrap.pooling.plan import Ids, Plan
from satrap.pooling.protocol import Gradients, Pooled, Pushed
from satrap.ps import ParameterService, PullRequest, PushRequest, Rows
from satrap.store import Store, Ticket


@dataclass(frozen=True, slots=True)
class Prepared:
    """A batch with its ticket."""

    samples: int
    lengths: tuple[int, ...]
    ticket: Ticket


@dataclass(frozen=True, slots=True)
class Kept:
    """What the gradients of a lookup need: the ticket, and what was pulled."""

    ticket: Ticket
    ids: dict[str, NDArray[np.uint64]]
    versions: dict[str, NDArray[np.uint8]]
    hints: dict[str, NDArray[np.uint32]] | None


class LocalPooler:
    """Implements `Pooler`. The same calls give the same bits for any number of threads."""

    def __init__(
        self,
        plan: Plan,
        service: ParameterService,
        *,
        client: int = 0,
        threads: int | None = None,
        kernels: Store | None = None,
        along: Mapping[str, NDArray[np.uint64]] | None = None,
    ) -> None:
        """`client`: the number under which it pushes. `kernels`: a store of the same tables, for tickets; None: the
        service's own where it is in this process, else an empty one of so many `threads`. `along`: rows that come with
        every batch of training, of tables that no feature uses, and may be pushed with it."""
        self._plan, self._service, self._client = plan, service, client
        self._along = dict(along or {})
        own = getattr(service, "store", None)
        if kernels is None and isinstance(own, Store):
            kernels = own
        self.kernels = kernels or Store(plan.tables, seed=plan.seed, partitions=1, threads=threads)
        """Where tickets are made. Its rows are not used."""
        self._prefetch = getattr(service, "prefetch", None)
        self.seconds, self._uncounted = StageSeconds(), StageSeconds()

    @property
    def overlaps(self) -> bool:
        """See `Pooler`."""
        return hasattr(self._service, "submit_pull")

    def prepare(self, ids: Mapping[str, Ids], samples: int) -> Prepared:
        """Dedups the ids of a batch."""
        lengths = self._plan.lengths(ids, samples)
        ticket = self.kernels.ticket(self._plan.parts(ids, lengths), samples)
        if self._prefetch is not None:
            self._prefetch(ticket.unique())
        return Prepared(samples, lengths, ticket)

    def begin_lookup(self, prepared: Prepared, *, train: bool) -> Callable[[], Pooled]:
        """See `Pooler`."""
        seconds, service = self.seconds if train else self._uncounted, self._service
        with seconds.time("pull"):
            ids = prepared.ticket.unique() | (self._along if train else {})
            request = PullRequest(ids=ids, create=train, distinct=True, versions=train)
            pulled: Any = service.submit_pull(request) if self.overlaps else service.pull(request)  # type: ignore[attr-defined]

        def finish() -> Pooled:
            rows = pulled
            if self.overlaps:
                with seconds.waiting("pull", "server_wait"):
                    rows = pulled.result()
            with seconds.time("pool"):
                return self._pool(prepared, ids, rows)

        return finish

    def begin_push(
        self,
        looked_up: Pooled | None,
        gradients: Gradients | None,
        *,
        epoch: int,
        seq: int,
        lr_factor: float = 1.0,
        merge: int = 1,
    ) -> Callable[[], Pushed]:
        """See `Pooler`."""
        kept: Kept | None = None if looked_up is None or gradients is None else looked_up.kept
        with self.seconds.time("unpool"):
            unpooled = self._gradients(kept, gradients)
        request = PushRequest(
            client=self._client,
            epoch=epoch,
            seq=seq,
            **unpooled,
            lr_factor=lr_factor,
            distinct=True,
            merge=merge,
        )
        sent = sum(x.size for x in request.ids.values())
        with self.seconds.time("push"):
            if not self.overlaps:
                ack = self._service.push(request)
                return lambda: Pushed(sent, ack)
            service: Any = self._service
            pending = service.submit_push(request)

        def finish() -> Pushed:
            with self.seconds.waiting("push", "server_wait"):
                return Pushed(sent, pending.result())

        return finish

    def close(self) -> None:
        """See `Pooler`. The service goes on."""

    def _gradients(self, kept: Kept | None, gradients: Gradients | None) -> dict[str, Any]:
        """The parts of a push that name rows."""
        if kept is None or gradients is None:
            return {"ids": {}, "gradients": {}}
        own = (
            {}
            if gradients.empty and gradients.along
            else self.kernels.unpool(kept.ticket, gradients.pooled, gradients.sequences)
        )
        ids, versions = {t: kept.ids[t] for t in own}, {t: kept.versions[t] for t in own}
        hints = None if kept.hints is None else {t: kept.hints[t] for t in own}
        for table, (which, its) in (gradients.along or {}).items():
            own[table], ids[table], versions[table] = its, kept.ids[table][which], kept.versions[table][which]
            if hints is not None and kept.hints is not None:
                # Only the service can tell the hints of some of the rows from those of all.
                whole = which.size == kept.ids[table].size
                hints = {**hints, table: kept.hints[table]} if whole else None
        return {"ids": ids, "gradients": own, "versions": versions, "hints": hints}

    def _pool(self, prepared: Prepared, ids: dict[str, NDArray[np.uint64]], rows: Rows) -> Pooled:
        pooled = vectors(prepared.samples, self._plan.columns)
        shapes = zip(prepared.lengths, self._plan.sequences, strict=True)
        sequences = [vectors(prepared.samples, length, f.dim) for length, f in shapes]
        masks = [np.empty((prepared.samples, length), np.bool_) for length in prepared.lengths]
        values = dict(rows.values)
        along = {table: values.pop(table) for table in self._along if table in values}
        self.kernels.pool(prepared.ticket, values, pooled, sequences, masks)
        hints = None if rows.hints is None else dict(rows.hints)
        return Pooled(pooled, sequences, masks, Kept(prepared.ticket, ids, dict(rows.versions), hints), along)
