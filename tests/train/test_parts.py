"""Batches computed in parts side by side: the whole's gradient, the same bits, which networks are left alone."""

from __future__ import annotations

import itertools
import threading

import msgspec
import pytest
import torch
from samples import click_job, random_batches

from satrap import models
from satrap.embedding import EmbeddingEngine
from satrap.ps import LocalService
from satrap.schema import DLRM, MLP, Custom, DCNv2, DeepFM, WideDeep
from satrap.train.parts import LEAST, MOST, SideBySide, divisible, parts_of
from satrap.train.step import DenseStep

CPU = torch.device("cpu")
SIZE = 2 * MOST + 77
NETWORKS = {
    "mlp": MLP(hidden=(16, 8)),
    "layer norm": MLP(hidden=(16,), norm="layer"),
    "dlrm": DLRM(bottom=(8, 4), top=(8,)),
    "dcn": DCNv2(hidden=(8,)),
    "deepfm": DeepFM(hidden=(8,)),
    "wide and deep": WideDeep(hidden=(8,)),
}


@pytest.fixture(autouse=True)
def _threads_as_before():
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


def computed(job, size=SIZE, threads=2, *, whole=False):
    """Loss, logits and all gradients of one batch: as parts, or as the one piece of a micro-batch that holds it all."""
    if whole:
        job = msgspec.structs.replace(
            job, train=msgspec.structs.replace(job.train, batch_size=size, micro_batch_size=size)
        )
    torch.set_num_threads(threads)
    torch.manual_seed(0)
    model = models.build(job)
    engine = EmbeddingEngine(job, LocalService.of(job), threads=1)
    (batch,) = random_batches(job, [size], seed=7, vocabulary=50)
    lookup = engine.lookup(batch, train=True)
    outcome = DenseStep(job, model, CPU).compute(lookup)
    leaves = [lookup.pooled.grad, *(s.grad for s in lookup.sequences)]
    return outcome, [p.grad for p in model.parameters()] + leaves


@pytest.mark.parametrize("network", NETWORKS)
@pytest.mark.parametrize("weight", [None, "weight"])
def test_parts_add_up_to_the_gradient_of_the_whole_batch(tmp_path, network, weight):
    job = click_job(tmp_path, rows=20, changes={"model": NETWORKS[network]})
    job = msgspec.structs.replace(job, data=msgspec.structs.replace(job.data, weight=weight))
    assert divisible(job)
    (parts, found), (whole, expected) = computed(job), computed(job, whole=True)
    assert parts.loss == pytest.approx(whole.loss, rel=1e-5)
    assert parts.gradient_norm == pytest.approx(whole.gradient_norm, rel=1e-4)
    torch.testing.assert_close(parts.logits, whole.logits)
    for one, other in zip(found, expected, strict=True):
        assert (one is None) == (other is None)
        if one is not None:
            torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_the_bits_do_not_depend_on_the_threads(tmp_path, precision):
    job = click_job(tmp_path, rows=20, changes={"model": MLP(hidden=(64, 32))}, precision=precision)
    first, expected = computed(job, threads=1)
    for threads in (2, 3, 5):
        outcome, found = computed(job, threads=threads)
        assert outcome.loss == first.loss
        assert torch.equal(outcome.logits, first.logits)
        for one, other in zip(found, expected, strict=True):
            assert one is other is None or torch.equal(one, other)
        assert torch.get_num_threads() == threads


def test_what_a_sample_gets_must_depend_on_it_alone(tmp_path):
    job = click_job(tmp_path, rows=20, changes={"model": MLP(hidden=(8,))})
    assert divisible(job)
    for model in (
        MLP(hidden=(8,), norm="batch"), MLP(hidden=(8,), dropout=0.1), DLRM(bottom=(4,), dropout=0.1),
        Custom(path="package.module:Network"),
    ):  # fmt: skip
        assert not divisible(msgspec.structs.replace(job, model=model))
    compiled = msgspec.structs.replace(job.train, compile=True)
    assert not divisible(msgspec.structs.replace(job, train=compiled))


@pytest.mark.parametrize("size", [1, LEAST, 2 * LEAST - 1, 2 * LEAST, 4096, 100_001])
def test_parts_cover_the_batch_in_order_and_are_neither_small_nor_large(size):
    parts = parts_of(size)
    assert parts[0].start == 0
    assert parts[-1].stop == size
    assert all(a.stop == b.start for a, b in itertools.pairwise(parts))
    if len(parts) > 1:
        assert all(LEAST <= p.stop - p.start < 2 * MOST for p in parts)


def test_the_first_part_that_fails_is_told_once_all_have_ended():
    torch.set_num_threads(2)
    ended = []

    def work(rows):
        if rows.start in (10, 20):
            raise ValueError(f"part {rows.start}")
        ended.append(rows.start)

    side_by_side = SideBySide()
    with pytest.raises(ValueError, match="part 10"):
        side_by_side.map(work, [slice(i, i + 10) for i in (0, 10, 20, 30)])
    assert sorted(ended) == [0, 30]
    assert side_by_side.map(lambda rows: rows.start, [slice(0, 1), slice(1, 2)]) == [0, 1]
    side_by_side.close()


def test_each_part_has_its_share_of_torchs_threads_and_the_rest_of_the_process_keeps_its_own():
    torch.set_num_threads(4)
    side_by_side = SideBySide()

    def work(_):
        torch.zeros(1 << 16).add_(1.0)  # shared out, if at all, by what this thread may use
        return threading.current_thread() is threading.main_thread(), torch.get_num_threads()

    assert side_by_side.map(work, [slice(0, 1), slice(1, 2)]) == [(False, 2)] * 2
    assert torch.get_num_threads() == 4
    torch.set_num_threads(2)
    assert side_by_side.map(work, [slice(0, 1), slice(1, 2)]) == [(False, 1)] * 2
    seen = []
    other = threading.Thread(target=lambda: seen.append(torch.get_num_threads()))
    other.start()
    other.join()
    assert seen == [2]
    side_by_side.close()
