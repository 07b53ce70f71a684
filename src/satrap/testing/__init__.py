"""Testing: a cluster in this process, and networks as bad as they get.

Owns: servers in threads, and the proxy that drops, repeats, reorders and delays messages by a seeded plan. May import:
ps, schema, errors. Must never: be imported by what runs in production.
"""

from satrap.testing.cluster import SOON, Cluster
from satrap.testing.proxy import FaultProxy, Faults

__all__ = ["SOON", "Cluster", "FaultProxy", "Faults"]
