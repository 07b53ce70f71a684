"""What servers and workers tell Prometheus, and those who read it: the display, `satrap top`, the Grafana dashboard."""

from __future__ import annotations

import inspect
import json
import re
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from satrap.launch.worker_metrics import WorkerMeters
from satrap.observe import processes
from satrap.observe.endpoint import Endpoint
from satrap.observe.scrape import Scrape, scrape
from satrap.pooling import EmbeddingWorker, Plan, RemotePooler
from satrap.ps import Keeping, Placement, RemoteService, Server
from satrap.schema import Capacity, Categorical, Cold, Data, Job, Label, Table, Train
from satrap.train import Trainer

DASHBOARD = Path(__file__).parents[2] / "docs" / "grafana" / "satrap.json"
ONLY_IN_TROUBLE = {"satrap_failures_total", "satrap_gradients_refused_total", "satrap_worker_gradients_refused_total"}
"""Counters by reason: there is no line of them before there is a reason."""
TARGET_LABELS = {"run", "role", "index", "host", "pid"}
"""Given to every metric by the list of targets, see `write_targets`."""


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, Scrape]]:
    """What a server, an embedding worker and a worker serve over HTTP after a short training."""
    folder = tmp_path_factory.mktemp("served")
    user = [i % 10 for i in range(2000)]
    rows = {"user": user, "item": [i * i % 997 for i in range(2000)], "click": [int(u < 5) for u in user]}
    pq.write_table(pa.table(rows), folder / "clicks.parquet")
    job = Job(
        data=Data(train=(str(folder / "clicks.parquet"),), label=(Label(column="click"),)),
        features=(Categorical(name="user"), Categorical(name="item")),
        tables=(
            Table(name="user", dim=16, capacity=Capacity(rows=1 << 16)),
            Table(name="item", dim=16, cold=Cold(memory_rows=64)),
        ),
        train=Train(batch_size=100, threads=1),
    )
    keeping, meters, plan = Keeping(folder=folder / "history"), WorkerMeters(), Plan.of(job)
    with ExitStack() as stack:

        def train(name: str, keeping: Keeping | None = None, pooled: bool = False) -> tuple[Server, Any]:
            options: dict[str, Any] = {"seed": job.seed, "partitions": job.store.partitions, "threads": 1}
            server = stack.enter_context(Server(plan.tables, **options, keeping=keeping))
            placement = Placement.even([server.address], job.store.partitions)
            service = stack.enter_context(RemoteService(plan.tables, placement, seed=job.seed))
            worker = pooler = None
            if pooled:
                worker = stack.enter_context(EmbeddingWorker(plan, placement, threads=1))
                pooler = RemotePooler(plan, worker.address)
                stack.callback(pooler.close)
            trainer = Trainer(job, run_dir=folder / name, service=service, pooler=pooler, progress=False, plots=False)
            if not pooled:
                meters.watch(service)
                meters.follow(trainer)
            trainer.fit()
            return server, worker

        server, _ = train("plain", keeping)
        _, pooling = train("pooled", pooled=True)
        texts = {"server": server.metrics, "embedding worker": pooling.metrics, "worker": meters.text}
        endpoints = {role: stack.enter_context(Endpoint(text)) for role, text in texts.items()}
        yield {role: scrape(e.address) for role, e in endpoints.items()}


def every_name(served: dict[str, Scrape]) -> set[str]:
    return {name for s in served.values() for name in s.values} | ONLY_IN_TROUBLE


def queries() -> list[str]:
    panels: list[dict[str, Any]] = json.loads(DASHBOARD.read_text())["panels"]
    return [t["expr"] for p in panels for t in p.get("targets", [])]


def metrics_in(text: str) -> set[str]:
    return set(re.findall(r"\b(?:satrap|process)_[a-z_]+\b", text))


@pytest.mark.parametrize("expr", queries())
def test_a_query_of_the_dashboard_asks_for_metrics_and_labels_that_are_served(
    expr: str, served: dict[str, Scrape]
) -> None:
    # A flaw of an early system: metrics of the workers that a dashboard showed never appeared.
    assert metrics_in(expr) <= every_name(served)
    labels = {
        name: {k for key in values for k, _ in key} for s in served.values() for name, values in s.values.items()
    } | {name: {"reason", "code"} for name in ONLY_IN_TROUBLE}
    for name, matchers in re.findall(r"\b((?:satrap|process)_[a-z_]+)\{([^}]*)\}", expr):
        asked = set(re.findall(r"(\w+)\s*=", matchers))
        assert asked <= labels[name] | TARGET_LABELS
    grouped = {g.strip() for by in re.findall(r"by \(([^)]*)\)", expr) for g in by.split(",")}
    assert grouped <= TARGET_LABELS | {k for name in metrics_in(expr) for k in labels[name]}


def test_the_dashboard_shows_every_metric_of_servers_and_workers(served: dict[str, Scrape]) -> None:
    shown = {re.sub(r"_(bucket|sum|count)$", "", n) for q in queries() for n in metrics_in(q)}
    told = {re.sub(r"_(bucket|sum|count|created)$", "", n) for n in every_name(served) if n.startswith("satrap_")}
    assert told <= shown


def test_the_display_and_top_ask_for_metrics_that_are_served(served: dict[str, Scrape]) -> None:
    asked = metrics_in(inspect.getsource(processes)) - {"satrap_request_seconds", "satrap_worker_request_seconds"}
    asked -= {"satrap_staleness_updates"}  # names of histograms: their parts are served
    assert asked
    assert asked <= every_name(served)


def test_every_figure_of_a_process_that_trains_is_a_number(served: dict[str, Scrape]) -> None:
    then = Scrape(at=0.0)  # as if it had done everything since
    for role, figures in (
        ("server", processes.SERVER_FIGURES),
        ("embedding worker", processes.EMBEDDING_WORKER_FIGURES),
        ("worker", processes.WORKER_FIGURES),
    ):
        said = {k: f(served[role], then) for k, f in {**figures, **processes.PROCESS_FIGURES}.items()}
        assert not [k for k, text in said.items() if text == "-"], said


def test_latencies_and_staleness_are_histograms_that_add_up(served: dict[str, Scrape]) -> None:
    # A flaw of an early system: latencies were gauges, which show one request of thousands.
    for role, name in (
        ("server", "satrap_request_seconds"),
        ("server", "satrap_staleness_updates"),
        ("server", "satrap_staleness_by_heat_updates"),
        ("worker", "satrap_worker_request_seconds"),
        ("worker", "satrap_worker_staleness_updates"),
    ):
        total = served[role].total(f"{name}_count")
        assert total is not None
        assert total > 0, name
        assert served[role].total(f"{name}_bucket", le="+Inf") == total
