"""What of a cluster is rehearsed: nodes, what they offer, links; and failures as they are written down."""

from __future__ import annotations

from pathlib import Path

import pytest

from satrap.errors import JobError
from satrap.launch.placing import MEMORY, POOLING
from satrap.plan import load_cluster, load_prices
from satrap.rehearse import Failure, failure_of
from satrap.rehearse.hosts import bucket
from satrap.rehearse.scaled import scaled

DEPLOY = Path(__file__).parents[2] / "deploy"
PRICES = load_prices(DEPLOY / "prices" / "google-us-central1.yaml")


def test_the_138_machines_are_three_two_and_one_with_what_each_group_is_for() -> None:
    small = scaled(load_cluster(DEPLOY / "clusters" / "persia.yaml"), PRICES)
    assert [s.name for s in small.nodes] == [
        "head", "servers-0", "servers-1", "servers-2", "workers-0", "workers-1", "readers-0",
    ]  # fmt: skip
    options = {s.group: " ".join(s.options) for s in small.nodes}
    assert f'--resources={{"{MEMORY}": 1}}' in options["servers"]
    assert f'--resources={{"{POOLING}": 1}}' in options["readers"]
    assert "--resources" not in options["head"] + options["workers"]
    assert {g: "--num-gpus=1" in o for g, o in options.items()} == {
        "head": False, "servers": False, "workers": True, "readers": False,
    }  # fmt: skip
    # Nothing of the job lands on the head; those of a lost node find room on any other.
    assert {g: next(w for w in o.split() if "num-cpus" in w) for g, o in options.items()} == {
        "head": "--num-cpus=0", "servers": "--num-cpus=6", "workers": "--num-cpus=6", "readers": "--num-cpus=6",
    }  # fmt: skip


def test_links_are_the_share_that_was_asked_for() -> None:
    small = scaled(load_cluster(DEPLOY / "clusters" / "persia.yaml"), PRICES, link_share=0.02)
    assert {s.group: s.rate_mbit for s in small.nodes} == {
        "head": 640.0, "servers": 640.0, "workers": 2000.0, "readers": 640.0,
    }  # fmt: skip
    # Bug: a bucket smaller than what leaves between two ticks, and the link never reaches its rate.
    words = bucket(2000.0)
    assert int(words[words.index("burst") + 1]) >= 2000e6 / 8 / 100


def test_a_small_cluster_stays_as_it_is() -> None:
    small = scaled(load_cluster(DEPLOY / "clusters" / "gke-small.yaml"), PRICES)
    assert [s.name for s in small.nodes] == ["head", "servers-0", "servers-1", "workers-0", "workers-1"]


def test_failures_say_which_machine_and_when() -> None:
    assert failure_of("servers.2@step:7") == Failure(group="servers", index=2, step=7)
    assert failure_of("worker@1.5s") == Failure(group="workers", seconds=1.5)
    assert failure_of("reader@step:1").node == "readers-0"


@pytest.mark.parametrize("text", ["server", "server@200", "head@step:3", "worker@-1s", "server.x@step:1", "@step:1"])
def test_others_are_refused_with_how_it_is_written(text: str) -> None:
    with pytest.raises(JobError, match="as server@step:200"):
        failure_of(text)
