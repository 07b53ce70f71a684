"""The metrics of a worker: what it has trained, what it asked of the servers, and how long they took."""

from __future__ import annotations

import time
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import numpy as np

from satrap.observe.endpoint import registry_part
from satrap.ps.meters import BOUNDS_S, STALENESS_BOUNDS

if TYPE_CHECKING:
    from satrap.pooling import RemotePooler
    from satrap.ps import RemoteService
    from satrap.train import Trainer


class WorkerMeters:
    """Metrics of the trainer that it follows and the service that it watches; counters begin anew with each of them.

    Asked for in any thread while another trains: every figure is one that its owner only ever replaces.
    """

    def __init__(self) -> None:
        from prometheus_client import CollectorRegistry, Histogram

        self._registry = CollectorRegistry()
        self._seconds = Histogram(
            "satrap_worker_request_seconds",
            "From asking a server until its answer was taken.",
            ["server", "kind"],
            registry=self._registry,
            buckets=BOUNDS_S,
        )
        self._children: dict[tuple[int | str, str], Any] = {}
        self._service: RemoteService | None = None
        self._pooler: RemotePooler | None = None
        self._trainer: Trainer | None = None
        self.first_push_at: float | None = None
        """When the first gradients were acknowledged, in seconds since 1970."""
        self._registry.register(self)
        self.text = registry_part(self._registry)

    def watch(self, service: RemoteService) -> None:
        """Measures the requests of a client from now on."""
        self._service = service
        service.watch(self._answered)

    def watch_pooler(self, pooler: RemotePooler | None) -> None:
        """Measures the requests to an embedding worker from now on, by its name in the place of a server's number."""
        self._pooler = pooler
        if pooler is not None:
            pooler.watch(self._answered)

    def follow(self, trainer: Trainer) -> None:
        """Tells of a trainer from now on."""
        self._trainer = trainer

    def _answered(self, server: int | str, kind: str, seconds: float) -> None:
        if kind == "Push" and self.first_push_at is None:
            self.first_push_at = time.time()
        child = self._children.get((server, kind))
        if child is None:
            child = self._children[server, kind] = self._seconds.labels(str(server), kind)
        child.observe(seconds)

    def collect(self) -> Iterator[Any]:
        """For the registry."""
        if self._service is not None:
            yield from self._requests(self._service)
        if self._trainer is not None and self._trainer.run is not None:
            yield from self._training(self._trainer)

    def _requests(self, service: RemoteService) -> Iterator[Any]:
        from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily

        pooler = self._pooler
        resent = service.resent + (0 if pooler is None else pooler.resent)
        yield CounterMetricFamily("satrap_worker_resent", "Requests sent again.", value=resent)
        waiting = GaugeMetricFamily(
            "satrap_worker_requests_under_way", "Requests that wait for their answers.", labels=["server"]
        )
        for server in range(service.placement.servers):
            waiting.add_metric([str(server)], service.under_way(server))
        if pooler is not None:
            waiting.add_metric([pooler.name], pooler.under_way)
        yield waiting
        yield GaugeMetricFamily(
            "satrap_worker_placement_epoch", "The placement it goes by.", value=service.placement.epoch
        )

    def _training(self, trainer: Trainer) -> Iterator[Any]:
        from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily

        run, ledger = trainer.run, trainer.engine.ledger
        assert run is not None
        yield CounterMetricFamily("satrap_worker_steps", "Optimizer steps of the run.", value=run.state.step)
        yield CounterMetricFamily(
            "satrap_worker_samples", "Samples of the run, of all workers together.", value=run.state.samples
        )
        yield CounterMetricFamily(
            "satrap_worker_checkpoints_failed", "Checkpoints that could not be written.", value=run.saves_failed
        )
        yield GaugeMetricFamily("satrap_worker_epoch", "Passes over the data completed.", value=run.state.epoch)
        yield GaugeMetricFamily("satrap_worker_loss", "Mean over the last logging interval.", value=run.report.loss)
        stages = CounterMetricFamily(
            "satrap_worker_stage_seconds", "Time spent in, or waited for, a stage.", labels=["stage"]
        )
        for stage, seconds in run.report.seconds.as_dict().items():
            stages.add_metric([stage], seconds)
        yield stages
        for name, value in (("sent", ledger.sent), ("applied", ledger.applied), ("duplicate", ledger.duplicates)):
            yield CounterMetricFamily(f"satrap_worker_gradients_{name}", f"Gradients {name}.", value=value)
        refused = CounterMetricFamily(
            "satrap_worker_gradients_refused", "Gradients not applied, by reason.", labels=["reason"]
        )
        for reason, n in list(ledger.refused.items()):
            refused.add_metric([str(reason)], n)
        yield refused
        known = ledger.staleness[:-1].copy()
        total = np.cumsum(known)
        buckets = [(str(float(b)), float(total[b])) for b in STALENESS_BOUNDS] + [("+Inf", float(total[-1]))]
        yield HistogramMetricFamily(
            "satrap_worker_staleness_updates",
            "Updates of a row between its pull and its push.",
            buckets=buckets,
            sum_value=float(known @ np.arange(known.size)),
        )
