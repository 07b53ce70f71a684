"""The commands that make a cluster on Google Cloud, and those that take it away again. Printed, never run."""

from __future__ import annotations

import shlex

from satrap.deploy.groups import Pods, pods_of
from satrap.deploy.pods import bucket_of, object_name
from satrap.errors import JobError
from satrap.plan.cluster import Cluster, Google, Prices, price_of
from satrap.schema import Job

KUBERAY, KUEUE = "1.5.1", "0.14.4"
"""Versions of the charts; KubeRay from 1.5.1 on knows Ray's tokens."""


def gcloud_script(job: Job, cluster: Cluster, prices: Prices | None = None, *, down: bool = False) -> str:
    """A shell script that makes network, cluster, node pools, bucket and permissions, or with `down` removes them.

    Raises JobError for a cluster that is not on Google Cloud.
    """
    google = cluster.google
    if google is None:
        raise JobError(f"cluster {cluster.name}: `google` is missing: its project and zone")
    groups = pods_of(cluster, prices)
    lines = _down(job, cluster, google) if down else _up(job, cluster, google, groups)
    head = ["#!/usr/bin/env bash", *_costs(cluster, groups, prices), "set -euo pipefail", ""]
    return "\n".join([*head, *lines]) + "\n"


def _costs(cluster: Cluster, groups: dict[str, Pods], prices: Prices | None) -> list[str]:
    lines = [f"# {cluster.name}: machines and what they cost an hour while they run."]
    total = 0.0
    for name, pods in groups.items():
        if not pods.kind:
            continue
        cost = pods.count * price_of(pods.machine, spot=pods.spot)
        total += cost
        spot = " (spot)" if pods.spot else ""
        lines.append(f"#   {name:<8} {pods.count:>4} x {pods.kind}{spot}: {cost:,.2f}")
    unit = f"{prices.currency}, prices of {prices.date}, {prices.region}" if prices else "no price list was given"
    lines.append(f"#   together {total:,.2f} an hour ({unit}); disks, network and the control plane not included.")
    return lines


def _command(*words: str) -> str:
    """One command, an option a line."""
    lines = [shlex.quote(w) if not w.startswith("$") else w for w in words]
    out, line = [], lines[0]
    for word in lines[1:]:
        if word.startswith("--"):
            out.append(line)
            line = f"  {word}"
        else:
            line += f" {word}"
    return " \\\n".join([*out, line])


def _up(job: Job, cluster: Cluster, google: Google, groups: dict[str, Pods]) -> list[str]:
    region = google.zone.rpartition("-")[0]
    bucket, k8s = bucket_of(cluster), cluster.kubernetes
    where = (f"--project={google.project}", f"--zone={google.zone}")
    lines = ["# Services"]
    services = ("compute.googleapis.com", "container.googleapis.com", "storage.googleapis.com")
    lines.append(_command("gcloud", "services", "enable", *services, f"--project={google.project}"))
    if google.network != "default":
        lines += ["", "# A network of its own, for large packets"]
        lines.append(
            _command(
                "gcloud", "compute", "networks", "create", google.network, f"--project={google.project}",
                "--subnet-mode=auto", "--mtu=8896",
            )
        )  # fmt: skip
    lines += ["", "# The cluster, with a small pool for system pods and the operators"]
    lines.append(
        _command(
            "gcloud", "container", "clusters", "create", cluster.name, *where, f"--network={google.network}",
            "--num-nodes=2", "--machine-type=e2-standard-4", "--release-channel=regular",
            f"--workload-pool={google.project}.svc.id.goog", "--addons=GcsFuseCsiDriver", "--enable-ip-alias",
            "--enable-dataplane-v2", "--enable-shielded-nodes", "--enable-managed-prometheus",
        )
    )  # fmt: skip
    for name, pods in groups.items():
        if pods.kind:
            lines += ["", f"# {name}", _pool(name, pods, cluster, where)]
    lines += ["", "# Where run folders are kept: folders are renamed at once only with a hierarchical namespace"]
    lines.append(
        _command(
            "gcloud", "storage", "buckets", "create", f"gs://{bucket}", f"--project={google.project}",
            f"--location={region}", "--uniform-bucket-level-access", "--enable-hierarchical-namespace",
            "--public-access-prevention",
        )
    )  # fmt: skip
    lines += ["", "# The job's pods, and nobody else, may read and write it"]
    lines.append(f'number="$(gcloud projects describe {shlex.quote(google.project)} --format="value(projectNumber)")"')
    principal = (
        f"principal://iam.googleapis.com/projects/${{number}}/locations/global/workloadIdentityPools/"
        f"{google.project}.svc.id.goog/subject/ns/{k8s.namespace}/sa/{object_name(job)}"
    )
    lines.append(
        f"gcloud storage buckets add-iam-policy-binding gs://{bucket} \\\n"
        f'  --member="{principal}" \\\n  --role=roles/storage.objectUser'
    )
    lines += ["", "# Operators, then the job"]
    lines.append(_command("gcloud", "container", "clusters", "get-credentials", cluster.name, *where))
    lines += _operators(cluster)
    if k8s.keys_secret:
        lines += ["", "# Keys of servers and workers: made here, kept in a Secret, in no file that is rendered"]
        lines.append("satrap keys new keys")
        lines.append(f"kubectl create namespace {k8s.namespace} --dry-run=client -o yaml | kubectl apply -f -")
        lines.append(f"kubectl create secret generic {k8s.keys_secret} -n {k8s.namespace} --from-file=keys/")
    lines += ["", "kubectl apply -f deploy/"]
    return lines


def _operators(cluster: Cluster) -> list[str]:
    lines = [
        "helm repo add kuberay https://ray-project.github.io/kuberay-helm/",
        _command(
            "helm", "upgrade", "kuberay-operator", "kuberay/kuberay-operator", "--install", f"--version={KUBERAY}",
            "--namespace=kuberay-operator", "--create-namespace",
        ),
    ]  # fmt: skip
    if cluster.kubernetes.queue:
        lines.append(
            _command(
                "helm", "upgrade", "kueue", "oci://registry.k8s.io/kueue/charts/kueue", "--install",
                f"--version={KUEUE}", "--namespace=kueue-system", "--create-namespace", "--wait",
            )
        )  # fmt: skip
    return lines


def _pool(name: str, pods: Pods, cluster: Cluster, where: tuple[str, str]) -> str:
    """A node pool. Servers and workers of a job stand near each other, where the provider can do that."""
    assert cluster.google is not None
    words = [
        "gcloud", "container", "node-pools", "create", name, *where, f"--cluster={cluster.name}",
        f"--machine-type={pods.kind}", f"--num-nodes={pods.count}",
        f"--node-taints={cluster.kubernetes.taint}={name}:NoSchedule", f"--node-labels=satrap.dev/role={name}",
        "--enable-autoscaling", "--min-nodes=0", f"--max-nodes={pods.count}",
        "--workload-metadata=GKE_METADATA", "--enable-gvnic",
    ]  # fmt: skip
    if pods.machine.gpus:
        words.append(f"--accelerator=type={pods.machine.gpu},count={pods.machine.gpus},gpu-driver-version=latest")
    if pods.spot:
        words.append("--spot")
    if cluster.google.compact and name == "workers" and pods.machine.gpus and pods.count > 1:
        words.append("--placement-type=COMPACT")
    return _command(*words)


def _down(job: Job, cluster: Cluster, google: Google) -> list[str]:
    """The other way round. The bucket, which holds the models, is left to a last command that has to be uncommented."""
    where = (f"--project={google.project}", f"--zone={google.zone}")
    bucket = bucket_of(cluster)
    lines = [
        "# The job, if it still runs",
        f"kubectl delete rayjob {object_name(job)} -n {cluster.kubernetes.namespace} --ignore-not-found || true",
        "",
        "# All machines",
        _command("gcloud", "container", "clusters", "delete", cluster.name, *where, "--quiet"),
    ]
    if google.network != "default":
        lines += ["", "# The network"]
        lines.append(
            _command(
                "gcloud", "compute", "networks", "delete", google.network, f"--project={google.project}", "--quiet"
            )
        )
    lines += [
        "",
        f"# The bucket, with every checkpoint in it. This cannot be undone:\n# gcloud storage rm --recursive gs://{bucket}",
        f'echo "left: gs://{bucket}; its checkpoints cost money until you remove it"',
    ]
    return lines
