"""Batches to TorchRec's KeyedJaggedTensor and back."""

from __future__ import annotations

import numpy as np
import pytest

from satrap.data import Jagged
from satrap.embedding import from_keyed_jagged, to_keyed_jagged

pytest.importorskip("torchrec", reason="TorchRec is an extra: pip install 'satrap[torchrec]'")


@pytest.mark.parametrize("weighted", [False, True])
def test_ids_come_back_bit_for_bit(weighted: bool) -> None:
    weights = np.array([0.5, 2.0, 1.0], np.float32) if weighted else None
    ids = {
        "user": Jagged(np.array([0, 2**64 - 1], np.uint64)),
        "genres": Jagged(np.array([7, 2**63, 7], np.uint64), np.array([0, 0, 3]), weights),
    }
    tensor = to_keyed_jagged(ids)
    assert tensor.keys() == ["user", "genres"]
    assert tensor.lengths().tolist() == [1, 1, 0, 3]
    back = from_keyed_jagged(tensor)
    for name, x in ids.items():
        np.testing.assert_array_equal(back[name].values, x.values)
        assert (back[name].offsets is None) == (x.offsets is None)
    np.testing.assert_array_equal(back["genres"].offsets, [0, 0, 3])
    if weighted:
        np.testing.assert_array_equal(back["genres"].weights, weights)
        np.testing.assert_array_equal(back["user"].weights, [1, 1])
