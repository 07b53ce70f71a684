"""Every built-in network against its formula, written out feature by feature with the network's own weights."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from model_jobs import DIM, HISTORY, IDS, NUMBERS, SHAPES, make_inputs, make_job, vectors_of
from torch import Tensor, nn

from satrap.models import Inputs, Named, build
from satrap.models.layers import Deep, JoinedLinear
from satrap.models.repeatable import BatchNorm, LayerNorm
from satrap.schema import DLRM, MLP, DCNv2, DeepFM, ModelSpec, WideDeep

SPECS: dict[str, ModelSpec] = {
    "mlp": MLP(hidden=(8, 6)),
    "mlp with a numeric arm": MLP(hidden=(8,), numeric_hidden=(5, 3)),
    "logistic regression": MLP(hidden=()),
    "dlrm": DLRM(bottom=(6,), top=(8,)),
    "dlrm without bottom": DLRM(bottom=(), top=()),
    "dcn": DCNv2(hidden=(8,), cross_layers=2),
    "dcn low rank": DCNv2(hidden=(8,), low_rank=2),
    "dcn stacked": DCNv2(hidden=(8,), structure="stacked"),
    "dcn cross only": DCNv2(hidden=()),
    "deepfm": DeepFM(hidden=(8,)),
    "wide and deep": WideDeep(hidden=(8,)),
}


def linear(layer: JoinedLinear, x: Tensor) -> Tensor:
    return x @ torch.cat(list(layer.weights), 1).t() + layer.bias


def deep(net: Deep, x: Tensor) -> Tensor:
    y: Tensor = net.out(net.hidden(linear(net.first, x)))
    return y


def mlp(net: nn.Module, x: Tensor, v: list[Tensor]) -> Tensor:
    if net.arm is not None:
        x = deep(net.arm, x)
    return deep(net.deep, torch.cat([x, *v], 1))


def dlrm(net: nn.Module, x: Tensor, v: list[Tensor]) -> Tensor:
    head = []
    if x.shape[1]:
        head = [deep(net.bottom, x)]
        v = [*head, *v]
    dots = [(v[i] * v[j]).sum(1, keepdim=True) for i in range(len(v)) for j in range(i)]
    return deep(net.top, torch.cat([*head, *dots] if dots else v, 1))


def dcn(net: nn.Module, x: Tensor, v: list[Tensor]) -> Tensor:
    x0 = torch.cat([x, *v], 1)
    xl = x0
    for layer in net.cross:
        w = layer.up.weight if layer.down is None else layer.up.weight @ layer.down.weight
        xl = x0 * (xl @ w.t() + layer.up.bias) + xl
    if net.deep is None:
        return linear(net.out, xl)
    if net.parallel:
        return linear(net.out, torch.cat([xl, deep(net.deep, x0)], 1))
    return linear(net.out, deep(net.deep, xl))


def deepfm(net: nn.Module, x: Tensor, v: list[Tensor]) -> Tensor:
    rows = [*v, *(x[:, i : i + 1] * net.machine.rows[i] for i in range(x.shape[1]))]
    fm = sum(r[:, 0] for r in rows)
    for i in range(len(rows)):
        for j in range(i):
            fm = fm + (rows[i][:, 1:] * rows[j][:, 1:]).sum(1)
    return deep(net.deep, torch.cat([x, *v], 1)) + fm[:, None]


def wide_deep(net: nn.Module, x: Tensor, v: list[Tensor]) -> Tensor:
    wide = sum(r[:, :1] for r in v)
    if x.shape[1]:
        wide = wide + x @ net.wide.weight.t()
    return deep(net.deep, torch.cat([x, *v], 1)) + wide


FORMULAS: dict[type, Callable[[nn.Module, Tensor, list[Tensor]], Tensor]] = {
    MLP: mlp,
    DLRM: dlrm,
    DCNv2: dcn,
    DeepFM: deepfm,
    WideDeep: wide_deep,
}


@pytest.mark.parametrize("labels", [1, 3])
@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("name", SPECS)
def test_network_and_its_gradients_equal_the_formula(name: str, shape: str, labels: int) -> None:
    job = make_job(SHAPES[shape], SPECS[name], labels=labels)
    torch.manual_seed(0)
    net = build(job)
    numeric, embeddings, leaves = make_inputs(job)
    logits = net(numeric, embeddings)
    assert logits.shape == (5, labels)
    wanted = FORMULAS[type(job.model)](net, numeric.cat(), vectors_of(embeddings))
    torch.testing.assert_close(logits, wanted, rtol=1e-4, atol=1e-5)
    pull = torch.randn(5, labels, generator=torch.Generator().manual_seed(1))
    ours = torch.autograd.grad(logits, leaves, pull)
    theirs = torch.autograd.grad(wanted, leaves, pull)
    for a, b in zip(ours, theirs, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("name", [k for k, s in SPECS.items() if isinstance(s, MLP | DCNv2 | WideDeep)])
def test_tables_of_unequal_dims_are_taken_where_the_formula_allows(name: str) -> None:
    job = make_job((*NUMBERS, *IDS, HISTORY), SPECS[name], dims={"user": 7, "item": 2})
    net = build(job)
    numeric, embeddings, _ = make_inputs(job)
    wanted = FORMULAS[type(job.model)](net, numeric.cat(), vectors_of(embeddings))
    torch.testing.assert_close(net(numeric, embeddings), wanted, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("name", [k for k, s in SPECS.items() if isinstance(s, MLP | DCNv2 | WideDeep)])
def test_a_job_of_numbers_only_is_taken(name: str) -> None:
    job = make_job(NUMBERS, SPECS[name])
    numeric, _, _ = make_inputs(job)
    assert build(job)(numeric, Named.packed(torch.zeros(5, 0), {})).shape == (5, 1)


@pytest.mark.parametrize("name", SPECS)
def test_same_seed_gives_the_same_weights_and_another_seed_others(name: str) -> None:
    def weights(seed: int) -> Tensor:
        torch.manual_seed(seed)
        net = build(make_job(SHAPES["with a sequence"], SPECS[name]))
        return torch.cat([p.detach().flatten() for p in net.parameters()])

    assert torch.equal(weights(3), weights(3))
    assert not torch.equal(weights(3), weights(4))


@pytest.mark.parametrize("name", SPECS)
def test_every_weight_gets_a_gradient(name: str) -> None:
    # A layer that is made and not used trains nothing and hangs distributed data parallel.
    job = make_job(SHAPES["with a sequence"], SPECS[name])
    net = build(job)
    numeric, embeddings, leaves = make_inputs(job, size=64)
    net(numeric, embeddings).sum().backward()
    assert [k for k, p in net.named_parameters() if p.grad is None or not p.grad.any()] == []
    assert all(x.grad is not None for x in leaves)


@pytest.mark.parametrize("name", SPECS)
def test_state_dict_holds_weights_only_and_loads_into_a_fresh_network(name: str) -> None:
    job = make_job(SHAPES["numbers and ids"], SPECS[name])
    first, second = build(job), build(job)
    second.load_state_dict(first.state_dict())
    assert set(first.state_dict()) == {k for k, _ in first.named_parameters()}
    numeric, embeddings, _ = make_inputs(job)
    assert torch.equal(first(numeric, embeddings), second(numeric, embeddings))


@pytest.mark.parametrize("name", SPECS)
def test_bf16_autocast_stays_near_fp32_and_gradients_stay_fp32(name: str) -> None:
    job = make_job(SHAPES["with a sequence"], SPECS[name])
    torch.manual_seed(0)
    net = build(job)
    numeric, embeddings, leaves = make_inputs(job)
    with torch.autocast("cpu", torch.bfloat16):
        logits = net(numeric, embeddings)
    logits.float().sum().backward()
    torch.testing.assert_close(logits.float(), net(numeric, embeddings), rtol=0.05, atol=0.05)
    assert {x.grad.dtype for x in [*leaves, *net.parameters()] if x.grad is not None} == {torch.float32}


@pytest.mark.parametrize("norm", ["batch", "layer"])
@pytest.mark.parametrize("spec", [MLP, DCNv2, DeepFM, WideDeep])
def test_norm_and_dropout_change_the_network(spec: type[MLP], norm: str) -> None:
    # Persia's flaw 8: options accepted and ignored.
    job = make_job(SHAPES["numbers and ids"], spec(hidden=(8, 4), norm=norm, dropout=0.5))
    kinds = [type(m) for m in build(job).modules()]
    assert kinds.count(BatchNorm if norm == "batch" else LayerNorm) == 2
    assert kinds.count(nn.Dropout) == 2


def test_dlrm_dropout_is_in_the_top() -> None:
    net = build(make_job(IDS, DLRM(top=(8,), dropout=0.5)))
    assert any(isinstance(m, nn.Dropout) for m in net.top.modules())


def test_a_last_batch_of_one_sample_passes_batch_norm_in_training() -> None:
    # torch raises "Expected more than 1 value per channel": an epoch of 4,097 samples ended so.
    job = make_job(IDS, MLP(hidden=(8,), norm="batch"))
    net = build(job).train()
    _, embeddings, _ = make_inputs(job, size=1)
    mean_before = next(m for m in net.modules() if isinstance(m, BatchNorm)).running_mean.clone()
    assert net(Named.packed(torch.zeros(1, 0), {}), embeddings).isfinite().all()
    assert torch.equal(mean_before, next(m for m in net.modules() if isinstance(m, BatchNorm)).running_mean)


def test_joined_linear_is_linear_on_the_concatenation() -> None:
    torch.manual_seed(0)
    joined = JoinedLinear([2, 0, 3], 4)
    torch.manual_seed(0)
    whole = nn.Linear(5, 4)
    a, b = torch.randn(6, 2), torch.randn(6, 3)
    torch.testing.assert_close(joined([a, b]), whole(torch.cat([a, b], 1)))


def test_joined_linear_gives_its_parts_contiguous_gradients() -> None:
    # A slice of a wider gradient would be copied once more before the push.
    a, b = torch.randn(6, 2, requires_grad=True), torch.randn(6, 3, requires_grad=True)
    y = JoinedLinear([2, 3], 4)([a, b])
    for g, x in zip(torch.autograd.grad(y.sum(), [a, b]), [a, b], strict=True):
        assert g.shape == x.shape
        assert g.untyped_storage().nbytes() == x.untyped_storage().nbytes()


def test_inputs_follow_the_job_with_sequences_last() -> None:
    inputs = Inputs.of(make_job((HISTORY, *NUMBERS, *IDS), MLP(), labels=2, dims={"item": 6}))
    assert inputs.numeric == {"age": 1, "pixels": 3}
    assert inputs.pooled == {"user": DIM, "item": 6, "city": DIM}
    assert inputs.sequences == {"history": 6}
    assert (inputs.labels, inputs.numbers, inputs.dims) == (2, 4, (DIM, 6, DIM, 6))
