"""From measured constants to the CPU-seconds and bytes of one step on a cluster.

B samples of a step, W workers, S servers, U distinct ids of one worker's batch of B / W samples.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

from satrap.errors import JobError
from satrap.plan.cluster import Machine
from satrap.plan.constants import Constants, JobCost, LegCost
from satrap.plan.layout import VALUE_BYTES, state_floats
from satrap.plan.network import Legs, legs
from satrap.plan.workload import TableLoad, Workload

GROWN = 4.0
"""A table of so many times the rows that finding a row was measured with is taken to lie outside the caches."""
NS, US = 1e-9, 1e-6


@dataclass(frozen=True, slots=True)
class Dense:
    """The network, of a step."""

    cpu_s: float = 0.0
    """0 where a GPU does it."""
    threads: float = 1.0
    gpu_s: float = 0.0
    """By the clock, of one GPU."""
    parts: int = 1
    """Computed side by side, each by one thread: who has done its last part waits for the others."""
    alone_s: float = 0.0
    """Of `cpu_s`, what one thread does when all parts have ended."""

    def times(self, factor: float) -> Dense:
        """Of so much more on the CPU."""
        return replace(self, cpu_s=factor * self.cpu_s, alone_s=factor * self.alone_s)


@dataclass(frozen=True, slots=True)
class StepCosts:
    """Of one worker's step, in CPU-seconds of the measured machine; what servers do is for all servers together."""

    samples: float
    rows: float
    """U, over all tables."""
    read: float
    prepare: float
    pull_client: float
    """Asking, receiving, decoding, without pooling."""
    pull_server: float
    pool: float
    dense: Dense
    beside: float
    """Of a step, in the main thread."""
    unpool: float
    push_client: float
    push_server: float
    legs: Legs

    @property
    def server(self) -> float:
        """CPU-seconds of servers."""
        return self.pull_server + self.push_server

    @property
    def worker(self) -> float:
        """CPU-seconds of a worker, reading included."""
        return self.read + self.engine + self.dense.cpu_s + self.beside

    @property
    def engine(self) -> float:
        """CPU-seconds of who looks up, dense network and reading aside."""
        return self.prepare + self.pull_client + self.pool + self.unpool + self.push_client


def step_costs(
    workload: Workload,
    constants: Constants,
    *,
    servers: int,
    workers: int,
    worker: Machine,
    pooling: bool = False,
    threads: int | None = None,
) -> StepCosts:
    """Costs of a step. `threads` of the dense network on the CPU; None: as measured.

    Raises JobError for a network of the user's own on a GPU or unmeasured: nothing tells what it costs.
    """
    samples = workload.batch_size / workers
    unique = {t.name: t.unique(samples) for t in workload.tables}
    rows = sum(unique.values())
    job, wire = constants.job, constants.wire
    lookup, update = _store_costs(workload, constants, unique, samples)
    leg = legs(workload, samples=samples, servers=servers, workers=workers, pooling=pooling)
    # The rows' own size against that of the measurement: what a byte more costs, on each side.
    more = max(-0.5 * wire.bytes_per_row, leg.pull_reply / max(rows, 1.0) + 8 - wire.bytes_per_row) * wire.byte_ns * NS
    per_sample = _engine_costs(job, workload, constants)
    measured = job is not None and job.name == workload.name and not worker.gpus
    mine, theirs = (job.worker_together, job.servers_together) if measured and job is not None else (1.0, 1.0)

    def moved(cost: LegCost) -> float:
        message, table, row = cost.message_us, cost.table_us, cost.row_ns
        if servers > 1:
            message, table, row = cost.divided_message_us, cost.divided_table_us, cost.divided_row_ns
        return max(0.0, servers * (message + table * len(workload.tables)) * US + rows * (row * NS + more))

    return StepCosts(
        samples=samples,
        rows=rows,
        read=mine * samples * per_sample["read"],
        prepare=mine * samples * per_sample["prepare"],
        pull_client=mine * moved(wire.pull_client),
        pull_server=theirs * (lookup + moved(wire.pull_server)),
        pool=mine * samples * per_sample["pool"],
        dense=_dense(workload, constants, worker, samples, threads).times(mine),
        beside=mine * (job.step_us * job.batch_size if job else 500.0) * US,
        unpool=mine * samples * per_sample["unpool"],
        push_client=mine * moved(wire.push_client),
        push_server=theirs * (update + moved(wire.push_server)),
        legs=leg,
    )


def _store_costs(
    workload: Workload, constants: Constants, unique: dict[str, float], samples: float
) -> tuple[float, float]:
    """CPU-seconds of finding and of updating the rows of a batch."""
    job = constants.job
    if job is not None and all(0 < t.rows <= GROWN * t.rows_measured for t in workload.tables):
        measured = sum(t.measured_unique or 0.0 for t in workload.tables)
        share = sum(unique.values()) / measured
        return job.pull_us * job.batch_size * share * US, job.push_us * job.batch_size * share * US
    lookup = update = 0.0
    for t in workload.tables:
        cost = constants.row_cost(t.dim, t.row_format)
        lookup += unique[t.name] * cost.lookup_ns * NS
        update += unique[t.name] * cost.update_ns * _state_factor(t) * NS
    return lookup, update


def _state_factor(table: TableLoad) -> float:
    """Memory that an update touches, against row-wise Adagrad's."""
    values = table.dim * VALUE_BYTES[table.row_format]
    return (values + 4 * state_floats(table.optimizer, table.dim)) / (values + 4)


def _engine_costs(job: JobCost | None, workload: Workload, constants: Constants) -> dict[str, float]:
    """Seconds a sample, by stage. Without a measured job: by the number of ids and values, at the rates of one that was
    measured on such a machine (2.4 GHz, Zen 4): 15 ns an id and 0.25 ns a value."""
    if job is not None and job.name == workload.name:
        return {k: getattr(job, f"{k}_us") * US for k in ("read", "prepare", "pool", "unpool")}
    ids, values = workload.ids_per_sample, float(workload.columns)
    return {
        "read": (10 * ids + 40) * NS,
        "prepare": 15 * ids * NS,
        "pool": (5 * ids + 0.25 * values) * NS,
        "unpool": (5 * ids + 0.4 * values) * NS,
    }


def _dense(workload: Workload, constants: Constants, worker: Machine, samples: float, threads: int | None) -> Dense:
    job = constants.job
    if worker.gpus:
        if workload.dense_parameters is None:
            raise JobError(
                "the job's network is its own, so its cost on a GPU is not known: give --constants of "
                "`satrap calibrate JOB.YAML`, which counts its parameters"
            )
        return Dense(gpu_s=samples * workload.dense_flop / (worker.gpu_tflops * 1e12))
    if job is not None and job.name == workload.name:
        return _measured_dense(job, samples, threads)
    if workload.dense_parameters is None:
        raise JobError(
            "the job's network is its own, so its cost is not known: give --constants of `satrap calibrate JOB.YAML`, "
            "which measures it"
        )
    # About 40 GFLOP/s a core in fp32 is what small layers reach.
    return Dense(samples * workload.dense_flop / 40e9, float(threads or math.ceil(worker.cores)))


def _measured_dense(job: JobCost, samples: float, threads: int | None) -> Dense:
    cpu_s, wall_s = samples * job.dense_us * US, samples * job.dense_wall_us * US
    if job.dense_parts == 1 or job.dense_threads == 1:
        parallel = cpu_s / wall_s
        if threads is not None:
            parallel = min(parallel, float(threads)) if threads < job.dense_threads else parallel
        return Dense(cpu_s, max(1.0, parallel))
    # n parts on T threads take n / T rounds: wall = rounds x part + alone, cpu = n x part + alone.
    rounds = math.ceil(job.dense_parts / job.dense_threads)
    part_s = min(max(0.0, cpu_s - wall_s) / (job.dense_parts - rounds), cpu_s / job.dense_parts)
    pool = job.dense_threads if threads is None else min(threads, job.dense_threads)
    parts = max(1, round(job.dense_parts * samples / job.batch_size))
    return Dense(cpu_s, float(pool), parts=parts, alone_s=cpu_s - job.dense_parts * part_s)
