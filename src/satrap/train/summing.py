"""The dense gradients of all workers, added up in one flat buffer.

    [ gradients … | statistics of batch norms … | who has a gradient … | loss, samples, losses that are not finite ]

P dense parameters.
"""

from __future__ import annotations

from dataclasses import dataclass
from math import isfinite, prod

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from satrap.train.group import Group


@dataclass(frozen=True, slots=True)
class Summed:
    """Figures of a step over all workers."""

    loss: float
    """The global mean loss."""
    samples: int
    bad: int
    """Workers whose own part of the loss is not finite."""


def statistics_of(model: nn.Module) -> list[Tensor]:
    """The running statistics of a model's batch norms."""
    return [b for m in model.modules() if isinstance(m, _BatchNorm) for b in m.buffers(recurse=False) if b is not None]


class GradientSum:
    """Replaces each worker's dense gradients by their sum, which is the gradient of the global mean loss where every
    worker has scaled its own part by the global weight.

    A parameter without a gradient at any worker is left without one, as its optimizer then leaves it alone. Running
    statistics of batch norms, which each worker brings forward by its own samples, become their mean over the workers
    that had samples: so they too are the same everywhere after every step. Used by one thread.
    """

    def __init__(self, group: Group, model: nn.Module, parameters: list[nn.Parameter], device: torch.device) -> None:
        self._group, self._parameters = group, parameters
        self._statistics = statistics_of(model)
        shapes = [p.shape for p in parameters] + [s.shape for s in self._statistics] + [torch.Size((len(parameters),))]
        double = any(p.dtype == torch.float64 for p in parameters)
        self._flat = torch.zeros(
            sum(prod(s) for s in shapes) + 3, dtype=torch.float64 if double else torch.float32, device=device
        )
        views: list[Tensor] = []
        at = 0
        for shape in shapes:
            views.append(self._flat[at : at + prod(shape)].view(shape))
            at += prod(shape)
        self._gradients = views[: len(parameters)]
        self._means = views[len(parameters) : -1]
        self._has = views[-1]
        self._figures = self._flat[at:]

    @torch.no_grad()
    def __call__(self, loss: float, samples: int, with_data: int) -> Summed:
        """Adds up. `loss`: this worker's part; `samples`: its own, 0 for one without data; `with_data`: workers that
        have some."""
        self._flat.zero_()
        has = [p.grad is not None for p in self._parameters]
        for view, p in zip(self._gradients, self._parameters, strict=True):
            if p.grad is not None:
                view.copy_(p.grad)
        self._has.copy_(torch.tensor(has, dtype=self._flat.dtype))
        if samples:
            for view, statistic in zip(self._means, self._statistics, strict=True):
                view.copy_(statistic).div_(with_data)
        self._figures.copy_(torch.tensor([loss, samples, not isfinite(loss)], dtype=self._flat.dtype))
        self._group.sum_(self._flat)
        tail = torch.cat([self._has, self._figures]).tolist()
        for p, view, count in zip(self._parameters, self._gradients, tail, strict=False):
            p.grad = view.to(p.dtype) if count else None
        for statistic, view in zip(self._statistics, self._means, strict=True):
            statistic.copy_(view if statistic.is_floating_point() else view.round())
        return Summed(tail[-3], round(tail[-2]), round(tail[-1]))
