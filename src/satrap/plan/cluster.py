"""Clusters and price lists: YAML files that the user edits, strict as a job.

A cluster says which machines a job gets for what; the price list says what a kind of machine is and costs. Both
`satrap plan` and `satrap deploy` read them.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

import msgspec

from satrap.errors import JobError, did_you_mean
from satrap.schema.base import Spec
from satrap.schema.files import read_as
from satrap.schema.strict import convert


class Machine(Spec, frozen=True, kw_only=True):
    """A kind of machine."""

    cores: float
    """Cores that run at once (a hyper-thread counts as the half that it is where `speed` says so)."""
    memory_gib: float
    network_gbit: float
    """Each way, 10^9 bits a second."""
    ssd_gib: float = 0.0
    """Local SSD that comes with it."""
    gpus: int = 0
    gpu: str = ""
    """Name of the accelerator, as the provider spells it."""
    gpu_tflops: float = 0.0
    """What one GPU reaches in practice on the dense network, 10^12 floating-point operations a second."""
    speed: float = 1.0
    """Of one of its cores, against a core of the machine that the constants were measured on."""
    disk_gib_s: float = 0.0
    """What its disks write a second, one behind the other. 0: as calibrated."""
    dollars_per_hour: float = 0.0
    spot_dollars_per_hour: float | None = None
    """As a machine that may be taken back at any time. None: not to be had."""


class Prices(Spec, frozen=True, kw_only=True):
    """A price list."""

    date: str
    """Of the prices: YYYY-MM or YYYY-MM-DD."""
    region: str
    currency: str = "USD"
    source: str
    """Where they are from, and how sure that is."""
    machines: dict[str, Machine]


class Group(Spec, frozen=True, kw_only=True):
    """Machines of one kind for one purpose."""

    machine: str
    """A kind of the price list, or of the cluster's own `machines`."""
    count: int | None = None
    """How many. None: as many servers as the rows need; workers and readers: 1."""
    processes: int | None = None
    """Satrap processes on each. None: workers one a GPU, servers as many as train fastest, everything else one."""
    spot: bool = False
    """Machines that may be taken back: only what can be lost without a row being lost."""


class Tiered(Spec, frozen=True, kw_only=True):
    """Servers that keep only the hottest rows in memory and the others on SSD."""

    machine: str
    hot: float = 0.1
    """Share of the rows that memory is for."""
    count: int | None = None


class Google(Spec, frozen=True, kw_only=True):
    """Where on Google Cloud. Nothing here is secret."""

    project: str
    zone: str
    network: str = "default"
    bucket: str | None = None
    """Name for a new bucket, for checkpoints. None: `<project>-satrap`."""
    compact: bool = True
    """Compact placement of GPU machines and servers, so that they stand near each other."""


class Volume(Spec, frozen=True, kw_only=True):
    """A persistent volume that all pods of the job mount, for run folders and checkpoints."""

    size_gib: int
    storage_class: str | None = None
    """None: the cluster's default. It must allow ReadWriteMany where there is more than one machine."""
    access: Literal["ReadWriteMany", "ReadWriteOnce"] = "ReadWriteMany"


class Kubernetes(Spec, frozen=True, kw_only=True):
    """How the job appears in Kubernetes."""

    namespace: str = "satrap"
    image: str = "satrap:0.1.0-cpu"
    """Of head, servers and readers, and of workers without a GPU."""
    gpu_image: str = "satrap:0.1.0-cuda"
    ray_version: str = "2.60.0"
    queue: str | None = None
    """Kueue's local queue, so that all pods start together or none. None: no gang scheduling."""
    keys_secret: str | None = None
    """Name of the Secret with the keys of `satrap keys new`; made by hand, never rendered. None: only on one node."""
    node_labels: dict[str, dict[str, str]] = msgspec.field(default_factory=dict)
    """Group → labels its nodes must have, where the provider does not give them by machine kind."""
    taint: str = "satrap.dev/role"
    """Key of the taint on nodes of a group, with the group as value; pods tolerate it."""
    autoscale: bool = False
    """Lets the Ray autoscaler start groups with fewer replicas; `autoscale_min` of readers at least."""
    monitoring: Literal["none", "annotations", "podmonitor"] = "annotations"
    """How Prometheus finds the pods. podmonitor needs the Prometheus operator."""
    overhead: float = 0.1
    """Share of a machine's cores and memory that is not asked for: the kubelet and its like need it."""


class Cluster(Spec, frozen=True, kw_only=True):
    """The machines of a job."""

    name: str
    one_machine: bool = False
    """Servers and workers are processes of one machine, in the list once and paid once, and share its cores and memory,
    as `satrap train --servers S --workers W` starts them. Its network is not used. To be planned; nothing to deploy."""
    servers: Group
    workers: Group
    readers: Group | None = None
    """Machines that read, decode and (`pooling`) look up for the workers. None: workers do it themselves."""
    pooling: bool = False
    """The readers' machines look up and pool for the workers, which receive pooled vectors only."""
    head: Group | None = None
    """Of Ray. None: a small pod beside the others."""
    tiered: Tiered | None = None
    """An alternative to `servers`, for comparison."""
    machines: dict[str, Machine] = msgspec.field(default_factory=dict)
    """Kinds beside those of the price list."""
    latency_us: float = 50.0
    """Of a message from machine to machine, one way."""
    memory_share: float = 0.92
    """Of a server's memory that rows may take. The rest: system, messages, checkpoints under way."""
    machine_mtbf_hours: float = 8760.0
    """Mean time between failures of one machine."""
    restart_s: float = 120.0
    """From the failure of a machine to the start of loading on another."""
    bucket_gib_s: float = 1.0
    """What one machine writes to or reads from the store of checkpoints."""
    google: Google | None = None
    kubernetes: Kubernetes = Kubernetes()
    volume: Volume | None = None
    """For run folders and checkpoints. None: the bucket."""

    def groups(self) -> dict[str, Group]:
        """Group → machines, servers first, without the head."""
        found = {"servers": self.servers, "workers": self.workers}
        return found if self.readers is None else {**found, "readers": self.readers}


def cluster_from_dict(tree: Any) -> Cluster:
    """A cluster from plain dicts and lists. Raises JobError with the dotted path of what is wrong."""
    if not isinstance(tree, dict):
        raise JobError("a cluster is a mapping with the keys name, servers, workers, …; see docs/capacity.md")
    cluster = convert(tree, Cluster, "")
    assert isinstance(cluster, Cluster)
    check_cluster(cluster)
    return cluster


def prices_from_dict(tree: Any) -> Prices:
    """A price list from plain dicts and lists. Raises JobError."""
    if not isinstance(tree, dict):
        raise JobError("a price list is a mapping with the keys date, region, source, machines")
    prices = convert(tree, Prices, "")
    assert isinstance(prices, Prices)
    for name, machine in prices.machines.items():
        _check_machine(f"machines.{name}", machine)
    return prices


def load_cluster(path: str | Path) -> Cluster:
    """Reads a cluster file. Raises JobError naming the file and the key."""
    return read_as(path, "cluster", cluster_from_dict)


def load_prices(path: str | Path) -> Prices:
    """Reads a price list. Raises JobError naming the file and the key."""
    return read_as(path, "price list", prices_from_dict)


def machine_of(kind: str, cluster: Cluster, prices: Prices | None) -> Machine:
    """The machine of that name. Raises JobError with the nearest name."""
    known: Mapping[str, Machine] = {**(prices.machines if prices else {}), **cluster.machines}
    if kind not in known:
        if prices is None:
            raise JobError(
                f"cluster {cluster.name}: what a machine '{kind}' is stands neither under 'machines' of the cluster "
                "nor in a price list, and none was given: --prices deploy/prices/….yaml"
            )
        raise JobError(f"cluster {cluster.name}: there is no machine '{kind}'; {did_you_mean(kind, known)}")
    return known[kind]


def price_of(machine: Machine, *, spot: bool) -> float:
    """Dollars an hour."""
    return machine.spot_dollars_per_hour or machine.dollars_per_hour if spot else machine.dollars_per_hour


def check_cluster(cluster: Cluster) -> None:
    """Raises JobError for what the types do not refuse."""
    if cluster.servers.spot:
        raise JobError(
            "servers.spot: servers hold the rows, and a machine that is taken back takes its rows along; "
            "use spot machines for readers and workers"
        )
    for name, group in cluster.groups().items():
        for key in ("count", "processes"):
            value = getattr(group, key)
            if value is not None and value < 1:
                raise JobError(f"{name}.{key}: {value}, at least 1")
    if cluster.pooling and cluster.readers is None:
        raise JobError("pooling: it is the readers' machines that look up and pool, and there are none; add readers")
    if cluster.one_machine:
        _check_one_machine(cluster)
    for name, machine in cluster.machines.items():
        _check_machine(f"machines.{name}", machine)
    ranges = {
        "memory_share": (cluster.memory_share, 0.05, 1.0),
        "kubernetes.overhead": (cluster.kubernetes.overhead, 0.0, 0.5),
        "tiered.hot": (cluster.tiered.hot if cluster.tiered else 0.1, 0.001, 1.0),
    }
    for key, (value, low, high) in ranges.items():
        if not low <= value <= high:
            raise JobError(f"{key}: {value:g}, must be from {low:g} to {high:g}")
    for key in ("machine_mtbf_hours", "bucket_gib_s"):
        if getattr(cluster, key) <= 0:
            raise JobError(f"{key}: {getattr(cluster, key):g}, must be above 0")
    unknown = set(cluster.kubernetes.node_labels) - {"servers", "workers", "readers", "head"}
    if unknown:
        raise JobError(
            f"kubernetes.node_labels.{min(unknown)}: no such group; there are servers, workers, readers, head"
        )


def _check_one_machine(cluster: Cluster) -> None:
    for name in ("servers", "workers"):
        count = getattr(cluster, name).count
        if count not in (None, 1):
            raise JobError(f"one_machine: {name}.count: {count}, and there is one machine; {name}.processes are on it")
    servers, workers = cluster.servers.machine, cluster.workers.machine
    if servers != workers:
        raise JobError(f"one_machine: workers.machine: '{workers}', and servers are on a '{servers}'; name the same")
    if cluster.workers.spot:
        raise JobError("one_machine: workers.spot: the machine holds the rows, which go with it when it is taken back")
    for name in ("readers", "head", "tiered"):
        if getattr(cluster, name) is not None:
            raise JobError(f"one_machine: {name}: would be machines beside it; leave {name} out, or one_machine")


def _check_machine(where: str, machine: Machine) -> None:
    for field in ("cores", "memory_gib", "network_gbit", "speed"):
        if getattr(machine, field) <= 0:
            raise JobError(f"{where}.{field}: {getattr(machine, field):g}, must be above 0")
    if machine.gpus and machine.gpu_tflops <= 0:
        raise JobError(f"{where}.gpu_tflops: what one of its {machine.gpus} GPUs reaches is missing")


def replaced(cluster: Cluster, **changes: Any) -> Cluster:
    """A changed copy."""
    return msgspec.structs.replace(cluster, **changes)
