"""Products by oneDNN: what torch's own give, forward and back, and bits that no number of threads changes."""

from __future__ import annotations

import pytest
import torch

from satrap.models import products
from satrap.models.repeatable import affine

pytestmark = pytest.mark.skipif(products._PRODUCT is None, reason="torch here offers no product by oneDNN")

SHAPES = [(1, 64, 64), (777, 429, 256), (4096, 13, 512), (1024, 256, 64)]


def tensors(samples, inputs, outputs, bias):
    rng = torch.Generator().manual_seed(samples + inputs)
    shapes = {"none": None, "row": (outputs,), "matrix": (samples, outputs)}
    given = [(samples, inputs), (outputs, inputs), shapes[bias]]
    return [None if s is None else torch.randn(s, generator=rng, requires_grad=True) for s in given]


def both(f, x, weight, bias):
    out = f(x, weight, bias)
    given = [t for t in (x, weight, bias) if t is not None]
    weights = torch.linspace(-1, 1, out.numel()).reshape(out.shape)
    return [out, *torch.autograd.grad((out * weights).sum(), given)]


def plain(x, weight, bias):
    out = x @ weight.t()
    return out if bias is None else out + bias


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("bias", ["none", "row", "matrix"])
def test_the_product_and_its_gradients_are_torchs_own(shape, bias):
    given = tensors(*shape, bias)
    assert products.applies(given[0], given[1])
    for one, other in zip(both(affine, *given), both(plain, *given), strict=True):
        assert one.shape == other.shape
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-3)


@pytest.mark.parametrize("shape", SHAPES)
def test_one_thread_and_two_give_the_same_bits(shape):
    before = torch.get_num_threads()
    given = tensors(*shape, "row")
    found = []
    try:
        for threads in (1, 2):
            torch.set_num_threads(threads)
            found.append(both(affine, *given))
    finally:
        torch.set_num_threads(before)
    assert all(torch.equal(a, b) for a, b in zip(*found, strict=True))


def test_what_it_is_not_for_goes_torchs_way():
    x, weight = torch.zeros(2, 64), torch.zeros(64, 64)
    assert products.applies(x, weight)
    assert not products.applies(x.double(), weight.double())
    assert not products.applies(x[None], weight)
    assert not products.applies(x[:0], weight)
    assert not products.applies(x, weight[:8])
    assert affine(x[:0], weight).shape == (0, 64)
    with torch.autocast("cpu", torch.bfloat16):
        assert affine(x, weight).dtype is torch.bfloat16
