"""Nested state as JSON and tensors: everything comes back as it was, and nothing else is accepted."""

from __future__ import annotations

import json
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from satrap.checkpoint.tensors import pack, unpack
from satrap.errors import CheckpointError

leaf = st.one_of(
    st.none(), st.booleans(), st.integers(-(2**200), 2**200), st.floats(allow_nan=False), st.text(max_size=5)
)
key = st.one_of(
    st.text(max_size=4), st.integers(-(2**63) + 1, 2**63 - 1), st.sampled_from(["$tensor", "$dict", "a.b", "a%"])
)
tree = st.recursive(
    leaf,
    lambda inner: st.one_of(
        st.lists(inner, max_size=3), st.lists(inner, max_size=3).map(tuple), st.dictionaries(key, inner, max_size=3)
    ),
    max_leaves=12,
)


def same(a: Any, b: Any) -> bool:
    """Equal, and of the same types all through (1 == 1.0 == True is not good enough)."""
    if type(a) is not type(b) or a != b:
        return False
    if isinstance(a, dict):
        return all(same(x, y) for x, y in zip(a.items(), b.items(), strict=True))
    if isinstance(a, list | tuple):
        return all(same(x, y) for x, y in zip(a, b, strict=True))
    return True


@settings(max_examples=200, deadline=None)
@given(tree)
def test_any_nested_state_comes_back_through_json(value: Any) -> None:
    packed = json.loads(json.dumps(pack(value, {}), allow_nan=False))
    assert same(unpack(packed, {}, "here"), value)


def test_tensors_with_names_that_look_alike_stay_apart() -> None:
    # A dot in a key must not collide with a step down.
    state = {"a.b": torch.tensor(1), "a": {"b": torch.tensor(2)}, "a%2Eb": torch.tensor(3)}
    tensors: dict[str, torch.Tensor] = {}
    packed = pack(state, tensors)
    assert len(tensors) == 3
    back = unpack(packed, tensors, "here")
    assert (back["a.b"], back["a"]["b"], back["a%2Eb"]) == (1, 2, 3)


@pytest.mark.parametrize("value", [object(), {1, 2}, b"bytes", 1j, print, {"deep": [{"x": range(3)}]}, {(1, 2): 3}])
def test_what_only_pickle_could_keep_is_refused(value: object) -> None:
    with pytest.raises(CheckpointError):
        pack(value, {})


@pytest.mark.parametrize(
    "value",
    [{"$tensor": "x"}, {"$tensor": []}, {"$dict": 3}, {"$dict": [[1]]}, {"$int": "a"}, {"$float": []}, {"$new": 1}],
)
def test_a_tree_that_was_not_packed_here_is_refused(value: object) -> None:
    with pytest.raises(CheckpointError, match="here: "):
        unpack(value, {}, "here")
