"""A rehearsal: nodes, the job on them, machines that are lost, and what became of it."""

from __future__ import annotations

import os
import queue
import shlex
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import msgspec

from satrap import checkpoint
from satrap.deploy.groups import NOTICE, PROCESSES_PORT
from satrap.deploy.pods import train_words
from satrap.deploy.render import check_machines
from satrap.errors import JobError, LaunchError
from satrap.plan.cluster import Cluster, Prices
from satrap.ps import Keys
from satrap.rehearse.failures import Failure
from satrap.rehearse.hosts import Joining, Loopback, Network, Nodes, sweep, why_not
from satrap.rehearse.processes import children, kill
from satrap.rehearse.scaled import MOST, Small, Spec, scaled
from satrap.rehearse.watch import Watch
from satrap.schema import Job, save_job

LOOK_S = 0.1
LOG_EVERY_STEPS = 5
"""So fine does a rehearsal see where a run is."""
SERVER_DEADLINE_S = 600.0
"""Until a server is given up that nobody has found missing: all machines share the cores of this one."""
END_S = 30.0
"""Until a command that was told to end is killed."""

Say = Callable[[str], None]


@dataclass(frozen=True, slots=True, kw_only=True)
class Options:
    """How a cluster is rehearsed."""

    most: Mapping[str, int] = field(default_factory=lambda: dict(MOST))
    """Group → nodes at most."""
    link_share: float = 0.01
    """Of the machines' links."""
    replace_after_s: float | None = 15.0
    """After its loss another machine takes its place. None: none does."""
    compare: bool = False
    """The job runs once before, with nothing that happens to it."""
    loopback: bool = False
    """Without namespaces, even where they are allowed."""


@dataclass(slots=True)
class Lost:
    """A failure that came."""

    failure: Failure
    at: float
    """In seconds since 1970."""
    step: int
    """That was logged last."""
    how: str = "the run has not gone on"
    back_s: float | None = None
    """Until the first step after it was logged. None: there was none."""


@dataclass(slots=True)
class Outcome:
    """What became of one run."""

    run_dir: Path
    lost: list[Lost]
    end: Mapping[str, Any] | None
    """The record of its end."""
    digest: str | None
    """Of its last checkpoint: equal for equal models."""

    @property
    def auc(self) -> float | None:
        """On the test data, or else on those for validation."""
        for split in ("test", "valid"):
            said = (self.end or {}).get(split)
            if said:
                return float(said["auc"])
        return None


@dataclass(slots=True, kw_only=True)
class Report:
    """What a rehearsal came to."""

    small: Small
    outcome: Outcome
    undisturbed: Outcome | None
    missed: tuple[Failure, ...]
    """Failures whose time did not come."""


def rehearse(
    job: Job,
    cluster: Cluster,
    prices: Prices | None,
    failures: Sequence[Failure],
    folder: Path,
    say: Say,
    options: Options | None = None,
) -> Report:
    """Starts the nodes, trains on them, loses machines by plan; removes all that it has made but the folder.

    `folder`: new, for runs, keys and logs. To be called in the main thread. Raises JobError for what does not go
    together, LaunchError where nodes do not start or a run ends in an error.
    """
    options = options or Options()
    small = scaled(cluster, prices, options.most, options.link_share)
    _check(small, failures)
    try:
        check_machines(job, cluster, small.whole)
    except JobError as e:
        say(f"note: `satrap deploy render` refuses this job on this cluster: {e}")
    job = rehearsed(job)
    reason = "asked for" if options.loopback else why_not()
    folder.mkdir(parents=True)
    save_job(job, folder / "job.yaml")
    Keys.new().save(folder / "keys")
    if reason is None:
        for name in sweep():
            say(f"{name}, left by a rehearsal that was killed, is removed")
    kind: type[Nodes] = Network if reason is None else Loopback
    say(_shape(cluster, small, reason))
    with kind(folder, small.nodes, NOTICE) as nodes:
        say(f"{len(nodes.hosts)} Ray nodes: " + ", ".join(f"{h.name} {h.ip}" for h in nodes.hosts))
        stage = _Stage(nodes, small, cluster, folder, say, options)
        before = stage.run("undisturbed", ()) if options.compare else None
        after = stage.run("run", failures)
    came = [x.failure for x in after.lost]
    return Report(small=small, outcome=after, undisturbed=before, missed=tuple(f for f in failures if f not in came))


def rehearsed(job: Job) -> Job:
    """A job as it is rehearsed: a thread a process, where nothing else is said; every few steps in the log; checkpoints
    in the run folder, which all nodes see, since nodes here reach no object store."""
    store, train = job.store, job.train
    kept = msgspec.structs.replace(train.checkpoint, folder=None)
    return msgspec.structs.replace(
        job,
        store=msgspec.structs.replace(store, threads=store.threads or 1),
        train=msgspec.structs.replace(
            train,
            threads=train.threads or 1,
            checkpoint=kept,
            log_every_steps=min(train.log_every_steps, LOG_EVERY_STEPS),
        ),
    )


def _check(small: Small, failures: Sequence[Failure]) -> None:
    for f in failures:
        count = small.groups[f.group].count if f.group in small.groups else 0
        if f.index >= count:
            raise JobError(f"--fail: there is no {f.node}: the rehearsal has {count} nodes of {f.group}")


def _shape(cluster: Cluster, small: Small, reason: str | None) -> str:
    machines = sum(p.count for n, p in small.whole.items() if n != "head")
    where = "network namespaces" if reason is None else f"addresses of loopback, links not limited ({reason})"
    lines = [f"{cluster.name}: {machines} machines as {len(small.nodes) - 1} nodes and a head, on {where}"]
    for name, pods in small.groups.items():
        spec = next(s for s in small.nodes if s.group == name)
        offers = [o.removeprefix("--resources=") for o in spec.options if o.startswith("--resources")]
        offers += ["GPU"] if pods.machine.gpus else []
        rate = "" if reason is not None else f", {spec.rate_mbit:g} Mbit/s"
        offered = f", offers {' '.join(offers)}" if offers else ""
        lines.append(f"  {name:<8} {pods.count} of {small.whole[name].count} {pods.kind or 'pod'}{rate}{offered}")
    return "\n".join(lines)


@dataclass(slots=True)
class _Stage:
    """Nodes on which runs take place one after another."""

    nodes: Nodes
    small: Small
    cluster: Cluster
    folder: Path
    say: Say
    options: Options

    def run(self, name: str, failures: Sequence[Failure]) -> Outcome:
        """One run to its end. Raises LaunchError where it ends in an error."""
        run_dir = self.folder / name
        head = self.nodes.hosts[0]
        command = [*head.prefix, *self._words(run_dir)]
        log = self.folder / f"{name}.log"
        self.say(f"{name}: {shlex.join(command[command.index('satrap') :])}")
        watch, todo, lost = Watch(run_dir), list(failures), list[Lost]()
        coming = _Coming(self.nodes, self.options.replace_after_s, self.say)
        with _Command(command, self.nodes.env, log) as process:
            while process.running:
                time.sleep(LOOK_S)
                process.pass_on(self.say)
                watch.look()
                self._lose(todo, lost, coming, watch)
                coming.look()
                self._recovered(lost, watch)
            process.pass_on(self.say)
            code = process.code
        watch.look()
        self._recovered(lost, watch)
        if code != 0:
            raise LaunchError(f"the run has ended with code {code}: see {log}")
        newest = checkpoint.latest(run_dir)
        return Outcome(run_dir, lost, watch.end, None if newest is None else str(checkpoint.digest(newest)))

    def _words(self, run_dir: Path) -> list[str]:
        words = train_words(
            self.small.groups,
            self.cluster,
            job_file=str(self.folder / "job.yaml"),
            address=self.nodes.address,
            run_dir=str(run_dir),
            keys=str(self.folder / "keys"),
            embedding_workers=True,
        )
        words = words[: words.index("--run-dir") + 2]
        words += ["--keys", str(self.folder / "keys")]
        if isinstance(self.nodes, Network):
            # Of a namespace, where nobody else has these ports.
            words += ["--metrics-host", "0.0.0.0", "--metrics-port", str(PROCESSES_PORT)]
        words += ["--server-deadline", f"{SERVER_DEADLINE_S:g}", "--restarts", str(3 + 2 * len(self.small.nodes))]
        # A namespace of mounts has no working folder yet.
        return ["sh", "-c", 'cd "$0" && exec "$@"', os.getcwd(), sys.executable, "-m", *words]

    def _lose(self, todo: list[Failure], lost: list[Lost], coming: _Coming, watch: Watch) -> None:
        """Loses the machines whose time has come."""
        for f in list(todo):
            if not _is_due(f, watch):
                continue
            todo.remove(f)
            host = next(h for h in reversed(self.nodes.hosts) if h.name == f.node)
            self.say(f"LOST {host.name} ({host.ip}), as planned for {f.when}; step {watch.step:,} is in the log")
            lost.append(Lost(f, time.time(), watch.step))
            host.lose()
            coming.order(next(s for s in self.small.nodes if s.name == f.node))

    def _recovered(self, lost: list[Lost], watch: Watch) -> None:
        for x in lost:
            found = watch.back(x.at) if x.back_s is None else None
            if found is None:
                continue
            how, first = found
            x.back_s = first["time"] - x.at
            if how["kind"] == "revived":
                x.how = f"{how['process']} came back on {how['host']} with all it had acknowledged"
            else:
                x.how = f"all went on from step {how['step']:,}"
            self.say(f"back {x.back_s:.1f} s after {x.failure.node} was lost: {x.how}")


@dataclass(slots=True)
class _Coming:
    """Machines that take the places of lost ones."""

    nodes: Nodes
    after_s: float | None
    say: Say
    _ordered: list[tuple[float, Spec]] = field(default_factory=list)
    _joining: list[Joining] = field(default_factory=list)

    def order(self, spec: Spec) -> None:
        """One has been lost."""
        if self.after_s is not None:
            self._ordered.append((time.monotonic() + self.after_s, spec))

    def look(self) -> None:
        """Starts those whose time has come, and says which are there."""
        for at, spec in [x for x in self._ordered if time.monotonic() >= x[0]]:
            self._ordered.remove((at, spec))
            self._joining.append(self.nodes.join(spec))
        for joining in [j for j in self._joining if j.ready()]:
            self._joining.remove(joining)
            self.say(f"a new machine in its place: {joining.host.name} is {joining.host.ip} now")


def _is_due(f: Failure, watch: Watch) -> bool:
    if f.step is not None:
        return watch.step >= f.step
    return watch.began_at is not None and f.seconds is not None and time.time() >= watch.began_at + f.seconds


class _Command:
    """A command; what it says on stderr is passed on as it comes, and all is in its log. A context manager: what is
    left of it at the end is killed."""

    def __init__(self, words: Sequence[str], env: Mapping[str, str], log: Path) -> None:
        self._log = log.open("a")
        self._process = subprocess.Popen(
            words,
            stdout=self._log,
            stderr=subprocess.PIPE,
            stdin=subprocess.DEVNULL,
            text=True,
            env={**os.environ, **env, "PYTHONUNBUFFERED": "1", "COLUMNS": "140"},
            start_new_session=True,
        )
        self._lines: queue.SimpleQueue[str] = queue.SimpleQueue()
        self._reader = threading.Thread(target=self._read, name="satrap-rehearsal", daemon=True)
        self._reader.start()

    def _read(self) -> None:
        assert self._process.stderr is not None
        for line in self._process.stderr:
            self._log.write(line)
            self._log.flush()
            self._lines.put(line.rstrip("\n"))

    def __enter__(self) -> _Command:
        return self

    def __exit__(self, *_: object) -> None:
        if self._process.poll() is None:
            kill([*children(self._process.pid), self._process.pid])
        self._process.wait()
        self._reader.join(END_S)
        self._log.close()

    @property
    def running(self) -> bool:
        """Whether it has not ended."""
        # nsenter stops itself where its child was stopped, and would never tell of its end.
        self._process.send_signal(signal.SIGCONT)
        return self._process.poll() is None

    @property
    def code(self) -> int:
        """Its exit code."""
        return self._process.wait()

    def pass_on(self, say: Say) -> None:
        """Says the lines that have come."""
        if not self.running:
            self._reader.join(END_S)
        while True:
            try:
                say(f"  {self._lines.get_nowait()}")
            except queue.Empty:
                return
