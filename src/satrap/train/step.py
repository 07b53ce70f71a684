"""One optimizer step of the dense network: forward, backward, clip, update. Embedding gradients are left on the lookup.

B batch, T labels.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import binary_cross_entropy_with_logits

from satrap.errors import JobError, TrainingError
from satrap.models import Named, Padded
from satrap.observe.stages import StageSeconds
from satrap.schema import DENSE_TABLE, SGD, Adagrad, Adam, AdamW, Job
from satrap.schema.optimizers import Optimizer
from satrap.train.dense_rows import DenseRows
from satrap.train.group import Agreed, Group
from satrap.train.parts import SideBySide, divisible, parts_of
from satrap.train.summing import GradientSum


@dataclass(frozen=True, slots=True)
class Outcome:
    """What a step computed, before anything is changed by it."""

    loss: float
    """Weighted mean over the batch, mean over labels; over the batches of all workers."""
    logits: Tensor
    """float32 [B, T], detached: of this worker's samples."""
    gradient_norm: float
    """L2, over all dense parameters, before clipping."""
    samples: int
    """Of all workers."""
    elsewhere: bool = False
    """What is not finite came from another worker alone."""

    @property
    def finite(self) -> bool:
        """Whether the step may be applied."""
        return _finite(self.loss) and _finite(self.gradient_norm)


def _finite(x: float) -> bool:
    return x - x == 0.0


class DenseStep:
    """Forward and backward of a batch (`compute`), then the dense optimizer's step (`apply`).

    The gradient is that of  Σ_i w_i mean_t l_it / Σ_i w_i  over the whole batch, however it is cut into pieces: w the
    sample weights (1 without any), l binary cross-entropy of the logits. In a group of workers the sums are over the
    batches of all. Used by one thread.

    With `dense_mode: async` the weights are set from the rows that came with the batch, their gradients, clipped, are
    left on the lookup like those of its embeddings, and there is nothing to apply.
    """

    def __init__(
        self,
        job: Job,
        model: nn.Module,
        device: torch.device,
        group: Group | None = None,
        seconds: StageSeconds | None = None,
    ) -> None:
        """`seconds`: where the time of the gradients' sum is counted."""
        train = job.train
        self._seconds = seconds or StageSeconds()
        self.model = model
        self.parameters = [p for p in model.parameters() if p.requires_grad]
        self.rows = DenseRows(self.parameters) if train.dense_mode == "async" else None
        self.optimizer = None if self.rows is not None else torch_optimizer(train.optimizer, self.parameters)
        self._labels = len(job.data.label)
        self.device = device
        self._bf16 = train.precision == "bf16"
        self._piece = train.micro_batch_size
        self._clip = train.clip_norm
        self._lr = train.optimizer.lr
        self._side_by_side = SideBySide() if device.type == "cpu" and self._piece is None and divisible(job) else None
        self._compiled: Callable[..., Tensor] | None = torch.compile(model) if train.compile else None
        several = group is not None and group.world > 1 and self.rows is None
        self._sum = GradientSum(group, model, self.parameters, device) if several and group is not None else None

    def logits(self, numeric: Named, embeddings: Named, size: int) -> Tensor:
        """The model's logits as float32 [B, T]. Raises TrainingError for a model that returns another shape."""
        with self._autocast():
            out = self._forward(numeric, embeddings)
        if out.dim() == 1 and self._labels == 1:
            out = out.unsqueeze(1)
        if out.shape != (size, self._labels):
            raise TrainingError(
                f"the model returned logits of shape {tuple(out.shape)} for {size} samples and {self._labels} labels; "
                f"it must return [{size}, {self._labels}]" + (f" or [{size}]" if self._labels == 1 else "")
            )
        return out.float()

    def compute(self, lookup: Any, agreed: Agreed | None = None) -> Outcome:
        """Forward and backward. Leaves gradients on the dense parameters and on the lookup, and changes nothing else
        (running statistics of batch norm and the random state of dropout excepted).

        `agreed`: what a group has agreed on; it then ends with the sum of all workers' dense gradients, and a worker
        whose data has ended takes part with a lookup of None.
        """
        self.model.zero_grad(set_to_none=True)
        if self.rows is not None:
            held = (lookup.found.along or {}).get(DENSE_TABLE)
            if held is None:
                raise TrainingError(
                    "train.dense_mode: async needs the dense weights with every batch, and whoever looks rows up for "
                    "this worker does not bring them: run it without embedding workers, or in mode sync"
                )
            self.rows.load(held)
        size = 0 if lookup is None else lookup.batch.size
        total = weight_of(lookup) if agreed is None else agreed.weight
        # All weights zero: the loss is 0 and so is every gradient, rather than 0 / 0.
        scale = 1.0 / ((total or 1.0) * self._labels)
        loss, elsewhere = 0.0, False
        outputs: list[Tensor] = []
        if lookup is not None and self._side_by_side is not None and len(parts := parts_of(size)) > 1:
            loss, outputs = self._in_parts(lookup, parts, scale, self._side_by_side)
        else:
            for numeric, embeddings, labels, piece_weights in () if lookup is None else self._pieces(lookup):
                logits = self.logits(numeric, embeddings, labels.shape[0])
                piece_loss = _loss_sum(logits, labels, piece_weights) * scale
                piece_loss.backward()  # type: ignore[no-untyped-call]
                loss += float(piece_loss.detach())
                outputs.append(logits.detach())
        if self._sum is not None and agreed is not None:
            mine = _finite(loss)
            with self._seconds.time("reduce"):
                summed = self._sum(loss, size, agreed.with_data)
            loss, size, elsewhere = summed.loss, summed.samples, mine and summed.bad > 0
        gradients = [p.grad for p in self.parameters if p.grad is not None]
        norm = float(nn.utils.get_total_norm(gradients)) if gradients else 0.0
        if self.rows is not None:
            self._clip_to(norm)
            lookup.along = {DENSE_TABLE: self.rows.gradients()}
        return Outcome(loss, _joined(outputs, self._labels), norm, size, elsewhere)

    def _in_parts(
        self, lookup: Any, parts: list[slice], scale: float, side_by_side: SideBySide
    ) -> tuple[float, list[Tensor]]:
        """The loss and the logits of each part; gradients are left where the backward of the whole leaves them."""
        leaves = [lookup.pooled, *lookup.sequences]
        wholes = [torch.empty_like(x) for x in leaves]
        masks = [s.mask for s in lookup.embeddings.sequences().values()]
        names = list(lookup.embeddings.sequences())

        def compute(rows: slice) -> tuple[float, Tensor, list[Tensor | None]]:
            mine = [x.detach()[rows].requires_grad_() for x in leaves]
            padded = {n: Padded(s, m[rows]) for n, s, m in zip(names, mine[1:], masks, strict=True)}
            embeddings = Named.packed(mine[0], lookup.embeddings.widths, padded)
            numeric = Named.packed(lookup.numeric.cat()[rows], lookup.numeric.widths)
            labels, weights = lookup.labels[rows], None if lookup.weights is None else lookup.weights[rows]
            logits = self.logits(numeric, embeddings, labels.shape[0])
            loss = _loss_sum(logits, labels, weights) * scale
            found: list[Tensor | None] = list(torch.autograd.grad(loss, [*mine, *self.parameters], allow_unused=True))
            for i, whole in enumerate(wholes):
                if (part := found[i]) is not None:
                    whole[rows] = part
                    found[i] = whole
            return float(loss.detach()), logits.detach(), found

        done = side_by_side.map(compute, parts)
        for leaf, whole in zip(leaves, done[0][2], strict=False):
            leaf.grad = whole
        sums = [[g for g in found[len(leaves) :] if g is not None] for _, _, found in done]
        for more in sums[1:]:
            torch._foreach_add_(sums[0], more)
        used = [p for p, g in zip(self.parameters, done[0][2][len(leaves) :], strict=True) if g is not None]
        for parameter, total in zip(used, sums[0], strict=True):
            parameter.grad = total
        return sum(d[0] for d in done), [d[1] for d in done]

    def apply(self, outcome: Outcome, lr_factor: float) -> None:
        """Clips the gradients and steps the optimizer."""
        if self.optimizer is None:
            return
        self._clip_to(outcome.gradient_norm)
        for group in self.optimizer.param_groups:
            group["lr"] = self._lr * lr_factor
        self.optimizer.step()

    def _clip_to(self, norm: float) -> None:
        if self._clip is not None and norm > self._clip:
            # As torch.nn.utils.clip_grad_norm_ scales, its 1e-6 included.
            factor = self._clip / (norm + 1e-6)
            torch._foreach_mul_([p.grad for p in self.parameters if p.grad is not None], factor)

    def _forward(self, numeric: Named, embeddings: Named) -> Tensor:
        if self._compiled is None:
            out: Tensor = self.model(numeric, embeddings)
            return out
        from torch._dynamo.exc import TorchDynamoException

        try:
            return self._compiled(numeric, embeddings)
        except TorchDynamoException as e:
            raise TrainingError(
                f"train.compile: torch could not compile the network: {str(e).strip().splitlines()[0]}; set "
                "train.compile=false, or install a C++ compiler if that is what is missing"
            ) from e

    def _autocast(self) -> AbstractContextManager[Any]:
        if not self._bf16:
            return nullcontext()
        return torch.autocast(self.device.type, dtype=torch.bfloat16)

    def _pieces(self, lookup: Any) -> Iterator[tuple[Named, Named, Tensor, Tensor | None]]:
        size, piece = lookup.batch.size, self._piece
        if piece is None or piece >= size:
            yield lookup.numeric, lookup.embeddings, lookup.labels, lookup.weights
            return
        for start in range(0, size, piece):
            rows = slice(start, min(start + piece, size))
            weights = None if lookup.weights is None else lookup.weights[rows]
            yield _cut(lookup.numeric, rows), _cut(lookup.embeddings, rows), lookup.labels[rows], weights


def weight_of(lookup: Any) -> float:
    """Σ of the weights of a lookup's samples; their number where there are none, 0 for a lookup of None."""
    if lookup is None:
        return 0.0
    if lookup.weights is None:
        return float(lookup.batch.size)
    return sum(float(w.sum()) for w in lookup.weights.split(UNCUT))


def _joined(outputs: list[Tensor], labels: int) -> Tensor:
    if not outputs:
        return torch.empty(0, labels)
    return outputs[0] if len(outputs) == 1 else torch.cat(outputs)


UNCUT = 1 << 15
"""Numbers that torch sums on one thread. It cuts a longer sum among its threads, and the bits would depend on them."""


def _loss_sum(logits: Tensor, labels: Tensor, weights: Tensor | None) -> Tensor:
    """Σ_i w_i Σ_t l_it; for a large batch in pieces, always the same ones."""
    rows = max(1, UNCUT // logits.shape[1])
    sums = []
    for start in range(0, max(1, logits.shape[0]), rows):
        part = slice(start, start + rows)
        each = binary_cross_entropy_with_logits(logits[part], labels[part], reduction="none")
        sums.append(each.sum() if weights is None else (each.sum(1) * weights[part]).sum())
    return sums[0] if len(sums) == 1 else torch.stack(sums).sum()


def _cut(named: Named, rows: slice) -> Named:
    """Some samples of each tensor, as views."""
    sequences = {name: Padded(s.values[rows], s.mask[rows]) for name, s in named.sequences().items()}
    return Named.packed(named.cat()[rows], named.widths, sequences) if named.widths else Named(sequences)


def torch_optimizer(spec: Optimizer, parameters: list[nn.Parameter]) -> torch.optim.Optimizer | None:
    """The torch optimizer of a spec, in its fused form; None where there is nothing to train.

    Raises JobError for an optimizer that is for tables only.
    """
    if not parameters:
        return None
    if isinstance(spec, SGD):
        return torch.optim.SGD(
            parameters, lr=spec.lr, momentum=spec.momentum, weight_decay=spec.weight_decay, fused=True
        )
    if isinstance(spec, Adagrad):
        return torch.optim.Adagrad(
            parameters,
            lr=spec.lr,
            eps=spec.eps,
            initial_accumulator_value=spec.initial_accumulator,
            weight_decay=spec.weight_decay,
            fused=True,
        )
    if isinstance(spec, Adam | AdamW):
        kind = torch.optim.Adam if isinstance(spec, Adam) else torch.optim.AdamW
        return kind(
            parameters,
            lr=spec.lr,
            betas=(spec.beta1, spec.beta2),
            eps=spec.eps,
            weight_decay=spec.weight_decay,
            fused=True,
        )
    raise JobError(f"train.optimizer: {type(spec).__name__} is for tables; use adam, adamw, adagrad or sgd")
