"""The job trained for a little, on a server: what its threads reach together, against what their costs alone say."""

from __future__ import annotations

import json
import tempfile
import threading
import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from msgspec.structs import replace
from numpy.typing import NDArray

from satrap.calibrate.children import ServerChild
from satrap.plan.cluster import Machine
from satrap.plan.constants import Constants
from satrap.plan.costs import StepCosts, step_costs
from satrap.plan.simulation import Simulated, one_machine, simulate
from satrap.plan.workload import workload_of
from satrap.ps import RemoteService
from satrap.ps.placement import Placement
from satrap.schema import Job, save_job
from satrap.train import Trainer

FACTORS = 0.7, 2.0
"""What lies outside is no property of a machine: something else ran, then or while the stages were measured."""
LEAST = 0.5
"""Of the cores, for the same reason."""
SAMPLE_S = 0.05
RUN_S, RUN_STEPS = 20.0, 12
"""About how long the training takes at most; but so many steps."""


@dataclass(frozen=True, slots=True)
class Trained:
    """What a stretch of training on a server took."""

    worker_s: float
    """CPU-seconds a sample."""
    server_s: float
    cores: float
    """In use, by both."""


def together(job: Job, constants: Constants, *, cores: int, steps: int) -> Constants:
    """The constants with what training adds to the sum of its stages: caches and memory are shared, and threads that
    wait are woken late. Of a job that was measured by `stages_of`.
    """
    assert constants.job is not None
    here = Machine(cores=cores, memory_gib=1.0, network_gbit=1.0)

    def costs_of(known: Constants) -> StepCosts:
        return step_costs(workload_of(job, measured=known.job), known, servers=1, workers=1, worker=here)

    def simulated(known: Constants) -> Simulated:
        layout = one_machine(cores, servers=1, server_threads=job.store.threads)
        return simulate(costs_of(known), layout, staleness=job.train.staleness)

    affordable = max(RUN_STEPS, int(RUN_S / simulated(constants).step_s))
    found = trained(job, min(steps, affordable, constants.job.samples // job.train.batch_size))
    alone = costs_of(constants)
    worker, server = (
        float(np.clip(took / (predicted / alone.samples), *FACTORS))
        for took, predicted in ((found.worker_s, alone.worker), (found.server_s, alone.server))
    )
    measured = replace(constants.job, worker_together=worker, servers_together=server)
    constants = replace(constants, job=measured)
    used = found.cores / simulated(constants).cores_used
    return replace(constants, job=replace(measured, overlap=min(1.0, max(LEAST, used))))


class _Watch:
    """CPU-seconds so far of this process and of a server's, by the clock."""

    def __init__(self, child: ServerChild) -> None:
        self._child, self._ended = child, threading.Event()
        self.seen: list[tuple[float, float, float]] = []
        self._thread = threading.Thread(target=self._run, name="satrap-watch", daemon=True)
        self._thread.start()

    def _run(self) -> None:
        while not self._ended.wait(SAMPLE_S):
            self.seen.append((time.time(), time.process_time(), self._child.cpu_s()))

    def stop(self) -> None:
        self._ended.set()
        self._thread.join()


def trained(job: Job, steps: int) -> Trained:
    """So many steps of training on the CPU with one server; the first third of them does not count."""
    every = max(1, steps // 12)
    train = replace(
        job.train, max_steps=steps, epochs=1, early_stopping=None, eval_every_steps=None, log_every_steps=every,
        device="cpu", compile=False,
    )  # fmt: skip
    job = replace(job, data=replace(job.data, valid=0.0, test=()), train=train)
    with tempfile.TemporaryDirectory() as folder:
        path, run = Path(folder) / "job.yaml", Path(folder) / "run"
        save_job(job, path)
        with ServerChild(path, 0, job.store.threads or 0) as child:
            placement = Placement.even([child.address], job.store.partitions)
            with RemoteService(job.resolved_tables(), placement, seed=job.seed) as service:
                watch = _Watch(child)
                try:
                    Trainer(job, run_dir=run, service=service, progress=False, plots=False).fit()
                finally:
                    watch.stop()
        lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    logged = [x for x in lines if x["kind"] == "train"]
    first, last = next(x for x in logged if x["step"] >= logged[-1]["step"] / 3), logged[-1]
    times, mine, theirs = np.array(watch.seen).T

    def spent(of: NDArray[np.float64]) -> float:
        begun, ended = np.interp([first["time"], last["time"]], times, of)
        return float(ended - begun)

    samples = last["samples"] - first["samples"]
    cores = (spent(mine) + spent(theirs)) / max(last["time"] - first["time"], SAMPLE_S)
    return Trained(spent(mine) / samples, spent(theirs) / samples, cores)
