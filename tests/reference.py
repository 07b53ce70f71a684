"""The plain reference: what satrap's tables and embedding engine must compute, written as simply as it can be said.

A table is a dict of id → torch parameter, each with its own optimizer. Pooling is `torch.nn.functional.embedding_bag`
where it has the mode, the formula in plain torch where not. Nothing here is fast; all of it is meant to be obviously
right, and it is the oracle of the equivalence tests.

B batch, N ids of a feature in the batch, U unique ids of a table, D dimension, L padded length.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from satrap import schema
from satrap.data import Batch, Jagged
from satrap.errors import StoreError
from satrap.models import Named, Padded
from satrap.ps.protocol import STALENESS_BINS, Ack, PullRequest, PushRequest, Refused, Rows, TableStats
from satrap.schema import Job, Table, ValueFormat

Initial = Callable[[Table, NDArray[np.uint64]], NDArray[np.float32]]
"""(table, ids [U]) → initial values [U, D]."""


class Ftrl(torch.optim.Optimizer):
    """FTRL-Proximal, algorithm 1 of McMahan et al. (KDD 2013); `lr` is alpha.

    The paper starts from weights of zero, z = n = 0. Rows start from their initializer's values, so z starts as the
    one whose weights those are; it is zero where they are zero.
    """

    def __init__(self, params: Any, lr: float, beta: float, l1: float, l2: float) -> None:
        super().__init__(params, {"lr": lr, "beta": beta, "l1": l1, "l2": l2})

    @torch.no_grad()
    def step(self, closure: Any = None) -> None:
        for group in self.param_groups:
            alpha, beta, l1, l2 = group["lr"], group["beta"], group["l1"], group["l2"]
            for w in group["params"]:
                if w.grad is None or alpha == 0:
                    continue
                g, state = w.grad, self.state[w]
                if "z" not in state:
                    state["z"] = -(w * (beta / alpha + l2) + w.sign() * l1)
                z = state["z"]
                n = state.setdefault("n", torch.zeros_like(w))
                # The sigmas of the paper add up to the inverse rate; a schedule changes alpha between them.
                before = state.get("alpha", alpha)
                sigma = (beta + (n + g * g).sqrt()) / alpha - (beta + n.sqrt()) / before
                state["alpha"] = alpha
                z += g - sigma * w
                n += g * g
                shrunk = (z.sign() * l1 - z) / ((beta + n.sqrt()) / alpha + l2)
                w.copy_(torch.where(z.abs() <= l1, torch.zeros_like(w), shrunk))


class RowWiseAdagrad(torch.optim.Optimizer):
    """Adagrad with one accumulator a row: the mean over the row of its squared gradient."""

    def __init__(self, params: Any, lr: float, eps: float, initial_accumulator: float, weight_decay: float) -> None:
        super().__init__(params, {"lr": lr, "eps": eps, "initial": initial_accumulator, "weight_decay": weight_decay})

    @torch.no_grad()
    def step(self, closure: Any = None) -> None:
        for group in self.param_groups:
            for w in group["params"]:
                if w.grad is None:
                    continue
                g = w.grad + group["weight_decay"] * w
                state = self.state[w]
                state["sum"] = state.get("sum", group["initial"]) + (g * g).mean()
                w -= group["lr"] * g / (torch.sqrt(torch.as_tensor(state["sum"])) + group["eps"])


def torch_optimizer(spec: schema.Optimizer, params: list[nn.Parameter]) -> torch.optim.Optimizer:
    """The optimizer a spec means, from torch.optim where torch has it, in its plain (for-loop) form."""
    match spec:
        case schema.SGD():
            return torch.optim.SGD(params, spec.lr, spec.momentum, weight_decay=spec.weight_decay, foreach=False)
        case schema.Adagrad():
            start = spec.initial_accumulator
            return torch.optim.Adagrad(
                params, spec.lr, 0.0, spec.weight_decay, initial_accumulator_value=start, eps=spec.eps, foreach=False
            )
        case schema.RowWiseAdagrad():
            return RowWiseAdagrad(params, spec.lr, spec.eps, spec.initial_accumulator, spec.weight_decay)
        case schema.Adam():
            betas = (spec.beta1, spec.beta2)
            return torch.optim.Adam(params, spec.lr, betas, spec.eps, spec.weight_decay, foreach=False)
        case schema.AdamW():
            betas = (spec.beta1, spec.beta2)
            return torch.optim.AdamW(params, spec.lr, betas, spec.eps, spec.weight_decay, foreach=False)
        case schema.Ftrl():
            return Ftrl(params, spec.lr, spec.beta, spec.l1, spec.l2)
    raise AssertionError(spec)


def hashed_uniform(table: Table, ids: NDArray[np.uint64]) -> NDArray[np.float32]:
    """Initial values of the reference by itself: ±0.05, a function of table and id alone. Not what the store draws."""
    salt = sum(table.name.encode())
    rows = [np.random.default_rng([int(i), salt]).uniform(-0.05, 0.05, table.dim) for i in ids]
    return np.array(rows, np.float32).reshape(len(ids), table.dim)


@dataclass
class Row:
    """One row: a parameter and the optimizer that owns it."""

    value: nn.Parameter
    optimizer: torch.optim.Optimizer
    updates: int = 0


@dataclass
class ReferenceService:
    """A `ParameterService` of Python dicts."""

    configured: Sequence[Table]
    initial: Initial = hashed_uniform
    rows: dict[str, dict[int, Row]] = field(init=False)
    last: dict[int, tuple[int, int]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.rows = {t.name: {} for t in self.configured}
        self._by_name = {t.name: t for t in self.configured}

    def tables(self) -> Sequence[Table]:
        return self.configured

    def pull(self, request: PullRequest) -> Rows:
        values, versions = {}, {}
        for name, ids in request.ids.items():
            if name not in self._by_name:
                raise StoreError(f"unknown table '{name}'")
            if len(np.unique(ids)) != len(ids):
                raise StoreError(f"table '{name}': repeated ids")
            found = [self._row(name, int(i), create=request.create) for i in ids]
            dim = self._by_name[name].dim
            values[name] = np.array([r.value.detach().numpy() for r in found], np.float32).reshape(len(ids), dim)
            versions[name] = np.array([r.updates % 256 for r in found], np.uint8)
        return Rows(values, versions)

    def push(self, request: PushRequest) -> Ack:
        name_of_push = (request.epoch, request.seq)
        if self.last.get(request.client, (-1, -1)) >= name_of_push:
            return Ack(duplicate=True)
        self.last[request.client] = name_of_push
        ack = Ack(refused=dict.fromkeys(Refused, 0), staleness=np.zeros(STALENESS_BINS, np.int64))
        for name, ids in request.ids.items():
            pulled = None if request.versions is None else request.versions[name]
            for u, i in enumerate(ids):
                row = self.rows[name].get(int(i))
                gradient = torch.from_numpy(request.gradients[name][u].copy())
                if row is None:
                    ack.refused[Refused.MISSING_ROW] += 1
                elif not gradient.isfinite().all():
                    ack.refused[Refused.NOT_FINITE] += 1
                else:
                    ack.staleness[256 if pulled is None else (row.updates - int(pulled[u])) % 256] += 1
                    self._update(self._by_name[name], row, gradient, request.lr_factor)
                    ack.applied += 1
        return ack

    def stats(self) -> Mapping[str, TableStats]:
        rows = {t.name: len(self.rows[t.name]) for t in self.configured}
        return {t.name: TableStats(rows[t.name], 4 * t.dim * rows[t.name], 0, 0) for t in self.configured}

    def values(self, name: str) -> dict[int, NDArray[np.float32]]:
        """Id → values, of every row there is."""
        return {i: row.value.detach().numpy().copy() for i, row in self.rows[name].items()}

    def _row(self, name: str, i: int, *, create: bool) -> Row:
        table = self._by_name[name]
        row = self.rows[name].get(i)
        if row is None:
            value = nn.Parameter(torch.from_numpy(self.initial(table, np.array([i], np.uint64))[0].copy()))
            assert table.optimizer is not None
            row = Row(value, torch_optimizer(table.optimizer, [value]))
            if create:
                self.rows[name][i] = row
        return row

    @staticmethod
    def _update(table: Table, row: Row, gradient: Tensor, lr_factor: float) -> None:
        if table.max_gradient is not None:
            gradient = gradient.clamp(-table.max_gradient, table.max_gradient)
        row.value.grad = gradient
        assert table.optimizer is not None
        row.optimizer.param_groups[0]["lr"] = table.optimizer.lr * lr_factor
        row.optimizer.step()
        row.updates += 1
        if table.format is ValueFormat.FP16:
            row.value.data = row.value.data.half().float()


@dataclass
class ReferenceLookup:
    """What the engine hands to the trainer."""

    batch: Batch
    numeric: Named
    embeddings: Named
    labels: Tensor
    weights: Tensor | None
    leaves: dict[str, Tensor]
    """Feature → what the model sees of it, [B, D] or [B, L, D]: leaves that collect gradients, in pieces if need be."""
    outputs: dict[str, Tensor]
    """Feature → the same values, still joined to the rows they were made from."""
    rows: dict[str, Tensor]
    """Table → [U, D]."""
    ids: dict[str, NDArray[np.uint64]]
    versions: dict[str, NDArray[np.uint8]]


@dataclass
class ReferenceLedger:
    sent: int = 0
    applied: int = 0
    refused: dict[Refused, int] = field(default_factory=lambda: dict.fromkeys(Refused, 0))
    duplicates: int = 0

    @property
    def balanced(self) -> bool:
        return self.sent == self.applied + sum(self.refused.values()) + self.duplicates


class ReferenceEngine:
    """An embedding engine in plain torch: autograd alone makes the gradient of each unique row."""

    def __init__(self, job: Job, service: Any) -> None:
        self.job, self.service, self.ledger = job, service, ReferenceLedger()

    def lookup(self, batch: Batch, *, train: bool) -> ReferenceLookup:
        ids = self._unique(batch)
        pulled = self.service.pull(PullRequest(ids=ids, create=train))
        rows = {n: torch.from_numpy(np.asarray(v).copy()).requires_grad_(train) for n, v in pulled.values.items()}
        outputs: dict[str, Tensor] = {}
        masks: dict[str, Tensor] = {}
        for f in self.job.id_features:
            table = self.job.table_of(f)
            jagged = batch.ids[f.name]
            where = torch.from_numpy(np.searchsorted(ids[table], jagged.values))
            if isinstance(f, schema.Sequence):
                outputs[f.name], masks[f.name] = padded(rows[table], where, offsets_of(jagged))
            else:
                weights = None if jagged.weights is None else torch.from_numpy(jagged.weights.copy())
                outputs[f.name] = pooled(rows[table], where, offsets_of(jagged), f.pooling, weights)
        leaves = {name: x.detach().requires_grad_(train) for name, x in outputs.items()}
        widths = {f.name: f.width + int(f.indicator) for f in self.job.numeric_features}
        return ReferenceLookup(
            batch=batch,
            numeric=Named.packed(torch.from_numpy(batch.numeric.copy()), widths),
            embeddings=Named({n: Padded(x, masks[n]) if n in masks else x for n, x in leaves.items()}),
            labels=torch.from_numpy(batch.labels.copy()),
            weights=None if batch.weights is None else torch.from_numpy(batch.weights.copy()),
            leaves=leaves,
            outputs=outputs,
            rows=rows,
            ids=ids,
            versions=dict(pulled.versions),
        )

    def push(self, lookup: ReferenceLookup, *, seq: int, lr_factor: float) -> Ack:
        used = [name for name, leaf in lookup.leaves.items() if leaf.grad is not None]
        torch.autograd.backward([lookup.outputs[n] for n in used], [lookup.leaves[n].grad for n in used])
        gradients = {n: torch.zeros_like(t) if t.grad is None else t.grad for n, t in lookup.rows.items()}
        ack = self.service.push(
            PushRequest(
                client=0,
                epoch=0,
                seq=seq,
                ids=lookup.ids,
                gradients={n: g.numpy() for n, g in gradients.items()},
                versions=lookup.versions,
                lr_factor=lr_factor,
            )
        )
        sent = sum(len(i) for i in lookup.ids.values())
        self.ledger.sent += sent
        self.ledger.applied += ack.applied
        self.ledger.duplicates += sent if ack.duplicate else 0
        for reason, n in ack.refused.items():
            self.ledger.refused[reason] += n
        return ack

    def _unique(self, batch: Batch) -> dict[str, NDArray[np.uint64]]:
        tables: dict[str, list[NDArray[np.uint64]]] = {}
        for f in self.job.id_features:
            tables.setdefault(self.job.table_of(f), []).append(batch.ids[f.name].values)
        return {n: np.unique(np.concatenate(parts)) for n, parts in tables.items()}


def offsets_of(jagged: Jagged) -> Tensor:
    """Offsets [B + 1], spelled out where every sample has one id."""
    return torch.arange(len(jagged.values) + 1) if jagged.offsets is None else torch.from_numpy(jagged.offsets.copy())


def pooled(rows: Tensor, where: Tensor, offsets: Tensor, pooling: schema.Pooling, weights: Tensor | None) -> Tensor:
    """rows [U, D] at where [N], pooled over the lists offsets [B + 1] cut → [B, D]."""
    if weights is None and pooling in (schema.Pooling.SUM, schema.Pooling.MEAN):
        return nn.functional.embedding_bag(where, rows, offsets, mode=pooling.value, include_last_offset=True)
    w = torch.ones(len(where)) if weights is None else weights
    lengths = offsets.diff()
    sample = torch.repeat_interleave(torch.arange(len(lengths)), lengths)
    summed = torch.zeros(len(lengths), rows.shape[1]).index_add(0, sample, rows[where] * w.unsqueeze(1))
    if pooling is schema.Pooling.SUM:
        return summed
    power = w if pooling is schema.Pooling.MEAN else w * w
    total = torch.zeros(len(lengths)).index_add(0, sample, power)
    divisor = total if pooling is schema.Pooling.MEAN else total.sqrt()
    return summed / torch.where(lengths == 0, torch.ones_like(divisor), divisor).unsqueeze(1)


def padded(rows: Tensor, where: Tensor, offsets: Tensor) -> tuple[Tensor, Tensor]:
    """rows [U, D] at where [N] in lists → values [B, L, D], zero past a list's end, and mask [B, L]."""
    lengths = offsets.diff()
    longest = int(lengths.max()) if len(lengths) else 0
    mask = torch.arange(longest).unsqueeze(0) < lengths.unsqueeze(1)
    empty = torch.zeros(len(lengths), longest, rows.shape[1])
    return empty.masked_scatter(mask.unsqueeze(2), rows[where]), mask
