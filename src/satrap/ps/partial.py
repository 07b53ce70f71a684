"""A store of which some partitions are already further on than the record that is replayed. U unique ids of a table."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from satrap.errors import JournalError
from satrap.store import Store, StoredValues, bound_partition


class PartialStore(Store):
    """A view of a store: what `sequence` asks for is done to the rows of those units alone that lack it.

    A unit is one partition of one table; its position is the last record that it holds.
    """

    def __init__(self, store: Store, positions: NDArray[np.int64]) -> None:
        """`positions`: [P, tables]."""
        self.__dict__ = dict(store.__dict__)
        self.sequence = 0
        self._positions = positions

    def _lacking(self, table: str, ids: NDArray[np.uint64]) -> NDArray[np.bool_]:
        lacks: NDArray[np.bool_] = self._positions[self.partitions_of(ids), self.index(table)] < self.sequence
        return lacks

    def push_many(
        self,
        ids: dict[str, NDArray[np.uint64]],
        gradients: dict[str, NDArray[np.float32]],
        versions: dict[str, NDArray[np.uint8]] | None = None,
        hints: dict[str, NDArray[np.uint32]] | None = None,
        *,
        lr_factor: float = 1.0,
        distinct: bool = False,
        outcomes: dict[str, NDArray[np.uint16]] | None = None,
        checked: bool = False,
        step: int = 0,
    ) -> tuple[int, int, int, NDArray[np.int64]]:
        """See `Store.push_many`. What it returns, and `outcomes`, are of the rows that were stepped alone."""
        if not checked:
            self.check_push(ids, gradients, versions, hints, lr_factor=lr_factor, distinct=distinct)
        lacks = {t: self._lacking(t, x) for t, x in ids.items()}
        if outcomes is not None:
            for x in outcomes.values():
                x[:] = 0
        return super().push_many(
            {t: x[lacks[t]] for t, x in ids.items()},
            {t: x[lacks[t]] for t, x in gradients.items()},
            lr_factor=lr_factor,
            distinct=True,
            step=step,
        )

    def pull_flat(self, ids: dict[str, NDArray[np.uint64]], *, create: bool) -> Any:
        """See `Store.pull_flat`."""
        return super().pull_flat({t: x[self._lacking(t, x)] for t, x in ids.items()}, create=create)

    def erase(self, table: str, ids: NDArray[np.uint64]) -> int:
        """See `Store.erase`."""
        return super().erase(table, ids[self._lacking(table, ids)])

    def import_rows(
        self,
        table: str,
        ids: NDArray[np.uint64],
        values: StoredValues,
        state: NDArray[np.float32],
        marks: NDArray[np.uint8] | None = None,
    ) -> None:
        """See `Store.import_rows`."""
        self.check_rows(table, ids, values, state)
        lacks = self._lacking(table, ids)
        super().import_rows(table, ids[lacks], values[lacks], state[lacks], None if marks is None else marks[lacks])

    def import_many(self, table: str, blocks: Sequence[Any]) -> None:
        """See `Store.import_many`."""
        for block in blocks:
            self.import_rows(table, *block)

    def import_bound(self, table: str, state: NDArray[np.uint8]) -> bool:
        """See `Store.import_bound`."""
        partition = bound_partition(state)
        if self._positions[partition, self.index(table)] >= self.sequence:
            return False
        return super().import_bound(table, state)

    def clear(self) -> None:
        """Refused: a snapshot during which rows were cleared is never published."""
        if (self._positions >= self.sequence).any():
            raise JournalError(f"record {self.sequence} clears rows while a snapshot is taken")
        super().clear()
