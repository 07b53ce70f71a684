"""Operations whose bits do not depend on whether one thread or two compute them, on the CPU.

torch's large products of fp32 matrices and its sums over samples add up each number of a result in one order. What does
not is here in a form that does:

* Batch norm, and the gradients of a layer norm's scale and shift: each thread sums its own samples. Here one thread
  does it all; bound by memory, it is as fast as two.
* In bf16, the gradient of a weight: a long sum over samples is cut among the threads. Here it is cut in the same
  places always.
* In fp32, products with a weight of few numbers: on Intel's processors MKL cuts the sum over samples of its gradient,
  and with AVX2 that over columns too; oneDNN does so where samples are many. Here one thread computes them: they are
  small.

It does not reach everywhere. A batch (or micro-batch) of more than 32,768 samples makes torch cut other sums as well.
With more than two threads, fp32 products of some widths differ in their last bits; MKL's own switch against that
(strict conditional reproducibility) was tried and made others differ. A compiled network, or one on another device,
takes torch's own operations.

B batch, H columns, O outputs.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.nn import functional

from satrap.models import products
from satrap.models.products import one_thread

SMALL = 1 << 15
"""Numbers of a weight up to which it is small: torch divides the work on the gradient of a larger one by its rows and
columns, and cuts the sum only when it is long."""

PIECE, LONG_PIECE = 512, 1024
"""Samples of a piece of the sum, of a small weight and of any other. Shorter sums are not cut by torch; where products
are by AMX, sums of 1,500 are."""


def _applies(x: Tensor) -> bool:
    return x.device.type == "cpu" and not torch.compiler.is_compiling()


class BatchNorm(nn.BatchNorm1d):
    """Batch normalisation that takes a batch of one sample, the odd last one of an epoch, by its running statistics.

    >>> BatchNorm(3)(torch.zeros(1, 3)).shape
    torch.Size([1, 3])
    """

    def forward(self, input: Tensor) -> Tensor:
        """[B, H] → [B, H]."""
        if self.training and input.shape[0] == 1:
            mean, var = self.running_mean, self.running_var
            return functional.batch_norm(input, mean, var, self.weight, self.bias, eps=self.eps)
        if not self.training or not _applies(input):
            return super().forward(input)
        assert self.num_batches_tracked is not None
        self.num_batches_tracked.add_(1)
        out: Tensor = _BatchNorm.apply(  # type: ignore[no-untyped-call]
            input, self.weight, self.bias, self.running_mean, self.running_var, self.momentum, self.eps
        )
        return out


class LayerNorm(nn.LayerNorm):
    """Normalisation of each sample by its own mean and variance."""

    def forward(self, input: Tensor) -> Tensor:
        """[B, H] → [B, H]."""
        if not torch.is_grad_enabled() or not _applies(input):
            return super().forward(input)
        out: Tensor = _LayerNorm.apply(  # type: ignore[no-untyped-call]
            input, self.normalized_shape, self.weight, self.bias, self.eps
        )
        return out


class Linear(nn.Linear):
    """x Wᵀ + b, as `affine` computes it.

    >>> Linear(3, 2)(torch.zeros(5, 3)).shape
    torch.Size([5, 2])
    """

    def forward(self, input: Tensor) -> Tensor:
        """[B, H] → [B, O]."""
        return affine(input, self.weight, self.bias)


def affine(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """x Wᵀ + b, [B, O]. `x` [B, H], `weight` [O, H]; `bias` [O], or [B, O] to add to."""
    out: Tensor
    cut = x.dim() == 2 and x.shape[0] > _piece(weight)
    if cut and torch.is_autocast_enabled("cpu") and torch.is_grad_enabled() and _applies(x):
        dtype = torch.get_autocast_dtype("cpu")
        out = _Affine.apply(x, weight, bias, dtype)  # type: ignore[no-untyped-call]
        return out
    if not torch.is_autocast_enabled("cpu"):
        if products.applies(x, weight):
            return products.linear(x, weight, bias)
        if x.dim() == 2 and x.dtype is weight.dtype is torch.float32 and weight.numel() <= SMALL and _applies(x):
            out = _SmallAffine.apply(x, weight, bias)  # type: ignore[no-untyped-call]
            return out
    if bias is None or bias.dim() == 1:
        return functional.linear(x, weight, bias)
    return torch.addmm(bias, x, weight.t())


class _BatchNorm(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        weight: Tensor,
        bias: Tensor,
        running_mean: Tensor,
        running_var: Tensor,
        momentum: float,
        eps: float,
    ) -> Tensor:
        with one_thread():
            y, mean, inverse_deviation = torch.native_batch_norm(
                x, weight, bias, running_mean, running_var, True, momentum, eps
            )
        ctx.save_for_backward(x, weight, mean, inverse_deviation)
        ctx.eps = eps
        return y

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> Any:
        x, weight, mean, inverse_deviation = ctx.saved_tensors
        with one_thread():
            grads = torch.ops.aten.native_batch_norm_backward(
                grad.contiguous(),
                x,
                weight,
                None,
                None,
                mean,
                inverse_deviation,
                True,
                ctx.eps,
                ctx.needs_input_grad[:3],
            )
        return (*grads, None, None, None, None)


class _LayerNorm(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, shape: tuple[int, ...], weight: Tensor, bias: Tensor, eps: float) -> Tensor:
        y, mean, inverse_deviation = torch.native_layer_norm(x, shape, weight, bias, eps)
        ctx.save_for_backward(x, weight, bias, mean, inverse_deviation)
        ctx.shape = shape
        return y

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> Any:
        x, weight, bias, mean, inverse_deviation = ctx.saved_tensors
        needed = [ctx.needs_input_grad[i] for i in (0, 2, 3)]
        with one_thread():
            dx, dw, db = torch.ops.aten.native_layer_norm_backward(
                grad.contiguous(), x, ctx.shape, mean, inverse_deviation, weight, bias, needed
            )
        return dx, None, dw, db, None


class _SmallAffine(torch.autograd.Function):
    """By the calling thread alone."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        ctx.save_for_backward(x, weight)
        ctx.summed = bias is not None and bias.dim() == 1
        with one_thread():
            if bias is None or bias.dim() == 1:
                return functional.linear(x, weight, bias)
            return torch.addmm(bias, x, weight.t())

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> Any:
        x, weight = ctx.saved_tensors
        needs_x, needs_weight, needs_bias = ctx.needs_input_grad
        with one_thread():
            dx = grad @ weight if needs_x else None
            dw = grad.t() @ x if needs_weight else None
        db = (grad.sum(0) if ctx.summed else grad) if needs_bias else None
        return dx, dw, db


class _Affine(torch.autograd.Function):
    """In the autocast precision forward and back; the gradient of the weight is summed in fp32."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None, dtype: torch.dtype) -> Tensor:
        low_x, low_weight = x.to(dtype), weight.to(dtype)
        ctx.save_for_backward(low_x, low_weight)
        ctx.dtypes = x.dtype, weight.dtype, None if bias is None else bias.dtype
        ctx.bias_dims = 0 if bias is None else bias.dim()
        if bias is None:
            return low_x @ low_weight.t()
        return torch.addmm(bias.to(dtype), low_x, low_weight.t())

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> Any:
        x, weight = ctx.saved_tensors
        of_x, of_weight, of_bias = ctx.dtypes
        grad = grad.contiguous()
        dx = (grad @ weight).to(of_x) if ctx.needs_input_grad[0] else None
        dw = _products(grad, x, _piece(weight)).to(of_weight) if ctx.needs_input_grad[1] else None
        db = None
        if ctx.needs_input_grad[2]:
            db = (grad.sum(0) if ctx.bias_dims == 1 else grad).to(of_bias)
        return dx, dw, db, None


def _piece(weight: Tensor) -> int:
    return PIECE if weight.numel() <= SMALL else LONG_PIECE


def _products(grad: Tensor, x: Tensor, piece: int) -> Tensor:
    """gradᵀ x, summed over samples in pieces of a fixed size: [O, H] float32."""
    pieces = x.shape[0] // piece
    whole = pieces * piece
    each = torch.bmm(grad[:whole].view(pieces, piece, -1).transpose(1, 2), x[:whole].view(pieces, piece, -1))
    total = each.sum(0, dtype=torch.float32)
    return total if whole == x.shape[0] else total + grad[whole:].t() @ x[whole:]
