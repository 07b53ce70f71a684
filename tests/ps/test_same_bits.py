"""The number of servers changes no bit. S servers, D dimension."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest

from satrap.ps import LocalService, PullRequest, PushRequest
from satrap.schema import (
    SGD,
    Adagrad,
    Adam,
    AdamW,
    Ftrl,
    Normal,
    Optimizer,
    RowWiseAdagrad,
    StateFormat,
    Table,
    ValueFormat,
    WireFormat,
)
from satrap.testing import Cluster

OPTIMIZERS: list[Optimizer] = [
    SGD(lr=0.1),
    SGD(lr=0.1, momentum=0.9),
    Adagrad(lr=0.1),
    RowWiseAdagrad(lr=0.1),
    Adam(lr=0.01),
    AdamW(lr=0.01, state=StateFormat.INT8),
    Ftrl(lr=0.1, l1=0.01),
]
DIMS = (1, 7, 16, 33)


def tables(wire: WireFormat) -> list[Table]:
    """Every optimizer, with all dims and storage formats among them."""
    dims, formats = itertools.cycle(DIMS), itertools.cycle((*ValueFormat, ValueFormat.INT8))
    return [
        Table(
            name=f"t{i}",
            dim=next(dims),
            format=next(formats),
            optimizer=optimizer,
            initializer=Normal(std=0.3),
            wire=wire,
            max_gradient=2.0 if i % 3 == 0 else None,
        )
        for i, optimizer in enumerate(OPTIMIZERS * 2)
    ]


def train(service: Any, layout: Sequence[Table], steps: int = 5) -> list[np.ndarray[Any, Any]]:
    """Everything that is seen of a training run: the rows pulled, the acknowledgements, and all rows at its end."""
    rng = np.random.default_rng(0)
    seen: list[np.ndarray[Any, Any]] = []
    for seq in range(1, steps + 1):
        chosen = [t for t in layout if rng.random() < 0.8]
        # A few ids at the edges, so that some servers have no row of some tables.
        ids = {t.name: np.unique(rng.integers(0, 97, rng.integers(1, 60))).astype(np.uint64) for t in chosen}
        rows = service.pull(PullRequest(ids=ids, create=True))
        gradients = {
            t.name: (rng.standard_normal((ids[t.name].size, t.dim)) * 10.0 ** rng.integers(-6, 1)).astype(np.float32)
            for t in chosen
        }
        ack = service.push(
            PushRequest(0, 0, seq, ids, gradients, versions=rows.versions, hints=rows.hints, lr_factor=1 / seq)
        )
        seen += [rows.values[t.name] for t in chosen] + [rows.versions[t.name] for t in chosen]
        seen += [np.array([ack.applied]), ack.staleness]
    for t in layout:
        blocks = [service.export_rows(t.name, p) for p in range(service.partitions)]
        seen += [np.concatenate([getattr(b, part) for b in blocks]) for part in ("ids", "values", "state")]
    return seen


def assert_same_bits(a: list[np.ndarray[Any, Any]], b: list[np.ndarray[Any, Any]]) -> None:
    assert len(a) == len(b)
    for x, y in zip(a, b, strict=True):
        assert x.shape == y.shape
        assert x.dtype == y.dtype
        assert x.tobytes() == y.tobytes()


def test_any_number_of_servers_trains_the_bits_of_one_process() -> None:
    layout = tables(WireFormat.FP32)
    want = train(LocalService(layout, seed=3, partitions=8, threads=1), layout)
    for servers in (1, 2, 3, 8):
        with Cluster(layout, servers=servers, partitions=8, seed=3) as cluster:
            assert_same_bits(train(cluster.connect(), layout), want)


@pytest.mark.parametrize("wire", [WireFormat.FP16, WireFormat.INT8])
def test_narrow_formats_on_the_wire_give_the_same_bits_for_any_number_of_servers(wire: WireFormat) -> None:
    # A scale chosen by each server's share of a batch would round its gradients otherwise.
    layout = tables(wire)
    runs = []
    for servers in (1, 2, 3, 8):
        with Cluster(layout, servers=servers, partitions=8, seed=3) as cluster:
            runs.append(train(cluster.connect(), layout))
    for run in runs[1:]:
        assert_same_bits(run, runs[0])


def test_fp16_rows_travel_as_fp16_without_loss() -> None:
    layout = [Table(name="t", dim=9, format=ValueFormat.FP16, optimizer=SGD(lr=0.1), initializer=Normal(std=0.3))]
    narrow = [Table(**{f: getattr(layout[0], f) for f in layout[0].__struct_fields__} | {"wire": WireFormat.FP16})]
    ids = np.arange(500, dtype=np.uint64)
    want = LocalService(layout, seed=0).pull(PullRequest(ids={"t": ids}, create=True)).values["t"]
    with Cluster(narrow, servers=2) as cluster:
        got = cluster.connect().pull(PullRequest(ids={"t": ids}, create=True)).values["t"]
    np.testing.assert_array_equal(got, want)


def test_how_rows_travel_is_each_clients_own_matter() -> None:
    # The servers' configuration says nothing about it, so one of another wire format is no other table.
    half = [Table(name="t", dim=4, optimizer=SGD(lr=0.1), wire=WireFormat.FP16)]
    full = [Table(name="t", dim=4, optimizer=SGD(lr=0.1))]
    with Cluster(full) as cluster:
        from satrap.ps import RemoteService

        with RemoteService(half, cluster.placement, seed=0) as client:
            ids = {"t": np.arange(5, dtype=np.uint64)}
            rounded = client.pull(PullRequest(ids=ids, create=True)).values["t"]
        exactly = cluster.connect().pull(PullRequest(ids=ids, create=True)).values["t"]
    np.testing.assert_array_equal(rounded, exactly.astype(np.float16).astype(np.float32))
    assert (rounded != exactly).any()
