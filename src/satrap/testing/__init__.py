"""Testing: a cluster in this process, and networks and disks as bad as they get.

Owns: servers and embedding workers in threads, the proxy that drops, repeats, reorders and delays messages by a seeded
plan, and the file layer that fails or dies at any operation. May import: pooling, ps, durable, schema, errors. Must
never: be imported by what runs in production.
"""

from satrap.testing.cluster import SOON, Cluster
from satrap.testing.embedding_workers import EmbeddingWorkers
from satrap.testing.proxy import FaultProxy, Faults

__all__ = ["SOON", "Cluster", "EmbeddingWorkers", "FaultProxy", "Faults"]
