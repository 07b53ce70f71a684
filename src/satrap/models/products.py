"""Products of fp32 matrices by oneDNN, where torch would take MKL.

torch takes MKL for them, which on processors other than Intel's keeps to 256-bit vectors; oneDNN, which torch brings as
well and takes for bf16, uses what there is. On a Zen 4 it is a tenth faster forward and back (docs/performance.md).
torch offers it for fp32 by one operation only, made for its compiler; where that is missing, everything is as ever.

B batch, H columns, O outputs.
"""

from __future__ import annotations

import platform
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

LEAST = 1 << 12
"""Numbers of a weight from which it pays."""

CUT_SAMPLES, CUT_NUMBERS = 8192, 1 << 13
"""Of more samples than the first, and for a weight of no more numbers than the second, oneDNN cuts the sum of the
gradient among threads."""


@contextmanager
def one_thread() -> Iterator[None]:
    """What runs inside is computed by the calling thread alone."""
    threads = torch.get_num_threads()
    if threads == 1:
        yield
        return
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)


def _find() -> Any:
    if platform.machine() not in ("x86_64", "AMD64") or not torch.backends.mkldnn.is_available():  # type: ignore[no-untyped-call]
        return None
    try:
        product = torch.ops.mkldnn._linear_pointwise
        x = torch.arange(6.0).reshape(2, 3)
        same = torch.equal(_times(product, x, x), x @ x.t())
        return product if same and torch.equal(_times(product, x, x, torch.ones(2, 2)), x @ x.t() + 1.0) else None
    except (AttributeError, RuntimeError, TypeError, NotImplementedError):
        return None


def _times(product: Any, x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """x weightᵀ + bias, which is [O], or [B, O]."""
    out: Tensor
    if bias is None or bias.dim() == 1:
        out = product(x, weight, bias, "none", [], "")
    else:
        out = product.binary(x, bias, weight, None, "add")
    return out


_PRODUCT = _find()


def applies(x: Tensor, weight: Tensor) -> bool:
    """Whether `linear` is for these: fp32 matrices on the CPU, not small, and not being compiled."""
    return (
        _PRODUCT is not None
        and x.dim() == 2
        and x.dtype is weight.dtype is torch.float32
        and x.device.type == "cpu"
        and weight.numel() >= LEAST
        and x.shape[0] > 0
        and not torch.compiler.is_compiling()
    )


def linear(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """x weightᵀ + bias, [B, O]. `x` [B, H], `weight` [O, H], `bias` [O], or [B, O] to add to."""
    out: Tensor = _Linear.apply(x, weight, bias)  # type: ignore[no-untyped-call]
    return out


class _Linear(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        ctx.save_for_backward(x, weight)
        ctx.summed = bias is not None and bias.dim() == 1
        return _times(_PRODUCT, x, weight, bias)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> Any:
        x, weight = ctx.saved_tensors
        needs_x, needs_weight, needs_bias = ctx.needs_input_grad
        dx = _times(_PRODUCT, grad, weight.t()) if needs_x else None
        with one_thread() if x.shape[0] > CUT_SAMPLES and weight.numel() <= CUT_NUMBERS else nullcontext():
            dw = _times(_PRODUCT, grad.t(), x.t()) if needs_weight else None
        db = (grad.sum(0) if ctx.summed else grad) if needs_bias else None
        return dx, dw, db
