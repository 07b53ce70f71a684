"""Scores kept for an exact AUC, and arrays as text for a saved state."""

from __future__ import annotations

import base64
import zlib
from typing import Any

import numpy as np
from numpy.typing import NDArray

from satrap.observe.ranking import Floats


class KeptScores:
    """Every score seen, for an exact AUC: 5 bytes a sample, 13 once there are weights."""

    def __init__(self) -> None:
        self.probability: bool | None = None
        self.scores: list[NDArray[np.float32]] = []
        self.labels: list[NDArray[np.bool_]] = []
        self.weights: list[Floats | None] = []

    def add(
        self, score: NDArray[np.float32], label: NDArray[np.bool_], w: NDArray[Any] | None, *, probability: bool
    ) -> bool:
        """False, with nothing kept, where logits would come among probabilities: they do not rank together."""
        if self.probability not in (None, probability):
            return False
        self.probability = probability
        # Copies: the caller may write its next batch into the same memory.
        self.scores.append(score.copy())
        self.labels.append(label.copy())
        self.weights.append(None if w is None else w.astype(np.float64))
        return True

    def extend(self, other: KeptScores) -> bool:
        if other.probability is None:
            return True
        if self.probability not in (None, other.probability):
            return False
        self.probability = other.probability
        self.scores += other.scores
        self.labels += other.labels
        self.weights += other.weights
        return True

    def arrays(self) -> tuple[NDArray[np.float32], NDArray[np.bool_], Floats | None]:
        weights = None
        if any(w is not None for w in self.weights):
            pairs = zip(self.scores, self.weights, strict=True)
            weights = np.concatenate([np.ones(len(s)) if w is None else w for s, w in pairs])
        return np.concatenate(self.scores), np.concatenate(self.labels), weights

    def to_dict(self) -> dict[str, Any]:
        if not self.scores:
            return {"probability": None}
        scores, labels, weights = self.arrays()
        return {
            "probability": self.probability,
            "scores": pack(scores),
            "labels": pack(labels),
            "weights": None if weights is None else pack(weights),
        }

    @classmethod
    def from_dict(cls, state: dict[str, Any], samples: int) -> KeptScores:
        self = cls()
        if state["probability"] is not None:
            w = state["weights"]
            self.add(
                unpack(state["scores"], np.float32, samples),
                unpack(state["labels"], np.bool_, samples),
                None if w is None else unpack(w, np.float64, samples),
                probability=bool(state["probability"]),
            )
        return self


def pack(array: NDArray[Any]) -> str:
    """An array as text: little-endian, deflated, base64.

    >>> unpack(pack(np.arange(3.0)), np.float64, 3)
    array([0., 1., 2.])
    """
    little = array.astype(array.dtype.newbyteorder("<"), copy=False)
    return base64.b64encode(zlib.compress(little.tobytes(), 1)).decode("ascii")


def unpack(text: str, dtype: type[np.generic], count: int) -> NDArray[Any]:
    """`count` values of `dtype` from `pack`. Raises ValueError for anything else, having unfolded no more than that."""
    kind = np.dtype(dtype).newbyteorder("<")
    size = kind.itemsize * count
    stream = zlib.decompressobj()
    try:
        raw = stream.decompress(base64.b64decode(text, validate=True), size + 1)
    except (ValueError, zlib.error) as e:
        raise ValueError(f"metrics state is damaged: {e}") from e
    if len(raw) != size or not stream.eof:  # without its end the stream's checksum was not seen either
        raise ValueError(f"metrics state is damaged: {size} bytes of {kind} and an end wanted, {len(raw)} found")
    return np.frombuffer(raw, kind).astype(dtype)
