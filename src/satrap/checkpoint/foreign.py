"""Rows from elsewhere: tensors of a state dict (`nn.EmbeddingBag`, TorchRec), and Parquet files with ids and values.

Read piece by piece, without pickle: safetensors, or a `.pt` with `weights_only=True`. A piece is `Rows`: ids [R],
values [R, D].
"""

from __future__ import annotations

import pickle
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from numpy.typing import NDArray
from torch import Tensor

from satrap.checkpoint.export import Exported
from satrap.checkpoint.tensors import leaves
from satrap.data.hashing import hash_strings
from satrap.errors import CheckpointError, did_you_mean
from satrap.schema import Table

PIECE_ROWS = 1 << 17
_ADVICE = "Save the state dict with safetensors, or with torch.save as plain tensors"


@dataclass(frozen=True, slots=True)
class Rows:
    """Some rows of a table."""

    ids: NDArray[np.uint64]
    """[R]"""
    values: NDArray[Any]
    """[R, D], float32 or float16."""
    state: NDArray[np.float32] | None = None
    """[R, K] as the store has it, or None: to begin anew."""


class RowSource(Protocol):
    """Where the rows of one table come from."""

    name: str
    """For messages: file, and key or table in it."""
    optimizer: str | None
    """Kind of the optimizer whose state comes along; None: none does."""
    spec: Table | None
    """The table that the rows are of, state included; None: values alone are known."""

    def pieces(self) -> Iterator[Rows]:
        """All rows. Raises CheckpointError."""


class ExportedRows:
    """A table of an export."""

    def __init__(self, exported: Exported, table: str) -> None:
        self._exported, self._table = exported, table
        entry = exported.tables()[table]
        self.spec: Table | None = entry.spec
        self.name = f"{exported.path}: table '{table}'"
        tag = entry.spec.optimizer.__struct_config__.tag if entry.spec.optimizer is not None else None
        self.optimizer = str(tag) if entry.state_width else None

    def pieces(self) -> Iterator[Rows]:
        for block in self._exported.blocks(self._table):
            yield Rows(block.ids, block.values, block.state if self.optimizer is not None else None)


class TensorRows:
    """A tensor [N, D]: its row i is that of id i."""

    optimizer: str | None = None
    spec: Table | None = None

    def __init__(self, tensor: Any, name: str) -> None:
        """`tensor` may be a slice of a file, read as it is indexed."""
        self._tensor, self.name = tensor, name

    def pieces(self) -> Iterator[Rows]:
        rows = int(self._tensor.get_shape()[0]) if hasattr(self._tensor, "get_shape") else len(self._tensor)
        for a in range(0, rows, PIECE_ROWS):
            piece: Tensor = self._tensor[a : a + PIECE_ROWS]
            if piece.dtype is not torch.float16:
                piece = piece.to(torch.float32)
            values = piece.detach().cpu().contiguous().numpy()
            yield Rows(np.arange(a, a + len(values), dtype=np.uint64), values)


class ParquetRows:
    """A Parquet file with `id` (integers as they are in the data, or text, which is hashed as in the data) and
    `values`, lists of D numbers."""

    optimizer: str | None = None
    spec: Table | None = None

    def __init__(self, path: str | Path) -> None:
        self._path, self.name = _there(path), str(path)

    def pieces(self) -> Iterator[Rows]:
        try:
            with pq.ParquetFile(self._path) as file:
                for name in ("id", "values"):
                    if name not in file.schema_arrow.names:
                        raise CheckpointError(
                            f"{self.name}: it has no column '{name}'; {did_you_mean(name, file.schema_arrow.names)}"
                        )
                for batch in file.iter_batches(PIECE_ROWS, columns=["id", "values"]):
                    yield self._rows(batch)
        except (OSError, pa.ArrowException) as e:
            raise CheckpointError(f"cannot read {self.name}: {e}") from e

    def _rows(self, batch: pa.RecordBatch) -> Rows:
        ids, values = batch["id"], batch["values"]
        if ids.null_count or values.null_count or values.flatten().null_count:
            raise CheckpointError(f"{self.name}: an id or a value is missing (null); leave such rows out")
        lengths = values.value_lengths().unique() if not pa.types.is_fixed_size_list(values.type) else None
        if lengths is not None and len(lengths) > 1:
            raise CheckpointError(f"{self.name}: the lists of 'values' have {sorted(lengths.to_pylist())} numbers")
        flat = values.flatten().to_numpy(zero_copy_only=False)
        flat = flat if flat.dtype == np.float16 else flat.astype(np.float32, copy=False)
        return Rows(self._ids(ids), flat.reshape(len(ids), -1))

    def _ids(self, ids: pa.Array) -> NDArray[np.uint64]:
        if pa.types.is_integer(ids.type):
            plain = ids.to_numpy(zero_copy_only=False)
            whole: Any = plain if plain.dtype == np.uint64 else plain.astype(np.int64).view(np.uint64)
            return np.ascontiguousarray(whole)
        if pa.types.is_string(ids.type) or pa.types.is_large_string(ids.type) or pa.types.is_binary(ids.type):
            return hash_strings(ids)
        raise CheckpointError(f"{self.name}: ids of type {ids.type}; give integers or text")


def _there(path: str | Path) -> Path:
    """The path of a file. What would read it words its absence in many ways, none of them plain."""
    path = Path(path)
    if not path.exists():
        raise CheckpointError(f"{path}: there is no such file")
    return path


def state_dict(path: str | Path) -> dict[str, Any]:
    """Name → tensor, or what reads like one, of a safetensors file or a `.pt` made of plain tensors. Nothing is copied
    into memory yet. Raises CheckpointError."""
    path = _there(path)
    if path.suffix == ".safetensors":
        from safetensors import SafetensorError, safe_open

        try:
            file: Any = safe_open(path, framework="pt")
            return {name: file.get_slice(name) for name in file.keys()}  # noqa: SIM118
        except (SafetensorError, OSError) as e:
            raise CheckpointError(f"cannot read {path}: {e}") from e
    try:
        tree = torch.load(path, map_location="cpu", weights_only=True, mmap=True)
    except (OSError, RuntimeError, ValueError, EOFError, KeyError, pickle.UnpicklingError) as e:
        reason = str(e).strip().partition("\n")[0]
        raise CheckpointError(f"cannot read {path} without running code that is in it: {reason}. {_ADVICE}") from e
    if not isinstance(tree, Mapping):
        raise CheckpointError(f"{path} holds a {type(tree).__name__}, not a state dict. {_ADVICE}")
    # Keys of a state dict have dots of their own, which `leaves` keeps apart from its steps.
    return {name.replace("%2E", "."): leaf for name, leaf in leaves(tree) if isinstance(leaf, Tensor)}


def shape_of(tensor: Any) -> tuple[int, ...]:
    """Of a tensor or a slice of a file."""
    return tuple(tensor.get_shape() if hasattr(tensor, "get_shape") else tensor.shape)


def keys_of(table: str, found: Mapping[str, Any]) -> list[str]:
    """Keys of a state dict that may be a table's weights: matrices whose name has the table's as one of its parts.

    >>> keys_of("user", {"ebc.embedding_bags.user.weight": torch.zeros(2, 2), "over.weight": torch.zeros(2, 2)})
    ['ebc.embedding_bags.user.weight']
    """
    return [k for k, t in found.items() if len(shape_of(t)) == 2 and (k == table or f".{table}." in f".{k}.")]
