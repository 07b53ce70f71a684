"""An embedding worker in a process of its own: the class that Ray makes an actor of."""

from __future__ import annotations

import os
import threading
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from satrap.launch.guard import Identity, end_with
from satrap.launch.notice import Notice
from satrap.launch.server_process import server_keys
from satrap.launch.told import Begun, EmbeddingTask, Security

if TYPE_CHECKING:
    from satrap.ps import ClientKeys, Placement


class EmbeddingProcess:
    """One embedding worker. Its methods are called by the driver, through Ray; ids, vectors and gradients go by its
    own socket."""

    def __init__(self, guards: Sequence[Identity]) -> None:
        end_with(Identity.of(os.getppid()), *guards)
        self._notice = Notice()
        threading.Thread(target=_warm, name="satrap-warm", daemon=True).start()

    def begin(self, task: EmbeddingTask) -> Begun:
        """Serves NN workers. Returns where."""
        from satrap.observe.endpoint import Endpoint
        from satrap.pooling import EmbeddingWorker, Plan
        from satrap.ps.server import bind_at
        from satrap.schema import job_from_dict

        job = job_from_dict(dict(task.job))
        self._worker = EmbeddingWorker(
            Plan.of(job),
            task.placement,
            threads=job.store.threads or task.cores,
            bind=bind_at(task.host),
            index=task.index,
            keys=server_keys(task.security),
            own_keys=_own_keys(task.security),
            insecure=task.security.insecure,
            deadline_s=task.server_deadline_s,
        ).start()
        where = task.metrics
        self._endpoint = Endpoint(self._worker.metrics, self._notice.text, host=where.host, port=where.port)
        return Begun.here(metrics=self._endpoint.address, address=self._worker.address)

    def renew(self, placement: Placement) -> None:
        """Goes by another placement; what it kept for the workers of the last one is freed."""
        self._worker.renew(placement)

    def relocate(self, placement: Placement) -> None:
        """Reaches servers where this placement has them."""
        self._worker.relocate(placement)

    def text(self) -> str:
        """Its metrics."""
        return self._worker.metrics() + "\n" + self._notice.text()

    def release(self) -> None:
        """It has nothing any more that could be lost with its machine."""
        self._notice.release()

    def watch(self) -> None:
        """Never returns: who waits for it is told when this process ends."""
        threading.Event().wait()


def _own_keys(security: Security) -> ClientKeys | None:
    """Its keys towards servers: those of a worker."""
    from satrap.ps import load_client_keys

    return None if security.keys is None else load_client_keys(Path(security.keys) / "worker.key")


def _warm() -> None:
    """Imports what `begin` needs while the driver is still starting others."""
    import satrap.observe.endpoint
    import satrap.pooling
    import satrap.schema  # noqa: F401
