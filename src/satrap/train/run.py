"""One run of training: legs of steps, and between them, with the pipeline drained, evaluations and checkpoints.

    evaluate if due → save if due → stop? → a leg of steps → evaluate if due → …

What happens at a step follows from the job and the step's number alone (and from an interrupt), so a run that is
resumed from a checkpoint does what the run that saved it went on to do, to the bit.

In a group every worker does this with its part of the data. What would differ between them, the end of the data and
interrupts, is agreed on: before each step, after each leg, and where a decision depends on it. With `dense_mode: async`
nothing is agreed on before a step: each worker goes through a leg at its own pace, and they meet at its end.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from time import perf_counter
from typing import Any

from satrap.data.batch import Batch, Position
from satrap.errors import DataError, TrainingError
from satrap.schema import Job
from satrap.train.damping import damp
from satrap.train.diagnosis import not_finite
from satrap.train.evaluation import evaluate
from satrap.train.group import ALONE, Agreed, Group
from satrap.train.interrupt import Interrupts
from satrap.train.pipeline import Engine, Feed, Leg
from satrap.train.reporting import Report
from satrap.train.results import Evaluation, Stopped
from satrap.train.saving import Checkpoints
from satrap.train.schedule import LearningRate, StalenessSchedule
from satrap.train.sources import Sources
from satrap.train.state import RunState
from satrap.train.step import DenseStep, Outcome, weight_of
from satrap.train.together import meet
from satrap.train.writing import Saved


@dataclass(slots=True)
class Run:
    """What one `fit` works with. Used by one thread."""

    job: Job
    engine: Engine
    dense: DenseStep
    sources: Sources
    checkpoints: Checkpoints
    state: RunState
    report: Report
    service: Any
    interrupts: Interrupts
    rate: LearningRate
    saved_at: int
    """Step of the newest checkpoint, or of the one that is being written; -1 before the first."""
    saved: Path | None = None
    group: Group = ALONE
    saves_failed: int = 0
    """Checkpoints that could not be written since `fit` began."""
    unsaved: str | None = None
    """Why the newest checkpoint that was due is not there; None where it is."""
    _feed: Feed | None = None
    _stop: bool = False
    """The group has agreed to stop."""

    def train(self) -> Stopped:
        """Trains until the data, the steps or the patience is used up, or an interrupt asks to stop."""
        try:
            while True:
                self._evaluate_if_due()
                # Asked once: an interrupt that comes in between is answered after the next step, with a checkpoint.
                stopped = self._stopped()
                self._save_if_due(stopping=stopped is not None)
                if stopped is not None:
                    return stopped
                self._train_leg()
        except BaseException as e:
            # The rows of a checkpoint under way are good; only who stops twice does not wait for it.
            self.checkpoints.abandon(at_once=not isinstance(e, Exception))
            raise
        finally:
            self._close_feed()

    def test(self) -> Evaluation | None:
        """The figures of the model as it is on the test rows; None without any, or where an interrupt cut it short."""
        if not self.job.data.test or self._interrupted():
            return None
        evaluation = self._measure(self.sources.test())
        if evaluation is not None:
            self.report.evaluated("test", self.state, evaluation)
        return evaluation

    def _train_leg(self) -> None:
        """Steps up to the next drain: the next evaluation or checkpoint, the last step, or the end of the epoch."""
        state, train = self.state, self.job.train
        feed, first, samples, stopped = self._open_feed(), state.step, state.samples, False
        with (
            Leg(
                self.engine,
                feed,
                StalenessSchedule(train.staleness, train.sync_warmup_steps),
                first=first,
                steps=self._steps_to_drain(),
                world=self.group.world if self._lockstep else 1,
                seconds=self.report.seconds,
                on_ack=self.report.pushed,
            ) as leg,
            self.report.training(),
        ):
            for lookup in leg:
                agreed = self._agree(lookup)
                if not agreed.with_data:
                    break
                self._step(lookup, leg, agreed)
                stopped = self._stops(agreed)
                if stopped:
                    # Lookups that are ahead are dropped; their batches are read again after a resume.
                    break
        if not self._lockstep:
            self._meet(first, samples)
        if stopped:
            return
        # Who comes here has drained its own pipeline; who goes on knows that all have.
        if not self._any(not feed.ended()):
            self._end_epoch(empty=state.step == first and not self._any(state.position != Position(state.epoch)))
        elif self._is_eval_step():
            state.evaluation_due = True

    @property
    def _lockstep(self) -> bool:
        """Whether the workers do every step together."""
        return self.dense.rows is None

    def _meet(self, first: int, samples: int) -> None:
        """Brings workers that went through a leg at their own pace to one step, and to the weights that their pushes
        have led to. `first`, `samples`: of the run, at the leg's beginning."""
        state, rows = self.state, self.dense.rows
        assert rows is not None
        mine = state.samples - samples
        state.step, trained = meet(self.group, self.dense.model, state.step, mine)
        state.samples = samples + trained
        self.report.trained_elsewhere(trained - mine)
        rows.pull(self.service)

    def _agree(self, lookup: Any) -> Agreed:
        """What the next step is. Alone there is nothing to ask, and the batch knows its weight. Out of step a worker
        takes the others' batches to weigh what its own does."""
        if self.group.world == 1:
            return Agreed(0.0, 1, False)
        if not self._lockstep:
            return Agreed(weight_of(lookup) * self.group.world, 1, False)
        start = perf_counter()
        agreed = self.group.agree(weight_of(lookup), lookup is not None, self.interrupts.requested)
        self.report.seconds.add("worker_wait", perf_counter() - start)
        return agreed

    def _stops(self, agreed: Agreed) -> bool:
        """Whether to stop after this step. Whoever is interrupted after the others were asked stops a step later."""
        if self.group.world == 1 or not self._lockstep:
            return self.interrupts.requested
        self._stop = self._stop or agreed.stop
        return self._stop

    def _any(self, mine: bool) -> bool:
        """Whether it is true of any worker."""
        return self.group.agree(0.0, mine, False).with_data > 0

    def _interrupted(self) -> bool:
        """Whether any worker has been asked to stop: the same answer for all."""
        self._stop = self._stop or self.group.agree(0.0, False, self.interrupts.requested).stop
        return self._stop

    def _step(self, lookup: Any, leg: Leg, agreed: Agreed) -> None:
        """Forward and backward, gradients on their way to the tables, then the dense optimizer."""
        state, factor = self.state, self.rate.factor(self.state.step)
        with self.report.seconds.time("dense", beside="reduce"):
            outcome = self._compute_and_apply(lookup, leg, agreed, factor)
        state.step += 1
        state.samples += outcome.samples
        if lookup is not None:
            state.position = lookup.batch.position
        self.report.stepped(state, outcome, None if lookup is None else lookup.batch, factor)
        if self.checkpoints.ended:
            saved = self.checkpoints.outcome()
            if saved is not None:
                self._tell(saved)

    def _compute_and_apply(self, lookup: Any, leg: Leg, agreed: Agreed, factor: float) -> Outcome:
        state = self.state
        outcome = self.dense.compute(lookup, agreed if self.group.world > 1 else None)
        if not outcome.finite:
            if lookup is None or outcome.elsewhere:
                raise TrainingError(
                    f"step {state.step + 1}: the loss or gradient of another worker is not finite; its message names "
                    "the batch. Nothing of this step was applied; checkpoints are intact"
                )
            raise not_finite(state.step + 1, state.position, lookup, self.dense.model, outcome)
        if lookup is not None and self.job.train.staleness_damping:
            damp(lookup, leg.outstanding(state.step))
        leg.push(lookup, lr_factor=factor)
        self.dense.apply(outcome, factor)
        return outcome

    def _evaluate_if_due(self) -> None:
        """Validates where an epoch, `eval_every_steps` or the run has been completed. An interrupt leaves it due."""
        state = self.state
        finished = state.step > 0 and self._finished()
        if not (state.evaluation_due or finished) or state.evaluated_at == state.step or not self.sources.has_valid:
            state.evaluation_due = False
            return
        evaluation = self._measure(self.sources.valid())
        if evaluation is not None:
            state.judge(evaluation, self.job.train)
            self.report.evaluated("valid", state, evaluation)

    def _measure(self, batches: Iterator[Batch]) -> Evaluation | None:
        """The figures, or None where an interrupt came: half an evaluation is none."""
        labels = tuple(x.column for x in self.job.data.label)
        with self.report.busy("evaluation"):
            mine = _until(self.interrupts, batches)
            evaluation = evaluate(self.engine, self.dense, mine, labels, group=self.group)
        return None if self._interrupted() else evaluation

    def _save_if_due(self, *, stopping: bool) -> None:
        """Saves every `every_steps`, when the best model so far has been found, and whenever training ends here; then
        it waits for the files."""
        state, every = self.state, self.job.train.checkpoint.every_steps
        regular = every is not None and state.step % every == 0
        if stopping:
            self._settle()
        if state.step != 0 and self.saved_at != state.step and (regular or state.best_step == state.step or stopping):
            self._settle()
            with self.report.busy("checkpoint"):
                self.checkpoints.begin(state, self.report.to_dict(), behind=not stopping)
            self.saved_at = state.step
        if stopping:
            self._settle()

    def _settle(self) -> None:
        """Waits for the checkpoint that is being written, if one is."""
        with self.report.busy("checkpoint"):
            settled = self.checkpoints.settle()
        if settled is None:
            return
        saved, told = settled
        if not told:
            self._tell(saved)
        if saved.path is None:
            self.saves_failed += 1
            self.unsaved = saved.problem
            if self.saved_at == saved.step:
                self.saved_at = -1
        else:
            self.saved, self.unsaved = saved.path, None

    def _tell(self, saved: Saved) -> None:
        if saved.problem is not None:
            self.report.save_failed(saved.step, saved.problem)
        if saved.path is not None:
            self.report.saved(saved.step, saved.path)

    def _stopped(self) -> Stopped | None:
        stopping = self.job.train.early_stopping
        if self._interrupted():
            return "interrupted"
        if stopping is not None and self.state.without_improvement >= stopping.patience:
            return "early_stopping"
        return "done" if self._finished() else None

    def _finished(self) -> bool:
        train = self.job.train
        return self.state.epoch >= train.epochs or (train.max_steps is not None and self.state.step >= train.max_steps)

    def _is_eval_step(self) -> bool:
        every = self.job.train.eval_every_steps
        return every is not None and self.state.step % every == 0

    def _steps_to_drain(self) -> int | None:
        """Steps to the next one after which the pipeline must be empty; None: to the end of the epoch."""
        train, step = self.job.train, self.state.step
        periods = [n for n in (train.eval_every_steps, train.checkpoint.every_steps) if n is not None]
        steps = [n - step % n for n in periods]
        if train.max_steps is not None:
            steps.append(train.max_steps - step)
        return min(steps, default=None)

    def _open_feed(self) -> Feed:
        """The epoch's batches from where the state says; kept over drains, so that reading goes on meanwhile."""
        if self._feed is None:
            state = self.state
            # The position behind an epoch's last batch may be called the start of the next: then nothing is left.
            ended = state.position.epoch > state.epoch
            batches = iter(()) if ended else self.sources.train(state.epoch, state.position)
            self._feed = Feed(batches, getattr(self.engine, "prepare", None), self.report.seconds)
        return self._feed

    def _close_feed(self) -> None:
        if self._feed is not None:
            self._feed.close()
            self._feed = None

    def _end_epoch(self, *, empty: bool) -> None:
        if empty:
            raise DataError(
                f"no rows to train on in {', '.join(self.job.data.train)}: the files are empty, or data.valid holds "
                "all of them out"
            )
        self._close_feed()
        self.state.epoch += 1
        self.state.position = Position(self.state.epoch)
        self.state.evaluation_due = True
        self.report.epoch_ended(self.state)


def _until(interrupts: Interrupts, batches: Iterator[Batch]) -> Iterator[Batch]:
    """Batches until an interrupt asks to stop."""
    try:
        for batch in batches:
            if interrupts.requested:
                return
            yield batch
    finally:
        close = getattr(batches, "close", None)
        if close is not None:
            close()
