"""The processes of one job: started side by side, asked, watched, ended, and replaced when they have ended."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from satrap.errors import LaunchError, SatrapError
from satrap.launch.guard import Identity
from satrap.launch.placing import Node, Places, place
from satrap.launch.server_process import ServerProcess
from satrap.launch.session import Session
from satrap.launch.told import Begun, Security, ServerTask, Told, WorkerTask
from satrap.launch.worker_process import WorkerProcess
from satrap.observe.endpoint import Target
from satrap.observe.machine import cores_available
from satrap.ps.placement import Placement
from satrap.schema import Job, job_to_dict

START_TIMEOUT_S = 120.0
"""Until a process that has not begun is called missing."""
LOOPBACK = "127.0.0.1"


@dataclass(slots=True, eq=False)
class Member:
    """A process."""

    role: str
    index: int
    node: Node
    actor: Any
    begun: Begun | None = None
    watch: Any = None
    """A promise that is never kept; it breaks when the process ends."""
    last: str = ""
    """What it told of its metrics."""

    @property
    def name(self) -> str:
        """`server 0`"""
        return f"{self.role} {self.index}"

    @property
    def target(self) -> Target:
        """Where its metrics are. Known once it has begun."""
        b = self.begun
        assert b is not None
        return Target(role=self.role, index=self.index, address=b.metrics, host=b.host, pid=b.pid)


@dataclass(slots=True)
class Fleet:
    """S servers and W workers. Used by the driver's main thread."""

    session: Session
    job: Job
    places: Places
    security: Security
    metrics_host: str
    servers: list[Member] = field(default_factory=list)
    workers: list[Member] = field(default_factory=list)
    epoch: int = 0
    """Of the placement; rises with every start of the group."""
    _tree: dict[str, Any] = field(default_factory=dict)

    @classmethod
    def start(
        cls, session: Session, job: Job, servers: int, workers: int, security: Security, metrics_host: str
    ) -> Fleet:
        """Starts all processes at once, and returns before they have begun.

        Raises LaunchError where the machines do not do for them.
        """
        places = place(session.nodes(), servers, workers)
        _check_gpus(job, places)
        _check_reach(places, security)
        fleet = cls(session, job, places, security, metrics_host, _tree=job_to_dict(job))
        fleet.servers = [fleet._member("server", i, node) for i, node in enumerate(places.servers)]
        fleet.workers = [fleet._member("worker", i, node) for i, node in enumerate(places.workers)]
        return fleet

    def _member(self, role: str, index: int, node: Node) -> Member:
        ray, guards = self.session.ray, (Identity.of(),)
        kind = ray.remote(ServerProcess if role == "server" else WorkerProcess)
        placed = ray.util.scheduling_strategies.NodeAffinitySchedulingStrategy(node.id, soft=False)
        options: dict[str, Any] = {"scheduling_strategy": placed, "max_concurrency": 8, "max_restarts": 0}
        options["num_cpus"] = 0 if self.session.private else 1
        if role == "worker" and node.gpus and self.job.train.device != "cpu":
            options["num_gpus"] = 1
        arguments = (guards,) if role == "server" else (os.getcwd(), guards)
        return Member(role, index, node, kind.options(**options).remote(*arguments))

    def begin(self) -> Placement:
        """Has every process that has not begun begin, and all servers go by a new placement, without rows.

        Raises LaunchError naming the process that did not begin, and what a process raised.
        """
        begun: list[tuple[Member, Any]] = []
        for m in self.servers:
            if m.begun is not None:
                begun.append((m, m.actor.renew.remote(self.epoch)))
                continue
            cores = self._cores(m.node, self.places.servers)
            task = ServerTask(
                job=self._tree,
                index=m.index,
                epoch=self.epoch,
                host=self._host(m.node),
                cores=cores,
                security=self.security,
                metrics_host=self.metrics_host,
            )
            begun.append((m, m.actor.begin.remote(task)))
        begun += [(m, m.actor.begin.remote(self.metrics_host)) for m in self.workers if m.begun is None]
        for m, answer in begun:
            said = self.ask(m, answer, START_TIMEOUT_S)
            m.begun = said or m.begun
            m.watch = m.watch or m.actor.watch.remote()
        addresses = [m.begun.address for m in self.servers if m.begun is not None]
        return Placement.even(addresses, self.job.store.partitions, self.epoch)

    def fit(self, placement: Placement, run_dir: Path, *, resume: bool, plots: bool) -> dict[Any, Member]:
        """Has all workers train. Returns their promises."""
        group = ""
        if len(self.workers) > 1:
            first = self.workers[0]
            host = LOOPBACK if len({w.node.id for w in self.workers}) == 1 else first.node.ip
            group = self.ask(first, first.actor.meet.remote(host), START_TIMEOUT_S)
        promises = {}
        for w in self.workers:
            task = WorkerTask(
                job=self._tree,
                rank=w.index,
                world=len(self.workers),
                group=group,
                placement=placement,
                run_dir=run_dir,
                resume=resume,
                cores=self._cores(w.node, self.places.workers),
                plots=plots,
                security=self.security,
            )
            promises[w.actor.fit.remote(task)] = w
        return promises

    def ask(self, member: Member, answer: Any, timeout_s: float) -> Any:
        """An answer. Raises LaunchError where the process is gone or does not answer; else what it raised."""
        ray = self.session.ray
        try:
            return ray.get(answer, timeout=timeout_s)
        except ray.exceptions.GetTimeoutError as e:
            raise LaunchError(
                f"{member.name} has not begun on {member.node.ip} within {timeout_s:g} s: the cluster may have no free "
                "cores for it (see `ray status`), or cannot start Python there"
            ) from e
        except ray.exceptions.RayTaskError as e:
            if isinstance(e.cause, SatrapError | OSError):
                raise e.cause from e
            raise LaunchError(f"{member.name}: {e.cause!r}") from e
        except ray.exceptions.RayError as e:
            raise LaunchError(f"{member.name} ended while it was starting: {first_line(e)}") from e

    def ended(self) -> list[Member]:
        """Processes that have ended."""
        ray, found = self.session.ray, []
        for m in (*self.servers, *self.workers):
            if m.watch is None or not ray.wait([m.watch], timeout=0)[0]:
                continue
            found.append(m)
        return found

    def replace(self, ended: Sequence[Member]) -> None:
        """Starts new processes in the place of ended ones, on machines that are alive; the placement's epoch rises."""
        self.epoch += 1
        if not ended:
            return
        alive = self.session.nodes()
        ids = {n.id for n in alive}
        if any(m.node.id not in ids for m in ended):
            self.places = place(alive, len(self.servers), len(self.workers))
            _check_reach(self.places, self.security)
        for members, nodes in ((self.servers, self.places.servers), (self.workers, self.places.workers)):
            for i, m in enumerate(members):
                if m in ended:
                    node = m.node if m.node.id in ids else nodes[i]
                    members[i] = self._member(m.role, i, node)

    def end(self, member: Member) -> None:
        """Ends a process now."""
        self.session.ray.kill(member.actor, no_restart=True)

    def texts(self, timeout_s: float) -> dict[int, Told]:
        """What each worker tells, by number, within the time; takes in the metrics of all. Who is busy is left out."""
        ray = self.session.ray
        asked = {m.actor.text.remote(): m for m in self.servers} | {m.actor.tell.remote(): m for m in self.workers}
        ready, _ = ray.wait(list(asked), num_returns=len(asked), timeout=timeout_s)
        told = {}
        for answer in ready:
            try:
                said = ray.get(answer)
            except ray.exceptions.RayError:
                continue  # it has ended, which is noticed elsewhere
            m = asked[answer]
            if isinstance(said, Told):
                told[m.index] = said
                m.last = said.text
            else:
                m.last = said
        return told

    def targets(self) -> list[Target]:
        """Where everyone's metrics are."""
        return [m.target for m in (*self.servers, *self.workers) if m.begun is not None]

    def _host(self, node: Node) -> str:
        return LOOPBACK if self.places.one_machine else node.ip

    def _cores(self, node: Node, of: Sequence[Node]) -> int:
        cores = cores_available() if self.session.private else node.cpus
        return max(1, int(cores) // max(1, self.places.shares(of, node)))


def _check_gpus(job: Job, places: Places) -> None:
    if job.train.device == "cpu":
        return
    for node in set(places.workers):
        workers = places.shares(places.workers, node)
        if node.gpus and workers > node.gpus:
            raise LaunchError(
                f"{workers} workers on {node.ip}, which has {node.gpus:g} GPUs: start as many workers as there are "
                "GPUs, or set train.device=cpu"
            )


def _check_reach(places: Places, security: Security) -> None:
    if not places.one_machine and security.keys is None and not security.insecure:
        machines = len({n.id for n in (*places.servers, *places.workers)})
        raise LaunchError(
            f"servers and workers are on {machines} machines, so rows and gradients travel between them: make keys "
            "with `satrap keys new DIR`, put the folder on every machine and give --keys DIR; or say that everyone on "
            "this network may read and change the model (--insecure)"
        )


def first_line(error: BaseException) -> str:
    """The first line of a message."""
    return (str(error).strip() or type(error).__name__).splitlines()[0]
