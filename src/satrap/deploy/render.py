"""All files of a deployment: name → text."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import msgspec

from satrap.deploy.groups import METRICS_PORT, PROCESSES_PORT, Pods, pods_of
from satrap.deploy.pods import Tree, bucket_of, labels_of, object_name, ports_of, process_port, ray_job
from satrap.errors import JobError
from satrap.observe.endpoint import PORTS
from satrap.plan.cluster import Cluster, Prices
from satrap.schema import Job, job_to_dict
from satrap.schema.files import to_yaml

HEADER = "# Rendered by `satrap deploy render` from {job} and {cluster}; change those and render again.\n"
KUEUE, OPERATOR, MONITORING = "kueue.x-k8s.io/v1beta1", "kuberay-operator", "monitoring"
ROLE_OF_METRICS = "monitoring"


def render(
    job: Job, cluster: Cluster, prices: Prices | None = None, *, embedding_workers: bool = False
) -> dict[str, str]:
    """The manifests of a job on a cluster, by file name, in the order in which they are to be applied.

    `embedding_workers`: `satrap train` can be asked for them. Raises JobError where the two do not go together.
    """
    groups = pods_of(cluster, prices)
    check_machines(job, cluster, groups)
    _check_data(job)
    files: dict[str, list[Tree]] = {
        "00-namespace.yaml": _namespace(job, cluster),
        "10-job.yaml": [_config(job, cluster)],
        "20-storage.yaml": _storage(job, cluster),
        "30-network.yaml": _network(job, cluster),
        "40-disruption.yaml": _disruption(job, cluster, groups),
        "50-monitoring.yaml": _monitoring(job, cluster, groups),
        "60-rayjob.yaml": [ray_job(job, groups, cluster, embedding_workers=embedding_workers)],
        "admin-queues.yaml": _queues(cluster, groups),
    }
    header = HEADER.format(job=f"job {job.name}", cluster=f"cluster {cluster.name}")
    return {name: header + "---\n".join(to_yaml(t) for t in trees) for name, trees in files.items() if trees}


def check_machines(job: Job, cluster: Cluster, groups: Mapping[str, Pods]) -> None:
    """Raises JobError for a job that cannot run on these machines."""
    if cluster.volume is None and cluster.google is None:
        raise JobError(
            f"cluster {cluster.name}: nowhere to keep run folders; add `volume: {{size_gib: 100}}`, or `google` for a "
            "bucket"
        )
    if cluster.volume is None and job.store.durability != "none":
        raise JobError(
            f"{job.name}: store.durability: {job.store.durability}: a bucket keeps no journal, what is written "
            f"there is not there at once; give cluster {cluster.name} a `volume`, or set store.durability=none"
        )
    k8s = cluster.kubernetes
    pods = sum(p.count for p in groups.values()) - 1
    if pods > 2 and k8s.keys_secret is None:
        raise JobError(
            f"cluster {cluster.name}: kubernetes.keys_secret is missing: rows and gradients travel between {pods} "
            "machines; make keys with `satrap keys new DIR` and a Secret of them, and name it here"
        )
    if cluster.volume is not None and cluster.volume.access == "ReadWriteOnce" and pods > 2:
        raise JobError(
            f"cluster {cluster.name}: volume.access: ReadWriteOnce can be mounted on one machine, and there are {pods}"
        )
    servers = groups["servers"].count * groups["servers"].processes
    if servers > job.store.partitions:
        raise JobError(
            f"{job.name}: store.partitions: {job.store.partitions}, and there are {servers} servers, some of which "
            f"would own nothing; set store.partitions={1 << (servers - 1).bit_length()} or what `satrap plan` says"
        )


def _check_data(job: Job) -> None:
    given = job.data.valid if isinstance(job.data.valid, tuple) else ()
    local = [p for p in (*job.data.train, *given, *job.data.test) if "://" not in p and not p.startswith("/runs/")]
    if local:
        raise JobError(
            f"{job.name}: {local[0]} is a path of this machine, which pods do not see; put the data into a bucket "
            "(gs://…, s3://…) or on the volume (/runs/…), for example: satrap deploy render job.yaml "
            "data.train=gs://bucket/train"
        )


def _meta(job: Job, cluster: Cluster, name: str | None = None, **labels: str) -> Tree:
    return {
        "name": name or object_name(job),
        "namespace": cluster.kubernetes.namespace,
        "labels": {**labels_of(job), **labels},
    }


def _namespace(job: Job, cluster: Cluster) -> list[Tree]:
    name = cluster.kubernetes.namespace
    namespace = {
        "apiVersion": "v1",
        "kind": "Namespace",
        "metadata": {"name": name, "labels": {"pod-security.kubernetes.io/enforce": "baseline"}},
    }
    account: Tree = {"apiVersion": "v1", "kind": "ServiceAccount", "metadata": _meta(job, cluster)}
    account["automountServiceAccountToken"] = False
    return ([] if name == "default" else [namespace]) + [account]


def _config(job: Job, cluster: Cluster) -> Tree:
    data = {"job.yaml": to_yaml(job_to_dict(deployed(job, cluster)))}
    return {"apiVersion": "v1", "kind": "ConfigMap", "metadata": _meta(job, cluster), "data": data}


def deployed(job: Job, cluster: Cluster) -> Job:
    """The job that pods are given: its checkpoints go to the bucket, where the cluster has one and the job names none
    other. They go there directly: through a mounted folder they would take a detour over a file on the machine."""
    if cluster.google is None or job.train.checkpoint.folder is not None:
        return job
    kept = msgspec.structs.replace(job.train.checkpoint, folder=f"gs://{bucket_of(cluster)}/checkpoints")
    return msgspec.structs.replace(job, train=msgspec.structs.replace(job.train, checkpoint=kept))


def _storage(job: Job, cluster: Cluster) -> list[Tree]:
    """A claim; a bucket is mounted by the pods themselves."""
    volume = cluster.volume
    if volume is None:
        return []
    spec: Tree = {
        "accessModes": [volume.access],
        "resources": {"requests": {"storage": f"{volume.size_gib}Gi"}},
    }
    if volume.storage_class is not None:
        spec["storageClassName"] = volume.storage_class
    meta = _meta(job, cluster, f"{object_name(job)}-runs")
    return [{"apiVersion": "v1", "kind": "PersistentVolumeClaim", "metadata": meta, "spec": spec}]


def _network(job: Job, cluster: Cluster) -> list[Tree]:
    """Pods of the job talk to each other, on ports that are chosen as they start; from outside only the operator
    reaches the head, and Prometheus the metrics."""
    own = {"podSelector": {"matchLabels": labels_of(job)}}

    def named(namespace: str) -> Tree:
        return {"namespaceSelector": {"matchLabels": {"kubernetes.io/metadata.name": namespace}}}

    def policy(name: str, selector: dict[str, str], ingress: list[Tree], egress: list[Tree] | None = None) -> Tree:
        spec: Tree = {
            "podSelector": {"matchLabels": selector},
            "policyTypes": ["Ingress"] + (["Egress"] if egress is not None else []),
            "ingress": ingress,
        }
        if egress is not None:
            spec["egress"] = egress
        return {
            "apiVersion": "networking.k8s.io/v1",
            "kind": "NetworkPolicy",
            "metadata": _meta(job, cluster, f"{object_name(job)}-{name}"),
            "spec": spec,
        }

    dns = {"ports": [{"protocol": p, "port": 53} for p in ("UDP", "TCP")]}
    # Storage and, on Google, the metadata server that hands out its credentials.
    outside = {"ports": [{"protocol": "TCP", "port": p} for p in (443, 80, 988)]}
    out = [policy("inside", labels_of(job), [{"from": [own]}], [{"to": [own]}, dns, outside])]
    operator = {**named(OPERATOR), "podSelector": {"matchLabels": {"app.kubernetes.io/name": "kuberay-operator"}}}
    ports = [{"protocol": "TCP", "port": p} for p in (6379, 8265, 10001)]
    out.append(policy("operator", labels_of(job, "head"), [{"from": [operator], "ports": ports}]))
    if cluster.kubernetes.monitoring != "none":
        ports = [{"protocol": "TCP", "port": METRICS_PORT}]
        ports.append({"protocol": "TCP", "port": PROCESSES_PORT, "endPort": PROCESSES_PORT + PORTS - 1})
        scrape = {"from": [named(ROLE_OF_METRICS)], "ports": ports}
        out.append(policy("metrics", labels_of(job), [scrape]))
    return out


def _disruption(job: Job, cluster: Cluster, groups: dict[str, Pods]) -> list[Tree]:
    """No node is drained under a server, a worker or the head; of readers one at a time."""
    out = []
    for name in groups:
        out.append(
            {
                "apiVersion": "policy/v1",
                "kind": "PodDisruptionBudget",
                "metadata": _meta(job, cluster, f"{object_name(job)}-{name}"),
                "spec": {
                    "maxUnavailable": 1 if name == "readers" else 0,
                    "selector": {"matchLabels": labels_of(job, name)},
                },
            }
        )
    return out


def _monitoring(job: Job, cluster: Cluster, groups: Mapping[str, Pods]) -> list[Tree]:
    """Ray's own metrics, and those of each process that a pod may have; a port that a pod has not is left out."""
    if cluster.kubernetes.monitoring != "podmonitor":
        return []
    most = max(ports_of(p) for name, p in groups.items() if name != "head")
    names = ["metrics", *(process_port(i) for i in range(most))]
    spec = {
        "selector": {"matchLabels": labels_of(job)},
        "podTargetLabels": ["satrap.dev/job", "satrap.dev/role"],
        "podMetricsEndpoints": [{"port": port, "path": "/metrics", "interval": "15s"} for port in names],
    }
    return [
        {
            "apiVersion": "monitoring.coreos.com/v1",
            "kind": "PodMonitor",
            "metadata": _meta(job, cluster),
            "spec": spec,
        }
    ]


def _queues(cluster: Cluster, groups: dict[str, Pods]) -> list[Tree]:
    """Kueue's objects: a flavor for each group of machines, a queue with a quota for this job, all or nothing."""
    k8s = cluster.kubernetes
    if not k8s.queue:
        return []
    covered = ["cpu", "memory"] + (["nvidia.com/gpu"] if any(p.machine.gpus for p in groups.values()) else [])
    flavors: list[Tree] = []
    trees: list[Tree] = []
    for name, pods in groups.items():
        flavor = f"{k8s.queue}-{name}"
        selector: dict[str, str] = dict(k8s.node_labels.get(name, {}))
        if cluster.google is not None and pods.kind:
            selector["cloud.google.com/gke-nodepool"] = name
        spec: Tree = {"nodeLabels": selector} if selector else {}
        trees.append({"apiVersion": KUEUE, "kind": "ResourceFlavor", "metadata": {"name": flavor}, "spec": spec})
        quotas = [{"name": r, "nominalQuota": _quota(pods, r)} for r in covered]
        flavors.append({"name": flavor, "resources": quotas})
    queue: Tree = {
        "apiVersion": KUEUE,
        "kind": "ClusterQueue",
        "metadata": {"name": k8s.queue},
        "spec": {
            "namespaceSelector": {"matchLabels": {"kubernetes.io/metadata.name": k8s.namespace}},
            "resourceGroups": [{"coveredResources": covered, "flavors": flavors}],
        },
    }
    local: Tree = {
        "apiVersion": KUEUE,
        "kind": "LocalQueue",
        "metadata": {"name": k8s.queue, "namespace": k8s.namespace},
        "spec": {"clusterQueue": k8s.queue},
    }
    return [*trees, queue, local]


def _quota(pods: Pods, resource: str) -> Any:
    each: dict[str, int] = {"cpu": pods.cores, "memory": pods.memory_gib, "nvidia.com/gpu": pods.machine.gpus}
    total = each[resource] * pods.count
    return f"{total}Gi" if resource == "memory" else total


__all__ = ["bucket_of", "render"]
