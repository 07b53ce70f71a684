"""The processes of one job: started side by side, asked, watched, ended, and replaced when they have ended."""

from __future__ import annotations

import contextlib
import os
import time
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from satrap.errors import LaunchError, SatrapError
from satrap.launch import notice
from satrap.launch.embedding_process import EmbeddingProcess
from satrap.launch.guard import Identity
from satrap.launch.placing import Node, Places, place
from satrap.launch.server_process import ServerProcess
from satrap.launch.session import Session
from satrap.launch.told import Begun, EmbeddingTask, Metrics, Security, ServerTask, Told, WorkerTask
from satrap.launch.worker_process import WorkerProcess
from satrap.observe.endpoint import Target
from satrap.observe.machine import cores_available
from satrap.ps.placement import Placement
from satrap.schema import Job, job_to_dict

START_TIMEOUT_S = 120.0
"""Until a process that has not begun is called missing."""
RENEW_TIMEOUT_S = 20.0
"""Until a server that has begun, and is told of a new placement, is given up."""
END_TIMEOUT_S = 10.0
"""Until a process that was ended is gone."""
MACHINES_TIMEOUT_S = 900.0
"""Until a group that has lost a machine, and has too few GPUs without it, is given up: a cloud may take minutes to give
another."""
ANSWER_S = 3.0
"""Within which a process that is well answers the driver."""
WATCH_AGAIN_S = 0.2
"""Before a process that Ray has lost sight of is watched again."""
MACHINES_LOOK_S = 1.0
LOOPBACK = "127.0.0.1"
EVERYWHERE = ("0.0.0.0", "::")
EMBEDDING_WORKER = "embedding worker"
"""A role, beside `server` and `worker`."""


class Gone(Exception):  # noqa: N818
    """Processes that ended, or fell silent, while the group was starting."""

    def __init__(self, members: Sequence[Member]) -> None:
        super().__init__(" and ".join(m.name for m in members))
        self.members = list(members)


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
    leaves: bool = False
    """It will be taken away, as it told last."""
    machine_leaves: bool = False
    """So will its machine."""
    heard_at: float = 0.0
    """When it last told them, in seconds of the monotonic clock."""

    @property
    def name(self) -> str:
        """`server 0`"""
        return f"{self.role} {self.index}"

    @property
    def target(self) -> Target:
        """Where its metrics are. Known once it has begun."""
        b = self.begun
        assert b is not None
        host, _, port = b.metrics.rpartition(":")
        # Whoever listens on all addresses is found at that of its machine.
        address = f"{self.node.ip}:{port}" if host in EVERYWHERE else b.metrics
        return Target(role=self.role, index=self.index, address=address, host=b.host, pid=b.pid)


@dataclass(slots=True)
class Fleet:
    """S servers, N embedding workers and W workers. Used by the driver's main thread."""

    session: Session
    job: Job
    places: Places
    security: Security
    metrics: Metrics
    server_deadline_s: float
    servers: list[Member] = field(default_factory=list)
    workers: list[Member] = field(default_factory=list)
    embedding_workers: list[Member] = field(default_factory=list)
    history: Path | None = None
    """Where servers keep their journals and snapshots, each in a folder of its own; None: they keep none."""
    epoch: int = 0
    """Of the placement; rises with every start of the group."""
    retired: set[int] = field(default_factory=set)
    """Servers that have handed over what they owned. Their numbers are free again when the group begins anew."""
    _leaving: set[str] = field(default_factory=set)
    """Nodes that will be taken away."""
    _tree: dict[str, Any] = field(default_factory=dict)

    @classmethod
    def start(
        cls,
        session: Session,
        job: Job,
        servers: int,
        workers: int,
        security: Security,
        *,
        embedding_workers: int = 0,
        metrics: Metrics = Metrics(),  # noqa: B008
        server_deadline_s: float = 30.0,
    ) -> Fleet:
        """Starts all processes at once, and returns before they have begun.

        Raises LaunchError where the machines do not do for them.
        """
        places = place(session.nodes(), servers, workers, embedding_workers)
        _check_gpus(job, places)
        _check_reach(places, security)
        fleet = cls(session, job, places, security, metrics, server_deadline_s, _tree=job_to_dict(job))
        fleet.servers = [fleet._member("server", i, node) for i, node in enumerate(places.servers)]
        fleet.workers = [fleet._member("worker", i, node) for i, node in enumerate(places.workers)]
        fleet.embedding_workers = [
            fleet._member(EMBEDDING_WORKER, i, node) for i, node in enumerate(places.embedding_workers)
        ]
        return fleet

    @property
    def members(self) -> tuple[Member, ...]:
        """All processes."""
        return (*self.servers, *self.embedding_workers, *self.workers)

    @property
    def owners(self) -> list[Member]:
        """The servers but those that have handed over."""
        return [m for m in self.servers if m.index not in self.retired]

    def nodes(self) -> list[Node]:
        """The machines that are alive and stay; all that are alive, where none of them stays."""
        alive = self.session.nodes()
        return [n for n in alive if n.id not in self._leaving] or alive

    def _member(self, role: str, index: int, node: Node) -> Member:
        ray, guards = self.session.ray, (Identity.of(),)
        kind = ray.remote({"server": ServerProcess, "worker": WorkerProcess, EMBEDDING_WORKER: EmbeddingProcess}[role])
        placed = ray.util.scheduling_strategies.NodeAffinitySchedulingStrategy(node.id, soft=False)
        options: dict[str, Any] = {"scheduling_strategy": placed, "max_concurrency": 8, "max_restarts": 0}
        options["num_cpus"] = 0 if self.session.private else 1
        if role == "worker" and node.gpus and self.job.train.device != "cpu":
            options["num_gpus"] = 1
        arguments = (os.getcwd(), guards) if role == "worker" else (guards,)
        return Member(role, index, node, kind.options(**options).remote(*arguments))

    def begin(self) -> Placement:
        """Has every process that has not begun begin, and all servers go by a new placement, without rows.

        Raises LaunchError naming the process that did not begin, what a process raised, and Gone where some ended.
        """
        begun: list[tuple[Member, Any]] = []
        for m in self.servers:
            if m.begun is not None:
                begun.append((m, m.actor.renew.remote(self.epoch)))
                continue
            begun.append((m, m.actor.begin.remote(self._server_task(m))))
        begun += [(m, m.actor.begin.remote(self.metrics)) for m in self.workers if m.begun is None]
        self._await(begun)
        addresses = [m.begun.address for m in self.servers if m.begun is not None]
        placement = Placement.even(addresses, self.job.store.partitions, self.epoch)
        self._await([(m, self._begin_pooling(m, placement)) for m in self.embedding_workers])
        return placement

    def _server_task(self, m: Member, address: str = "", *, recovers: bool = False) -> ServerTask:
        return ServerTask(
            job=self._tree,
            index=m.index,
            epoch=self.epoch,
            host=self._host(m.node),
            cores=self._cores(m.node, self.places.servers),
            security=self.security,
            metrics=self.metrics,
            history=None if self.history is None else self.history / f"server-{m.index}",
            address=address,
            recovers=recovers,
        )

    def revive(self, server: Member) -> Member:
        """Has another process take the place of a server that has ended, with everything that one had acknowledged: at
        its address, so that the clients need not know; where its machine is gone on another one, at another address.

        Raises LaunchError and what the process raised.
        """
        assert server.begun is not None
        if server.node.id in {n.id for n in self.session.nodes()}:
            try:
                return self._revived(server, server.node, server.begun.address)
            except Gone:
                # Its machine may be gone, and have been noticed only now.
                if server.node.id in {n.id for n in self.session.nodes()}:
                    raise
        if self.places.one_machine:
            raise LaunchError(f"{server.node.ip}, the machine of all processes, is not in the cluster any more")
        places = place(self.nodes(), len(self.servers), len(self.workers), len(self.embedding_workers))
        return self._revived(server, places.servers[server.index], "")

    def _revived(self, server: Member, node: Node, address: str) -> Member:
        m = self._member(server.role, server.index, node)
        task = self._server_task(m, address, recovers=True)
        m.begun = self.ask(m, m.actor.begin.remote(task), START_TIMEOUT_S)
        m.watch, m.heard_at = m.actor.watch.remote(), time.monotonic()
        self.servers[server.index] = m
        return m

    def relocate(self, placement: Placement, server: Member) -> Placement:
        """Tells everyone that a server has come back at another address. Returns the placement by which they go then.
        Raises ServiceError, and Gone."""
        from satrap.launch.worker_process import worker_keys
        from satrap.ps import Mover

        assert server.begun is not None
        addresses = list(placement.addresses)
        addresses[server.index] = server.begun.address
        job, known = self.job, replace(placement, addresses=tuple(addresses))
        keys = worker_keys(self.security, 0)
        options: dict[str, Any] = {"seed": job.seed, "keys": keys, "deadline_s": self.server_deadline_s}
        gone = self.retired.union(range(len(self.servers), placement.servers))
        with Mover(job.resolved_tables(), known, **options, gone=gone) as mover:
            placement = mover.relocate(server.index, server.begun.address)
        others = (*self.workers, *self.embedding_workers)
        for m, answer in [(m, m.actor.relocate.remote(placement)) for m in others]:
            self.ask(m, answer, RENEW_TIMEOUT_S)
        return placement

    def more_servers(self, wanted: int, came: deque[Member]) -> list[Member]:
        """Starts servers, without rows and without partitions, until there are so many, and returns them when they
        have begun; `came` gets them too. Raises what `begin` does."""
        have = len(self.servers)
        if wanted <= have:
            return []
        if self.places.one_machine:
            # The others listen on its loopback.
            nodes = (self.places.servers[0],) * (wanted - have)
        else:
            spread = place(self.nodes(), wanted, len(self.workers), len(self.embedding_workers))
            nodes = spread.servers[have:]
        self.places = replace(self.places, servers=(*self.places.servers, *nodes))
        new = [self._member("server", have + i, node) for i, node in enumerate(nodes)]
        try:
            answers = [(m, m.actor.begin.remote(self._server_task(m))) for m in new]
            for m, answer in answers:
                m.begun = self.ask(m, answer, START_TIMEOUT_S)
                m.watch, m.heard_at = m.actor.watch.remote(), time.monotonic()
        except BaseException:
            self.places = replace(self.places, servers=self.places.servers[:have])
            for m in new:
                self.end(m)
            raise
        self.servers += new
        came.extend(new)
        return new

    def fewer_servers(self, wanted: int) -> list[Member]:
        """Counts only so many servers from now on; returns the others, which still run."""
        others = self.servers[wanted:]
        self.servers = self.servers[:wanted]
        self.places = replace(self.places, servers=self.places.servers[:wanted])
        return others

    def _begin_pooling(self, m: Member, placement: Placement) -> Any:
        """Has an embedding worker begin, or go by another placement."""
        if m.begun is not None:
            return m.actor.renew.remote(placement)
        task = EmbeddingTask(
            job=self._tree,
            index=m.index,
            placement=placement,
            host=self._host(m.node),
            cores=self._cores(m.node, self.places.embedding_workers),
            security=self.security,
            metrics=self.metrics,
            server_deadline_s=self.server_deadline_s,
        )
        return m.actor.begin.remote(task)

    def _await(self, begun: list[tuple[Member, Any]]) -> None:
        gone: list[Member] = []
        for m, answer in begun:
            try:
                said = self.ask(m, answer, START_TIMEOUT_S if m.begun is None else RENEW_TIMEOUT_S)
            except Gone:
                gone.append(m)
                continue
            m.begun = said or m.begun
            m.watch = m.watch or m.actor.watch.remote()
            m.heard_at = time.monotonic()
        if gone:
            raise Gone(gone)

    def fit(
        self, placement: Placement, run_dir: Path, *, resume: bool, plots: bool, profile: bool
    ) -> dict[Any, Member]:
        """Has all workers train. Returns their promises. Raises what `begin` does."""
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
                pooler=self._pooler_of(w),
                run_dir=run_dir,
                resume=resume,
                cores=self._cores(w.node, self.places.workers),
                plots=plots,
                profile=profile,
                security=self.security,
                server_deadline_s=self.server_deadline_s,
            )
            promises[w.actor.fit.remote(task)] = w
        return promises

    def _pooler_of(self, worker: Member) -> tuple[int, str] | None:
        """The embedding worker of a worker."""
        if not self.embedding_workers:
            return None
        m = self.embedding_workers[worker.index % len(self.embedding_workers)]
        assert m.begun is not None
        return m.index, m.begun.address

    def ask(self, member: Member, answer: Any, timeout_s: float) -> Any:
        """An answer. Raises Gone where the process has ended or, having begun, does not answer; LaunchError where it
        has not begun in time; else what it raised."""
        ray = self.session.ray
        try:
            return ray.get(answer, timeout=timeout_s)
        except ray.exceptions.GetTimeoutError as e:
            if member.begun is not None:
                raise Gone([member]) from e
            raise LaunchError(
                f"{member.name} has not begun on {member.node.ip} within {timeout_s:g} s: the cluster may have no free "
                "cores for it (see `ray status`), or cannot start Python there"
            ) from e
        except ray.exceptions.RayTaskError as e:
            if isinstance(e.cause, SatrapError | OSError):
                raise e.cause from e
            raise LaunchError(f"{member.name}: {e.cause!r}") from e
        except ray.exceptions.RayError as e:
            raise Gone([member]) from e

    def replace(
        self, ended: Sequence[Member], say: Callable[[str], None], given_up: Callable[[], bool] = lambda: False
    ) -> None:
        """Starts new processes in the place of ended ones, on machines that are alive; the placement's epoch rises.

        Where a machine is gone and the others have too few GPUs, it waits until there are enough: `say` is told, and
        `given_up` is asked whether to go on waiting. Raises LaunchError.
        """
        self.epoch += 1
        self.retired.clear()
        if not ended:
            return
        alive = self.nodes()
        ids = {n.id for n in alive}
        if any(m.node.id not in ids for m in ended):
            alive, self.places = self._enough(say, given_up)
            ids = {n.id for n in alive}
            _check_reach(self.places, self.security)
        for members, nodes in (
            (self.servers, self.places.servers),
            (self.workers, self.places.workers),
            (self.embedding_workers, self.places.embedding_workers),
        ):
            for i, m in enumerate(members):
                if m in ended:
                    node = m.node if m.node.id in ids else nodes[i]
                    members[i] = self._member(m.role, i, node)

    def _enough(self, say: Callable[[str], None], given_up: Callable[[], bool]) -> tuple[list[Node], Places]:
        """Machines with GPUs for all workers, if workers had them before."""
        had = any(w.node.gpus for w in self.workers) and self.job.train.device != "cpu"
        begun, said = time.monotonic(), False
        while True:
            alive = self.nodes()
            places = place(alive, len(self.servers), len(self.workers), len(self.embedding_workers))
            short = [n for n in set(places.workers) if places.shares(places.workers, n) > n.gpus] if had else []
            if not short:
                return alive, places
            have = sum(int(n.gpus) for n in alive)
            if given_up() or time.monotonic() - begun > MACHINES_TIMEOUT_S:
                raise LaunchError(
                    f"{len(self.workers)} workers need a GPU each, and {have} are left in the cluster: see `ray status`"
                )
            if not said:
                said = True
                say(f"{len(self.workers)} workers need a GPU each, and {have} are left: waiting for another machine")
            time.sleep(MACHINES_LOOK_S)

    def end(self, member: Member) -> None:
        """Ends a process now, one that was stopped too, and returns when it is gone, where this machine can tell."""
        self.session.ray.kill(member.actor, no_restart=True)
        if member.begun is not None and member.begun.identity.here:
            member.begun.identity.kill(END_TIMEOUT_S)

    def runs(self, member: Member) -> bool:
        """Whether a process that has begun has not ended."""
        if member.begun is not None and member.begun.identity.here:
            return member.begun.identity.alive
        return member.watch is not None and not self.session.ray.wait([member.watch], timeout=0)[0]

    def watched_anew(self, member: Member) -> bool:
        """Of a process whose watch is over: whether that was only because Ray lost sight of it, as of one that was
        stopped for a while. Then it is watched again."""
        try:
            self.session.ray.get(member.watch)
        except self.session.ray.exceptions.ActorUnavailableError:
            # Of one that was killed just now Ray may know no more than that yet: it is told again, and for good.
            if member.begun is None or not member.begun.identity.here or member.begun.identity.alive:
                time.sleep(WATCH_AGAIN_S)
                member.watch = member.actor.watch.remote()
                return True
        except self.session.ray.exceptions.RayError:
            pass
        return False

    def silent(self, members: Sequence[Member], timeout_s: float) -> list[Member]:
        """Those that have not answered the driver for so long, all asked at once: ended, stopped or busy. Who has told
        nothing lately is waited for no longer than the rest of that time."""
        ray = self.session.ray
        asked = {m.actor.text.remote(): m for m in members}
        silent, begun = list(members), time.monotonic()
        while asked:
            until = max(begun + ANSWER_S, max(m.heard_at for m in asked.values()) + timeout_s)
            answered = ray.wait(list(asked), num_returns=1, timeout=max(0.0, until - time.monotonic()))[0]
            if not answered:
                break
            for answer in answered:
                m = asked.pop(answer)
                with contextlib.suppress(ray.exceptions.RayError):
                    ray.get(answer)
                    silent.remove(m)
        return silent

    def texts(self, timeout_s: float) -> dict[int, Told]:
        """What each worker tells, by number, within the time; takes in the metrics of all. Who is busy is left out."""
        ray = self.session.ray
        asked = {m.actor.text.remote(): m for m in (*self.owners, *self.embedding_workers)}
        asked |= {m.actor.tell.remote(): m for m in self.workers}
        ready, _ = ray.wait(list(asked), num_returns=len(asked), timeout=timeout_s)
        told = {}
        now = time.monotonic()
        for answer in ready:
            try:
                said = ray.get(answer)
            except ray.exceptions.RayError:
                continue  # it has ended, which is noticed elsewhere
            m = asked[answer]
            m.heard_at = now
            if isinstance(said, Told):
                told[m.index] = said
                m.last = said.text
            else:
                m.last = said
            m.leaves, m.machine_leaves = notice.said(m.last, "process"), notice.said(m.last, "machine")
            # A machine that has been left is not gone yet, and nobody is to come back to it.
            (self._leaving.add if m.machine_leaves else self._leaving.discard)(m.node.id)
        return told

    def targets(self) -> list[Target]:
        """Where everyone's metrics are."""
        return [m.target for m in (*self.owners, *self.embedding_workers, *self.workers) if m.begun is not None]

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
        machines = len({n.id for n in places.all})
        raise LaunchError(
            f"servers and workers are on {machines} machines, so rows and gradients travel between them: make keys "
            "with `satrap keys new DIR`, put the folder on every machine and give --keys DIR; or say that everyone on "
            "this network may read and change the model (--insecure)"
        )


def first_line(error: BaseException) -> str:
    """The first line of a message."""
    return (str(error).strip() or type(error).__name__).splitlines()[0]
