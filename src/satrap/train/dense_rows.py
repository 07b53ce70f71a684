"""The dense weights as rows of a table, for `train.dense_mode: async`. R rows, D values a row (`DENSE_DIM`).

    parameter 0 [n0] ─► rows 0 … ⌈n0 / D⌉ - 1, parameter 1 ─► the rows after them, …; the last row of each ends in zeros

A row is stepped by its own optimizer, which is the job's dense optimizer, and by whole parameters: so with one worker
and nothing outstanding the weights are those of the torch optimizer, to rounding.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from satrap.errors import JobError
from satrap.ps import PullRequest, RowBlock
from satrap.schema import DENSE_DIM, DENSE_TABLE


class DenseRows:
    """Where each trained parameter of a model lies in the table, and the way there and back. Used by one thread.

    >>> rows = DenseRows([nn.Parameter(torch.ones(3)), nn.Parameter(torch.ones(2, 100))])
    >>> rows.ids, rows.values()[:, :4].tolist()
    (array([0, 1, 2], dtype=uint64), [[1.0, 1.0, 1.0, 0.0], [1.0, 1.0, 1.0, 1.0], [1.0, 1.0, 1.0, 1.0]])
    """

    def __init__(self, parameters: list[nn.Parameter]) -> None:
        """Raises JobError for a model whose weights a table cannot hold."""
        if not parameters:
            raise JobError("train.dense_mode: the model has no dense weights to train; leave it at sync")
        odd = {str(p.dtype).removeprefix("torch.") for p in parameters} - {"float32"}
        if odd:
            raise JobError(f"train.dense_mode: async holds weights as float32, and the model has {', '.join(odd)}")
        self._parameters = parameters
        counts = [-(-p.numel() // DENSE_DIM) for p in parameters]
        self._first = np.cumsum([0, *counts])
        self.ids: NDArray[np.uint64] = np.arange(self._first[-1], dtype=np.uint64)
        """[R]"""

    def values(self) -> NDArray[np.float32]:
        """[R, D]: the parameters as they are."""
        return self._rows([p.detach() for p in self._parameters])

    def gradients(self) -> tuple[NDArray[np.intp], NDArray[np.float32]]:
        """(r, [r, D]): which rows have a gradient, and theirs. A parameter without one has no rows here, as its torch
        optimizer would leave it alone."""
        with_gradient = [(i, p.grad) for i, p in enumerate(self._parameters) if p.grad is not None]
        if not with_gradient:
            return np.empty(0, np.intp), np.empty((0, DENSE_DIM), np.float32)
        rows = np.concatenate([np.arange(self._first[i], self._first[i + 1]) for i, _ in with_gradient])
        return rows, self._rows([g for _, g in with_gradient])

    @torch.no_grad()
    def load(self, values: NDArray[np.float32]) -> None:
        """Sets the parameters to [R, D]."""
        if not values.flags.writeable:  # what came by a network; torch warns of it
            values = values.copy()
        for p, a, b in zip(self._parameters, self._first[:-1], self._first[1:], strict=True):
            p.copy_(torch.from_numpy(values[a:b].reshape(-1)[: p.numel()]).view(p.shape))

    def pull(self, service: Any) -> None:
        """Sets the parameters to what the table holds now."""
        request = PullRequest(ids={DENSE_TABLE: self.ids}, create=False, distinct=True)
        self.load(service.pull(request).values[DENSE_TABLE])

    def write(self, service: Any) -> None:
        """Makes the rows, with the values of the parameters and a fresh optimizer state, in place of any that are
        there."""
        service.pull(PullRequest(ids={DENSE_TABLE: self.ids}, create=True, distinct=True))
        values = self.values()
        for partition in range(service.partitions):
            block = service.export_rows(DENSE_TABLE, partition)
            if block.ids.size:
                own = values[block.ids.astype(np.intp)]
                service.import_rows(DENSE_TABLE, RowBlock(block.ids, own, block.state))

    def _rows(self, tensors: list[Tensor]) -> NDArray[np.float32]:
        rows = [np.zeros((-(-t.numel() // DENSE_DIM), DENSE_DIM), np.float32) for t in tensors]
        for row, t in zip(rows, tensors, strict=True):
            row.reshape(-1)[: t.numel()] = t.reshape(-1).to("cpu", torch.float32).numpy()
        return np.concatenate(rows)
