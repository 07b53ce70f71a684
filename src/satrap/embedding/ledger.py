"""The ledger: what became of every gradient."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from satrap.ps import STALENESS_BINS, Ack, Refused


@dataclass(slots=True)
class Ledger:
    """Counts of gradients (one per unique id and push). Written by one thread; reading from others is safe.

    >>> ledger = Ledger()
    >>> ledger.enter(3, Ack(applied=2, refused={Refused.MISSING_ROW: 1}))
    >>> ledger.balanced, str(ledger)
    (True, '3 sent = 2 applied + 1 refused (missing_row 1) + 0 duplicate')
    """

    pushes: int = 0
    sent: int = 0
    applied: int = 0
    duplicates: int = 0
    refused: dict[Refused, int] = field(default_factory=dict)
    staleness: NDArray[np.int64] = field(default_factory=lambda: np.zeros(STALENESS_BINS, np.int64))
    """[257] gradients by row updates between pull and apply; the last bin: unknown."""

    def enter(self, sent: int, ack: Ack) -> None:
        """Books one push of `sent` gradients by its acknowledgement."""
        self.pushes += 1
        self.sent += sent
        if ack.duplicate:
            self.duplicates += sent
            return
        self.applied += ack.applied
        self.duplicates += ack.repeated
        for reason, n in ack.refused.items():
            self.refused[reason] = self.refused.get(reason, 0) + n
        self.staleness += ack.staleness

    @property
    def balanced(self) -> bool:
        """sent = applied + refused + duplicates, to the gradient."""
        return self.sent == self.applied + sum(self.refused.values()) + self.duplicates

    def __str__(self) -> str:
        reasons = ", ".join(f"{k} {n}" for k, n in self.refused.items())
        refused = f"{sum(self.refused.values())} refused" + (f" ({reasons})" if reasons else "")
        return f"{self.sent} sent = {self.applied} applied + {refused} + {self.duplicates} duplicate"
