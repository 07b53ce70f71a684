"""Groups of a cluster as pods: what they ask for, where they may run, what they offer to Ray."""

from __future__ import annotations

import json
import math
from dataclasses import dataclass
from typing import Any

from satrap.errors import JobError
from satrap.plan.cluster import Cluster, Group, Machine, Prices, machine_of

Tree = dict[str, Any]

MEMORY = "satrap_memory"
"""The Ray resource of nodes that servers prefer: `satrap.launch.placing` looks for it."""
POOLING = "satrap_pooling"
"""The same of nodes that embedding workers prefer."""
OBJECT_STORE_BYTES = 256 << 20
"""Nothing of a model passes through Ray's object store, and by itself it would take a third of the memory."""
HEAD = Machine(cores=2, memory_gib=8, network_gbit=1)
"""What the head asks for where the cluster names no machine for it."""
NOTICE = {
    "RAY_health_check_initial_delay_ms": "2000",
    "RAY_health_check_period_ms": "2000",
    "RAY_health_check_timeout_ms": "3000",
    "RAY_health_check_failure_threshold": "3",
}
"""Of the head's environment: Ray notices within about 15 seconds that a machine does not answer any more. By itself it
takes about a minute, longer than servers are waited for."""
METRICS_PORT = 8080
"""Where each Ray node serves its metrics."""
PROCESSES_PORT = 9300
"""Where the first process of satrap in a pod serves its own; the second at the next, and so on."""


@dataclass(frozen=True, slots=True)
class Pods:
    """A group as Kubernetes sees it."""

    name: str
    """head, servers, workers or readers."""
    machine: Machine
    kind: str
    """Name of the machine."""
    count: int
    spot: bool
    processes: int
    cores: int
    memory_gib: int

    @property
    def requests(self) -> Tree:
        """What a pod asks for."""
        wanted: Tree = {"cpu": str(self.cores), "memory": f"{self.memory_gib}Gi"}
        if self.machine.gpus:
            wanted["nvidia.com/gpu"] = str(self.machine.gpus)
        return wanted


def pods_of(cluster: Cluster, prices: Prices | None) -> dict[str, Pods]:
    """Every group, the head first. Raises JobError for machines that are not known, servers without a number,
    and one machine for all."""
    if cluster.one_machine:
        raise JobError(
            f"cluster {cluster.name}: one_machine: there is nothing to deploy; run `satrap train JOB.YAML --servers S "
            "--workers W` on the machine"
        )
    if cluster.servers.count is None:
        raise JobError(
            f"cluster {cluster.name}: servers.count is missing; `satrap plan` says how many the rows need, write it "
            "there"
        )
    out = {"head": _pods("head", cluster.head, cluster, prices)}
    for name, group in cluster.groups().items():
        out[name] = _pods(name, group, cluster, prices)
    if out["servers"].machine.gpus:
        raise JobError(
            f"cluster {cluster.name}: servers.machine: {cluster.servers.machine} has GPUs, which servers would keep "
            "from workers; choose a machine with memory alone"
        )
    return out


def _pods(name: str, group: Group | None, cluster: Cluster, prices: Prices | None) -> Pods:
    machine = HEAD if group is None else machine_of(group.machine, cluster, prices)
    # The default head is a pod among others, not a machine of its own.
    share = 1.0 if group is None else 1.0 - cluster.kubernetes.overhead
    return Pods(
        name=name,
        machine=machine,
        kind="" if group is None else group.machine,
        count=1 if group is None else group.count or 1,
        spot=False if group is None else group.spot,
        processes=(group.processes if group else None) or max(1, machine.gpus if name == "workers" else 1),
        cores=max(1, math.floor(machine.cores * share)),
        memory_gib=max(1, math.floor(machine.memory_gib * share)),
    )


def ray_start(pods: Pods) -> dict[str, str]:
    """Options of `ray start` on a node of the group. The head offers no cores: it is for the driver alone."""
    options = {"object-store-memory": str(OBJECT_STORE_BYTES), "metrics-export-port": str(METRICS_PORT)}
    if pods.name == "head":
        return {"dashboard-host": "0.0.0.0", "num-cpus": "0", **options}
    offered = {"servers": {MEMORY: 1}, "readers": {POOLING: 1}}.get(pods.name)
    if offered:
        # KubeRay hands it to a shell: a JSON text in JSON's own quotes.
        options["resources"] = json.dumps(json.dumps(offered))
    return {"num-cpus": str(pods.cores), **options}


def place(pods: Pods, cluster: Cluster, labels: dict[str, str]) -> Tree:
    """Where a pod of the group may run: selector, affinity, tolerations."""
    group_of = cluster.kubernetes
    selector = dict(group_of.node_labels.get(pods.name, {}))
    tolerations: list[Tree] = []
    if cluster.google is not None and pods.kind:
        selector["cloud.google.com/gke-nodepool"] = pods.name
        selector["topology.kubernetes.io/zone"] = cluster.google.zone
    if pods.kind:
        tolerations.append({"key": group_of.taint, "operator": "Equal", "value": pods.name, "effect": "NoSchedule"})
    if pods.machine.gpus:
        tolerations.append({"key": "nvidia.com/gpu", "operator": "Exists", "effect": "NoSchedule"})
    if pods.spot and cluster.google is not None:
        selector["cloud.google.com/gke-spot"] = "true"
        tolerations.append(
            {"key": "cloud.google.com/gke-spot", "operator": "Equal", "value": "true", "effect": "NoSchedule"}
        )
    out: Tree = {}
    if selector:
        out["nodeSelector"] = selector
    affinity = _affinity(pods, cluster, labels)
    if affinity:
        out["affinity"] = affinity
    if tolerations:
        out["tolerations"] = tolerations
    return out


def _affinity(pods: Pods, cluster: Cluster, labels: dict[str, str]) -> Tree:
    """Servers away from accelerators; one pod of a group a machine; all in one zone where the provider did not say."""
    out: Tree = {}
    if pods.name == "servers":
        absent = [
            {"key": key, "operator": "DoesNotExist"}
            for key in ("cloud.google.com/gke-accelerator", "nvidia.com/gpu.present")
        ]
        terms = [{"matchExpressions": absent}]
        out["nodeAffinity"] = {"requiredDuringSchedulingIgnoredDuringExecution": {"nodeSelectorTerms": terms}}
    own = {"labelSelector": {"matchLabels": labels}}
    if pods.count > 1:
        out["podAntiAffinity"] = {
            "requiredDuringSchedulingIgnoredDuringExecution": [{**own, "topologyKey": "kubernetes.io/hostname"}]
        }
    if cluster.google is None and pods.name != "head":
        job = {k: v for k, v in labels.items() if k != "satrap.dev/role"}
        near = {"labelSelector": {"matchLabels": job}, "topologyKey": "topology.kubernetes.io/zone"}
        out["podAffinity"] = {"requiredDuringSchedulingIgnoredDuringExecution": [near]}
    return out
