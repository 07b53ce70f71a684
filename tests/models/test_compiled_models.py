"""torch.compile of the networks with `Named` as their input."""

from __future__ import annotations

import shutil

import pytest
import torch
from model_jobs import SHAPES, make_inputs, make_job
from torch import nn

from satrap.models import Named, build
from satrap.schema import DLRM, MLP, DCNv2, DeepFM, Job, ModelSpec, WideDeep


def compare(job: Job, sizes: tuple[int, ...], backend: str) -> None:
    torch.manual_seed(0)
    net: nn.Module = build(job)
    # fullgraph: a graph break in Named would cost more than compiling gains.
    compiled = torch.compile(net, fullgraph=True, backend=backend)
    for size in sizes:
        numeric, embeddings, leaves = make_inputs(job, size)
        wanted = net(numeric, embeddings)
        logits = compiled(numeric, embeddings)
        torch.testing.assert_close(logits, wanted, rtol=1e-4, atol=1e-5)
        ours = torch.autograd.grad(logits.sum(), leaves)
        for a, b in zip(ours, torch.autograd.grad(wanted.sum(), leaves), strict=True):
            torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("spec", [MLP(), DLRM(), DCNv2(), DeepFM(), WideDeep()], ids=lambda s: type(s).__name__)
def test_network_is_one_graph_at_two_batch_sizes(spec: ModelSpec) -> None:
    torch._dynamo.reset()
    compare(make_job(SHAPES["with a sequence"], spec), (16, 7), "aot_eager")


@pytest.mark.slow
@pytest.mark.skipif(not (shutil.which("g++") or shutil.which("clang++")), reason="torch.compile needs a compiler")
def test_network_compiled_to_native_code_equals_the_plain_one() -> None:
    torch._dynamo.reset()
    compare(make_job(SHAPES["numbers and ids"], DLRM(top=(8,))), (16,), "inductor")


class ByName(torch.nn.Module):
    def forward(self, numeric: Named, embeddings: Named) -> torch.Tensor:
        return (embeddings["user"] * embeddings["item"]).sum(1) + numeric["age"][:, 0]


def test_a_module_that_takes_tensors_by_name_compiles_in_one_graph() -> None:
    job = make_job(SHAPES["numbers and ids"], MLP())
    compiled = torch.compile(ByName(), fullgraph=True, backend="aot_eager")
    for size in (16, 7):
        numeric, embeddings, leaves = make_inputs(job, size)
        logits = compiled(numeric, embeddings)
        torch.testing.assert_close(logits, ByName()(numeric, embeddings))
        assert torch.autograd.grad(logits.sum(), leaves)[0].shape == leaves[0].shape
