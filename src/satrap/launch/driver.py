"""The driver's part of a run: it watches the processes, and begins again from the last checkpoint when one has ended.

begin servers → begin workers → watch ──► all have ended well: the result
                    ▲              ├────► a worker has failed: its error, raised here
                    │              └────► a process has ended: abort the others, count what goes back ──┐
                    └──────────── replace it, placement epoch + 1, resume from the last checkpoint ◄────┘
"""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Iterable
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from satrap.errors import LaunchError, ServerLost, ServerUnreachable, WorkerGone
from satrap.launch.display import Display
from satrap.launch.fleet import Fleet, Member, first_line
from satrap.launch.told import Ended, Failed, Told
from satrap.observe.endpoint import write_targets
from satrap.observe.processes import plural
from satrap.observe.scrape import Scrape
from satrap.train.interrupt import Interrupts

if TYPE_CHECKING:
    from satrap.train.results import Result

LOOK_S = 0.2
"""How long the driver waits for something to happen before it looks at everything again."""
TELL_EVERY_S = 1.0
CAUSE_S = 3.0
"""A worker that fails because others are gone is asked for no more than this before they are all called so."""
ABORT_S = 10.0
"""Until a worker that was told to give up is ended."""


@dataclass(slots=True)
class Life:
    """What became of one life of the group."""

    ended: dict[int, Ended] = field(default_factory=dict)
    """Worker → how its training ended."""
    gone: list[Member] = field(default_factory=list)
    """Processes that ended by themselves, or were ended from outside."""
    stuck: list[Member] = field(default_factory=list)
    """Workers that did not give up when told."""
    failures: list[tuple[Member, Failed]] = field(default_factory=list)
    """Before the others were told to give up."""
    restored: int | None = None
    """Gradients in the checkpoint that it began with, once every worker has told."""
    trained: dict[int, int] = field(default_factory=dict)
    """Worker → gradients applied, as it told last."""


@dataclass(slots=True)
class Driver:
    """Runs a fleet to the end. Used by one thread."""

    fleet: Fleet
    run_dir: Path
    display: Display
    interrupts: Interrupts
    restarts: int
    plots: bool
    asked_at: float
    """When the user asked for the run, in seconds since 1970."""
    went_back: int = 0
    """Acknowledged gradients that were applied after the checkpoint that the run went back to."""
    _base: float = 0.0
    """What the servers had applied when this life began."""
    _before: tuple[int | None, bool, str] | None = None
    """(gradients when the last life ended, whether that is all of them, why it ended), until they are accounted for."""
    _first_step: bool = False
    _stop_sent: bool = False

    def run(self, *, resume: bool) -> Result:
        """Trains to the end. Raises what a worker raised, and LaunchError where processes ended too often."""
        for restart in range(self.restarts + 1):
            life = self._live(resume=resume or restart > 0)
            if not life.gone and not life.failures:
                result = life.ended[0].result
                assert result is not None
                gradients = {**result.gradients, **({"went_back": self.went_back} if self.went_back else {})}
                return dataclasses.replace(result, gradients=gradients)
            self._raise_if_final(life, restart)
            self._begin_again(life, restart)
        raise AssertionError("the last restart raises or returns")

    def _live(self, *, resume: bool) -> Life:
        """From the beginning of servers and workers to the end of every worker's `fit`."""
        fleet, life = self.fleet, Life()
        self._stop_sent = False
        placement = fleet.begin()
        write_targets(self.run_dir, fleet.targets())
        self._base = self._applied_at_servers() or 0.0
        pending = fleet.fit(placement, self.run_dir, resume=resume, plots=self.plots)
        members, told_at, give_up_at, aborted_at = [*fleet.servers, *fleet.workers], 0.0, None, None
        while pending:
            self._collect(pending, members, life, early=aborted_at is None)
            now = time.monotonic()
            if now - told_at >= (TELL_EVERY_S if self._first_step else LOOK_S):
                self._tell(life, members)
                told_at = now
            self._pass_on_stop()
            if give_up_at is None and (life.gone or life.failures):
                give_up_at = now + (0.0 if life.gone or _causes(life.failures) else CAUSE_S)
            if aborted_at is None and give_up_at is not None and (now >= give_up_at or life.gone):
                aborted_at = now
                for w in pending.values():
                    w.actor.abort.remote()
            if aborted_at is not None and now - aborted_at > ABORT_S:
                life.stuck += pending.values()
                break
        if not life.gone and not life.failures:
            self._tell(life, members)
        for m in life.stuck:
            fleet.end(m)
        return life

    def _collect(self, pending: dict[Any, Member], members: list[Member], life: Life, *, early: bool) -> None:
        """Takes in who has ended. `early`: nobody has been told to give up yet."""
        ray = self.fleet.session.ray
        watches = {m.watch: m for m in members if m not in life.gone}
        ready, _ = ray.wait([*pending, *watches], num_returns=1, timeout=LOOK_S)
        for promise in ready:
            if promise in watches:
                life.gone.append(watches[promise])
                continue
            worker = pending.pop(promise)
            try:
                ended: Ended = ray.get(promise)
            except ray.exceptions.RayError:
                if worker not in life.gone:
                    life.gone.append(worker)
                continue
            life.ended[worker.index] = ended
            life.trained[worker.index] = ended.trained
            if ended.failed is not None and early:
                life.failures.append((worker, ended.failed))
        for promise in [p for p, w in pending.items() if w in life.gone]:
            del pending[promise]

    def _tell(self, life: Life, members: list[Member]) -> None:
        """Has everyone tell how they are, and shows it."""
        told = self.fleet.texts(timeout_s=1.0)
        for rank, t in told.items():
            if t.trained is not None:
                life.trained[rank] = t.trained
        all_train = len(told) == len(self.fleet.workers) and all(t.trained is not None for t in told.values())
        if life.restored is None and all_train:
            life.restored = sum(t.restored for t in told.values())
            self._account(life.restored, told[0])
        first = told.get(0)
        if not self._first_step and first is not None and first.first_step_at is not None:
            self._first_step = True
            self.display.say(
                f"first step {first.first_step_at - self.asked_at:.1f} s after the command "
                f"(Ray {self.fleet.session.start_s:.1f} s)"
            )
        self.display.update(members, first)

    def _account(self, restored: int, told: Told) -> None:
        """What of the last life is not in the checkpoint that this one began with."""
        if self._before is None:
            return
        (had, whole, why), self._before = self._before, None
        back = None if had is None else max(0, had - restored)
        self.went_back += back or 0
        amount = "it is not known how many" if back is None else f"{'' if whole else 'at least '}{back:,}"
        self.display.say(f"going on from step {told.step:,}: {amount} acknowledged gradients after it went back")
        from satrap.observe.runlog import RunLog

        if self.run_dir.is_dir():
            with RunLog(self.run_dir, tensorboard=False) as log:
                log.event(
                    "restart",
                    step=told.step,
                    why=why,
                    placement_epoch=self.fleet.epoch,
                    gradients_back=back,
                    exact=whole,
                )

    def _pass_on_stop(self) -> None:
        if self.interrupts.requested and not self._stop_sent:
            self._stop_sent = True
            for w in self.fleet.workers:
                w.actor.stop.remote()

    def _raise_if_final(self, life: Life, restart: int) -> None:
        """Raises the error of a worker that is its own doing, or where the run may not begin again."""
        if not life.gone:
            causes = _causes(life.failures)
            for worker, failed in causes:
                if not isinstance(failed.error, ServerUnreachable | ServerLost):
                    raise failed.raised(worker.name)
        what = _what_happened(life)
        if self.interrupts.requested:
            raise LaunchError(f"{what} while the run was stopping: nothing more was saved, checkpoints are intact")
        if restart == self.restarts:
            often = f"after {plural(restart, 'restart')}" if restart else "and no restart is allowed"
            error = LaunchError(
                f"{what}, {often}; see how much memory it had, and go on from the last checkpoint with: "
                f"satrap train --resume {self.run_dir}"
            )
            if life.failures:
                worker, failed = life.failures[0]
                raise error from failed.raised(worker.name)
            raise error

    def _begin_again(self, life: Life, restart: int) -> None:
        gone = {id(m) for m in (*life.gone, *life.stuck)}
        why = _what_happened(life)
        self.display.say(
            f"{why}: starting again from the last checkpoint (restart {restart + 1} of {self.restarts}, placement "
            f"{self.fleet.epoch + 1})"
        )
        had, whole = self._trained_in(life)
        if life.restored is None:
            # It ended before it began to train; what the life before it had is still to be accounted for.
            self._before = self._before or (None, False, why)
        else:
            self._before = (life.restored + had, whole, why)
        self.fleet.replace([m for m in (*self.fleet.servers, *self.fleet.workers) if id(m) in gone])

    def _trained_in(self, life: Life) -> tuple[int, bool]:
        """Gradients applied in a life, and whether these are all: the servers know, or else the workers."""
        if not any(m.role == "server" for m in life.gone):
            applied = self._applied_at_servers()
            if applied is not None:
                return round(applied - self._base), True
        gone = {m.index for m in (*life.gone, *life.stuck) if m.role == "worker"}
        return sum(life.trained.values()), not gone

    def _applied_at_servers(self) -> float | None:
        ray = self.fleet.session.ray
        try:
            texts = ray.get([m.actor.text.remote() for m in self.fleet.servers], timeout=ABORT_S)
        except (ray.exceptions.RayError, ray.exceptions.GetTimeoutError):
            return None
        return sum(Scrape.of(text).total("satrap_gradients_applied_total") or 0.0 for text in texts)

    def close(self) -> None:
        """Ends all processes, and says so in the run folder."""
        for m in (*self.fleet.servers, *self.fleet.workers):
            with suppress(Exception):
                self.fleet.end(m)
        if self.run_dir.is_dir():
            with suppress(Exception):
                write_targets(self.run_dir, [])


def _causes(failures: Iterable[tuple[Member, Failed]]) -> list[tuple[Member, Failed]]:
    """Failures that are not another's fault."""
    return [(w, f) for w, f in failures if not isinstance(f.error, WorkerGone | ServerUnreachable)]


def _what_happened(life: Life) -> str:
    if life.gone:
        names = [f"{m.name}{f' (pid {m.begun.pid})' if m.begun is not None else ''}" for m in life.gone]
        return f"{' and '.join(names)} has ended" if len(names) == 1 else f"{' and '.join(names)} have ended"
    worker, failed = life.failures[0]
    return f"{worker.name}: {first_line(failed.error) if failed.error is not None else failed.message}"
