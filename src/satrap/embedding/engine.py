"""The embedding engine: a batch in, tensors out; their gradients in, one push out.

    Batch ──prepare──► Prepared ──lookup──► Lookup (leaf tensors) ──backward──► push ──► Ack
                          └────── a pooler: here, or in an embedding worker ──────┘

B batch, Σ columns of all pooled features, L padded length, D dim of a table, T labels.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from satrap.data.batch import Batch
from satrap.embedding.hot_ids import HotIds, sampled
from satrap.embedding.ledger import Ledger
from satrap.models.inputs import Inputs
from satrap.models.named import Named, Padded
from satrap.observe.stages import StageSeconds
from satrap.pooling import Gradients, LocalPooler, Plan, Pooled, Pooler, Pushed
from satrap.ps import Ack, ParameterService
from satrap.schema import Job


@dataclass(frozen=True, slots=True)
class Prepared:
    """A batch, and all about it that does not depend on the rows' values."""

    batch: Batch
    work: Any
    """The pooler's."""


@dataclass(slots=True)
class Lookup:
    """A batch as tensors. In training the pooled tensor and the sequences are autograd leaves."""

    batch: Batch
    found: Pooled
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
    along: dict[str, tuple[NDArray[np.intp], NDArray[np.float32]]] | None = None
    """To be set before the push. Table → ([r], [r, D]): which of the rows that came along (`found.along`) have a
    gradient, and theirs."""


class EmbeddingEngine:
    """Looks batches up and pushes their gradients back, by a pooler.

    `prepare` may run ahead on any thread; `lookup` and `push` are called in the order that the staleness asks for, by
    one thread at a time. The same calls give the same bits for any number of threads.
    """

    def __init__(
        self,
        job: Job,
        service: ParameterService | None = None,
        *,
        pooler: Pooler | None = None,
        device: str | torch.device = "cpu",
        threads: int | None = None,
        client: int = 0,
        epoch: int = 0,
        along: Mapping[str, NDArray[np.uint64]] | None = None,
        seconds: StageSeconds | None = None,
    ) -> None:
        """`pooler`: None: one in this process, of the rows of `service`, that pushes as `client`, and to whose batches
        of training the rows `along` come. `seconds`: where the time of training's lookups and pushes is counted."""
        self._device = torch.device(device)
        self._epoch = epoch
        self._inputs = Inputs.of(job)
        if pooler is None:
            if service is None:
                raise ValueError("an embedding engine needs a service or a pooler")
            pooler = LocalPooler(
                Plan.of(job), service, client=client, threads=threads or job.store.threads, along=along
            )
        self.pooler = pooler
        if seconds is not None:
            pooler.seconds = seconds
        self.ledger = Ledger()
        self._features = [(f.name, job.table_of(f)) for f in job.id_features]
        self.hot_ids = {table: HotIds() for _, table in self._features}
        """Table → the ids that came most often in training, of a sample of batches."""
        self._looked_up = 0

    def prepare(self, batch: Batch) -> Prepared:
        """Does what is independent of the rows, so it may run any number of batches ahead."""
        return Prepared(batch, self.pooler.prepare(batch.ids, batch.size))

    @property
    def overlaps(self) -> bool:
        """Whether pulls and pushes can be under way while others are worked on: where rows are reached by a network."""
        return self.pooler.overlaps

    def lookup(self, batch: Batch | Prepared, *, train: bool) -> Lookup:
        """Pulls and pools the rows of a batch. train=False creates no rows and asks for no gradients."""
        return self.submit_lookup(batch, train=train)()

    def submit_lookup(self, batch: Batch | Prepared, *, train: bool) -> Callable[[], Lookup]:
        """`lookup`, begun: the rows are asked for, and see every push submitted before. What it returns waits for them
        and pools them, in any thread."""
        prepared = batch if isinstance(batch, Prepared) else self.prepare(batch)
        if train:
            self._sample(prepared.batch)
        finish = self.pooler.begin_lookup(prepared.work, train=train)
        return lambda: self._tensors(prepared.batch, finish(), train)

    def _sample(self, batch: Batch) -> None:
        if sampled(self._looked_up):
            for name, table in self._features:
                self.hot_ids[table].see(batch.ids[name].values)
        self._looked_up += 1

    def _tensors(self, batch: Batch, found: Pooled, train: bool) -> Lookup:
        pooled = self._to_device(torch.from_numpy(found.pooled)).requires_grad_(train)
        sequences = [self._to_device(torch.from_numpy(s)).requires_grad_(train) for s in found.sequences]
        padded = {
            name: Padded(s, self._to_device(torch.from_numpy(m)))
            for name, s, m in zip(self._inputs.sequences, sequences, found.masks, strict=True)
        }
        return Lookup(
            batch=batch,
            found=found,
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
        return self.submit_push(lookup, seq=seq, lr_factor=lr_factor, merge=merge)()

    def submit_push(
        self, lookup: Lookup | None, *, seq: int, lr_factor: float = 1.0, merge: int = 1
    ) -> Callable[[], Ack]:
        """`push`, begun: what it returns waits for the acknowledgement and books it; call it once, always in one
        thread."""
        gradients = None if lookup is None else _gradients(lookup)
        if gradients is None and merge == 1:
            return Ack
        found = lookup.found if lookup is not None and gradients is not None else None
        finish = self.pooler.begin_push(found, gradients, epoch=self._epoch, seq=seq, lr_factor=lr_factor, merge=merge)
        return lambda: self._book(finish())

    def _book(self, pushed: Pushed) -> Ack:
        self.ledger.enter(pushed.sent, pushed.ack)
        return pushed.ack

    def _to_device(self, x: Tensor) -> Tensor:
        if self._device.type == "cpu":
            return x
        # Pinned memory lets the copy run beside the compute of earlier batches.
        return x.pin_memory().to(self._device, non_blocking=True)


def _tensor(x: NDArray[np.float32]) -> Tensor:
    """A tensor on the array's memory. The reader's arrays may be marked read-only; nothing here writes to them."""
    if not x.flags.writeable:
        x = x.copy()
    return torch.from_numpy(np.ascontiguousarray(x))


def _gradients(lookup: Lookup) -> Gradients | None:
    """What backward left on the leaves; None where it left nothing."""
    pooled = _gradient(lookup.pooled)
    sequences = [_gradient(s) for s in lookup.sequences]
    gradients = Gradients(pooled, sequences, lookup.along)
    return None if gradients.empty and not lookup.along else gradients


def _gradient(leaf: Tensor) -> NDArray[np.float32] | None:
    if leaf.grad is None:
        return None
    return leaf.grad.to("cpu", torch.float32).contiguous().numpy()


__all__ = ["EmbeddingEngine", "Lookup", "Prepared"]
