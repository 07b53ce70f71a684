"""Tables by number, and their rows as the bytes of a message. U unique ids of a table, D its dimension, S servers."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import msgspec
import numpy as np
from numpy.typing import NDArray

from satrap.schema import (
    SGD,
    Adagrad,
    Adam,
    AdamW,
    Admission,
    Capacity,
    Constant,
    Expiry,
    Ftrl,
    Hashed,
    Normal,
    QuotientRemainder,
    RowWiseAdagrad,
    Table,
    TruncatedNormal,
    Uniform,
    WireFormat,
)
from satrap.store import decode_rows, encode_fitted, encode_rows, fp16_scale
from satrap.wire import Section, value_slices, values_bytes

LEAST_GRADIENT_SCALE = 2.0**-126
"""Gradients of a mean are small: their halves are scaled up as far as the largest allows. The client chooses before it
divides them among servers, so that the division changes no bit."""
LEAST_VALUE_SCALE = 1.0
"""Values of rows are near 1. Each server scales its own, and to the same end never by less than 1."""


FINGERPRINTED: Mapping[type[msgspec.Struct], tuple[str, ...]] = {
    Table: ("name", "dim", "format", "rounding", "wire", "initializer", "optimizer", "max_gradient"),
    SGD: ("lr", "momentum", "weight_decay"),
    Adagrad: ("lr", "eps", "initial_accumulator", "weight_decay"),
    RowWiseAdagrad: ("lr", "eps", "initial_accumulator", "weight_decay"),
    Adam: ("lr", "beta1", "beta2", "eps", "weight_decay", "state"),
    AdamW: ("lr", "beta1", "beta2", "eps", "weight_decay", "state"),
    Ftrl: ("lr", "beta", "l1", "l2"),
    Uniform: ("low", "high"),
    Normal: ("mean", "std"),
    TruncatedNormal: ("mean", "std"),
    Constant: ("value",),
    Hashed: ("rows", "hashes"),
    QuotientRemainder: ("rows",),
    Capacity: ("rows", "bytes", "evict"),
    Expiry: ("steps", "seconds"),
    Admission: ("sightings", "window"),
}
"""Settings that are part of a fingerprint whatever they are: never to be added to. One that came later is left out
while it is at its default, so that what a server has kept stays its own when satrap learns something new."""


def fingerprinted(setting: Any) -> Any:
    """What a fingerprint is made of, plain.

    >>> fingerprinted(Table(name="t", dim=2))["initializer"]
    {'kind': 'uniform', 'low': -0.01, 'high': 0.01}
    >>> "capacity" in fingerprinted(Table(name="t", dim=2))
    False
    """
    if not isinstance(setting, msgspec.Struct):
        return msgspec.to_builtins(setting)
    config, always = setting.__struct_config__, FINGERPRINTED.get(type(setting), ())
    out = {config.tag_field: config.tag} if config.tag_field is not None else {}
    for field in msgspec.structs.fields(setting):
        value = getattr(setting, field.name)
        if field.name in always or value != field.default:
            out[field.encode_name] = fingerprinted(value)
    return out


@dataclass(frozen=True, slots=True)
class Directory:
    """The tables of a job in their order, which gives them their numbers in messages."""

    tables: tuple[Table, ...]
    numbers: Mapping[str, int]

    @classmethod
    def of(cls, tables: Sequence[Table]) -> Directory:
        """Numbers tables as they come."""
        return cls(tuple(tables), {t.name: i for i, t in enumerate(tables)})

    def fingerprint(self, seed: int) -> bytes:
        """32 bytes that differ where rows would: by table, configuration or seed. How rows travel is not part of it,
        nor whether they lie in memory or on disk."""
        plain = [fingerprinted(msgspec.structs.replace(t, wire=WireFormat.FP32, cold=None)) for t in self.tables]
        return hashlib.sha256(msgspec.json.encode([seed, plain], order="deterministic")).digest()

    def ordered(self, names: Iterable[str]) -> list[str]:
        """Names of tables, all of which exist, in the order of their numbers."""
        return sorted(names, key=self.numbers.__getitem__)


def joined(arrays: Sequence[NDArray[Any]]) -> NDArray[Any]:
    """Arrays of one dtype one behind the other, flat. No copy where they lie so in memory already."""
    if len(arrays) == 1:
        return arrays[0].reshape(-1)
    base = arrays[0].base
    if isinstance(base, np.ndarray) and base.ndim == 1 and base.dtype == arrays[0].dtype and base.flags.c_contiguous:
        start = at = _address(arrays[0])
        for a in arrays:
            if a.base is not base or _address(a) != at:
                break
            at += a.nbytes
        else:
            first = (start - _address(base)) // base.itemsize
            return base[first : first + (at - start) // base.itemsize]
    return np.concatenate([a.reshape(-1) for a in arrays])


def _address(array: NDArray[Any]) -> int:
    address: int = array.__array_interface__["data"][0]
    return address


def scale_for(form: WireFormat, rows: NDArray[np.float32], least: float) -> float:
    """The scale that rows [U, D] travel with."""
    return fp16_scale(rows, least=least) if form is WireFormat.FP16 and rows.size else 1.0


def pack(
    sections: Sequence[Section], rows: Sequence[NDArray[np.float32]], orders: Sequence[NDArray[np.uint32] | None]
) -> NDArray[np.uint8]:
    """Rows by section as one run of bytes. `orders`: which rows, in which order; None: all. No copy where all travel
    as they lie."""
    if all(s.format is WireFormat.FP32 for s in sections) and not any(o is not None for o in orders):
        return joined(rows).view(np.uint8) if rows else np.empty(0, np.uint8)
    out = np.empty(values_bytes(sections), np.uint8)
    for s, part, x, order in zip(sections, value_slices(sections), rows, orders, strict=True):
        encode_rows(x, s.format, s.scale, order=order, out=out[part])
    return out


def pack_fitted(
    sections: Sequence[Section], rows: Sequence[NDArray[np.float32]], least: float, guesses: Sequence[float]
) -> tuple[tuple[Section, ...], NDArray[np.uint8]]:
    """`pack` of whole rows with the scales of `scale_for`: the sections with them, and the bytes. `guesses`: of the
    scales; right ones save a pass over the values."""
    if all(s.format is WireFormat.FP32 for s in sections):
        return tuple(sections), pack(sections, rows, [None] * len(rows))
    out = np.empty(values_bytes(sections), np.uint8)
    fitted = []
    for s, part, x, guess in zip(sections, value_slices(sections), rows, guesses, strict=True):
        fitted.append(s._replace(scale=encode_fitted(x, s.format, out[part], least=least, guess=guess)))
    return tuple(fitted), out


def unpack(sections: Sequence[Section], values: NDArray[np.uint8]) -> list[NDArray[np.float32]]:
    """Rows [U, D] by section. Those that travelled as fp32 are read-only views of `values`."""
    out = []
    for s, part in zip(sections, value_slices(sections), strict=True):
        if s.format is WireFormat.FP32:
            rows = values[part].view(np.float32).reshape(s.rows, s.dim)
            # A small frame may lie at any address; native code reads floats where they are aligned.
            out.append(rows if rows.flags.aligned else rows.copy())
            continue
        rows = np.empty((s.rows, s.dim), np.float32)
        decode_rows(values[part].data, s.rows, s.dim, s.format, s.scale, rows)
        out.append(rows)
    return out
