"""Tensors by feature name: what a model is given in place of columns it would have to count.

B batch, F features, D dimension, L padded length, Σ the sum of the widths.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from satrap.errors import did_you_mean


class Padded(NamedTuple):
    """A sequence feature: rows in order, padded at the end to the longest of the batch.

    >>> p = Padded(torch.ones(1, 3, 2), torch.tensor([[True, True, False]]))
    >>> p.mean()
    tensor([[1., 1.]])
    """

    values: Tensor
    """[B, L, D]; what lies under a False of the mask is padding."""
    mask: Tensor
    """bool [B, L], True where there is an id."""

    def mean(self) -> Tensor:
        """The masked mean over L, [B, D]; an empty sequence gives zeros."""
        # where, not a product: padding that holds NaN must not reach the sum.
        values = torch.where(self.mask.unsqueeze(-1), self.values, self.values.new_zeros(()))
        count = self.mask.sum(1, keepdim=True).clamp(min=1)
        return values.sum(1) / count.to(values.dtype)


class Named(Mapping[str, Tensor | Padded]):
    """Tensors [B, D] and sequences by feature name, over one packed [B, Σ] tensor or over separate ones.

    Packed is the fast form: `cat` and `stack` hand out the packed tensor itself, and single names are views of one
    split of it, so that the gradient of all of them is one concatenation. Iteration gives the pooled names in column
    order, then the sequences. Immutable; reading it from several threads is safe.

    >>> n = Named.packed(torch.arange(6.0).reshape(2, 3), {"age": 1, "city": 2})
    >>> n["city"]
    tensor([[1., 2.],
            [4., 5.]])
    >>> n.cat().shape, list(n), n.widths
    (torch.Size([2, 3]), ['age', 'city'], {'age': 1, 'city': 2})
    >>> Named({"age": torch.zeros(2, 1)}).cat(["age"]).shape
    torch.Size([2, 1])
    """

    def __init__(self, tensors: Mapping[str, Tensor | Padded]) -> None:
        self._packed: Tensor | None = None
        self._pooled: dict[str, Tensor] | None = {k: v for k, v in tensors.items() if not isinstance(v, Padded)}
        self._sequences: dict[str, Padded] = {k: v for k, v in tensors.items() if isinstance(v, Padded)}
        self._widths: dict[str, int] = {k: v.shape[1] for k, v in self._pooled.items()}

    @classmethod
    def packed(cls, tensor: Tensor, widths: Mapping[str, int], sequences: Mapping[str, Padded] | None = None) -> Named:
        """Names the columns of `tensor` [B, Σ], left to right, with `sequences` beside them.

        Raises ValueError where the widths do not add up to the columns, or a name is both pooled and a sequence.
        """
        if tensor.dim() != 2 or sum(widths.values()) != tensor.shape[1]:
            raise ValueError(f"widths {dict(widths)} do not add up to the columns of a tensor {tuple(tensor.shape)}")
        both = widths.keys() & (sequences or {}).keys()
        if both:
            raise ValueError(f"names {sorted(both)} are given both as columns and as sequences")
        self = cls.__new__(cls)
        self._packed = tensor
        self._pooled = None
        self._sequences = dict(sequences or {})
        self._widths = dict(widths)
        return self

    @property
    def widths(self) -> dict[str, int]:
        """Columns of each pooled tensor, in order. Sequences have none."""
        return dict(self._widths)

    def sequences(self) -> dict[str, Padded]:
        """The sequence features alone."""
        return dict(self._sequences)

    def cat(self, names: Sequence[str] | None = None) -> Tensor:
        """Pooled tensors side by side, [B, Σ]; all of them when `names` is None.

        All names in order of a packed one give the packed tensor itself, without a copy. Raises KeyError for an
        unknown name and TypeError for a sequence: `pooled()` first turns sequences into vectors.
        """
        if self._packed is not None and (names is None or list(names) == list(self._widths)):
            return self._packed
        parts = [self._vector(k) for k in (self._widths if names is None else names)]
        if not parts:
            raise ValueError("cat of no tensors: there is no batch size to give it")
        return parts[0] if len(parts) == 1 else torch.cat(parts, 1)

    def stack(self, names: Sequence[str] | None = None) -> Tensor:
        """Pooled tensors of one width on top of each other, [B, F, D]; a view where `cat` makes no copy.

        Raises ValueError where widths differ.
        """
        names = list(self._widths) if names is None else list(names)
        widths = {self._widths[k] for k in names if k in self._widths}
        if len(widths) > 1:
            raise ValueError(f"stack needs tensors of one width, got { {k: self._widths[k] for k in names} }")
        flat = self.cat(names)
        return flat.view(flat.shape[0], len(names), -1)

    def pooled(self) -> Named:
        """The same with each sequence replaced by its masked mean, behind the pooled ones; itself without sequences."""
        if not self._sequences:
            return self
        means = {k: s.mean() for k, s in self._sequences.items()}
        if self._packed is None:
            return Named({**self._split(), **means})
        # Means of a wider type (fp32 beside fp16 rows, say) must not change the type of the packed columns.
        flat = torch.cat([self._packed, *(m.to(self._packed.dtype) for m in means.values())], 1)
        return Named.packed(flat, {**self._widths, **{k: m.shape[1] for k, m in means.items()}})

    def _split(self) -> dict[str, Tensor]:
        if self._pooled is None:
            assert self._packed is not None
            parts = torch.split(self._packed, list(self._widths.values()), 1)
            self._pooled = dict(zip(self._widths, parts, strict=True))
        return self._pooled

    def _vector(self, name: str) -> Tensor:
        value = self[name]
        if isinstance(value, Padded):
            raise TypeError(f"'{name}' is a sequence, not one vector a sample; use its values and mask, or pooled()")
        return value

    def __getitem__(self, name: str) -> Tensor | Padded:
        if name in self._widths:
            return self._split()[name]
        if name in self._sequences:
            return self._sequences[name]
        raise KeyError(f"no feature named '{name}' here; {did_you_mean(name, self)}")

    def __contains__(self, name: object) -> bool:
        return name in self._widths or name in self._sequences

    def __iter__(self) -> Iterator[str]:
        yield from self._widths
        yield from self._sequences

    def __len__(self) -> int:
        return len(self._widths) + len(self._sequences)

    def __repr__(self) -> str:
        parts = [f"{k}: [B, {w}]" for k, w in self._widths.items()]
        parts += [f"{k}: [B, L, {s.values.shape[2]}] padded" for k, s in self._sequences.items()]
        return f"Named({', '.join(parts)})"
