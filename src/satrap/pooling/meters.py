"""What an embedding worker has done, in numbers, as the text that Prometheus reads."""

from __future__ import annotations

from dataclasses import dataclass, field

from satrap.observe.stages import THREADS, StageSeconds
from satrap.pooling.session import Answered
from satrap.ps import Ack, Refused
from satrap.ps.meters import Meters
from satrap.wire import PooledAck

COUNTED = (*THREADS["engine"], "server_wait")
"""The stages that an embedding worker takes from its workers."""


@dataclass(slots=True)
class PoolingMeters:
    """Counts since it began. Written by the socket's thread; reading them elsewhere is safe.

    What it has in common with a server, it calls as a server does: `satrap_rows_pulled_total` are rows that it pulled.
    """

    common: Meters = field(default_factory=Meters)
    samples: int = 0
    ids: int = 0
    """Of the batches looked up, repeated ones counted."""
    again: int = 0
    """Requests that had come before."""
    seconds: StageSeconds = field(default_factory=StageSeconds)
    """Of training, all sessions together."""

    def answered(self, done: Answered) -> None:
        """Enters a request that was performed."""
        self.common.handled[done.kind].add(done.seconds)
        self.samples += done.samples
        self.ids += done.ids
        self.common.rows_pulled += done.rows
        m = done.message
        if isinstance(m, PooledAck):
            refused = {Refused(reason): n for reason, n in m.refused.items()}
            self.common.acknowledged(Ack(m.applied, refused, m.duplicate, m.repeated, m.staleness))

    def text(self, *, kept: int, under_way: int, sessions: int) -> str:
        """The text format of Prometheus. `kept`: lookups that wait for their gradients."""
        own = []
        for name, kind, what, value in (
            ("satrap_samples_pooled_total", "counter", "Samples of the batches looked up.", self.samples),
            ("satrap_ids_total", "counter", "Ids of the batches looked up, repeated ones counted.", self.ids),
            ("satrap_requests_again_total", "counter", "Requests that had come before.", self.again),
            ("satrap_batches_kept", "gauge", "Batches that wait for their gradients.", kept),
        ):
            own += [f"# HELP {name} {what}", f"# TYPE {name} {kind}", f"{name} {value}"]
        for name, what, by_stage in (
            ("satrap_stage_seconds_total", "Time spent in, or waited for, a stage.", self.seconds.as_dict()),
            ("satrap_stage_cpu_seconds_total", "CPU time of the threads that work on a stage.", self.seconds.cpu),
        ):
            own += [f"# HELP {name} {what}", f"# TYPE {name} counter"]
            own += [f'{name}{{stage="{stage}"}} {s!r}' for stage, s in by_stage.items() if stage in COUNTED]
        return self.common.text({}, held=under_way, clients=sessions) + "\n".join(own) + "\n"
