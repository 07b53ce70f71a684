"""Where a job's processes land on a Ray cluster of the nodes that are rendered: asked of Ray's own state."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from rendered_clusters import cluster, job, prices

from satrap.deploy.groups import Pods, pods_of, ray_start
from satrap.launch.placing import MEMORY, POOLING, Node, place


@pytest.fixture(scope="module")
def nodes() -> Iterator[list[tuple[str, Node]]]:
    """(group, node) of a Ray that thinks it has a small share of the original's machines: raylets on this one."""
    ray = pytest.importorskip("ray")
    from ray.cluster_utils import Cluster as RayCluster

    groups = pods_of(cluster("persia"), prices())
    few = {"servers": 3, "workers": 2, "readers": 2}
    ray_cluster = RayCluster(initialize_head=True, head_node_args=_node(groups["head"]))
    try:
        names = {}
        for name, count in few.items():
            for _ in range(count):
                names[ray_cluster.add_node(**_node(groups[name])).node_id] = name
        ray.init(address=ray_cluster.address, logging_level="ERROR")
        ray_cluster.wait_for_nodes()
        yield [(names.get(n["NodeID"], "head"), _seen(n)) for n in ray.nodes() if n["Alive"]]
    finally:
        ray.shutdown()
        ray_cluster.shutdown()


def _node(pods: Pods) -> dict[str, Any]:
    """What `ray start` with the rendered options offers, cores and GPUs as the pod has them."""
    options = ray_start(pods)
    resources = json.loads(json.loads(options["resources"])) if "resources" in options else {}
    return {
        "num_cpus": int(options["num-cpus"]),
        "num_gpus": pods.machine.gpus,
        "resources": resources,
        "memory": pods.memory_gib << 30,
        "object_store_memory": 80 << 20,
        "include_dashboard": False,
    }


def _seen(n: dict[str, Any]) -> Node:
    """As `satrap.launch.session` reads it."""
    has = n["Resources"]
    return Node(
        id=n["NodeID"],
        ip=n["NodeManagerAddress"],
        cpus=has.get("CPU", 0.0),
        gpus=has.get("GPU", 0.0),
        memory_bytes=has.get("memory", 0.0),
        for_servers=MEMORY in has,
        for_pooling=POOLING in has,
    )


@pytest.mark.slow
def test_servers_land_on_high_memory_nodes_and_workers_on_gpus(nodes: list[tuple[str, Node]]) -> None:
    # Bug: a server takes the memory and cores of a GPU machine while machines that were rented for it stand idle.
    group = {n.id: name for name, n in nodes}
    assert sorted(group.values()).count("servers") == 3
    places = place([n for _, n in nodes], servers=6, workers=16, embedding_workers=4)
    assert [group[n.id] for n in places.embedding_workers] == ["readers"] * 4
    assert [group[n.id] for n in places.servers] == ["servers"] * 6
    assert [group[n.id] for n in places.workers] == ["workers"] * 16
    assert {sum(w.id == n.id for w in places.workers) for n in places.workers} == {8}


@pytest.mark.slow
def test_ray_itself_starts_actors_where_they_were_placed(nodes: list[tuple[str, Node]]) -> None:
    # Bug: the affinity is soft, or a resource is misspelled, and Ray puts the actor elsewhere.
    import ray
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

    @ray.remote(num_cpus=1)
    class Where:
        def node(self) -> str:
            return str(ray.get_runtime_context().get_node_id())

    places = place([n for _, n in nodes], servers=3, workers=2)
    for node in (*places.servers, *places.workers):
        actor = Where.options(scheduling_strategy=NodeAffinitySchedulingStrategy(node.id, soft=False)).remote()  # type: ignore[attr-defined]
        assert ray.get(actor.node.remote(), timeout=120) == node.id


def test_where_there_are_no_gpus_workers_leave_the_memory_to_servers() -> None:
    small = [
        Node(id="m", ip="10.0.0.1", cpus=14, memory_bytes=2**40, for_servers=True),
        Node(id="c", ip="10.0.0.2", cpus=14, memory_bytes=2**36),
        Node(id="p", ip="10.0.0.3", cpus=30, memory_bytes=2**37, for_pooling=True),
    ]
    places = place(small, servers=2, workers=2, embedding_workers=2)
    assert {n.id for n in places.servers} == {"m"}
    assert {n.id for n in places.workers} == {"c"}
    assert {n.id for n in places.embedding_workers} == {"p"}


def test_without_nodes_for_servers_they_leave_those_for_pooling_alone() -> None:
    nodes = [
        Node(id="g", ip="10.0.0.1", cpus=12, gpus=1),
        Node(id="c", ip="10.0.0.2", cpus=14),
        Node(id="p", ip="10.0.0.3", cpus=30, for_pooling=True),
    ]
    places = place(nodes, servers=2, workers=1, embedding_workers=1)
    assert {n.id for n in places.servers} == {"c"}
    assert {n.id for n in places.embedding_workers} == {"p"}


@pytest.mark.slow
def test_processes_of_a_job_are_where_rays_own_state_says_servers_readers_and_gpus_are(
    nodes: list[tuple[str, Node]],
) -> None:
    # Bug: what was placed and what Ray did are two things, as where an actor's affinity is soft.
    import ray
    from ray._private.state import actors

    from satrap.launch.fleet import Fleet
    from satrap.launch.session import Session
    from satrap.launch.told import Security

    group = {n.id: name for name, n in nodes}
    session = Session(ray, private=False, start_s=0.0)
    fleet = Fleet.start(session, job("persia"), 4, 2, Security(insecure=True), embedding_workers=2)
    kinds = {"ServerProcess": "servers", "EmbeddingProcess": "readers", "WorkerProcess": "workers"}
    try:
        deadline = time.monotonic() + 240
        while True:
            found = [a for a in actors().values() if a["ActorClassName"] in kinds]
            if len(found) == 8 and all(a["State"] == "ALIVE" for a in found):
                break
            assert time.monotonic() < deadline, found
            time.sleep(0.2)
        landed = sorted((kinds[a["ActorClassName"]], group[a["Address"]["NodeID"]]) for a in found)
        assert landed == [("readers", "readers")] * 2 + [("servers", "servers")] * 4 + [("workers", "workers")] * 2
        # Spread: no machine has two servers while another has none.
        assert len({a["Address"]["NodeID"] for a in found if a["ActorClassName"] == "ServerProcess"}) == 3
    finally:
        for m in fleet.members:
            fleet.end(m)


NODES = st.lists(
    st.builds(
        Node,
        id=st.uuids().map(str),
        ip=st.just("10.0.0.1"),
        cpus=st.integers(0, 64).map(float),
        gpus=st.sampled_from([0.0, 0.0, 1.0, 8.0]),
        memory_bytes=st.integers(0, 1 << 44).map(float),
        for_servers=st.booleans(),
        for_pooling=st.booleans(),
    ),
    min_size=1,
    max_size=8,
)


@given(NODES, st.integers(1, 12), st.integers(1, 12))
def test_servers_are_never_on_gpus_while_there_are_nodes_for_them_or_others_without(
    nodes: list[Node], servers: int, workers: int
) -> None:
    # Whatever the cluster, and so whatever is left of it when machines have been lost.
    chosen = place(nodes, servers, workers).servers
    assert len(chosen) == servers
    if any(n.for_servers for n in nodes):
        assert all(n.for_servers for n in chosen)
    elif any(not n.gpus for n in nodes):
        assert not any(n.gpus for n in chosen)
