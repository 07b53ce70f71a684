"""The same bits on one thread and on two, and the same results as torch's own operations."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import pytest
import torch
from torch import Tensor, nn

from satrap.models.repeatable import BatchNorm, LayerNorm, Linear, affine, one_thread


@pytest.fixture(autouse=True)
def threads() -> Iterator[None]:
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


def passes(make: Callable[[], nn.Module], rows: int, columns: int, *, bf16: bool, threads: int) -> list[Tensor]:
    """Output, buffers, gradients of the input and of the parameters."""
    torch.set_num_threads(threads)
    torch.manual_seed(0)
    module = make()
    x = torch.randn(rows, columns, requires_grad=True)
    with torch.autocast("cpu", dtype=torch.bfloat16, enabled=bf16):
        out = module(x)
    out.backward(torch.randn(out.shape).to(out.dtype))
    grads = [p.grad for p in (x, *module.parameters())]
    return [out.detach(), *module.buffers(), *(g for g in grads if g is not None)]


# (4096, 13, 64) and (8192, 64, 429) are shapes whose weight gradient torch cuts differently for one and two threads.
# Which it cuts depends on the processor. Others can be had by ONEDNN_MAX_CPU_ISA=AVX2 MKL_ENABLE_INSTRUCTIONS=AVX2.
CASES: dict[str, tuple[Callable[[], nn.Module], int, int]] = {
    "batch norm": (lambda: BatchNorm(77), 1000, 77),
    "wide batch norm": (lambda: BatchNorm(400), 4096, 400),
    "layer norm": (lambda: LayerNorm(256), 4096, 256),
    "small linear": (lambda: Linear(13, 64), 4096, 13),
    "linear to one": (lambda: Linear(64, 1), 4096, 64),
    "middle linear": (lambda: Linear(64, 429), 8192, 64),
    "large linear": (lambda: Linear(416, 256), 16384, 416),
    "odd rows": (lambda: Linear(13, 128), 2049, 13),
    "many samples": (lambda: Linear(64, 64), 20000, 64),
    "a sum of medium length": (lambda: Linear(416, 256), 1500, 416),
}


@pytest.mark.parametrize("bf16", [False, True], ids=["fp32", "bf16"])
@pytest.mark.parametrize("case", CASES)
def test_bits_do_not_depend_on_one_thread_or_two(case: str, bf16: bool) -> None:
    # torch's own batch norm, layer norm and small bf16 products fail this.
    make, rows, columns = CASES[case]
    one, two = (passes(make, rows, columns, bf16=bf16, threads=n) for n in (1, 2))
    assert len(one) == len(two) > 2
    assert all(torch.equal(a, b) for a, b in zip(one, two, strict=True))


PEERS: dict[str, tuple[Callable[[], nn.Module], Callable[[], nn.Module]]] = {
    "batch norm": (lambda: BatchNorm(40), lambda: nn.BatchNorm1d(40)),
    "layer norm": (lambda: LayerNorm(40), lambda: nn.LayerNorm(40)),
    "linear": (lambda: Linear(40, 7), lambda: nn.Linear(40, 7)),
    "linear without bias": (lambda: Linear(40, 7, bias=False), lambda: nn.Linear(40, 7, bias=False)),
}


@pytest.mark.parametrize("peer", PEERS)
def test_in_fp32_it_is_what_torch_computes_on_one_thread_to_the_bit(peer: str) -> None:
    ours, theirs = (passes(make, 700, 40, bf16=False, threads=1) for make in PEERS[peer])
    assert all(torch.equal(a, b) for a, b in zip(ours, theirs, strict=True))


@pytest.mark.parametrize("peer", PEERS)
def test_in_bf16_it_is_what_torch_computes_up_to_rounding(peer: str) -> None:
    ours, theirs = (passes(make, 700, 40, bf16=True, threads=1) for make in PEERS[peer])
    assert [t.dtype for t in ours] == [t.dtype for t in theirs]
    for a, b in zip(ours, theirs, strict=True):
        torch.testing.assert_close(a.float(), b.float(), rtol=2e-2, atol=0.3 if a.numel() <= 280 else 2e-2)


@pytest.mark.parametrize("rows", [512, 513, 1024, 1300])
def test_a_bf16_weight_gradient_counts_every_sample_once(rows: int) -> None:
    # Pieces and the rest of the samples: ones make every gradient the number of samples, exact in fp32.
    x, weight = torch.ones(rows, 3), torch.zeros(2, 3, requires_grad=True)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        affine(x, weight).sum().backward()
    assert weight.grad is not None
    assert weight.grad.unique().tolist() == [pytest.approx(rows, rel=2**-8)]


def test_a_part_added_to_gets_the_whole_gradient_in_bf16() -> None:
    x, weight = torch.randn(600, 3), torch.zeros(2, 3, requires_grad=True)
    before = torch.randn(600, 2, requires_grad=True)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        affine(x, weight, before).sum().backward()
    assert before.grad is not None
    assert torch.equal(before.grad, torch.ones(600, 2))


def test_the_number_of_threads_is_put_back_after_an_error() -> None:
    torch.set_num_threads(2)
    inside = []

    def fails() -> None:
        with one_thread():
            inside.append(torch.get_num_threads())
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        fails()
    assert inside == [1]
    assert torch.get_num_threads() == 2


def test_evaluation_takes_the_running_statistics() -> None:
    norm = BatchNorm(4)
    norm(torch.randn(50, 4))
    norm.eval()
    x = torch.randn(3, 4)
    assert norm.running_mean is not None
    assert norm.running_var is not None
    torch.testing.assert_close(norm(x), (x - norm.running_mean) / (norm.running_var + norm.eps).sqrt())
