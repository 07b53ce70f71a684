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

from satrap.calibrate.children import ServerChild
from satrap.plan.cluster import Machine
from satrap.plan.constants import Constants
from satrap.plan.costs import step_costs
from satrap.plan.simulation import one_machine, simulate
from satrap.plan.workload import workload_of
from satrap.ps import RemoteService
from satrap.ps.placement import Placement
from satrap.schema import Job, save_job
from satrap.train import Trainer

LEAST = 0.5
"""What is below is no property of a machine: something else ran meanwhile."""
SAMPLE_S = 0.05


def overlap(job: Job, constants: Constants, *, cores: int, steps: int) -> float:
    """The share of the cores that training on a server uses of what the simulation has it use; 1 for a job that was not
    measured.

    Threads that wait are woken late, and who is woken puts another one aside: of that the simulation knows nothing.
    """
    if constants.job is None:
        return 1.0
    here = Machine(cores=cores, memory_gib=1.0, network_gbit=1.0)
    costs = step_costs(workload_of(job, measured=constants.job), constants, servers=1, workers=1, worker=here)
    predicted = simulate(costs, one_machine(cores, servers=1), staleness=job.train.staleness)
    steps = min(steps, constants.job.samples // job.train.batch_size)
    return min(1.0, max(LEAST, cores_used(job, steps) / predicted.cores_used))


@dataclass
class _Used:
    """CPU-seconds so far of this process and a server's, by the clock."""

    child: ServerChild

    def __post_init__(self) -> None:
        self._ended = threading.Event()
        self.at: list[tuple[float, float]] = []
        self._thread = threading.Thread(target=self._run, name="satrap-used", daemon=True)
        self._thread.start()

    def _run(self) -> None:
        while not self._ended.wait(SAMPLE_S):
            self.at.append((time.time(), time.process_time() + self.child.cpu_s()))

    def stop(self) -> None:
        self._ended.set()
        self._thread.join()


def cores_used(job: Job, steps: int) -> float:
    """By so many steps of training on the CPU with one server, without the first third of them."""
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
                used = _Used(child)
                try:
                    Trainer(job, run_dir=run, service=service, progress=False, plots=False).fit()
                finally:
                    used.stop()
        lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    logged = [x for x in lines if x["kind"] == "train"]
    first = next(x for x in logged if x["step"] >= logged[-1]["step"] / 3)["time"]
    last = logged[-1]["time"]
    times, spent = np.array(used.at).T
    begun, ended = (float(np.interp(t, times, spent)) for t in (first, last))
    return (ended - begun) / float(last - first)
