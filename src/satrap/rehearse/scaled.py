"""A cluster in small: how many nodes of each group there are here, and what each offers to Ray."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping
from dataclasses import dataclass

import msgspec

from satrap.deploy.groups import Pods, pods_of, ray_start
from satrap.plan.cluster import Cluster, Prices

MOST: Mapping[str, int] = {"servers": 3, "workers": 2, "readers": 1}
"""Nodes of a group, where nothing else is asked for."""
OBJECT_STORE_BYTES = 80 << 20
"""About the least that Ray takes."""
MEMORY_BYTES = 1 << 30
"""What a node tells Ray of its memory: the same for all."""
LEAST_MBIT = 10.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Spec:
    """A node to be started."""

    name: str
    """`servers-0`"""
    group: str
    options: tuple[str, ...]
    """Of `ray start`."""
    rate_mbit: float
    """Of what leaves it, 10^6 bits a second."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Small:
    """What is rehearsed."""

    whole: Mapping[str, Pods]
    """The groups as they would be deployed, the head first."""
    groups: Mapping[str, Pods]
    """The same groups here."""
    nodes: tuple[Spec, ...]
    """The head first."""


def scaled(cluster: Cluster, prices: Prices | None, most: Mapping[str, int] = MOST, link_share: float = 0.01) -> Small:
    """At most so many nodes of each group, a process each. A node with GPUs offers one. Cores are offered for all
    processes of the job, so that those of a lost node find room on another.

    `link_share`: of the machines' links. Pure. Raises JobError as `satrap.deploy` does.
    """
    whole = pods_of(cluster, prices)
    counts = {n: min(p.count, most.get(n, p.count)) for n, p in whole.items()}
    cores = sum(n for name, n in counts.items() if name != "head")
    groups = {name: _small(pods, counts[name], cores) for name, pods in whole.items()}
    nodes = [
        Spec(
            name=name if name == "head" else f"{name}-{i}",
            group=name,
            options=_options(pods),
            rate_mbit=max(LEAST_MBIT, 1000 * pods.machine.network_gbit * link_share),
        )
        for name, pods in groups.items()
        for i in range(pods.count)
    ]
    return Small(whole=whole, groups=groups, nodes=tuple(nodes))


def _small(pods: Pods, count: int, cores: int) -> Pods:
    machine = msgspec.structs.replace(pods.machine, gpus=min(pods.machine.gpus, 1))
    return dataclasses.replace(pods, count=count, machine=machine, processes=1, cores=cores, memory_gib=1)


def _options(pods: Pods) -> tuple[str, ...]:
    """What the rendered node has, but for its sizes and its dashboard."""
    rendered = ray_start(pods)
    words = [f"--num-cpus={rendered['num-cpus']}", f"--memory={MEMORY_BYTES}"]
    words += [f"--object-store-memory={OBJECT_STORE_BYTES}", f"--num-gpus={pods.machine.gpus}"]
    if "resources" in rendered:
        words.append(f"--resources={json.loads(rendered['resources'])}")  # quoted for the shell that KubeRay has
    return tuple(words)
