"""Which process runs on which machine: servers where there is memory, workers where there are GPUs, embedding workers
where there are cores for them, or else beside the servers."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from satrap.errors import LaunchError

MEMORY = "satrap_memory"
"""The custom resource, or label, of nodes that servers prefer: `ray start --resources '{"satrap_memory": 1}'`."""

POOLING = "satrap_pooling"
"""The same for nodes that embedding workers prefer."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Node:
    """A machine of the cluster."""

    id: str
    ip: str
    cpus: float
    gpus: float = 0.0
    memory_bytes: float = 0.0
    for_servers: bool = False
    """It has the resource or label `satrap_memory`."""
    for_pooling: bool = False
    """It has the resource or label `satrap_pooling`."""


@dataclass(frozen=True, slots=True)
class Places:
    """Server → node, worker → node, embedding worker → node."""

    servers: tuple[Node, ...]
    workers: tuple[Node, ...]
    embedding_workers: tuple[Node, ...] = ()

    @property
    def one_machine(self) -> bool:
        """Whether all of them share a machine, so that loopback is enough."""
        return len({n.id for n in self.all}) == 1

    @property
    def all(self) -> tuple[Node, ...]:
        """Of every process."""
        return (*self.servers, *self.workers, *self.embedding_workers)

    @property
    def told(self) -> str:
        """`servers on 10.0.0.2, 10.0.0.3; workers on 10.0.0.4 (2)`"""
        roles = {"servers": self.servers, "embedding workers": self.embedding_workers, "workers": self.workers}
        return "; ".join(f"{role} on {_where(nodes)}" for role, nodes in roles.items() if nodes)

    def shares(self, of: Sequence[Node], node: Node) -> int:
        """How many of some processes run on a node."""
        return sum(n.id == node.id for n in of)


def place(nodes: Sequence[Node], servers: int, workers: int, embedding_workers: int = 0) -> Places:
    """Spreads servers over the nodes made for servers, workers over those with GPUs, and embedding workers over those
    made for pooling; where there are none, servers and embedding workers over nodes without GPUs, workers over those
    that nobody else prefers, and where there are none of these over all. Embedding workers without nodes of their own
    go where servers go.

    The same nodes, in any order, give the same places. Raises LaunchError where there are no nodes.

    >>> gpu, memory = Node(id="a", ip="10.0.0.1", cpus=8, gpus=2), Node(id="b", ip="10.0.0.2", cpus=8, for_servers=True)
    >>> places = place([gpu, memory], servers=1, workers=2)
    >>> [n.id for n in places.servers], [n.id for n in places.workers]
    (['b'], ['a', 'a'])
    """
    if not nodes:
        raise LaunchError("the cluster has no nodes that are alive; see `ray status`")
    have = sorted(nodes, key=lambda n: n.id)
    for_servers = _first_of(
        have, lambda n: n.for_servers, lambda n: not n.gpus and not n.for_pooling, lambda n: not n.gpus
    )
    for_workers = _first_of(
        have, lambda n: n.gpus > 0, lambda n: not n.for_servers and not n.for_pooling, lambda n: not n.for_servers
    )
    for_pooling = [n for n in have if n.for_pooling] or for_servers
    return Places(
        _spread(for_servers, servers, lambda n: n.memory_bytes),
        _spread(for_workers, workers, lambda n: n.gpus or n.cpus),
        _spread(for_pooling, embedding_workers, lambda n: n.cpus),
    )


def _where(nodes: Sequence[Node]) -> str:
    counts = Counter(n.ip for n in nodes)
    return ", ".join(ip if n == 1 else f"{ip} ({n})" for ip, n in counts.items())


def _first_of(nodes: Sequence[Node], *wishes: Callable[[Node], bool]) -> list[Node]:
    return next((found for wish in wishes if (found := [n for n in nodes if wish(n)])), list(nodes))


def _spread(nodes: Sequence[Node], count: int, room: Callable[[Node], float]) -> tuple[Node, ...]:
    """Each process where, with it, there is the most room a process; neighbours in number are kept together."""
    given = [0] * len(nodes)
    for _ in range(count):
        best = max(range(len(nodes)), key=lambda i: (max(room(nodes[i]), 1e-9) / (given[i] + 1), -i))
        given[best] += 1
    return tuple(node for node, n in zip(nodes, given, strict=True) for _ in range(n))
