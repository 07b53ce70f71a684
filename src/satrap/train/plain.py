"""Nested values as bytes and back, for what workers tell each other. No pickle.

<8 bytes: length of the tree> <tree: JSON> <tensors: safetensors>
"""

from __future__ import annotations

import json
from typing import Any

from torch import Tensor

from satrap.checkpoint import tensors


def to_bytes(tree: Any) -> bytes:
    """Dicts, lists, numbers, strings and tensors as bytes.

    >>> from_bytes(to_bytes({"step": 3, "loss": float("nan"), 0: (1, None)}))
    {'step': 3, 'loss': nan, 0: (1, None)}
    """
    found: dict[str, Tensor] = {}
    text = json.dumps(tensors.pack(tree, found)).encode()
    return len(text).to_bytes(8, "little") + text + tensors.encode(found, "what a worker tells the others")


def from_bytes(data: bytes) -> Any:
    """What `to_bytes` was given."""
    end = 8 + int.from_bytes(data[:8], "little")
    where = "what another worker told"
    return tensors.unpack(json.loads(data[8:end]), tensors.decode(data[end:], where), where)
