"""Dense weights, optimizer state and RNG state as safetensors and plain JSON. No pickle, so no code in a checkpoint.

A nested structure (a torch optimizer's `state_dict()`, say) is taken apart into a JSON *tree* and named tensors. What
JSON cannot say is written as a dict with one key that starts with `$`:

    {"$tensor": NAME}  {"$tuple": [...]}  {"$dict": [[key, value], ...]}  {"$float": "nan"}  {"$int": "12…"}
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors import torch as safetensors
from torch import Tensor

from satrap.errors import CheckpointError

INT64_MAX = 2**63 - 1


def pack(tree: Any, tensors: dict[str, Tensor], path: str = "") -> Any:
    """The JSON tree of a nested structure; its tensors are added to `tensors` under dotted names.

    Raises CheckpointError for a value that is neither a tensor, a container of such, nor plain data.

    >>> tensors = {}
    >>> pack({"state": {0: {"step": torch.tensor(3.0)}}, "lr": float("inf")}, tensors)
    {'state': {'$dict': [[0, {'step': {'$tensor': 'state.0.step'}}]]}, 'lr': {'$float': 'inf'}}
    >>> tensors
    {'state.0.step': tensor(3.)}
    """
    if isinstance(tree, Tensor):
        tensors[path] = tree
        return {"$tensor": path}
    if tree is None or isinstance(tree, bool | str):
        return tree
    if isinstance(tree, int):
        return int(tree) if abs(tree) <= INT64_MAX else {"$int": str(tree)}
    if isinstance(tree, float):
        return float(tree) if math.isfinite(tree) else {"$float": str(float(tree))}
    if isinstance(tree, tuple):
        return {"$tuple": [pack(x, tensors, _join(path, i)) for i, x in enumerate(tree)]}
    if isinstance(tree, list):
        return [pack(x, tensors, _join(path, i)) for i, x in enumerate(tree)]
    if isinstance(tree, Mapping):
        pairs = [(k, pack(v, tensors, _join(path, k))) for k, v in tree.items()]
        for key, _ in pairs:
            if type(key) not in (str, int) or (isinstance(key, int) and abs(key) > INT64_MAX):
                raise CheckpointError(f"{path or 'the state'} has the key {key!r}; keys that are kept are str or int")
        if all(isinstance(k, str) and not k.startswith("$") for k, _ in pairs):
            return dict(pairs)
        return {"$dict": [[k, v] for k, v in pairs]}
    raise CheckpointError(
        f"{path or 'the state'} holds a {type(tree).__module__}.{type(tree).__qualname__}, which a checkpoint cannot "
        "keep without pickle; keep a tensor, a number, a string, or lists and dicts of them"
    )


def _join(path: str, key: object) -> str:
    # A dot inside a key must not read as a step down: "a.b" → "a%2Eb".
    text = str(key).replace("%", "%25").replace(".", "%2E")
    return f"{path}.{text}" if path else text


def unpack(tree: Any, tensors: Mapping[str, Tensor], where: str) -> Any:
    """The structure `pack` took apart. Raises CheckpointError naming `where` for a tree that pack does not make."""
    if isinstance(tree, list):
        return [unpack(x, tensors, where) for x in tree]
    if not isinstance(tree, dict):
        return tree
    if len(tree) == 1 and (tag := next(iter(tree))).startswith("$"):
        value = tree[tag]
        try:
            match tag:
                case "$tensor":
                    return tensors[value]
                case "$tuple":
                    return tuple(unpack(x, tensors, where) for x in value)
                case "$dict":
                    return {k: unpack(v, tensors, where) for k, v in value}
                case "$float":
                    return float(value)
                case "$int":
                    return int(value)
        except (KeyError, TypeError, ValueError) as e:
            raise CheckpointError(f"{where}: {tag} of {str(value)[:80]!r} cannot be read: {e!r}") from e
        raise CheckpointError(f"{where}: unknown tag '{tag}'; the checkpoint may be of a newer satrap")
    return {k: unpack(v, tensors, where) for k, v in tree.items()}


def leaves(tree: Any, path: str = "") -> Iterator[tuple[str, Any]]:
    """(dotted path, leaf) of a nested structure; a leaf is a tensor or a plain value."""
    if isinstance(tree, Mapping):
        for key, value in tree.items():
            yield from leaves(value, _join(path, key))
    elif isinstance(tree, list | tuple):
        for i, value in enumerate(tree):
            yield from leaves(value, _join(path, i))
    else:
        yield path, tree


def encode(tensors: Mapping[str, Tensor], what: str) -> bytes:
    """A safetensors file, on any device's tensors; two names may share memory, each is kept whole.

    Raises CheckpointError naming a tensor that has no plain form (sparse, quantized, or not a tensor).
    """
    plain: dict[str, Tensor] = {}
    seen: set[int] = set()
    for name, tensor in tensors.items():
        if not isinstance(tensor, Tensor):
            raise CheckpointError(f"{what}: '{name}' is a {type(tensor).__name__}, not a tensor")
        if tensor.layout != torch.strided or tensor.is_quantized or tensor.is_meta:
            raise CheckpointError(f"{what}: tensor '{name}' ({tensor.layout}, {tensor.device}) has no plain values")
        copy = tensor.detach().cpu().resolve_conj().resolve_neg().contiguous()
        place = copy.untyped_storage().data_ptr()
        if place in seen or copy.untyped_storage().nbytes() != copy.nbytes:
            copy = copy.clone()
        seen.add(place)
        plain[name] = copy
    try:
        return safetensors.save(plain)
    except (SafetensorError, KeyError, ValueError, RuntimeError) as e:
        raise CheckpointError(f"{what} cannot be written as safetensors: {e}") from e


def decode(data: bytes | bytearray, where: str) -> dict[str, Tensor]:
    """Tensors (on the CPU) of a safetensors file. Raises CheckpointError naming `where`."""
    try:
        return safetensors.load(bytes(data))
    except (SafetensorError, KeyError, ValueError, RuntimeError) as e:
        raise CheckpointError(f"{where} is not a readable safetensors file: {e}") from e


def raw_bytes(tensor: Tensor) -> memoryview:
    """The tensor's values as bytes, row-major. 0-d and empty tensors included; any dtype."""
    flat = tensor.detach().cpu().resolve_conj().resolve_neg().contiguous().reshape(-1)
    return flat.view(torch.uint8).numpy().data if flat.numel() else memoryview(b"")
