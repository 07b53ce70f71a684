"""The driver's part of a run: it watches the processes, and begins again from the last checkpoint when one has ended.

begin servers → begin workers → watch ──► all have ended well: the result
                    ▲              ├────► a worker has failed: its error, raised here
                    │              └────► a process has ended: abort the others, count what goes back ──┐
                    └──────────── replace it, placement epoch + 1, resume from the last checkpoint ◄────┘
"""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Iterable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import msgspec

from satrap.errors import LaunchError, SatrapError, ServerLost, ServerUnreachable, WorkerGone
from satrap.launch.display import Display
from satrap.launch.fleet import Fleet, Gone, Member, first_line
from satrap.launch.scaling import LINGER_S, HandingOver, Moving, Scaling, asked, tell
from satrap.launch.scaling import Progress as ScalingProgress
from satrap.launch.told import Ended, Failed, Told
from satrap.observe.endpoint import write_targets
from satrap.observe.processes import plural
from satrap.observe.profile import PoolerTime, Profile, ServerTime, write_profile
from satrap.observe.scrape import Scrape
from satrap.train.interrupt import Interrupts

if TYPE_CHECKING:
    from satrap.ps import Placement
    from satrap.train.results import Result

LOOK_S = 0.2
"""How long the driver waits for something to happen before it looks at everything again."""
TELL_EVERY_S = 1.0
CAUSE_S = 3.0
"""A worker that fails because others are gone is asked for no more than this before they are all called so."""
ABORT_S = 10.0
"""Until a worker that was told to give up is ended."""
SILENT_S = 5.0
"""A process that has told nothing for so long is named: others wait for it."""


@dataclass(slots=True)
class Life:
    """What became of one life of the group."""

    ended: dict[int, Ended] = field(default_factory=dict)
    """Worker → how its training ended."""
    gone: list[Member] = field(default_factory=list)
    """Processes that ended by themselves, or were ended from outside."""
    stuck: list[Member] = field(default_factory=list)
    """Processes that run and do not answer: workers that did not give up when told, servers that nobody reaches."""
    starting: bool = True
    """It has not come as far as training."""
    failures: list[tuple[Member, Failed]] = field(default_factory=list)
    """Before the others were told to give up, and of a server that nobody reaches also after that: who has waited for
    it longest may be the last to end."""
    restored: int | None = None
    """Gradients in the checkpoint that it began with, once every worker has told."""
    trained: dict[int, int] = field(default_factory=dict)
    """Worker → gradients applied, as it told last."""

    @property
    def well(self) -> bool:
        """Every worker has trained to the end."""
        return not (self.gone or self.stuck or self.failures)


@dataclass(slots=True)
class Driver:
    """Runs a fleet to the end. Used by one thread."""

    fleet: Fleet
    run_dir: Path
    display: Display
    interrupts: Interrupts
    restarts: int
    plots: bool
    profile: bool
    asked_at: float
    """When the user asked for the run, in seconds since 1970."""
    went_back: int = 0
    """Acknowledged gradients that were applied after the checkpoint that the run went back to."""
    _base: float = 0.0
    """What the servers had applied when this life began."""
    _before: tuple[int | None, bool, str] | None = None
    """(gradients when the last life ended, whether that is all of them, why it ended), until they are accounted for."""
    _revived: int = 0
    """Servers that came back with what they had acknowledged."""
    _scaling: Moving | None = None
    """Partitions that are moving."""
    _elsewhere: str | None = None
    """Why all save now and begin again on other machines."""
    _placement: Placement | None = None
    """That clients go by."""
    _leaving: list[tuple[Member, float]] = field(default_factory=list)
    """Servers without partitions, and when they end."""
    _releasing: list[tuple[Member, float]] = field(default_factory=list)
    """Servers that have handed over, and when their machine may go."""
    _made_way: set[str] = field(default_factory=set)
    """Nodes that were told to go and have been left: what still runs there has nowhere else to be."""
    _first_step: bool = False
    _stop_sent: bool = False
    _silent: set[str] = field(default_factory=set)
    """Processes that have been named for telling nothing."""

    def run(self, *, resume: bool) -> Result:
        """Trains to the end. Raises what a worker raised, and LaunchError where processes ended too often."""
        restart = 0
        while True:
            life = self._live(resume=resume)
            resume = True
            if life.well:
                result = life.ended[0].result
                assert result is not None
                if self._elsewhere is not None and result.stopped == "interrupted" and not self.interrupts.requested:
                    self._begin_elsewhere(life, self._elsewhere)
                    continue
                gradients = {**result.gradients, **({"went_back": self.went_back} if self.went_back else {})}
                return dataclasses.replace(result, gradients=gradients, profile=self._profiled(result.profile))
            self._raise_if_final(life, restart)
            self._begin_again(life, restart)
            restart += 1

    def _live(self, *, resume: bool) -> Life:
        """From the beginning of servers and workers to the end of every worker's `fit`."""
        fleet, life = self.fleet, Life()
        self._stop_sent, self._elsewhere = False, None
        try:
            placement = self._placement = fleet.begin()
            write_targets(self.run_dir, fleet.targets())
            self._base = self._applied_at_servers() or 0.0
            pending = fleet.fit(placement, self.run_dir, resume=resume, plots=self.plots, profile=self.profile)
        except Gone as e:
            self._end_stuck(life, e.members)
            return life
        life.starting = False
        members, told_at, give_up_at, aborted_at = list(fleet.members), 0.0, None, None
        while pending:
            self._collect(pending, members, life, early=aborted_at is None)
            now = time.monotonic()
            if now - told_at >= (TELL_EVERY_S if self._first_step else LOOK_S):
                self._tell(life, members)
                told_at = now
            self._pass_on_stop()
            self._scale(life, members)
            self._make_way(life, members)
            if give_up_at is None and (life.gone or life.failures):
                give_up_at = now + (0.0 if life.gone or _causes(life.failures) else CAUSE_S)
            if aborted_at is None and give_up_at is not None and (now >= give_up_at or life.gone):
                aborted_at = now
                for w in pending.values():
                    w.actor.abort.remote()
            if aborted_at is not None and now - aborted_at > ABORT_S:
                self._end_stuck(life, pending.values())
                break
        self._end_scaling(life)
        if life.well:
            self._tell(life, members)
        else:
            # Who says first why a life ended need not know of a server that nobody reaches: every one is asked.
            for m in life.gone:
                fleet.end(m)
            others = [m for m in (*fleet.owners, *fleet.embedding_workers) if m not in (*life.gone, *life.stuck)]
            self._end_stuck(life, fleet.silent(others, ABORT_S))
        return life

    def _end_stuck(self, life: Life, members: Iterable[Member]) -> None:
        """Ends processes that are silent, so that nothing of them comes later; enters those that had ended before."""
        for m in members:
            (life.stuck if m.begun is not None and self.fleet.runs(m) else life.gone).append(m)
            self.fleet.end(m)

    def _collect(self, pending: dict[Any, Member], members: list[Member], life: Life, *, early: bool) -> None:
        """Takes in who has ended. `early`: nobody has been told to give up yet."""
        ray = self.fleet.session.ray
        watches = {m.watch: m for m in members if m not in life.gone}
        ready, _ = ray.wait([*pending, *watches], num_returns=1, timeout=LOOK_S)
        for promise in ready:
            if promise in watches:
                if self.fleet.watched_anew(watches[promise]):
                    continue
                if self.fleet.runs(watches[promise]):
                    self.display.say(f"Ray takes {_named(watches[promise])} for ended, though it runs: it is ended")
                if not (early and self._revive(watches[promise], members)):
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
            if ended.failed is not None and (early or isinstance(ended.failed.error, ServerUnreachable)):
                life.failures.append((worker, ended.failed))
        for promise in [p for p, w in pending.items() if w in life.gone]:
            del pending[promise]

    def _revive(self, member: Member, members: list[Member]) -> bool:
        """Whether a process that has ended was a server that is back, with all it had acknowledged."""
        fleet = self.fleet
        if member.role != "server" or fleet.history is None or self._revived >= self.restarts:
            return False
        begun = time.monotonic()
        self.display.say(
            f"{member.name} (pid {member.begun.pid if member.begun else '?'}) has ended: it is brought back"
        )
        try:
            fleet.end(member)  # Ray may have lost sight of one that runs
            now = fleet.revive(member)
            assert member.begun is not None
            assert now.begun is not None
            if now.begun.address != member.begun.address:
                if self._scaling is not None or self._placement is None:
                    raise LaunchError("partitions are moving, so its new address cannot be made known")
                self._placement = fleet.relocate(self._placement, now)
                self.display.say(f"{member.name} is on {now.node.ip} now")
        except (SatrapError, OSError, Gone) as e:
            self.display.say(f"{member.name} cannot be brought back: {first_line(e)}")
            return False
        self._revived += 1
        members[members.index(member)] = now
        write_targets(self.run_dir, fleet.targets())
        took = time.monotonic() - begun
        self.display.say(
            f"{member.name} is back with everything it had acknowledged, after {took:.1f} s "
            f"({self._revived} of {self.restarts})"
        )
        self._log("revived", process=member.name, host=now.node.ip, seconds=round(took, 3))
        return True

    def _log(self, kind: str, **fields: Any) -> None:
        """A record in the run's log, if it has one by now."""
        from satrap.observe.runlog import RunLog

        if self.run_dir.is_dir():
            with RunLog(self.run_dir, tensorboard=False) as log:
                log.event(kind, **fields)

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
        if life.restored is not None:  # until then they are busy with starting
            self._name_silent(members)
            self._end_silent(members)
        self.display.update(members, first)

    def _name_silent(self, members: list[Member]) -> None:
        """Says whom the others wait for, and when it is back."""
        now = time.monotonic()
        for m in members:
            silent = now - m.heard_at > SILENT_S
            if silent and m.name not in self._silent:
                self._silent.add(m.name)
                self.display.say(f"{_named(m)} has not answered for {SILENT_S:g} s: the others wait for it")
            elif not silent and m.name in self._silent:
                self._silent.remove(m.name)
                self.display.say(f"{_named(m)} answers again")

    def _end_silent(self, members: list[Member]) -> None:
        """Ends servers that would come back with all they had, before their clients give them up."""
        if self.fleet.history is None:
            return
        now, patience_s = time.monotonic(), self.fleet.server_deadline_s / 2
        for m in members:
            if m.role == "server" and now - m.heard_at > patience_s:
                self.display.say(f"{_named(m)} has not answered for {patience_s:g} s: it is ended")
                # That it has ended is noticed like any other end.
                m.heard_at = now
                self.fleet.end(m)

    def _account(self, restored: int, told: Told) -> None:
        """What of the last life is not in the checkpoint that this one began with."""
        if self._before is None:
            return
        (had, whole, why), self._before = self._before, None
        back = None if had is None else max(0, had - restored)
        self.went_back += back or 0
        amount = "it is not known how many" if back is None else f"{'' if whole else 'at least '}{back:,}"
        self.display.say(f"going on from step {told.step:,}: {amount} acknowledged gradients after it went back")
        epoch = self.fleet.epoch
        self._log("restart", step=told.step, why=why, placement_epoch=epoch, gradients_back=back, exact=whole)

    def _scale(self, life: Life, members: list[Member]) -> None:
        """Begins to change the number of servers where that is asked for, and goes on with it."""
        now = time.monotonic()
        for m, at in list(self._leaving):
            if now >= at:
                self._leaving.remove((m, at))
                self.fleet.end(m)
        for m, at in list(self._releasing):
            if now >= at:
                self._releasing.remove((m, at))
                m.actor.release.remote()
        if self._scaling is None:
            if life.restored is not None and not self.interrupts.requested:
                self._begin_scaling()
            return
        scaling = self._scaling
        running = scaling.running
        if scaling.came:
            members += scaling.came
            scaling.came.clear()
            write_targets(self.run_dir, self.fleet.targets())
        while scaling.says:
            self.display.say(scaling.says.popleft())
        if running:
            return
        self._scaling, self._placement = None, scaling.placement
        if isinstance(scaling, HandingOver):
            self._retire(scaling, members)
        elif scaling.error is None:
            self._let_go(self.fleet.fewer_servers(scaling.servers), members)
            assert isinstance(scaling, Scaling)
            scaling.finish()

    def _begin_scaling(self) -> None:
        """Takes a request up, if there is one."""
        try:
            wanted = asked(self.run_dir)
        except LaunchError as e:
            self.display.say(str(e))
            return
        if wanted is None or self._placement is None:
            return
        scaling = Scaling(self.fleet, self._placement, self.run_dir, asked=wanted)
        try:
            scaling.start()
        except SatrapError as e:
            self.display.say(f"the number of servers stays as it is: {e}")
            tell(self.run_dir, ScalingProgress(id=wanted.id, state="failed", message=str(e)))
            return
        self._scaling = scaling

    def _make_way(self, life: Life, members: list[Member]) -> None:
        """Where processes will be taken away: servers hand over to others, or all save and begin again elsewhere."""
        busy = self._scaling is not None or self._elsewhere is not None or self._stop_sent
        leaving = [m for m in members if m.leaves and m.node.id not in self._made_way]
        if not leaving or busy or life.restored is None or not life.well or self._placement is None:
            return
        names = " and ".join(map(_named, leaving))
        self._made_way |= {m.node.id for m in leaving if m.machine_leaves}
        takers = [m.index for m in self.fleet.owners if not m.leaves]
        if takers and all(m.role == "server" for m in leaving):
            moving = HandingOver(self.fleet, self._placement, self.run_dir, leaving=leaving, takers=takers)
            try:
                moving.start()
            except LaunchError as e:
                self.display.say(str(e))
            else:
                self.display.say(f"{names} will be taken away: handing over to {plural(len(takers), 'other server')}")
                self._scaling = moving
                return
        self._go_elsewhere(f"{names} will be taken away")

    def _go_elsewhere(self, why: str) -> None:
        self.display.say(f"{why}: all save now, and begin again without")
        self._elsewhere = why
        for w in self.fleet.workers:
            w.actor.stop.remote()

    def _retire(self, moving: HandingOver, members: list[Member]) -> None:
        """Servers have handed over: they answer for a little longer, and nobody minds when they are gone."""
        if moving.error is not None:
            self._go_elsewhere(" and ".join(map(_named, moving.leaving)) + " could not hand over")
            return
        self._let_go(list(moving.leaving), members)
        self._releasing += [(m, time.monotonic() + LINGER_S) for m in moving.leaving]
        self.fleet.retired |= {m.index for m in moving.leaving}
        write_targets(self.run_dir, self.fleet.targets())

    def _begin_elsewhere(self, life: Life, why: str) -> None:
        """All have saved: those that will be taken away end, and others take their places."""
        if life.restored is not None:
            had, whole = self._trained_in(life)
            self._before = (life.restored + had, whole, why)
        ended = [m for m in self.fleet.members if m.leaves or (m.index in self.fleet.retired and m.role == "server")]
        for m in ended:
            self.fleet.end(m)
        self.fleet.replace(ended, self.display.say, lambda: self.interrupts.requested)

    def _let_go(self, others: list[Member], members: list[Member]) -> None:
        """Lets servers that own nothing end, once nobody can wait for an answer of theirs."""
        for m in others:
            members.remove(m)
            self._base -= Scrape.of(self._text_of(m)).total("satrap_gradients_applied_total") or 0.0
            self._leaving.append((m, time.monotonic() + self.fleet.server_deadline_s + LINGER_S))
        if others:
            write_targets(self.run_dir, self.fleet.targets())

    def _text_of(self, m: Member) -> str:
        """The metrics of a process now, or else those that it told last."""
        ray = self.fleet.session.ray
        try:
            return str(ray.get(m.actor.text.remote(), timeout=ABORT_S))
        except (ray.exceptions.RayError, ray.exceptions.GetTimeoutError):
            return m.last

    def _end_scaling(self, life: Life) -> None:
        """What is asked for and not done yet when the group ends: the next one begins with so many servers."""
        scaling, self._scaling = self._scaling, None
        if scaling is not None:
            if life.well and isinstance(scaling, Scaling) and not scaling.running and scaling.error is None:
                scaling.finish()
            elif life.well:
                scaling.give_up("failed", "the run has ended")
            else:
                scaling.give_up("done", "the group begins anew, with as many")
                for m in self.fleet.fewer_servers(scaling.servers):
                    self.fleet.end(m)
        for m, _ in self._leaving:
            self.fleet.end(m)
        self._leaving.clear()
        self._releasing.clear()

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
        retired = [m for m in self.fleet.servers if m not in self.fleet.owners]
        gone = {id(m) for m in (*life.gone, *life.stuck, *retired)}
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
        ended = [m for m in self.fleet.members if id(m) in gone]
        self.fleet.replace(ended, self.display.say, lambda: self.interrupts.requested)

    def _trained_in(self, life: Life) -> tuple[int, bool]:
        """Gradients applied in a life, and whether these are all: the servers know, or else the workers."""
        if not self._revived and not any(m.role == "server" for m in life.gone):
            applied = self._applied_at_servers()
            if applied is not None:
                return round(applied - self._base), True
        gone = {m.index for m in (*life.gone, *life.stuck) if m.role == "worker"}
        return sum(life.trained.values()), not gone

    def _applied_at_servers(self) -> float | None:
        servers = self._servers()
        if servers is None:
            return None
        return sum(s.total("satrap_gradients_applied_total") or 0.0 for s in servers)

    def _servers(self) -> list[Scrape] | None:
        """What every server tells now; None where one does not."""
        return self._told(self.fleet.owners)

    def _told(self, members: Sequence[Member]) -> list[Scrape] | None:
        ray = self.fleet.session.ray
        try:
            texts = ray.get([m.actor.text.remote() for m in members], timeout=ABORT_S)
        except (ray.exceptions.RayError, ray.exceptions.GetTimeoutError):
            return None
        return [Scrape.of(text) for text in texts]

    def _profiled(self, profile: Profile) -> Profile:
        """The workers' profile with what servers and embedding workers did, in the log and, if asked for, a file."""
        times = tuple(
            ServerTime(
                name=member.name,
                handled_s={dict(k)["kind"]: v for k, v in said.values.get("satrap_request_seconds_sum", {}).items()},
            )
            for member, said in zip(self.fleet.owners, self._servers() or (), strict=False)
        )
        poolers = self.fleet.embedding_workers
        pooling = tuple(
            PoolerTime(
                name=member.name,
                clients=len(profile.workers[member.index :: len(poolers)]),
                stages=_by_stage(said, "satrap_stage_seconds_total"),
                stages_cpu=_by_stage(said, "satrap_stage_cpu_seconds_total"),
            )
            for member, said in zip(poolers, self._told(poolers) or (), strict=False)
        )
        whole = msgspec.structs.replace(profile, servers=times, embedding_workers=pooling)
        self._log("profile", profile=msgspec.to_builtins(whole))
        if self.profile and self.run_dir.is_dir():
            write_profile(self.run_dir, whole)
        return whole

    def close(self) -> None:
        """Ends all processes, and says so in the run folder."""
        for m in self.fleet.members:
            with suppress(Exception):
                self.fleet.end(m)
        if self.run_dir.is_dir():
            with suppress(Exception):
                write_targets(self.run_dir, [])


def _by_stage(said: Scrape, name: str) -> dict[str, float]:
    return {dict(labels)["stage"]: seconds for labels, seconds in said.values.get(name, {}).items() if seconds}


def _causes(failures: Iterable[tuple[Member, Failed]]) -> list[tuple[Member, Failed]]:
    """Failures that are not another's fault."""
    return [(w, f) for w, f in failures if not isinstance(f.error, WorkerGone | ServerUnreachable)]


def _named(member: Member) -> str:
    return member.name + (f" (pid {member.begun.pid})" if member.begun is not None else "")


def _what_happened(life: Life) -> str:
    if life.gone or life.starting:
        told = [
            f"{' and '.join(map(_named, who))} {'has' if len(who) == 1 else 'have'} {what}"
            for who, what in ((life.gone, "ended"), (life.stuck, "not answered"))
            if who
        ]
        return ", ".join(told) + (" while it was starting" if life.starting else "")
    worker, failed = next((f for f in life.failures if not isinstance(f[1].error, WorkerGone)), life.failures[0])
    return f"{worker.name}: {first_line(failed.error) if failed.error is not None else failed.message}"
