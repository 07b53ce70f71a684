"""Optimizers, for tables and for the dense network.

A table's optimizer runs where its rows are. Each row is an independent parameter of its own: its state (moments,
accumulators, step count) starts when the row is created, is stepped only by a batch that has a gradient for the row,
and travels with it into checkpoints. So a table's result equals, row by row, the torch optimizer of the same name
stepped on that row's own gradients: this is the definition, and the tests hold it.
"""

from __future__ import annotations

from enum import StrEnum

import msgspec

from satrap.schema.base import Spec


class StateFormat(StrEnum):
    """How Adam's moments are stored in tables."""

    FP32 = "fp32"
    """4 bytes each."""
    INT8 = "int8"
    """1 byte each, with scales for blocks of 64 elements of a row (after Dettmers et al. 2022, 8-bit Optimizers via
    Block-wise Quantization, arXiv 2110.02861). A code is a float of 3 bits of mantissa below the exponent of its block,
    where the paper looks codes up in a table, and it is rounded at random: to the nearest, a second moment would never
    change by the thousandth that a step changes it."""


class SGD(Spec, frozen=True, kw_only=True, tag_field="kind", tag="sgd"):
    """Stochastic gradient descent (`torch.optim.SGD`). State: none, or D values a row with momentum."""

    lr: float = 0.05
    momentum: float = 0.0
    weight_decay: float = 0.0


class Adagrad(Spec, frozen=True, kw_only=True, tag_field="kind", tag="adagrad"):
    """Adagrad (Duchi et al. 2011; `torch.optim.Adagrad`). State: D values a row."""

    lr: float = 0.05
    eps: float = 1e-10
    initial_accumulator: float = 0.0
    weight_decay: float = 0.0


class RowWiseAdagrad(Spec, frozen=True, kw_only=True, tag_field="kind", tag="rowwise_adagrad"):
    """Adagrad with one accumulator a row, the mean of squared gradients (TorchRec's RowWiseAdagrad). State: one value.

    Tables only.
    """

    lr: float = 0.05
    eps: float = 1e-8
    initial_accumulator: float = 0.0
    weight_decay: float = 0.0


class Adam(Spec, frozen=True, kw_only=True, tag_field="kind", tag="adam"):
    """Adam (Kingma and Ba 2015; `torch.optim.Adam`). State: 2 D values and a step count a row.

    Bias correction counts the steps of the row itself, so it is right on any server and after any restore.
    """

    lr: float = 0.001
    beta1: float = 0.9
    beta2: float = 0.999
    eps: float = 1e-8
    weight_decay: float = 0.0
    state: StateFormat = StateFormat.FP32
    """int8: a quarter of the memory for moments. Tables only."""


class AdamW(Spec, frozen=True, kw_only=True, tag_field="kind", tag="adamw"):
    """Adam with decoupled weight decay (Loshchilov and Hutter 2019; `torch.optim.AdamW`). State as Adam's."""

    lr: float = 0.001
    beta1: float = 0.9
    beta2: float = 0.999
    eps: float = 1e-8
    weight_decay: float = 0.01
    state: StateFormat = StateFormat.FP32
    """As Adam's."""


class Ftrl(Spec, frozen=True, kw_only=True, tag_field="kind", tag="ftrl"):
    """FTRL-Proximal (McMahan et al., KDD 2013, algorithm 1). State: 2 D values a row (z, n) and the learning
    rate of its last step. Tables only.

    `lr` is the paper's alpha, `beta` its beta; `l1` and `l2` its lambda 1 and 2.
    """

    lr: float = 0.05
    beta: float = 1.0
    l1: float = 0.0
    l2: float = 0.0


Optimizer = SGD | Adagrad | RowWiseAdagrad | Adam | AdamW | Ftrl


def with_delay(optimizer: Optimizer, delay: int) -> Optimizer:
    """The optimizer for gradients that come `delay` steps late: with so much less momentum that they count at the same
    mean age.

    A delay acts like momentum (Mitliagkas et al. 2016, "Asynchrony begets momentum"), and adds to what the optimizer
    has: the gradients in Adam's first moment are beta1 / (1 - beta1) steps old on average. What is left of that after
    the delay gives the new beta1; 0 where nothing is. Optimizers without momentum are returned as they are.

    >>> [with_delay(Adam(beta1=0.9), delay).beta1 for delay in (0, 4, 8, 64)]
    [0.9, 0.833333, 0.5, 0.0]
    """
    if not delay or not isinstance(optimizer, Adam | AdamW):
        return optimizer
    age = max(0.0, optimizer.beta1 / (1.0 - optimizer.beta1) - delay)
    return msgspec.structs.replace(optimizer, beta1=round(age / (1.0 + age), 6))
