"""Two schedules by step: the factor on every learning rate, and which pushes a lookup must find applied.

Steps count from 0. Both are pure functions of the job, so a run can be repeated, and resumed, to the bit.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from satrap.errors import JobError
from satrap.schema import Schedule


@dataclass(frozen=True, slots=True)
class LearningRate:
    """The factor on every learning rate, dense and tables: rises over the warm-up, stays or falls after it.

    >>> rate = LearningRate.plan(Schedule(kind="linear", warmup_steps=2, decay_steps=4), steps_total=None)
    >>> [rate.factor(step) for step in range(8)]
    [0.5, 1.0, 1.0, 0.75, 0.5, 0.25, 0.0, 0.0]
    """

    schedule: Schedule
    decay_steps: int

    @classmethod
    def plan(cls, schedule: Schedule, steps_total: int | None) -> LearningRate:
        """Fills in `decay_steps` from the length of the run, where the job leaves it open.

        Raises JobError when the length is needed and not known (a text file whose rows have not been counted).
        """
        if schedule.kind == "constant":
            return cls(schedule, 1)
        if schedule.decay_steps is not None:
            return cls(schedule, schedule.decay_steps)
        if steps_total is None:
            raise JobError(
                f"train.schedule.decay_steps: the {schedule.kind} schedule falls over the rest of the run, but how "
                "many rows this kind of file has is not known in advance; set train.schedule.decay_steps or "
                "train.max_steps"
            )
        return cls(schedule, max(1, steps_total - schedule.warmup_steps))

    def factor(self, step: int) -> float:
        """The factor of the step with this number."""
        warmup = self.schedule.warmup_steps
        if step < warmup:
            return (step + 1) / warmup
        if self.schedule.kind == "constant":
            return 1.0
        done = min(1.0, (step - warmup) / self.decay_steps)
        end = self.schedule.end_factor
        if self.schedule.kind == "linear":
            return 1.0 + (end - 1.0) * done
        return end + (1.0 - end) * 0.5 * (1.0 + math.cos(math.pi * done))


@dataclass(frozen=True, slots=True)
class StalenessSchedule:
    """Which pushes a lookup finds applied: those of batches ≤ t - 1 - k for batch t, no fewer and no more.

    The first `sync_warmup_steps` batches see every push before theirs (k = 0). From there, as after every drain, the
    number of outstanding pushes grows by one a batch until it is k.

    >>> schedule = StalenessSchedule(staleness=2, sync_warmup_steps=3)
    >>> [t - schedule.applied_before(t, first=0) for t in range(8)]
    [0, 0, 0, 1, 2, 2, 2, 2]
    """

    staleness: int
    """k: pushes that may be outstanding when a batch is looked up."""
    sync_warmup_steps: int = 0

    def applied_before(self, step: int, first: int) -> int:
        """Batches 0 … n-1 whose push must be applied before the lookup of batch `step`: returns n.

        `first` is the step at which the pipeline started empty, with all pushes before it applied.
        """
        if step < self.sync_warmup_steps:
            return step
        return max(first, min(step, self.sync_warmup_steps - 1), step - self.staleness)
