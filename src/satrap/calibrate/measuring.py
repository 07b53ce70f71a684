"""All measurements, one after the other, and the machine they are of."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec
import numpy as np

from satrap.calibrate.disks import disk_cost
from satrap.calibrate.rows import row_costs
from satrap.calibrate.running import together
from satrap.calibrate.stages import stages_of
from satrap.calibrate.wires import Ids, wire_cost, with_threads
from satrap.observe.machine import cores_available, describe
from satrap.plan.constants import Constants, MeasuredOn
from satrap.schema import Categorical, Data, Job, Label, Train

SYNTHETIC_FEATURES, SYNTHETIC_ROWS, SYNTHETIC_BATCH, SYNTHETIC_BATCHES = 26, 1_000_000, 4096, 24
WIRE_BATCHES = 24


def calibrate(
    job: Job | None,
    *,
    folder: Path,
    quick: bool = False,
    say: Callable[[str], None] = lambda text: None,
) -> Constants:
    """Measures this machine and, where there is one, a job on its training files; about a minute.

    `folder`: on the disk to be measured. `quick`: small sizes, for tests and to see that it runs; the figures are not
    worth keeping. `say` is told what is measured. Raises DataError, JobError and LaunchError.
    """
    stages = None
    if job is not None:
        if quick:
            job = msgspec.structs.replace(
                job, train=msgspec.structs.replace(job.train, batch_size=min(256, job.train.batch_size))
            )
        say(f"{job.name}: reading, lookup, network, update")
        stages = stages_of(job, cores=cores_available(), batches=12 if quick else 160)
    wired = with_threads(job or _synthetic(), 1)
    batches: list[Ids] = list(stages.ids[:WIRE_BATCHES]) if stages else _synthetic_ids(wired, quick)
    say("pulls and pushes over loopback, one server and two")
    wire = wire_cost(wired, batches, rounds=1 if quick else 4)
    say("rows in memory, by dim and format")
    rows = row_costs(table_bytes=4 << 20, dims=(16, 64), rounds=1) if quick else row_costs()
    say("the disk")
    disk = disk_cost(folder, size=8 << 20) if quick else disk_cost(folder)
    constants = Constants(
        machine=_machine(), rows=tuple(rows), wire=wire, disk=disk, job=None if stages is None else stages.cost
    )
    if job is None or stages is None:
        return constants
    say(f"{job.name}: training, all stages at once")
    return together(job, constants, cores=cores_available(), steps=12 if quick else 300)


def _machine() -> MeasuredOn:
    about: dict[str, Any] = describe()
    return MeasuredOn(
        date=time.strftime("%Y-%m-%d", time.gmtime()),
        cpu=str(about["cpu"]),
        cores=int(about["cores_available"]),
        memory_gib=round(about["memory_bytes"] / 2**30, 1),
        satrap=str(about["packages"]["satrap"]),
    )


def _synthetic() -> Job:
    """Tables as Criteo's, for the wire, where no job is given."""
    return Job(
        name="synthetic",
        data=Data(train=("none.parquet",), label=(Label(column="label"),)),
        features=tuple(Categorical(name=f"C{i + 1}") for i in range(SYNTHETIC_FEATURES)),
        train=Train(batch_size=SYNTHETIC_BATCH),
    )


def _synthetic_ids(job: Job, quick: bool) -> list[Ids]:
    rng = np.random.default_rng(5)
    batch = 256 if quick else SYNTHETIC_BATCH

    def ids() -> Any:
        ranks = np.exp(rng.random(batch) * np.log(SYNTHETIC_ROWS)).astype(np.uint64)
        return np.unique(ranks) * np.uint64(0x9E3779B97F4A7C15)

    return [{t.name: ids() for t in job.resolved_tables()} for _ in range(4 if quick else SYNTHETIC_BATCHES)]
