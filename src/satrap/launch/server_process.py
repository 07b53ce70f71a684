"""A parameter server in a process of its own: the class that Ray makes an actor of."""

from __future__ import annotations

import os
import socket
import threading
from collections.abc import Sequence
from typing import TYPE_CHECKING

from satrap.launch.guard import Identity, end_with
from satrap.launch.told import Begun, Security, ServerTask

if TYPE_CHECKING:
    from satrap.ps import ServerKeys


class ServerProcess:
    """One server. Its methods are called by the driver, through Ray; rows and gradients go by the server's own socket.

    Outside the workers' life and death: they come and go, this one stays until the driver ends it.
    """

    def __init__(self, guards: Sequence[Identity]) -> None:
        end_with(Identity.of(os.getppid()), *guards)
        threading.Thread(target=_warm, name="satrap-warm", daemon=True).start()

    def begin(self, task: ServerTask) -> Begun:
        """Serves, with no rows yet. Returns where."""
        from satrap.observe.endpoint import Endpoint
        from satrap.ps import Server
        from satrap.schema import job_from_dict

        job = job_from_dict(dict(task.job))
        self._server = Server(
            job.resolved_tables(),
            seed=job.seed,
            partitions=job.store.partitions,
            threads=job.store.threads or task.cores,
            bind=f"tcp://{task.host}:*",
            index=task.index,
            epoch=task.epoch,
            keys=server_keys(task.security),
            insecure=task.security.insecure,
        ).start()
        self._endpoint = Endpoint(self._server.metrics, host=task.metrics_host)
        return Begun(
            host=socket.gethostname(), pid=os.getpid(), metrics=self._endpoint.address, address=self._server.address
        )

    def renew(self, epoch: int) -> None:
        """Goes by another placement, with no rows: they come back from a checkpoint."""
        self._server.advance(epoch)
        self._server.service.clear()

    def text(self) -> str:
        """Its metrics."""
        return self._server.metrics()

    def watch(self) -> None:
        """Never returns: who waits for it is told when this process ends."""
        threading.Event().wait()


def server_keys(security: Security) -> ServerKeys | None:
    """The keys of a server; None without any."""
    from satrap.ps import load_server_keys

    return None if security.keys is None else load_server_keys(security.keys / "server.key")


def _warm() -> None:
    """Imports what `begin` needs while the driver is still starting others."""
    import satrap.observe.endpoint
    import satrap.ps
    import satrap.schema  # noqa: F401
