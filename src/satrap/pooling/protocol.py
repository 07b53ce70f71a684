"""What an embedding engine asks for a batch, whoever does it.

B samples, Σ columns of all pooled features, L padded length of a sequence, D its dim, U unique ids of all tables.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple, Protocol

import numpy as np
from numpy.typing import NDArray

from satrap.observe.stages import StageSeconds
from satrap.pooling.plan import Ids
from satrap.ps.protocol import Ack


@dataclass(frozen=True, slots=True)
class Pooled:
    """A batch's vectors."""

    pooled: NDArray[np.float32]
    """[B, Σ]: the pooled features side by side, in job order."""
    sequences: Sequence[NDArray[np.float32]]
    """[B, L, D] of each sequence feature, zeros where it has no id."""
    masks: Sequence[NDArray[np.bool_]]
    """[B, L] of each: where it has one."""
    kept: Any
    """The way back, in the pooler's own words."""
    along: Mapping[str, NDArray[np.float32]] | None = None
    """Table → [R, D]: rows that come along with every batch of training as they are; None from a pooler without any."""


class Gradients(NamedTuple):
    """Of the arrays of a `Pooled`; None stands for zeros."""

    pooled: NDArray[np.float32] | None
    sequences: Sequence[NDArray[np.float32] | None]
    along: Mapping[str, tuple[NDArray[np.intp], NDArray[np.float32]]] | None = None
    """Table → ([r], [r, D]): which of the rows that came along have a gradient, and theirs."""

    @property
    def empty(self) -> bool:
        """Whether there is none for the rows of the batch's own ids."""
        return self.pooled is None and all(s is None for s in self.sequences)


class Pushed(NamedTuple):
    """What became of a push."""

    sent: int
    """Gradients, one a unique id."""
    ack: Ack


class Pooler(Protocol):
    """Looks batches up and pushes their gradients back. `begin_…` are called by one thread, in the order that the
    staleness asks for, and what they return by one thread, in the same order; `prepare` by any.

    Gradients come in the order of the lookups: who pushes those of a later one gives up those of the earlier.
    """

    seconds: StageSeconds
    """Where the time of its pulls and pushes is counted, those of evaluation left out. To be set before the first."""

    @property
    def overlaps(self) -> bool:
        """Whether what was begun is under way by itself: where rows are reached by a network."""

    def prepare(self, ids: Mapping[str, Ids], samples: int) -> Any:
        """All that does not depend on the rows, for `begin_lookup`. Arrays must not change while it lives."""

    def begin_lookup(self, prepared: Any, *, train: bool) -> Callable[[], Pooled]:
        """Asks for the rows, which see every push begun before. What it returns waits for them and pools them.

        `train`: missing rows are made, and gradients may be pushed back.
        """

    def begin_push(
        self,
        looked_up: Pooled | None,
        gradients: Gradients | None,
        *,
        epoch: int,
        seq: int,
        lr_factor: float = 1.0,
        merge: int = 1,
    ) -> Callable[[], Pushed]:
        """Pushes the gradients of a lookup as (client, epoch, seq), once. None and None: an empty push, for the others
        of its step. What it returns waits for the acknowledgement. `merge`, `lr_factor`: as `PushRequest` has them."""

    def close(self) -> None:
        """Gives up what it keeps for gradients to come. Requests under way may fail. Closing twice does nothing."""
