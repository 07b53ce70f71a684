"""Embedding: from a batch's ids to tensors, and from their gradients to one push.

Owns: pooled vectors as tensors, their autograd, and the ledger of gradients. May import: pooling, ps, data, models (for
the names of tensors), schema, observe, errors. Must never: know of epochs, optimizers of the dense network, or files.
"""

from satrap.embedding.engine import EmbeddingEngine, Lookup, Prepared
from satrap.embedding.keyed_jagged import from_keyed_jagged, to_keyed_jagged
from satrap.embedding.ledger import Ledger

__all__ = ["EmbeddingEngine", "Ledger", "Lookup", "Prepared", "from_keyed_jagged", "to_keyed_jagged"]
