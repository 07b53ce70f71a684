"""Fields of KubeRay's v1 API by name and type, as far as satrap writes them: no package on PyPI carries its schemas.

A type is a Python type, a list of one, or another of these tables. `POD` is a PodTemplateSpec of Kubernetes, which is
validated as such. Kueue's v1beta1 and the Prometheus operator's PodMonitor likewise.
"""

from __future__ import annotations

from typing import Any

POD, TEXTS = "PodTemplateSpec", "map of strings"
Fields = dict[str, Any]
"""Name → type; a name that ends in ! must be there."""

HEAD: Fields = {"serviceType": str, "rayStartParams!": TEXTS, "template!": POD}
WORKERS: Fields = {
    "groupName!": str,
    "replicas": int,
    "minReplicas!": int,
    "maxReplicas!": int,
    "numOfHosts": int,
    "idleTimeoutSeconds": int,
    "rayStartParams!": TEXTS,
    "template!": POD,
}
RAY_CLUSTER: Fields = {
    "rayVersion": str,
    "authOptions": {"mode": str},
    "enableInTreeAutoscaling": bool,
    "autoscalerOptions": {"idleTimeoutSeconds": int, "upscalingMode": str},
    "suspend": bool,
    "headGroupSpec!": HEAD,
    "workerGroupSpecs": [WORKERS],
}
META: Fields = {"name!": str, "namespace": str, "labels": TEXTS, "annotations": TEXTS}
KINDS: dict[tuple[str, str], Fields] = {
    ("ray.io/v1", "RayJob"): {
        "activeDeadlineSeconds": int,
        "backoffLimit": int,
        "entrypoint": str,
        "submissionMode": str,
        "shutdownAfterJobFinishes": bool,
        "ttlSecondsAfterFinished": int,
        "suspend": bool,
        "rayClusterSpec": RAY_CLUSTER,
    },
    ("kueue.x-k8s.io/v1beta1", "ResourceFlavor"): {"nodeLabels": TEXTS},
    ("kueue.x-k8s.io/v1beta1", "LocalQueue"): {"clusterQueue!": str},
    ("kueue.x-k8s.io/v1beta1", "ClusterQueue"): {
        "namespaceSelector": {"matchLabels": TEXTS},
        "resourceGroups!": [
            {
                "coveredResources!": [str],
                "flavors!": [{"name!": str, "resources!": [{"name!": str, "nominalQuota!": (int, str)}]}],
            }
        ],
    },
    ("monitoring.coreos.com/v1", "PodMonitor"): {
        "selector!": {"matchLabels": TEXTS},
        "podTargetLabels": [str],
        "podMetricsEndpoints!": [{"port": str, "path": str, "interval": str}],
    },
}


def problems(value: Any, kind: Any, where: str, pods: list[Any]) -> list[str]:
    """What does not fit; pod templates on the way are collected."""
    if kind == POD:
        pods.append(value)
        return []
    if kind == TEXTS:
        kind = None if isinstance(value, dict) and all(isinstance(x, str) for x in value.values()) else dict[str, str]
        return [] if kind is None else [f"{where}: not strings: {value!r}"]
    if isinstance(kind, list):
        if not isinstance(value, list):
            return [f"{where}: no list"]
        return [p for i, x in enumerate(value) for p in problems(x, kind[0], f"{where}[{i}]", pods)]
    if isinstance(kind, dict):
        names = {n.rstrip("!"): t for n, t in kind.items()}
        missing = [f"{where}.{n[:-1]}: missing" for n in kind if n.endswith("!") and n[:-1] not in value]
        unknown = [f"{where}.{n}: no such field" for n in value if n not in names]
        inside = [p for n, x in value.items() if n in names for p in problems(x, names[n], f"{where}.{n}", pods)]
        return missing + unknown + inside
    fits = isinstance(value, kind) and (kind is bool or not isinstance(value, bool))
    return [] if fits else [f"{where}: {value!r} is no {kind}"]
