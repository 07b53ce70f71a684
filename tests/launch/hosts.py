"""Hosts of a network of their own, on one machine, with a Ray node of eight cores on each."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from satrap.rehearse.hosts import Host, why_not
from satrap.rehearse.hosts import Network as Nodes
from satrap.rehearse.scaled import Spec

RATE_MBIT = 200.0
"""Of what leaves a host."""


class Network(Nodes):
    """The first host is the head. A context manager."""

    def __init__(
        self, folder: Path, hosts: int = 2, memory: Sequence[int] = (0,), env: dict[str, str] | None = None
    ) -> None:
        """`memory`: the hosts, from 0, that are for servers."""
        offers = ("--num-cpus=8", "--object-store-memory=80000000")
        specs = [
            Spec(
                name=f"host-{i}",
                group="servers" if i in memory else "workers",
                options=(*offers, '--resources={"satrap_memory": 1}') if i in memory else offers,
                rate_mbit=RATE_MBIT,
            )
            for i in range(hosts)
        ]
        super().__init__(folder, specs, env)


__all__ = ["Host", "Network", "why_not"]
