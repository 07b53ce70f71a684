"""Pooling: from a batch's ids to pooled vectors, and from their gradients to one push; here or in an embedding worker.

Owns: dedup → pull → pool, unpool → push, on numpy; embedding workers and their clients. May import: ps, store, wire,
data, schema, errors. Must never: import torch, know of a model, or decide when a batch is looked up or pushed.
"""

from satrap.pooling.local import LocalPooler
from satrap.pooling.plan import Plan
from satrap.pooling.protocol import Gradients, Pooled, Pooler, Pushed
from satrap.pooling.remote import RemotePooler
from satrap.pooling.worker import EmbeddingWorker

__all__ = ["EmbeddingWorker", "Gradients", "LocalPooler", "Plan", "Pooled", "Pooler", "Pushed", "RemotePooler"]
