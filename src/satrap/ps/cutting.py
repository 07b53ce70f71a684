"""The cut of a server: begun, read and ended by requests (docs/decisions/0019-checkpoints-behind.md)."""

from __future__ import annotations

import logging
import time
from collections import OrderedDict

from satrap import wire
from satrap.durable.rows import RowBlock
from satrap.errors import StoreError
from satrap.ps.cut import RowCut
from satrap.ps.local import LocalService
from satrap.wire import Message

_log = logging.getLogger("satrap.ps")

HELD_UP_S = 10.0
"""How long clients wait for room before the cut is given up: less than their deadline."""
LEASE_S = 600.0
"""Without a question for so long, nobody reads the cut any more."""
UNITS_KEPT = 4
"""Partitions of tables that were read of a cut, for the requests for their other pages."""


class Cutting:
    """Used by the thread that serves."""

    def __init__(self, service: LocalService) -> None:
        self._service = service
        self._number, self._cut = 0, None  # type: int, RowCut | None
        self._why = "the server has begun anew since"
        self._asked_at = 0.0
        self._held_up_at: float | None = None
        self._units: OrderedDict[tuple[str, int], RowBlock] = OrderedDict()

    @property
    def open(self) -> bool:
        """Whether rows are kept for one."""
        return self._cut is not None

    @property
    def full(self) -> bool:
        """Whether rows must not be changed for now."""
        return self._cut is not None and self._cut.full

    def begin(self, number: int) -> None:
        """Keeps all rows as they are now. Raises StoreError where there is no memory for it."""
        if self._cut is not None and self._number == number:
            return
        self.lose("another checkpoint was begun")
        self._cut = self._service.cut(waits=False)
        self._number, self._asked_at = number, time.monotonic()

    def block(self, table: str, m: wire.ExportRows) -> RowBlock:
        """The rows of a partition as of the cut. Raises StoreError where it is gone."""
        cut = self._of(m.cut)
        unit = table, m.partition
        if unit not in self._units:
            self._units[unit] = cut.export_rows(*unit)
            if len(self._units) > UNITS_KEPT:
                self._units.popitem(last=False)
        return self._units[unit]

    def done(self, m: wire.CutDone) -> Message:
        """Frees what was kept for a partition, or ends the cut."""
        if m.partition is None:
            if m.number == self._number:
                self.lose("it was closed")
            return wire.Done()
        cut = self._of(m.number)
        if m.partition >= cut.partitions:
            raise StoreError(f"there are partitions 0 to {cut.partitions - 1}, not {m.partition}")
        cut.done(m.partition)
        for unit in [u for u in self._units if u[1] == m.partition]:
            del self._units[unit]
        return wire.Done()

    def _of(self, number: int) -> RowCut:
        if self._cut is not None and self._cut.lost is not None:
            self.lose(self._cut.lost)
        if self._cut is None or number != self._number:
            raise StoreError(f"the rows of the checkpoint are not kept any more: {self._why}")
        self._asked_at = time.monotonic()
        return self._cut

    def lose(self, why: str) -> None:
        """Ends the cut, if there is one; who asks for it is told why."""
        if self._cut is None:
            return
        self._cut.close()
        self._cut, self._why, self._held_up_at = None, why, None
        self._units.clear()

    # ---- while there is no room ------------------------------------------------------------------------------------

    def hold_up(self, now: float) -> None:
        """A client waits for room from now on, if none did before."""
        if self._held_up_at is None:
            self._held_up_at = now

    def goes_on(self) -> None:
        """Nobody waits any more."""
        self._held_up_at = None

    def tend(self, now: float) -> None:
        """Ends a cut that is not worth the waiting, or that nobody reads."""
        if self._held_up_at is not None and now - self._held_up_at > HELD_UP_S:
            why = f"what changed while it was written did not fit into memory for {HELD_UP_S:g} s"
        elif now - self._asked_at > LEASE_S:
            why = f"nobody has asked for it for {LEASE_S:g} s"
        else:
            return
        _log.warning("the rows of a checkpoint are given up: %s", why)
        self.lose(why)


def page_of(block: RowBlock, m: wire.ExportRows) -> wire.BlockReply:
    """The page of a partition's rows that a request asks for."""
    total = block.ids.size
    first = min(m.first_row, total)
    part = slice(first, min(total, first + m.rows_max) if m.rows_max else total)
    return wire.BlockReply(
        table=m.table,
        ids=block.ids[part],
        values=block.values[part],
        state=block.state[part],
        marks=None if block.marks is None else block.marks[part],
        bound=block.bound if first == 0 else None,
        first_row=first,
        total_rows=total,
    )


def of_cut(request: Message) -> bool:
    """Whether a request asks for what was, whatever the placement is since."""
    return isinstance(request, wire.CutDone) or (isinstance(request, wire.ExportRows) and request.cut != 0)
