"""Models: dense networks over named tensors.

Owns: `Named` and `Padded`, the form in which a model receives a batch; the built-in networks; loading a user's own.
May import: schema, observe, errors, torch. Must never: know of rows, ids, servers or readers.

Every model is an `nn.Module` with `forward(numeric: Named, embeddings: Named) -> logits [B, T]`. The built-in ones take
a sequence feature as the masked mean of its vectors; a network that wants the order is the user's own (`Custom`).
"""

from satrap.models.build import build
from satrap.models.inputs import Inputs
from satrap.models.named import Named, Padded

__all__ = ["Inputs", "Named", "Padded", "build"]
