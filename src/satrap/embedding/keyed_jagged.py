"""Conversion from and to TorchRec's KeyedJaggedTensor (extra `satrap[torchrec]`).

Ids are the same 64 bits on both sides: TorchRec's int64 is satrap's uint64, reinterpreted.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch

from satrap.data.batch import Jagged
from satrap.errors import DataError


def to_keyed_jagged(ids: Mapping[str, Jagged]) -> Any:
    """The ids of a batch (`Batch.ids`) as a KeyedJaggedTensor with int64 values, one key a feature, in order.

    If any feature has weights, the others get ones. Raises DataError where TorchRec is not installed or features
    differ in the number of samples.
    """
    try:
        from torchrec import KeyedJaggedTensor
    except ImportError as e:
        raise DataError(f"TorchRec cannot be imported ({e}); install it with: pip install 'satrap[torchrec]'") from e
    lengths = {name: _lengths(x) for name, x in ids.items()}
    if len({n.size for n in lengths.values()}) > 1:
        raise DataError(f"features differ in samples: { {name: n.size for name, n in lengths.items()} }")
    weights = None
    if any(x.weights is not None for x in ids.values()):
        parts = [np.ones(x.values.size, np.float32) if x.weights is None else x.weights for x in ids.values()]
        weights = torch.from_numpy(np.concatenate(parts))
    none = np.empty(0, np.uint64)
    return KeyedJaggedTensor(
        keys=list(ids),
        values=torch.from_numpy(np.concatenate([none, *(x.values for x in ids.values())]).view(np.int64)),
        lengths=torch.from_numpy(np.concatenate([none.view(np.int64), *lengths.values()])),
        weights=weights,
    )


def from_keyed_jagged(tensor: Any) -> dict[str, Jagged]:
    """The features of a KeyedJaggedTensor as `Batch.ids` wants them; where all lists have one id, without offsets.

    Raises DataError for values that are not integers.
    """
    values = tensor.values().cpu()
    if values.dtype not in (torch.int64, torch.int32):
        raise DataError(f"the values of a KeyedJaggedTensor must be int64 or int32 ids, got {values.dtype}")
    flat = values.to(torch.int64).numpy().view(np.uint64)
    given = tensor.weights_or_none()
    weights = None if given is None else given.cpu().to(torch.float32).numpy()
    samples = tensor.stride()
    lengths = tensor.lengths().cpu().to(torch.int64).numpy().reshape(len(tensor.keys()), samples)
    out: dict[str, Jagged] = {}
    at = 0
    for name, own in zip(tensor.keys(), lengths, strict=True):
        end = at + int(own.sum())
        offsets = None if bool((own == 1).all()) else np.concatenate([np.zeros(1, np.int64), np.cumsum(own)])
        out[name] = Jagged(flat[at:end].copy(), offsets, None if weights is None else weights[at:end].copy())
        at = end
    return out


def _lengths(x: Jagged) -> np.ndarray[Any, np.dtype[np.int64]]:
    if x.offsets is None:
        return np.ones(x.values.size, np.int64)
    return np.diff(x.offsets)
