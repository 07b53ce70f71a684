"""From a job to a trained model, on servers and workers."""

from __future__ import annotations

import shutil
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

from satrap.errors import LaunchError
from satrap.launch.display import Display
from satrap.launch.driver import Driver
from satrap.launch.fleet import LOOPBACK, Fleet
from satrap.launch.session import session
from satrap.launch.told import Metrics, Security
from satrap.observe.processes import plural
from satrap.schema import Job
from satrap.train.folder import fresh_run_dir
from satrap.train.interrupt import Interrupts

if TYPE_CHECKING:
    from satrap.train.results import Result


def run(
    job: Job,
    *,
    servers: int = 1,
    workers: int = 1,
    embedding_workers: int = 0,
    address: str | None = None,
    run_dir: str | Path | None = None,
    resume: bool = False,
    keys: str | Path | None = None,
    insecure: bool = False,
    restarts: int = 3,
    server_deadline_s: float = 30.0,
    metrics_host: str = LOOPBACK,
    metrics_port: int = 0,
    progress: bool | None = None,
    plots: bool = True,
    profile: bool = False,
    debug: bool = False,
    check: Callable[[], object] | None = None,
    asked_at: float | None = None,
) -> Result:
    """Trains a job with S servers, W workers and N embedding workers, each a process; the job is the one that trains
    in one process.

    Ctrl-C and SIGTERM, in the main thread: all workers stop at the same step and one checkpoint is saved. When a
    process ends by itself, it is replaced and all go back to the last checkpoint. Nothing outlives the caller.

    Args:
        job: what to train. Its files must be reachable from every machine that runs a worker.
        servers, workers: how many. embedding_workers: processes that look batches up for the workers, so that these
            receive pooled vectors alone; worker r asks number r mod N. 0: workers do it themselves.
        address: of a Ray cluster (`HOST:PORT`, or `auto` on one of its machines). None: the Ray that this process is
            connected to, else a private one on this machine.
        run_dir: None: runs/<job>-<time>. The machine of worker 0 must reach it. resume: goes on from its newest
            checkpoint.
        keys: folder of key files, the same on every machine. insecure: other machines may reach servers without keys.
        restarts: how often the run may go back to a checkpoint because a process has ended; and how many servers may
            come back in place, with what they had acknowledged, where `store.durability` lets them.
        server_deadline_s: how long a server may not answer before it is taken for dead and replaced.
        metrics_host: address at which every process serves its metrics. metrics_port: the first of a machine, the next
            free one of its second process, and so on. 0: any.
        progress: False is silent; None: live on a terminal, lines elsewhere. plots, profile: as `Trainer` has
            them.
        debug: leaves Ray's own messages and logs in place.
        check: run beside the start of Ray; what it raises is raised before any process begins.
        asked_at: when the user asked for this, in seconds since 1970, for the time to the first step. None: now.

    Raises:
        LaunchError: Ray is missing or not there, or processes ended too often.
        SatrapError: what a worker or a server raised.
    """
    asked_at = time.time() if asked_at is None else asked_at
    for name, n in (("servers", servers), ("workers", workers)):
        if n < 1:
            raise LaunchError(f"{name} must be 1 or more, got {n}")
    if not 0 <= embedding_workers <= workers:
        raise LaunchError(
            f"embedding_workers must be 0 to {workers}, got {embedding_workers}: each serves one worker or more, and "
            "each worker asks one"
        )
    if restarts < 0:
        raise LaunchError(f"restarts must be 0 or more, got {restarts}")
    if not server_deadline_s > 0:
        raise LaunchError(f"server_deadline_s must be above 0, got {server_deadline_s:g}")
    if servers > job.store.partitions:
        raise LaunchError(
            f"{servers} servers for {job.store.partitions} partitions: some would own nothing; set store.partitions "
            f"to {1 << (servers - 1).bit_length()} or more, or start fewer servers"
        )
    folder = Path(run_dir if run_dir is not None else fresh_run_dir(job)).absolute()
    security = Security(keys=None if keys is None else Path(keys).absolute(), insecure=insecure)
    checking = None if check is None else _Beside(check)
    with session(address, servers + workers + embedding_workers, debug=debug) as s:
        fleet = Fleet.start(
            s,
            job,
            servers,
            workers,
            security,
            embedding_workers=embedding_workers,
            metrics=Metrics(host=metrics_host, port=metrics_port),
            server_deadline_s=server_deadline_s,
        )
        if job.store.durability != "none":
            fleet.history = folder / "history"
        with Display(progress) as display, Interrupts(display.say) as interrupts:
            driver = Driver(fleet, folder, display, interrupts, restarts, plots, profile, asked_at)
            try:
                if checking is not None:
                    checking.join()
                where = "this machine" if s.private else f"the cluster at {address}"
                pooling = f", {plural(embedding_workers, 'embedding worker')}" if embedding_workers else ""
                display.say(f"{plural(servers, 'server')}{pooling} and {plural(workers, 'worker')} on {where}")
                if not fleet.places.one_machine:
                    display.say(fleet.places.told)
                result = driver.run(resume=resume)
            finally:
                driver.close()
            if fleet.history is not None and result.unsaved is None:
                # The last checkpoint has all of it.
                shutil.rmtree(fleet.history, ignore_errors=True)
            return result


class _Beside:
    """Runs something in a thread; `join` waits for it and raises what it raised."""

    def __init__(self, work: Callable[[], object]) -> None:
        self._work = work
        self._error: BaseException | None = None
        self._thread = threading.Thread(target=self._run, name="satrap-check", daemon=True)
        self._thread.start()

    def _run(self) -> None:
        try:
            self._work()
        except BaseException as e:
            self._error = e

    def join(self) -> None:
        self._thread.join()
        if self._error is not None:
            raise self._error
