"""Pod templates and the RayJob that they make up."""

from __future__ import annotations

import shlex
from collections.abc import Mapping
from typing import Any

from satrap.deploy.groups import METRICS_PORT, NOTICE, PROCESSES_PORT, Pods, place, ray_start
from satrap.plan.cluster import Cluster
from satrap.schema import Job

Tree = dict[str, Any]

JOB_FOLDER, KEYS_FOLDER, RUNS = "/etc/satrap/job", "/etc/satrap/keys", "/runs"
USER = 10001
"""Of the image: not root."""
OPERATOR_NAMESPACE_PORTS = (6379, 8265, 10001)
LOSES_A_MACHINE_S = 25
"""Google gives a spot machine 30 seconds from the notice to its end."""
GRACE_S = 120
"""Of any other: what a server has goes to others in that time, if it can."""
ENDS_S = 5
"""Of these, for Ray to end in."""


def labels_of(job: Job, role: str | None = None) -> dict[str, str]:
    """Labels of the job's objects; with a role those of the group's pods."""
    labels = {"app.kubernetes.io/name": "satrap", "satrap.dev/job": object_name(job)}
    return labels if role is None else {**labels, "satrap.dev/role": role}


def object_name(job: Job) -> str:
    """The job's name as Kubernetes allows it.

    >>> from satrap.schema import Categorical, Data, Job, Label
    >>> data = Data(train=("a.csv",), label=(Label(column="y"),))
    >>> object_name(Job(name="Click model_2", data=data, features=(Categorical(name="u"),)))
    'click-model-2'
    """
    kept = "".join(c if c.isalnum() and c.isascii() else "-" for c in job.name.lower())
    return kept.strip("-")[:40].strip("-") or "job"


def train_words(
    groups: Mapping[str, Pods],
    cluster: Cluster,
    *,
    job_file: str,
    address: str,
    run_dir: str,
    keys: str,
    embedding_workers: bool,
) -> list[str]:
    """The command that trains on a Ray cluster of these groups."""
    servers, workers = groups["servers"], groups["workers"]
    words = ["satrap", "train", job_file, "--address", address]
    words += ["--servers", str(servers.count * servers.processes), "--workers", str(workers.count * workers.processes)]
    if cluster.pooling and embedding_workers:
        readers = groups["readers"]
        # Each worker asks one of them, so more than workers would stand idle, and launch refuses them.
        most = workers.count * workers.processes
        words += ["--embedding-workers", str(min(readers.count * readers.processes, most))]
    words += ["--run-dir", run_dir]
    if cluster.kubernetes.keys_secret:
        words += ["--keys", keys]
    elif sum(p.count for n, p in groups.items() if n != "head") > 1:
        words.append("--insecure")
    if cluster.kubernetes.monitoring != "none":
        words += ["--metrics-host", "0.0.0.0", "--metrics-port", str(PROCESSES_PORT)]
    return words


def entrypoint(job: Job, groups: Mapping[str, Pods], cluster: Cluster, *, embedding_workers: bool) -> str:
    """The command of the job, on the head."""
    words = train_words(
        groups,
        cluster,
        job_file=f"{JOB_FOLDER}/job.yaml",
        address="auto",
        run_dir=f"{RUNS}/{object_name(job)}",
        keys=KEYS_FOLDER,
        embedding_workers=embedding_workers,
    )
    return shlex.join(words)


def pod_template(pods: Pods, job: Job, cluster: Cluster) -> Tree:
    """The pod of a group."""
    k8s = cluster.kubernetes
    labels = labels_of(job, pods.name)
    annotations: dict[str, str] = {}
    if k8s.monitoring == "annotations":
        annotations = {
            "prometheus.io/scrape": "true",
            # One a pod is all that an annotation can name: its first process, of the head Ray itself.
            "prometheus.io/port": str(METRICS_PORT if pods.name == "head" else PROCESSES_PORT),
            "prometheus.io/path": "/metrics",
        }
    volumes, mounts = _volumes(job, cluster)
    if cluster.volume is None:
        annotations["gke-gcsfuse/volumes"] = "true"
    container: Tree = {
        "name": "ray",
        "image": k8s.gpu_image if pods.machine.gpus else k8s.image,
        "resources": {"requests": pods.requests, "limits": pods.requests},
        "ports": [{"name": "metrics", "containerPort": METRICS_PORT}, *_ports(pods)],
        "env": [{"name": name, "value": value} for name, value in _environment(pods).items()],
        "securityContext": {
            "allowPrivilegeEscalation": False,
            "capabilities": {"drop": ["ALL"]},
            "runAsNonRoot": True,
            "runAsUser": USER,
            "seccompProfile": {"type": "RuntimeDefault"},
        },
        "volumeMounts": mounts,
    }
    grace_s = LOSES_A_MACHINE_S if pods.spot else GRACE_S
    if pods.name != "head":
        # Before anything of the pod ends: what is on it goes elsewhere.
        words = ["satrap", "leave", "--within", str(grace_s - ENDS_S)]
        container["lifecycle"] = {"preStop": {"exec": {"command": words}}}
    spec: Tree = {
        "serviceAccountName": object_name(job),
        "automountServiceAccountToken": False,
        "terminationGracePeriodSeconds": grace_s,
        "securityContext": {"fsGroup": USER},
        **place(pods, cluster, labels),
        "containers": [container],
        "volumes": volumes,
    }
    metadata: Tree = {"labels": labels}
    if annotations:
        metadata["annotations"] = annotations
    return {"metadata": metadata, "spec": spec}


def _environment(pods: Pods) -> dict[str, str]:
    return {"RAY_USAGE_STATS_ENABLED": "0", **(NOTICE if pods.name == "head" else {})}


def _ports(pods: Pods) -> list[Tree]:
    if pods.name != "head":
        return [{"name": process_port(i), "containerPort": PROCESSES_PORT + i} for i in range(ports_of(pods))]
    names = dict(zip(OPERATOR_NAMESPACE_PORTS, ("gcs", "dashboard", "client"), strict=True))
    return [{"name": name, "containerPort": port} for port, name in names.items()]


def ports_of(pods: Pods) -> int:
    """Ports with metrics of satrap in a pod: of each process, and of one that comes from a lost machine."""
    return pods.processes + 1


def process_port(i: int) -> str:
    """Name of the port of a pod's process."""
    return f"satrap-{i}"


def _volumes(job: Job, cluster: Cluster) -> tuple[list[Tree], list[Tree]]:
    name, k8s = object_name(job), cluster.kubernetes
    volumes: list[Tree] = [
        {"name": "job", "configMap": {"name": name}},
        {"name": "shared-memory", "emptyDir": {"medium": "Memory", "sizeLimit": "1Gi"}},
        {"name": "scratch", "emptyDir": {}},
    ]
    mounts: list[Tree] = [
        {"name": "job", "mountPath": JOB_FOLDER, "readOnly": True},
        {"name": "shared-memory", "mountPath": "/dev/shm"},
        {"name": "scratch", "mountPath": "/tmp"},
        {"name": "runs", "mountPath": RUNS},
    ]
    if cluster.volume is not None:
        volumes.append({"name": "runs", "persistentVolumeClaim": {"claimName": f"{name}-runs"}})
    else:
        attributes = {"bucketName": bucket_of(cluster), "mountOptions": f"implicit-dirs,uid={USER},gid={USER}"}
        volumes.append(
            {"name": "runs", "csi": {"driver": "gcsfuse.csi.storage.gke.io", "volumeAttributes": attributes}}
        )
    if k8s.keys_secret:
        volumes.append({"name": "keys", "secret": {"secretName": k8s.keys_secret, "defaultMode": 0o440}})
        mounts.append({"name": "keys", "mountPath": KEYS_FOLDER, "readOnly": True})
    return volumes, mounts


def bucket_of(cluster: Cluster) -> str:
    """Name of the bucket for run folders."""
    assert cluster.google is not None
    return cluster.google.bucket or f"{cluster.google.project}-satrap"


def ray_job(job: Job, groups: dict[str, Pods], cluster: Cluster, *, embedding_workers: bool) -> Tree:
    """The RayJob."""
    k8s, name = cluster.kubernetes, object_name(job)
    labels = labels_of(job)
    if k8s.queue:
        labels = {**labels, "kueue.x-k8s.io/queue-name": k8s.queue}
    head = groups["head"]
    ray_cluster: Tree = {
        "rayVersion": k8s.ray_version,
        "authOptions": {"mode": "token"},
        "enableInTreeAutoscaling": k8s.autoscale,
        "headGroupSpec": {
            "rayStartParams": ray_start(head),
            "template": pod_template(head, job, cluster),
        },
        "workerGroupSpecs": [_worker_group(p, job, cluster) for n, p in groups.items() if n != "head"],
    }
    if k8s.autoscale:
        ray_cluster["autoscalerOptions"] = {"idleTimeoutSeconds": 600, "upscalingMode": "Conservative"}
    spec: Tree = {
        "entrypoint": entrypoint(job, groups, cluster, embedding_workers=embedding_workers),
        "submissionMode": "HTTPMode",
        "shutdownAfterJobFinishes": True,
        "ttlSecondsAfterFinished": 600,
        "backoffLimit": 0,
        "suspend": bool(k8s.queue),
        "rayClusterSpec": ray_cluster,
    }
    return {
        "apiVersion": "ray.io/v1",
        "kind": "RayJob",
        "metadata": {"name": name, "namespace": k8s.namespace, "labels": labels},
        "spec": spec,
    }


def _worker_group(pods: Pods, job: Job, cluster: Cluster) -> Tree:
    """Servers and workers are as many as the job says: rows and a group of workers do not grow by themselves."""
    least = 0 if cluster.kubernetes.autoscale and pods.name == "readers" else pods.count
    return {
        "groupName": pods.name,
        "replicas": pods.count,
        "minReplicas": least,
        "maxReplicas": pods.count,
        "rayStartParams": ray_start(pods),
        "template": pod_template(pods, job, cluster),
    }
