"""`python -m benchmarks plan`: what `satrap plan` predicts of this machine, held to what it does.

The job of `benchmarks train` (the full model, staleness 8) is calibrated as `satrap calibrate` does it. Its samples a
second and CPU-seconds are predicted for one worker and one or two servers, all on this machine, by a plan as a user
makes it (`one_machine`), and measured: every process of its own, in turns. `off` is predicted / measured - 1, of the
medians; the goal is 0.1 either way.
"""

from __future__ import annotations

import argparse
import math
import statistics
import tempfile
from functools import partial
from pathlib import Path
from typing import Any

from benchmarks.harness import describe, emit, quietest, wait_until_quiet
from benchmarks.synthetic import Dataset, default_data_dir, ensure
from benchmarks.train_servers import FULL, QUICK, SMOKE, Entry, Shape, _job_arguments, _write_job, run_processes
from satrap.calibrate import calibrate
from satrap.observe.machine import cores_available, memory_bytes
from satrap.plan import Cluster, Constants, make_plan, workload_of
from satrap.plan.cluster import Machine, cluster_from_dict
from satrap.schema import Job, load_job
from satrap.schema.strict import plain

SERVERS = (1, 2)
STALENESS = 8


def main(argv: list[str]) -> int:
    """Calibrates, predicts, measures; prints JSON lines, the headline last."""
    parser = argparse.ArgumentParser(
        prog="benchmarks plan", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--smoke", action="store_true", help="tiny sizes, to see that it runs")
    parser.add_argument("--quick", action="store_true", help="runs of 20 instead of 40 seconds")
    parser.add_argument("--rounds", type=int, default=None, help="default 3, with --smoke 1")
    parser.add_argument("--repeats", type=int, default=2, help="how often a noisy run is repeated, at most")
    parser.add_argument("--wait-quiet-s", type=float, default=0.0, help="wait so long for others to be quiet")
    parser.add_argument("--data-dir", type=Path, default=default_data_dir())
    options = parser.parse_args(argv)
    options.rounds = options.rounds or (1 if options.smoke else 3)
    options.repeats = 0 if options.smoke else options.repeats
    shape = SMOKE if options.smoke else QUICK if options.quick else FULL
    data = ensure(options.data_dir, shape.sizes)
    entry = Entry("deep", "fp32", staleness=STALENESS)
    emit(benchmark="plan", machine=describe(), rounds=options.rounds, batch=shape.batch, staleness=STALENESS)

    job, constants = measured(entry, data, shape, options)
    predicted = {n: prediction(job, constants, n) for n in SERVERS}
    for n, figures in predicted.items():
        emit(servers=n, predicted=figures)
    found: dict[int, list[dict[str, float]]] = {n: [] for n in SERVERS}
    for r in range(options.rounds):
        for n in SERVERS[:: -1 if r % 2 else 1]:
            options.servers = n
            run = quietest(partial(run_processes, entry, data, options, shape), options)
            found[n].append(
                {
                    "samples_per_s": run["samples_per_s"],
                    "worker_cpu_s_per_million": run["cpu_by_role"]["workers"],
                    "servers_cpu_s_per_million": run["cpu_by_role"]["servers"],
                    "cpu_s_per_million": run["cpu_s_per_million"],
                    "other_cores": run["other_cores"],
                }
            )
            emit(round=r, servers=n, **found[n][-1])
    off = {}
    for n in SERVERS:
        medians = {k: statistics.median(x[k] for x in found[n]) for k in found[n][0]}
        off[n] = {k: predicted[n][k] / medians[k] - 1 for k in predicted[n] if k in medians}
        emit(median_of=len(found[n]), servers=n, **medians, off=off[n])
    noise = max(x["other_cores"] for rounds in found.values() for x in rounds)
    emit(
        headline="plan", off={n: x["samples_per_s"] for n, x in off.items()}, other_cores_max=noise,
        within_a_tenth=all(abs(x["samples_per_s"]) <= 0.1 for x in off.values()), commit=describe()["commit"],
    )  # fmt: skip
    return 0


def measured(entry: Entry, data: Dataset, shape: Shape, options: argparse.Namespace) -> tuple[Job, Constants]:
    """The job that is run, and what this machine and the job cost."""
    with tempfile.TemporaryDirectory() as folder:
        job = load_job(_write_job(Path(folder), _job_arguments(entry, data, shape)))
        wait_until_quiet(options.wait_quiet_s)
        return job, calibrate(job, folder=Path(folder), quick=options.smoke, say=lambda text: None)


def here(servers: int) -> Cluster:
    """This machine with so many servers and a worker, as a cluster file describes it."""
    # No link is in the way of loopback: what it costs is CPU time, which calibration measures.
    machine = Machine(cores=cores_available(), memory_gib=memory_bytes() / 2**30, network_gbit=math.inf)
    return cluster_from_dict(
        {
            "name": "here",
            "one_machine": True,
            "servers": {"machine": "here", "processes": servers},
            "workers": {"machine": "here", "processes": 1},
            "machines": {"here": plain(machine)},
        }
    )


def prediction(job: Job, constants: Constants, servers: int) -> dict[str, Any]:
    """What `satrap plan` says of one worker and so many servers, all on this machine; CPU-seconds a million samples."""
    plan = make_plan(workload_of(job, measured=constants.job), here(servers), constants)
    worker = plan.costs.worker / plan.costs.samples * 1e6
    return {
        "samples_per_s": plan.simulated.samples_per_s,
        "worker_cpu_s_per_million": worker,
        "servers_cpu_s_per_million": plan.server_core_s_per_million,
        "cpu_s_per_million": worker + plan.server_core_s_per_million,
        "bottleneck": plan.simulated.bottleneck,
    }
