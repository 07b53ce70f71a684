"""A worker in a process of its own: the class that Ray makes an actor of."""

from __future__ import annotations

import contextlib
import os
import socket
import threading
import traceback
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from satrap.launch.guard import Identity, end_with
from satrap.launch.notice import Notice
from satrap.launch.told import Begun, Ended, Failed, Metrics, Security, Told, WorkerTask

if TYPE_CHECKING:
    from satrap.launch.relay import Relay
    from satrap.pooling import RemotePooler
    from satrap.ps import Placement, RemoteService
    from satrap.schema import Job
    from satrap.train import Group, Trainer


class WorkerProcess:
    """One worker. The driver calls `fit` in one thread and all else meanwhile, through Ray; rows, gradients and what
    the workers tell each other go by sockets of their own.

    After `fit` has ended it may be called again: a group that begins anew need not import torch again.
    """

    def __init__(self, folder: str, guards: Sequence[Identity]) -> None:
        """`folder`: where the command runs; paths of the job are relative to it."""
        end_with(Identity.of(os.getppid()), *guards)
        self._notice = Notice()
        with contextlib.suppress(OSError):  # another machine may not have it; then a file that is missing is named
            os.chdir(folder)
        self._trainer: Trainer | None = None
        self._service: RemoteService | None = None
        self._pooler: RemotePooler | None = None
        self._group: Group | None = None
        self._relay: Relay | None = None
        self._listener: socket.socket | None = None
        self._meters: Any = None
        self._stopping = self._aborted = False
        self._warm = threading.Thread(target=_warm, name="satrap-warm", daemon=True)
        self._warm.start()

    def begin(self, metrics: Metrics) -> Begun:
        """Serves its metrics. Returns where."""
        from satrap.launch.worker_metrics import WorkerMeters
        from satrap.observe.endpoint import Endpoint

        self._meters = WorkerMeters()
        self._endpoint = Endpoint(self._meters.text, self._notice.text, host=metrics.host, port=metrics.port)
        return Begun.here(metrics=self._endpoint.address)

    def meet(self, host: str) -> str:
        """Of worker 0: the address at which the others find it."""
        from satrap.train import listen

        if self._listener is not None:
            self._listener.close()
        self._listener, address = listen(host)
        return address

    def fit(self, task: WorkerTask) -> Ended:
        """Trains to the end. Raises nothing: what goes wrong is told."""
        # Who was stopped before, to begin again elsewhere, is not stopped for ever; the driver asks anew.
        self._aborted, self._stopping, self._trainer = False, False, None
        try:
            return Ended(result=self._fit(task), trained=self._trained())
        except BaseException as e:
            return Ended(failed=Failed.of(e, traceback.format_exc()), trained=self._trained())
        finally:
            self._leave()

    def _fit(self, task: WorkerTask) -> Any:
        self._warm.join()
        from satrap.launch.relay import Relay
        from satrap.ps import RemoteService
        from satrap.schema import job_from_dict
        from satrap.train import TorchGroup, Trainer
        from satrap.train.group import ALONE
        from satrap.train.saving import device_of

        job = job_from_dict(dict(task.job))
        service = self._service = RemoteService(
            job.resolved_tables(),
            task.placement,
            seed=job.seed,
            client=task.rank,
            keys=worker_keys(task.security, task.rank),
            insecure=task.security.insecure,
            deadline_s=task.server_deadline_s,
        )
        self._meters.watch(service)
        self._pooler = _pooler(job, task)
        self._meters.watch_pooler(self._pooler)
        self._group = ALONE
        if task.world > 1:
            listener, self._listener = self._listener, None
            self._group = TorchGroup(
                task.rank,
                task.world,
                task.group,
                listener=listener if task.rank == 0 else None,
                device=device_of(job.train.device),
            )
        self._relay = Relay()
        trainer = Trainer(
            job,
            run_dir=task.run_dir,
            service=service,
            pooler=self._pooler,
            group=self._group,
            progress=self._relay.display if task.rank == 0 else False,
            plots=task.plots,
            cores=task.cores,
            profile=task.profile,
        )
        self._trainer = trainer
        self._meters.follow(trainer)
        # Asked before there was a trainer to ask:
        if self._stopping:
            trainer.stop()
        if self._aborted:
            raise InterruptedError("aborted before the first step")
        return trainer.fit(resume=task.resume)

    def _leave(self) -> None:
        if self._group is not None:
            self._group.close()
        if self._pooler is not None:
            self._pooler.close()
        if self._service is not None:
            self._service.close()

    def _trained(self) -> int:
        return 0 if self._trainer is None else int(self._trainer.engine.ledger.applied)

    def stop(self) -> None:
        """Has the group finish its step, save and return."""
        self._stopping = True
        if self._trainer is not None:
            self._trainer.stop()

    def abort(self) -> None:
        """Has `fit` fail soon, whatever it waits for: others of the group, or a server, are gone."""
        self._aborted = True
        self._leave()

    def relocate(self, placement: Placement) -> None:
        """Reaches servers where this placement has them."""
        if self._service is not None:
            self._service.relocate(placement)

    def tell(self) -> Told:
        """How it is."""
        trainer, relay = self._trainer, self._relay
        run = None if trainer is None else trainer.run
        display, figures, says = (None, {}, ()) if relay is None else relay.take()
        return Told(
            text=self._meters.text() + "\n" + self._notice.text(),
            trained=None if run is None else self._trained(),
            restored=0 if run is None else run.report.applied_before,
            step=0 if run is None else run.state.step,
            first_step_at=self._meters.first_push_at,
            display=display,
            figures=figures,
            says=says,
        )

    def watch(self) -> None:
        """Never returns: who waits for it is told when this process ends."""
        threading.Event().wait()


def _pooler(job: Job, task: WorkerTask) -> RemotePooler | None:
    """The way to its embedding worker; None where it pools itself."""
    from satrap.pooling import Plan, RemotePooler

    if task.pooler is None:
        return None
    index, address = task.pooler
    return RemotePooler(
        Plan.of(job),
        address,
        index=index,
        client=task.rank,
        placement=task.placement.epoch,
        keys=worker_keys(task.security, task.rank),
        insecure=task.security.insecure,
        # Longer than it waits for a server itself, so that who is to blame is named.
        deadline_s=2 * task.server_deadline_s,
    )


def worker_keys(security: Security, rank: int) -> Any:
    """The keys of a worker; None without any. Worker 0 saves and restores, which an admin may."""
    from satrap.ps import load_client_keys

    if security.keys is None:
        return None
    return load_client_keys(Path(security.keys) / ("admin.key" if rank == 0 else "worker.key"))


def _warm() -> None:
    """Imports torch and all that trains while the driver is still starting others."""
    import satrap.launch.relay
    import satrap.train.trainer  # noqa: F401
