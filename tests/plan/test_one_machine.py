"""Servers and workers on one machine: how a cluster file says so, and what is planned then."""

from __future__ import annotations

from typing import Any

import pytest
from msgspec.structs import replace
from tests_plan import constants, measured

from satrap.deploy.groups import pods_of
from satrap.errors import JobError
from satrap.plan import Cluster, Constants, Plan, Workload, make_plan, quantity, target, workload_of
from satrap.plan.cluster import cluster_from_dict
from satrap.plan.constants import TableSeen
from satrap.plan.simulation import one_machine, simulate
from satrap.schema import MLP, Categorical, Data, Job, Label, Store, Train

BOX = {"cores": 2, "memory_gib": 24, "network_gbit": 10, "dollars_per_hour": 3}


def box(**changes: Any) -> Cluster:
    tree = {
        "name": "box",
        "one_machine": True,
        "servers": {"machine": "box", "processes": 1},
        "workers": {"machine": "box"},
        "machines": {"box": BOX},
    }
    return cluster_from_dict({**tree, **changes})


def known(**changes: Any) -> Constants:
    """Of the job below, with as much work for the store as for the network."""
    seen = (TableSeen(name="user", ids_per_sample=1, unique_per_batch=500, rows_seen=1000),)
    return constants(measured("clicks", seen, **{"batch_size": 1024, "pull_us": 4.0, "push_us": 4.0, **changes}))


def workload(constants: Constants, *, store_threads: int | None = None, staleness: int = 4) -> Workload:
    job = Job(
        name="clicks",
        data=Data(train=("a.parquet",), label=(Label(column="y"),)),
        features=(Categorical(name="user"),),
        model=MLP(hidden=(32,)),
        train=Train(batch_size=1024, staleness=staleness),
        store=Store(threads=store_threads),
    )
    return workload_of(job, measured=constants.job)


def planned(cluster: Cluster, constants: Constants, **changes: Any) -> Plan:
    return make_plan(workload(constants, **changes), cluster, constants)


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        (
            {"servers": {"machine": "box", "count": 2}},
            "one_machine: servers.count: 2, and there is one machine; servers.processes are on it",
        ),
        (
            {"workers": {"machine": "box", "count": 3}},
            "one_machine: workers.count: 3, and there is one machine; workers.processes are on it",
        ),
        (
            {"workers": {"machine": "other"}},
            "one_machine: workers.machine: 'other', and servers are on a 'box'; name the same",
        ),
        (
            {"workers": {"machine": "box", "spot": True}},
            "one_machine: workers.spot: the machine holds the rows, which go with it when it is taken back",
        ),
        (
            {"readers": {"machine": "box"}},
            "one_machine: readers: would be machines beside it; leave readers out, or one_machine",
        ),
        (
            {"head": {"machine": "box"}},
            "one_machine: head: would be machines beside it; leave head out, or one_machine",
        ),
        (
            {"tiered": {"machine": "box"}},
            "one_machine: tiered: would be machines beside it; leave tiered out, or one_machine",
        ),
    ],
    ids=["servers", "workers", "kinds", "spot", "readers", "head", "tiered"],
)
def test_what_cannot_be_on_one_machine_is_refused(changes: dict[str, Any], says: str) -> None:
    with pytest.raises(JobError) as refused:
        box(**changes)
    assert str(refused.value) == says


def test_one_machine_is_not_deployed() -> None:
    # Bug: two machines are rented for what the plan has put on one.
    with pytest.raises(JobError) as refused:
        pods_of(box(), None)
    assert str(refused.value) == (
        "cluster box: one_machine: there is nothing to deploy; run `satrap train JOB.YAML --servers S --workers W` on "
        "the machine"
    )


def test_one_machine_is_paid_once_and_fails_as_one() -> None:
    plan = planned(box(), known())
    assert [(g.name, g.kind, g.count) for g in plan.groups] == [("servers and workers", "box", 1)]
    assert plan.dollars_per_hour == 3
    assert plan.safety.mtbf_s == 8760 * 3600
    assert plan.machines("workers") == 1


def test_rows_that_do_not_fit_into_one_machine_are_said() -> None:
    # Bug: more machines are counted than there are.
    plan = make_plan(target(quantity("1T"), dim=128, row_format="int8"), box(), constants())
    assert plan.servers.count == 1
    assert not plan.servers.fits
    assert any(n.endswith("plan without one_machine to have it chosen") for n in plan.notes)


@pytest.mark.parametrize("servers", [1, 2])
def test_a_store_has_as_many_threads_as_satrap_train_starts_it_with(servers: int) -> None:
    # Bug: of two cores that threads keep 0.9 busy, one server's store has one thread; calibration had two.
    constants = known(overlap=0.9)
    plan = planned(box(servers={"machine": "box", "processes": servers}), constants)
    layout = one_machine(2, servers=servers, reached=0.9)
    assert (layout.server_threads, layout.nodes[0].cores) == (2 // servers, 1.8)
    assert plan.simulated == simulate(plan.costs, layout, staleness=4, steps=60)


def test_the_job_says_how_many_threads_a_store_has() -> None:
    # At staleness 0 nothing else runs while rows are looked up.
    constants = known()
    one, two = (planned(box(), constants, store_threads=n, staleness=0).simulated.samples_per_s for n in (1, 2))
    own = planned(box(), constants, staleness=0).simulated.samples_per_s
    assert own == two > 1.1 * one


def test_cores_of_another_speed_train_as_much_faster() -> None:
    constants = known()
    slow = planned(box(), constants)
    fast = planned(box(machines={"box": {**BOX, "speed": 2}}), constants)
    assert fast.simulated.samples_per_s == pytest.approx(2 * slow.simulated.samples_per_s)


def test_threads_that_overlap_less_on_a_gpu_do_not_count() -> None:
    gpu = box(machines={"box": {**BOX, "gpus": 1, "gpu_tflops": 40}})
    whole = known()
    assert whole.job is not None
    less = replace(whole, job=replace(whole.job, overlap=0.5))
    assert planned(gpu, whole).simulated == planned(gpu, less).simulated
