"""The price list of the repository, and that what is planned is what is paid for."""

from __future__ import annotations

import re

import pytest
from rendered_clusters import REPOSITORY, cluster, job

from satrap.deploy import gcloud_script
from satrap.deploy.groups import pods_of
from satrap.plan import load_constants, load_prices, make_plan, target
from satrap.plan.cluster import price_of, replaced

LISTED = load_prices(REPOSITORY / "deploy" / "prices" / "google-us-central1.yaml")


@pytest.mark.parametrize("name", ["gke-small", "persia", "gke-100t"])
def test_the_plan_and_the_script_that_makes_the_machines_name_the_same_cost(name: str) -> None:
    # Bug: one of them counts the head, or spot machines, in another way, and the bill is not what was planned.
    machines = cluster(name)
    plan = make_plan(
        target(1e9, dim=16, row_format="fp32"),
        machines,
        load_constants(REPOSITORY / "deploy" / "constants.yaml"),
        LISTED,
    )
    if machines.servers.count is None:
        chosen = next(g.count for g in plan.groups if g.name == "servers")
        machines = replaced(machines, servers=replaced(machines.servers, count=chosen))  # type: ignore[arg-type]
    script = gcloud_script(job(name), machines, LISTED)
    said = re.search(r"together ([\d,.]+) an hour", script)
    assert said is not None
    assert float(said[1].replace(",", "")) == pytest.approx(plan.dollars_per_hour, abs=0.01)
    assert LISTED.date in script


@pytest.mark.parametrize("name", ["gke-small", "persia", "gke-100t"])
def test_every_machine_of_a_cluster_has_a_price_as_it_is_rented(name: str) -> None:
    machines = cluster(name)
    if machines.servers.count is None:
        machines = replaced(machines, servers=replaced(machines.servers, count=1))  # type: ignore[arg-type]
    for pods in pods_of(machines, LISTED).values():
        if pods.kind:
            assert price_of(pods.machine, spot=pods.spot) > 0
            assert not pods.spot or pods.machine.spot_dollars_per_hour is not None


def test_the_list_is_dated_says_where_it_is_from_and_spot_is_never_dearer() -> None:
    assert re.fullmatch(r"\d{4}-\d\d(-\d\d)?", LISTED.date)
    assert LISTED.source
    for name, machine in LISTED.machines.items():
        assert machine.dollars_per_hour > 0, name
        spot = machine.spot_dollars_per_hour
        assert spot is None or spot < machine.dollars_per_hour, name
