"""The embedding engine: a batch in, tensors out; their gradients in, one push out.

    Batch ──prepare──► Prepared (ticket) ──lookup──► Lookup (leaf tensors) ──backward──► push ──► Ack

B batch, Σ columns of all pooled features, L padded length, U unique ids of a table, D its dim, T labels.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from satrap.data.batch import Batch, Jagged
from satrap.embedding.ledger import Ledger
from satrap.models.inputs import Inputs
from satrap.models.named import Named, Padded
from satrap.ps import Ack, ParameterService, PullRequest, PushRequest, Rows
from satrap.schema import Job, Sequence
from satrap.store import Store, Ticket, TicketFeature


@dataclass(frozen=True, slots=True)
class Prepared:
    """A batch with its ticket: everything about it that does not depend on the rows' values."""

    batch: Batch
    ticket: Ticket
    lengths: tuple[int, ...]
    """L of each sequence feature, in job order."""


@dataclass(slots=True)
class Lookup:
    """A batch as tensors. In training the pooled tensor and the sequences are autograd leaves."""

    prepared: Prepared
    ids: dict[str, NDArray[np.uint64]]
    versions: dict[str, NDArray[np.uint8]]
    hints: dict[str, NDArray[np.uint32]] | None
    pooled: Tensor
    """float32 [B, Σ], the leaf that collects the gradient of all pooled features."""
    sequences: list[Tensor]
    """float32 [B, L, D] leaves."""
    numeric: Named
    embeddings: Named
    labels: Tensor
    """float32 [B, T]"""
    weights: Tensor | None
    """float32 [B]"""

    @property
    def batch(self) -> Batch:
        """The batch it came from."""
        return self.prepared.batch


class EmbeddingEngine:
    """Looks batches up in a parameter service and pushes their gradients back.

    `prepare` may run ahead on any thread; `lookup` and `push` are called in the order that the staleness asks for, by
    one thread at a time. The same calls give the same bits for any number of threads.
    """

    def __init__(
        self,
        job: Job,
        service: ParameterService,
        *,
        device: str | torch.device = "cpu",
        threads: int | None = None,
        client: int = 0,
        epoch: int = 0,
    ) -> None:
        self._service = service
        self._device = torch.device(device)
        self._client, self._epoch = client, epoch
        self._inputs = Inputs.of(job)
        self._dims = {t.name: t.dim for t in job.resolved_tables()}
        self._features = [(f, job.table_of(f)) for f in job.id_features]
        self._kernels = _kernels(job, service, threads)
        self.ledger = Ledger()

    def prepare(self, batch: Batch) -> Prepared:
        """Dedups the ids of a batch; independent of the rows, so it may run any number of batches ahead."""
        parts: list[TicketFeature] = []
        lengths: list[int] = []
        column = 0
        for feature, table in self._features:
            x = batch.ids[feature.name]
            if isinstance(feature, Sequence):
                lengths.append(_longest(x, batch.size, feature.max_length))
                parts.append(TicketFeature(table, x.values, x.offsets, None, length=lengths[-1]))
            else:
                parts.append(TicketFeature(table, x.values, x.offsets, x.weights, feature.pooling, column))
                column += self._dims[table]
        return Prepared(batch, self._kernels.ticket(parts, batch.size), tuple(lengths))

    @property
    def overlaps(self) -> bool:
        """Whether pulls and pushes can be under way while others are worked on: where rows are reached by a network."""
        return hasattr(self._service, "submit_pull")

    def lookup(self, batch: Batch | Prepared, *, train: bool) -> Lookup:
        """Pulls and pools the rows of a batch. train=False creates no rows and asks for no gradients."""
        prepared = batch if isinstance(batch, Prepared) else self.prepare(batch)
        ids = prepared.ticket.unique()
        return self._pool(prepared, ids, self._service.pull(PullRequest(ids=ids, create=train, distinct=True)), train)

    def submit_lookup(self, batch: Batch | Prepared, *, train: bool) -> Callable[[], Lookup]:
        """`lookup`, begun: the rows are asked for, and see every push submitted before. What it returns waits for them
        and pools them, in any thread. Only where it `overlaps`."""
        prepared = batch if isinstance(batch, Prepared) else self.prepare(batch)
        ids = prepared.ticket.unique()
        service: Any = self._service
        pending = service.submit_pull(PullRequest(ids=ids, create=train, distinct=True))
        return lambda: self._pool(prepared, ids, pending.result(), train)

    def _pool(self, prepared: Prepared, ids: dict[str, NDArray[np.uint64]], rows: Rows, train: bool) -> Lookup:
        batch = prepared.batch
        pooled = torch.empty(batch.size, sum(self._inputs.pooled.values()))
        shapes = zip(prepared.lengths, self._inputs.sequences.values(), strict=True)
        sequences = [torch.empty(batch.size, length, dim) for length, dim in shapes]
        masks = [torch.empty(batch.size, length, dtype=torch.bool) for length in prepared.lengths]
        self._kernels.pool(
            prepared.ticket,
            dict(rows.values),
            pooled.numpy(),
            [s.numpy() for s in sequences],
            [m.numpy() for m in masks],
        )
        pooled = self._to_device(pooled).requires_grad_(train)
        sequences = [self._to_device(s).requires_grad_(train) for s in sequences]
        padded = {
            name: Padded(s, self._to_device(m))
            for name, s, m in zip(self._inputs.sequences, sequences, masks, strict=True)
        }
        return Lookup(
            prepared=prepared,
            ids=ids,
            versions=dict(rows.versions),
            hints=None if rows.hints is None else dict(rows.hints),
            pooled=pooled,
            sequences=sequences,
            numeric=Named.packed(self._to_device(_tensor(batch.numeric)), self._inputs.numeric),
            embeddings=Named.packed(pooled, self._inputs.pooled, padded),
            labels=self._to_device(_tensor(batch.labels)),
            weights=None if batch.weights is None else self._to_device(_tensor(batch.weights)),
        )

    def push(self, lookup: Lookup | None, *, seq: int, lr_factor: float = 1.0, merge: int = 1) -> Ack:
        """Pushes the gradients that backward left on the lookup's leaves, one per unique id, and books them.

        A model that used no embedding of the batch leaves none: then nothing is sent, as for a lookup of None, unless
        other workers wait for this push. `merge`: as in `PushRequest`.
        """
        request = self._request(lookup, seq, lr_factor, merge)
        return Ack() if request is None else self._book(request, self._service.push(request))

    def submit_push(
        self, lookup: Lookup | None, *, seq: int, lr_factor: float = 1.0, merge: int = 1
    ) -> Callable[[], Ack]:
        """`push`, begun: what it returns waits for the acknowledgement and books it; call it once, always in one
        thread. Only where it `overlaps`."""
        request = self._request(lookup, seq, lr_factor, merge)
        if request is None:
            return Ack
        service: Any = self._service
        pending = service.submit_push(request)
        return lambda: self._book(request, pending.result())

    def _book(self, request: PushRequest, ack: Ack) -> Ack:
        self.ledger.enter(sum(x.size for x in request.ids.values()), ack)
        return ack

    def _request(self, lookup: Lookup | None, seq: int, lr_factor: float, merge: int) -> PushRequest | None:
        gradients = None if lookup is None else self._unpool(lookup)
        if gradients is None and merge == 1:
            return None
        pushed = lookup if gradients is not None else None
        return PushRequest(
            client=self._client,
            epoch=self._epoch,
            seq=seq,
            ids={} if pushed is None else pushed.ids,
            gradients=gradients or {},
            versions=None if pushed is None else pushed.versions,
            hints=None if pushed is None else pushed.hints,
            lr_factor=lr_factor,
            distinct=True,
            merge=merge,
        )

    def _unpool(self, lookup: Lookup) -> dict[str, NDArray[np.float32]] | None:
        """Table → gradients [U, D] of the lookup's ids; None where backward left none."""
        pooled = _gradient(lookup.pooled)
        sequences = [_gradient(s) for s in lookup.sequences]
        if pooled is None and all(s is None for s in sequences):
            return None
        return self._kernels.unpool(lookup.prepared.ticket, pooled, sequences)

    def _to_device(self, x: Tensor) -> Tensor:
        if self._device.type == "cpu":
            return x
        # Pinned memory lets the copy run beside the compute of earlier batches.
        return x.pin_memory().to(self._device, non_blocking=True)


def _kernels(job: Job, service: ParameterService, threads: int | None) -> Store:
    """The native kernels of tickets: the service's own store where it is in this process, else an empty one."""
    store = getattr(service, "store", None)
    if isinstance(store, Store):
        return store
    return Store(job.resolved_tables(), seed=job.seed, partitions=1, threads=threads or job.store.threads)


def _longest(x: Jagged, samples: int, limit: int) -> int:
    """L of a sequence in this batch: its longest list, at least 1."""
    if x.offsets is None or samples == 0:
        return 1
    return max(1, min(limit, int(np.diff(x.offsets).max())))


def _tensor(x: NDArray[np.float32]) -> Tensor:
    """A tensor on the array's memory. The reader's arrays may be marked read-only; nothing here writes to them."""
    if not x.flags.writeable:
        x = x.copy()
    return torch.from_numpy(np.ascontiguousarray(x))


def _gradient(leaf: Tensor) -> NDArray[np.float32] | None:
    if leaf.grad is None:
        return None
    return leaf.grad.to("cpu", torch.float32).contiguous().numpy()


__all__ = ["EmbeddingEngine", "Lookup", "Prepared"]
