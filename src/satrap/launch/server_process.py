"""A parameter server in a process of its own: the class that Ray makes an actor of."""

from __future__ import annotations

import os
import threading
from collections.abc import Sequence
from typing import TYPE_CHECKING

from satrap.launch.guard import Identity, end_with
from satrap.launch.notice import Notice
from satrap.launch.told import Begun, Security, ServerTask

if TYPE_CHECKING:
    from satrap.ps import ServerKeys


class ServerProcess:
    """One server. Its methods are called by the driver, through Ray; rows and gradients go by the server's own socket.

    Outside the workers' life and death: they come and go, this one stays until the driver ends it.
    """

    def __init__(self, guards: Sequence[Identity]) -> None:
        end_with(Identity.of(os.getppid()), *guards)
        self._notice = Notice()
        threading.Thread(target=_warm, name="satrap-warm", daemon=True).start()

    def begin(self, task: ServerTask) -> Begun:
        """Serves, with no rows yet or, in the place of another, with those it had. Returns where."""
        from satrap.errors import LaunchError
        from satrap.observe.endpoint import Endpoint
        from satrap.ps import Keeping, Server, forget_history
        from satrap.ps.keeper import has_history
        from satrap.ps.server import bind_at
        from satrap.schema import job_from_dict

        job = job_from_dict(dict(task.job))
        keeping = None
        if task.history is not None and job.store.durability != "none":
            if not task.recovers:
                forget_history(task.history)
            elif not has_history(task.history):
                raise LaunchError(
                    f"{task.history} holds no history that this machine sees: for servers to come back on other "
                    "machines the run folder must be on storage that all of them share"
                )
            keeping = Keeping(folder=task.history, level=job.store.durability)
        self._server = Server(
            job.resolved_tables(),
            seed=job.seed,
            partitions=job.store.partitions,
            threads=job.store.threads or task.cores,
            memory=job.store.memory,
            cold_folder=job.store.cold_folder,
            bind=task.address or bind_at(task.host),
            index=task.index,
            epoch=task.epoch,
            keys=server_keys(task.security),
            insecure=task.security.insecure,
            keeping=keeping,
        ).start()
        where = task.metrics
        self._endpoint = Endpoint(self._server.metrics, self._notice.text, host=where.host, port=where.port)
        return Begun.here(metrics=self._endpoint.address, address=self._server.address)

    def renew(self, epoch: int) -> None:
        """Goes by another placement, with no rows: they come back from a checkpoint."""
        self._server.renew(epoch)

    def text(self) -> str:
        """Its metrics."""
        return self._server.metrics() + "\n" + self._notice.text()

    def release(self) -> None:
        """It has nothing any more that could be lost with its machine."""
        self._notice.release()

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
