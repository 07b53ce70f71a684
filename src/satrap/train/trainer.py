"""The trainer: a job in, a trained, evaluated and saved model out.

    trainer = Trainer(job)
    result = trainer.fit()
    print(result.test.auc, result.checkpoint)

`fit` builds a `Run` and lets it train; what happens step by step is in `run.py`, and the order of lookups and pushes in
`pipeline.py`. T labels.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from pathlib import Path
from time import perf_counter
from typing import Any

import msgspec
import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from satrap import _TORCH_SPINS, checkpoint, models
from satrap.data import measure
from satrap.embedding import EmbeddingEngine, Ledger
from satrap.errors import JobError, TrainingError
from satrap.observe import cores_available
from satrap.observe.plots import plots as draw_plots
from satrap.observe.profile import Profile, write_profile
from satrap.observe.stages import StageSeconds, Trace
from satrap.pooling import Pooler
from satrap.ps import LocalService
from satrap.schema import DENSE_TABLE, Job, save_job
from satrap.train.cores import compute_threads
from satrap.train.evaluation import evaluate, predict
from satrap.train.folder import fresh_run_dir
from satrap.train.group import ALONE, Group
from satrap.train.interrupt import Interrupts
from satrap.train.memory import garbage_of_the_loop_only, keep_freed_memory
from satrap.train.reporting import Display, Report
from satrap.train.results import Evaluation, HotTable, Result, Size, Stopped
from satrap.train.run import Run
from satrap.train.saving import Checkpoints, device_of, restore_model
from satrap.train.schedule import LearningRate
from satrap.train.sources import Sources, rows_of
from satrap.train.state import RunState
from satrap.train.step import DenseStep
from satrap.train.together import Beginning, begin, seed_of, share_dense, times, totals


class Trainer:
    """Trains a job, and evaluates and predicts with the model. One thread at a time.

    >>> import tempfile, pyarrow, pyarrow.parquet
    >>> from satrap.schema import Categorical, Data, Label, Train
    >>> folder = tempfile.mkdtemp()
    >>> user = [i % 10 for i in range(2000)]
    >>> rows = pyarrow.table({"user": user, "click": [int(u < 5) for u in user]})
    >>> pyarrow.parquet.write_table(rows, f"{folder}/clicks.parquet")
    >>> job = Job(
    ...     data=Data(train=(f"{folder}/clicks.parquet",), label=(Label(column="click"),)),
    ...     features=(Categorical(name="user"),),
    ...     train=Train(batch_size=100, threads=1),
    ... )
    >>> trainer = Trainer(job, run_dir=f"{folder}/run", progress=False, plots=False)
    >>> result = trainer.fit()
    >>> result.valid.auc, result.rows, result.checkpoint.name
    (1.0, 10, 'step-00000018')
    >>> Trainer.from_checkpoint(result.checkpoint).evaluate(f"{folder}/clicks.parquet").auc
    1.0
    """

    def __init__(
        self,
        job: Job,
        model: nn.Module | None = None,
        *,
        run_dir: str | Path | None = None,
        service: Any = None,
        pooler: Pooler | None = None,
        group: Group = ALONE,
        progress: bool | Display | None = None,
        plots: bool = True,
        cores: int | None = None,
        profile: bool = False,
    ) -> None:
        """`model` None: the job's, with weights that follow from its seed. `run_dir` None: runs/<job>-<time>.
        `service` None: fresh tables in this process. `pooler`: looks batches up and pushes their gradients, in an
        embedding worker say, to the rows of `service`; None: this process does. `group`: the workers this one trains
        with, each with a trainer of its own on the same job and a service that leads to the same rows; each does a
        part of every batch.
        `progress` False is silent; else it is live on a terminal and a line every few seconds elsewhere, or what this
        makes that is called as `observe.Progress` is. `plots` False leaves out the pictures at the end of `fit` (about
        a second). `cores`: that this process may keep busy where the job names no threads; None: all there are.
        `profile` writes where the time went, and the spans of the first steps as a Chrome trace, into the run folder;
        the figures are in the result in any case.

        Sets the number of threads torch computes with, and lets glibc keep freed memory, for the whole process.
        """
        if service is None and group.world > 1:
            raise TrainingError(f"{group.world} workers need rows that they share: give each a RemoteService")
        if service is None and pooler is not None:
            raise TrainingError("a pooler needs the service whose rows it pools: checkpoints are made of them")
        self.job, self._group = job, group
        self.run_dir = Path(run_dir) if run_dir is not None else fresh_run_dir(job)
        self.device = device_of(job.train.device)
        compute_threads(job.train.threads or cores or cores_available())
        keep_freed_memory()
        if model is None:
            torch.manual_seed(job.seed)
            model = models.build(job)
        self.model = model.to(self.device)
        self.service = service if service is not None else LocalService.of(job)
        self._seconds = StageSeconds(trace=Trace() if profile and group.rank == 0 else None)
        self._dense = DenseStep(job, self.model, self.device, group, self._seconds)
        if pooler is not None and self._dense.rows is not None:
            raise JobError(
                "train.dense_mode: async is for workers that pool rows themselves; leave out embedding workers"
            )
        self.engine: Any = EmbeddingEngine(
            job,
            self.service,
            pooler=pooler,
            device=self.device,
            threads=job.store.threads or cores,
            client=group.rank,
            along=None if self._dense.rows is None else {DENSE_TABLE: self._dense.rows.ids},
            seconds=self._seconds,
        )
        self._progress, self._plots, self._profile = progress, plots, profile
        self._cores = cores or cores_available()
        self._used = False
        self._interrupts = Interrupts()
        self.run: Run | None = None
        """What `fit` works with, for those who watch: to be read only."""

    @classmethod
    def from_checkpoint(cls, path: str | Path, model: nn.Module | None = None) -> Trainer:
        """A trainer with the model of a checkpoint (or of a run's newest), to evaluate and predict with.

        `model` is needed where the job does not say how to build it. Raises CheckpointError for what is damaged or
        does not fit.
        """
        loaded = checkpoint.load(path)
        run = loaded.path.parent.parent
        here = not isinstance(run, checkpoint.RemotePath)
        trainer = cls(loaded.job, model, run_dir=run if here else Path(loaded.path.parent.name), progress=False)
        restore_model(loaded, trainer._dense, trainer.service)
        trainer._used = True
        return trainer

    def fit(self, resume: bool = False) -> Result:
        """Trains, validates, saves, and tests. `resume` goes on from the newest checkpoint of `run_dir`, if any.

        Ctrl-C and SIGTERM (in the main thread) finish the step, save a checkpoint and return with
        `stopped="interrupted"`; a second one raises KeyboardInterrupt. Raises DataError, TrainingError, CheckpointError
        and JobError; checkpoints that were complete stay so.
        """
        try:
            return self._fit(resume, perf_counter())
        except BaseException:
            self._group.close()  # or the others would wait for this one for ever
            raise

    def _fit(self, resume: bool, started: float) -> Result:
        if self._used:
            # Rows and optimizers of an earlier training would leak into the next without a word.
            raise TrainingError(
                "this trainer has been used: its tables and weights are trained. Make a new Trainer(job), or "
                f"Trainer(job, run_dir='{self.run_dir}').fit(resume=True) to go on"
            )
        first, loaded = self._group.rank == 0, None
        if first:
            newest = self._newest(resume)
            loaded = None if newest is None else checkpoint.load(newest)
            self.job = measured(self.job, loaded)
        self._used = True
        mine = Beginning(self.job, self.run_dir, None if loaded is None else loaded.step) if first else None
        beginning = begin(self._group, mine)
        self.job, self.run_dir = beginning.job, beginning.run_dir
        # Files that are not there or do not fit are found here, before a run folder is made for nothing.
        sources = Sources(self.job, (self._group.rank, self._group.world))
        sources.seconds = self._seconds
        with ExitStack() as stack:
            report = stack.enter_context(
                Report(self.job, self.run_dir, self.service, self._progress, writes=first, seconds=self._seconds)
            )
            self._interrupts.notify = report.notify
            interrupts = stack.enter_context(self._interrupts)
            self.run = run = self._open_run(sources, beginning, loaded, report, interrupts)
            with garbage_of_the_loop_only():
                stopped = run.train()
            result = self._conclude(run, stopped, started)
            report.finished(run.state, result)
        if self._profile and first:
            write_profile(self.run_dir, result.profile, self._seconds.trace)
        if self._plots and first and stopped != "interrupted":
            result = dataclasses.replace(result, plots=tuple(draw_plots(self.run_dir)))
        return result

    def stop(self) -> None:
        """Has `fit` do what it does at Ctrl-C: finish the step, save, return. From any thread; of a group, any one's
        will do."""
        self._interrupts.requested = True

    def evaluate(self, paths: str | Sequence[str]) -> Evaluation:
        """The figures of the model on some files. Makes no row and changes nothing."""
        labels = tuple(x.column for x in self.job.data.label)
        return evaluate(self.engine, self._dense, rows_of(self.job, _several(paths)), labels)

    def predict(self, paths: str | Sequence[str]) -> Iterator[NDArray[np.float32]]:
        """Probabilities [b, T] of some files' rows, piece by piece, in their order. The files need no labels."""
        return predict(self.engine, self._dense, rows_of(self.job, _several(paths), labels=False))

    def _newest(self, resume: bool) -> Path | None:
        """The checkpoint to go on from. Raises JobError for a folder that holds another run."""
        where = checkpoint.kept_at(self.run_dir, self.job.train.checkpoint.folder)
        newest = checkpoint.latest(where)
        if newest is not None and not resume:
            held = self.run_dir if where.is_relative_to(self.run_dir) else where
            raise JobError(
                f"{held} already holds the checkpoints of a run; go on with it (fit(resume=True), or "
                "satrap train --resume), or choose another folder"
            )
        return newest

    def _open_run(
        self,
        sources: Sources,
        beginning: Beginning,
        loaded: checkpoint.Loaded | None,
        report: Report,
        interrupts: Interrupts,
    ) -> Run:
        """Everything in place for the first step: schedules, random state, counters; or as the checkpoint had it."""
        job, group = self.job, self._group
        if group.rank == 0:
            save_job(job, self.run_dir / "job.yaml")
        checkpoints = Checkpoints(self.run_dir, job, self.service, self._dense, sources, group)
        torch.manual_seed(seed_of(job.seed, group.rank))
        self.model.train()
        state = RunState()
        if beginning.step is None:
            share_dense(group, self._dense)
            self._write_dense_rows()
        else:
            state, reported = checkpoints.restore(loaded)
            report.restore(reported)
        rate = LearningRate.plan(job.train.schedule, sources.steps_total)
        report.started(state, sources.steps_total, sources.samples_total)
        if _TORCH_SPINS and torch.get_num_threads() > 1:
            report.notify(
                "torch was imported before satrap, so its threads spin while they wait and take time from the others: "
                "import satrap first, or set OMP_WAIT_POLICY=PASSIVE"
            )
        return Run(
            job=job,
            engine=self.engine,
            dense=self._dense,
            sources=sources,
            checkpoints=checkpoints,
            state=state,
            report=report,
            service=self.service,
            interrupts=interrupts,
            rate=rate,
            saved_at=-1 if beginning.step is None else beginning.step,
            saved=None if beginning.step is None else checkpoints.at(beginning.step),
            group=group,
        )

    def _write_dense_rows(self) -> None:
        """Puts the first dense weights where every worker will pull them."""
        if self._dense.rows is None:
            return
        if self._group.rank == 0:
            self._dense.rows.write(self.service)
        self._group.barrier()

    def _conclude(self, run: Run, stopped: Stopped, started: float) -> Result:
        """The model that stands for the run (the best, with early stopping), tested, and the figures of it all."""
        state, report = run.state, run.report
        tables = self.service.stats()
        size, valid, test = Size.of(tables), state.valid, None
        if stopped != "interrupted":
            if self.job.train.early_stopping is not None and self._back_to_best(run):
                valid = state.best
            test = run.test()
        gradients, report.staleness = totals(self._group, _gradients(self.engine.ledger), report.staleness)
        known = report.staleness[: report.staleness_max + 1].tolist() if report.staleness[:-1].any() else []
        return Result(
            stopped=stopped if test is not None or not self.job.data.test else "interrupted",
            steps=state.step,
            epochs=state.epoch,
            samples=state.samples,
            samples_per_s=report.samples_per_s,
            seconds=perf_counter() - started,
            loss=report.loss,
            valid=valid,
            test=test,
            size=size,
            gradients=gradients,
            staleness_mean=report.staleness_mean,
            staleness_max=report.staleness_max,
            stages=report.seconds,
            profile=self._profiled(report),
            saves_failed=run.saves_failed,
            unsaved=run.unsaved,
            tables=dict(tables),
            staleness=tuple(known),
            hot_ids={
                name: HotTable(hot.seen, hot.error, tuple((h.id, h.share) for h in hot.top()))
                for name, hot in self.engine.hot_ids.items()
            },
            checkpoint=run.saved,
            run_dir=self.run_dir,
        )

    def _back_to_best(self, run: Run) -> bool:
        """Puts the best model in the place of the last. False, told, where it could not be saved when it was there."""
        state = run.state
        if state.best is None or state.best_step == state.step:
            return state.best is not None
        best = run.checkpoints.at(state.best_step)
        if best is None:
            run.report.save_failed(
                state.step,
                f"the best model, of step {state.best_step}, is not there to go back to: figures and checkpoint are "
                "of the last",
            )
            return False
        if self._group.rank == 0:
            restore_model(checkpoint.load(best), self._dense, self.service)
        share_dense(self._group, self._dense)
        run.saved, run.unsaved = best, None
        return True

    def _profiled(self, report: Report) -> Profile:
        train = self.job.train
        return Profile(
            workers=times(self._group, report.time_of(self._group.rank)),
            cores=self._cores,
            threads=torch.get_num_threads(),
            device=self.device.type,
            precision=train.precision,
            staleness=train.staleness,
            batch_size=train.batch_size,
            samples=report.samples_trained,
        )


def measured(job: Job, loaded: checkpoint.Loaded | None) -> Job:
    """The job with the mean and deviation of every standard-scaled number: a resumed run's own, else measured now."""
    unmeasured = {f.name for f in job.numeric_features if f.scale == "standard" and f.mean is None}
    if not unmeasured:
        return job
    if loaded is None:
        return measure(job)
    known = {f.name: f for f in loaded.job.features if f.name in unmeasured}
    return msgspec.structs.replace(job, features=tuple(known.get(f.name, f) for f in job.features))


def _gradients(ledger: Ledger) -> dict[str, int]:
    """The ledger as plain figures."""
    refused = {f"refused_{reason.value}": n for reason, n in ledger.refused.items()}
    return {"sent": ledger.sent, "applied": ledger.applied, "duplicates": ledger.duplicates, **refused}


def _several(paths: str | Sequence[str]) -> tuple[str, ...]:
    return (paths,) if isinstance(paths, str) else tuple(paths)
