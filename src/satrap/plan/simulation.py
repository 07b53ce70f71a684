"""Training on a cluster, simulated: what each thread of each process does, on cores and links that others use as well.

    reader ─► engine ─► servers ─► settling ─► dense ─► engine ─► servers
              (prepare, ask)       (decode, pool)       (unpool, push)

Of each worker: a reader, an engine thread, a settling thread and a main thread; of each server: the thread that serves.
The engine thread asks for batch t when the pushes of batches ≤ t - 1 - k are on their way, and a server does what comes
first first, as `satrap.train.pipeline` and `satrap.ps.server` do. W workers, S servers.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from itertools import count
from typing import Any

from satrap.plan.costs import StepCosts
from satrap.plan.events import Barrier, Clock, Cores, Link, Process, Queue, send

READ_AHEAD = 8
"""Batches that a reader is ahead at most."""
BUSY = 0.85
"""A resource that is in use for so much of the time is what bounds a run."""


@dataclass(frozen=True, slots=True)
class Node:
    """A machine of the simulation."""

    cores: float
    speed: float = 1.0
    bytes_per_s: float = float("inf")


@dataclass(frozen=True, slots=True)
class Layout:
    """What runs where: indices of `nodes`."""

    nodes: tuple[Node, ...]
    servers: tuple[int, ...]
    workers: tuple[int, ...]
    engines: tuple[int, ...]
    """Where each worker's lookups are made."""
    readers: tuple[int, ...]
    """Where each worker's batches are read."""
    latency_s: float = 0.0
    server_threads: float = 1.0
    """Of the store, in one server."""
    alike: int = 1
    """Servers that each server here stands for: every batch goes to all of them, and they do the same."""
    server_machines: int = 0
    """With `alike`: machines that they are on; a server's node has its share of the cores."""
    uneven: float = 1.0
    """Work of the busiest server over the mean: those here are the busiest."""


@dataclass(frozen=True, slots=True)
class Simulated:
    """What came out."""

    samples_per_s: float
    step_s: float
    busy: dict[str, float]
    """Resource → share of the time, of the busiest one of its kind."""
    staleness: int
    events: int = 0
    cores_used: float = 0.0
    """Of the machines of the workers, all together."""

    @property
    def bottleneck(self) -> str:
        """The resource that bounds the run; where none is busy, the wait for answers under the bound on staleness."""
        name = max(self.busy, key=lambda k: self.busy[k])
        if self.busy[name] >= BUSY:
            return name
        return "waiting for answers"


@dataclass
class _Run:
    """One simulation."""

    costs: StepCosts
    layout: Layout
    staleness: int
    steps: int
    warm: int
    clock: Clock = field(default_factory=Clock)

    def __post_init__(self) -> None:
        nodes, clock = self.layout.nodes, self.clock
        self.cores = [Cores(clock, n.cores, speed=n.speed) for n in nodes]
        self.out = [Link(clock, n.bytes_per_s) for n in nodes]
        self.into = [Link(clock, n.bytes_per_s) for n in nodes]
        self.inbox = [Queue() for _ in self.layout.servers]
        self.gpu_s = [0.0 for _ in self.layout.workers]
        self.serving_s = [0.0 for _ in self.layout.servers]
        self.engine_s = [0.0 for _ in self.layout.workers]
        self.settling_s = [0.0 for _ in self.layout.workers]
        self.marks: dict[int, float] = {}
        """Step of worker 0 → when it began."""
        self.at_mark: dict[str, list[float]] = {}
        self.cores_at_mark: dict[int, float] = {}
        world = len(self.layout.workers)
        nic = min(nodes[w].bytes_per_s for w in self.layout.workers)
        together = len(set(self.layout.workers)) == 1
        seconds = 0.0 if world == 1 else self.layout.latency_s * 2 * (world - 1)
        self.barrier = Barrier(clock, world, seconds + (0.0 if together else self.costs.legs.all_reduce / nic))

    # ---- messages --------------------------------------------------------------------------------------------------

    def ship(self, source: int, to: int, out: float, into: float, then: Callable[[], None]) -> None:
        """Bytes out of a machine, and bytes into another; on one machine at once."""
        if source == to:
            then()
        else:
            send(self.clock, self.out[source], self.into[to], out, into, self.layout.latency_s, then)

    def ask(self, engine: int, request: float, reply: float, cpu_s: float) -> Queue:
        """A message to every server; what comes back is in the queue, one item a simulated server."""
        layout = self.layout
        answers, simulated = Queue(), len(layout.servers)
        # At the engine's end the messages of all servers, at a server machine's end those of its own.
        here, there = 1 / simulated, 1 / (layout.server_machines or simulated)
        work = cpu_s / (simulated * layout.alike) * layout.uneven
        for i, node in enumerate(layout.servers):

            def back(i: int = i, node: int = node) -> None:
                self.ship(node, engine, reply * there, reply * here, lambda: answers.push(i))

            def arrive(i: int = i, back: Callable[[], None] = back) -> None:
                self.inbox[i].push((work, back))

            self.ship(engine, node, request * here, request * there, arrive)
        return answers

    # ---- processes -------------------------------------------------------------------------------------------------

    def thread(self, used: list[float], who: int, node: int, cpu_s: float, threads: float = 1.0) -> Process:
        """Work of a thread, and the time that it is at it."""
        start = self.clock.now
        yield self.cores[node].run(cpu_s, threads)
        used[who] += self.clock.now - start

    def server(self, i: int) -> Process:
        node, inbox = self.layout.servers[i], self.inbox[i]
        while True:
            cpu_s, back = yield inbox.get()
            yield from self.thread(self.serving_s, i, node, cpu_s, self.layout.server_threads)
            back()

    def reader(self, w: int, batches: Queue) -> Process:
        while True:
            yield self.cores[self.layout.readers[w]].run(self.costs.read)
            yield batches.put(None)

    def engine(self, w: int, batches: Queue, gradients: Queue, under_way: Queue) -> Process:
        c, node = self.costs, self.layout.engines[w]
        applied = 0
        asking = 0.5 if len(self.layout.servers) * self.layout.alike > 1 else 0.1  # division comes before
        for t in count():
            yield batches.get()
            yield from self.thread(self.engine_s, w, node, c.prepare)
            while applied < max(0, t - self.staleness):
                yield gradients.get()
                yield from self.thread(self.engine_s, w, node, c.unpool + c.push_client)
                under_way.push((None, self.ask(node, c.legs.push_request, c.legs.push_reply, c.push_server)))
                applied += 1
            yield from self.thread(self.engine_s, w, node, asking * c.pull_client)
            answers = self.ask(node, c.legs.pull_request, c.legs.pull_reply, c.pull_server)
            under_way.push(((1 - asking) * c.pull_client + c.pool, answers))

    def settle(self, w: int, under_way: Queue, ready: Queue) -> Process:
        node, worker = self.layout.engines[w], self.layout.workers[w]
        while True:
            cpu_s, answers = yield under_way.get()
            for _ in self.layout.servers:
                yield answers.get()
            if cpu_s is None:
                continue
            yield from self.thread(self.settling_s, w, node, cpu_s)
            self.ship(node, worker, self.costs.legs.pooled, self.costs.legs.pooled, lambda: ready.push(None))

    def main(self, w: int, ready: Queue, gradients: Queue) -> Process:
        c, node, engine = self.costs, self.layout.workers[w], self.layout.engines[w]
        for t in count():
            yield ready.get()
            if w == 0:
                self._mark(t)
            if c.dense.gpu_s:
                self.gpu_s[w] += c.dense.gpu_s
                yield self._pause(c.dense.gpu_s)
            else:
                yield from self.network(node)
            yield self.barrier.arrive()
            self.ship(node, engine, self.costs.legs.pooled, self.costs.legs.pooled, lambda: gradients.push(None))
            yield self.cores[node].run(c.beside)

    def network(self, node: int) -> Process:
        dense, cores = self.costs.dense, self.cores[node]
        if dense.parts == 1:
            yield cores.run(dense.cpu_s, dense.threads)
            return
        left, ended = [(dense.cpu_s - dense.alone_s) / dense.parts] * dense.parts, Queue()

        def thread() -> Process:
            while left:
                yield cores.run(left.pop())
            ended.push(None)

        threads = min(dense.parts, int(dense.threads))
        for _ in range(threads):
            self.clock.start(thread())
        for _ in range(threads):
            yield ended.get()
        yield cores.run(dense.alone_s)

    def _pause(self, seconds: float) -> Callable[[Callable[[Any], None]], None]:
        return lambda resume: self.clock.at(self.clock.now + seconds, lambda: resume(None))

    # ---- figures ---------------------------------------------------------------------------------------------------

    def _mark(self, step: int) -> None:
        self.marks[step] = self.clock.now
        if step == self.warm:
            self.at_mark = self._used()
            self.cores_at_mark = {n: self.cores[n].busy_s for n in set(self.layout.workers)}

    def _used(self) -> dict[str, list[float]]:
        for c in self.cores:
            c._advance()
        layout = self.layout
        cores = [c.busy_s / c.cores for c in self.cores]
        network = [max(o.busy_s, i.busy_s) for o, i in zip(self.out, self.into, strict=True)]

        def of(values: list[float], who: tuple[int, ...]) -> list[float]:
            return [values[n] for n in who]

        used = {
            "cores of workers": of(cores, layout.workers),
            "cores of servers": of(cores, layout.servers),
            "serving threads": list(self.serving_s),
            "engine threads": list(self.engine_s),
            "settling threads": list(self.settling_s),
            "network of workers": of(network, layout.workers),
            "network of servers": of(network, layout.servers),
            "GPUs": list(self.gpu_s),
        }
        others = tuple(n for n in {*layout.engines, *layout.readers} if n not in layout.workers)
        if others:
            used |= {"cores of readers": of(cores, others), "network of readers": of(network, others)}
        return used

    def run(self) -> Simulated:
        for i in range(len(self.layout.servers)):
            self.clock.start(self.server(i))
        for w in range(len(self.layout.workers)):
            batches, gradients, under_way, ready = Queue(READ_AHEAD), Queue(), Queue(), Queue()
            self.clock.start(self.reader(w, batches))
            self.clock.start(self.engine(w, batches, gradients, under_way))
            self.clock.start(self.settle(w, under_way, ready))
            self.clock.start(self.main(w, ready, gradients))
        last = self.steps - 1
        self.clock.run(until=lambda: last in self.marks)
        passed = self.marks[last] - self.marks[self.warm]
        used = self._used()
        busy = {
            k: max(0.0, *(b - a for a, b in zip(self.at_mark[k], v, strict=True))) / passed for k, v in used.items()
        }
        step_s = passed / (last - self.warm)
        samples = self.costs.samples * len(self.layout.workers)
        cores = sum(self.cores[n].busy_s - b for n, b in self.cores_at_mark.items()) / passed
        return Simulated(samples / step_s, step_s, busy, self.staleness, self.clock.happened, cores)


def simulate(costs: StepCosts, layout: Layout, *, staleness: int, steps: int = 120) -> Simulated:
    """Runs so many steps, of which the first third is warm-up and does not count."""
    steps = max(steps, 3 * (staleness + 2))
    return _Run(costs, layout, staleness, steps, warm=steps // 3).run()


def one_machine(
    cores: float,
    *,
    servers: int,
    workers: int = 1,
    server_threads: float | None = None,
    reached: float = 1.0,
    speed: float = 1.0,
) -> Layout:
    """Everything on one machine, as `satrap train --servers S --workers W` does it without a cluster.

    `server_threads` of the store, in one server; None: its share of the cores, as it is started. `reached`: of the
    cores, the share that threads keep busy together; no thread is fewer for it. `speed`: of a core.
    """
    return Layout(
        nodes=(Node(cores * reached, speed),),
        servers=(0,) * servers,
        workers=(0,) * workers,
        engines=(0,) * workers,
        readers=(0,) * workers,
        server_threads=server_threads or max(1.0, cores // servers),
    )
