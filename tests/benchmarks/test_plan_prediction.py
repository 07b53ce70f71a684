"""`benchmarks plan` tests what a user is told: its prediction is that of `satrap plan`."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest
from msgspec.structs import replace
from typer.testing import CliRunner

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from benchmarks.plan import here, prediction

from satrap.cli import app
from satrap.observe.machine import cores_available, memory_bytes
from satrap.plan import Constants, load_cluster, load_constants, save_constants
from satrap.plan.constants import JobCost, TableSeen
from satrap.schema import MLP, Categorical, Data, Job, Label, Numeric, Train, save_job
from satrap.schema.files import to_yaml
from satrap.schema.strict import plain

CONSTANTS = Path(__file__).resolve().parents[2] / "deploy" / "constants.yaml"
JOB = Job(
    name="clicks",
    data=Data(train=("a.parquet",), label=(Label(column="y"),)),
    features=(Categorical(name="user"), Categorical(name="item"), Numeric(name="price")),
    model=MLP(hidden=(32,)),
    train=Train(batch_size=1024, staleness=8),
)
STAGES = ("read_us", "prepare_us", "pull_us", "pool_us", "step_us", "unpool_us", "push_us")


def constants() -> Constants:
    """As calibration leaves them: stages that cost more together, on cores that are never all busy."""
    cost = JobCost(
        name=JOB.name,
        batch_size=1024,
        samples=10**6,
        dense_us=8.0,
        dense_wall_us=5.0,
        dense_threads=2,
        dense_parts=4,
        dense_parameters=10**5,
        overlap=0.9,
        worker_together=1.1,
        servers_together=1.3,
        tables=tuple(
            TableSeen(name=n, ids_per_sample=1, unique_per_batch=500, rows_seen=1000) for n in ("user", "item")
        ),
        **dict.fromkeys(STAGES, 1.0),
    )
    return replace(load_constants(CONSTANTS), job=cost)


@pytest.mark.parametrize("servers", [1, 2])
def test_the_prediction_is_what_satrap_plan_says_of_the_same_files(servers: int, tmp_path: Path) -> None:
    # Bug: the benchmark holds formulas of its own to the machine, and a user's plan is another.
    job, cluster, known = (tmp_path / f"{n}.yaml" for n in ("job", "cluster", "constants"))
    save_job(JOB, job)
    cluster.write_text(to_yaml(plain(here(servers))))
    save_constants(constants(), known)
    words = ["plan", str(job), "--cluster", str(cluster), "--constants", str(known), "--json"]
    said = CliRunner().invoke(app, words, prog_name="satrap")
    assert said.exit_code == 0, said.output
    told, predicted = json.loads(said.stdout), prediction(JOB, constants(), servers)
    assert predicted["samples_per_s"] == pytest.approx(told["samples_per_s"])
    assert predicted["servers_cpu_s_per_million"] == pytest.approx(told["server_core_s_per_million"])
    assert predicted["bottleneck"] == told["bottleneck"]
    assert told["machines"] == {"servers and workers": {"machine": "here", "count": 1, "spot": False}}
    assert told["servers"]["processes"] == servers


def test_the_cluster_is_this_machine_and_can_be_written_down(tmp_path: Path) -> None:
    path = tmp_path / "cluster.yaml"
    path.write_text(to_yaml(plain(here(2))))
    assert load_cluster(path) == here(2)
    machine = here(2).machines["here"]
    assert (machine.cores, machine.memory_gib) == (cores_available(), memory_bytes() / 2**30)
