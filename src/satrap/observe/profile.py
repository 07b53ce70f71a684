"""The profile of a run: seconds by stage of every worker and server, and in a sentence what holds it up.

`Profile` is plain figures, kept in the log's `end` record. `bottleneck` turns them into sentences by the rules below,
which are all there is to it: no clock, no machine, no file.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import msgspec

from satrap.errors import TrainingError
from satrap.observe.stages import NAMES, STAGES, THREADS, WAITS, StageSeconds, Trace

if TYPE_CHECKING:
    from rich.console import RenderableType

PROFILE_FILE = "profile.txt"
TRACE_FILE = "trace.json"


class WorkerTime(msgspec.Struct, frozen=True, kw_only=True):
    """Where the time of one worker went, while it trained: without evaluations and checkpoints."""

    rank: int = 0
    training_s: float
    """Seconds of the clock while it trained."""
    cpu_s: float
    """CPU seconds of its process meanwhile, all threads."""
    store_cpu_s: float = 0.0
    """Those of the native store's own threads."""
    stages: dict[str, float]
    """Stage or wait → seconds of the clock: `StageSeconds`."""
    stages_cpu: dict[str, float]
    """Stage → CPU seconds of the thread that works on it."""

    @classmethod
    def of(cls, seconds: StageSeconds, *, rank: int, training_s: float, cpu_s: float, store_cpu_s: float) -> WorkerTime:
        """From counters."""
        return cls(
            rank=rank,
            training_s=training_s,
            cpu_s=cpu_s,
            store_cpu_s=store_cpu_s,
            stages={k: v for k, v in seconds.as_dict().items() if v},
            stages_cpu={k: v for k, v in seconds.cpu.items() if v},
        )

    def wall(self, *names: str) -> float:
        """Seconds of the clock of some stages or waits together."""
        return sum(self.stages.get(n, 0.0) for n in names)

    def share(self, *names: str) -> float:
        """The same, as a share of the time it trained."""
        return self.wall(*names) / self.training_s if self.training_s > 0 else 0.0

    @property
    def other_s(self) -> float:
        """Main thread: what is left of the clock, figures and logging mostly."""
        return max(0.0, self.training_s - self.wall(*THREADS["main"], *WAITS["main"]))

    @property
    def helpers_cpu_s(self) -> float:
        """CPU seconds of threads that are nobody's stage: torch's own, those that read Parquet, logging."""
        return max(0.0, self.cpu_s - self.store_cpu_s - sum(self.stages_cpu.values()))

    @property
    def overlap(self) -> float:
        """How many stages were worked on at once, on average."""
        return self.share(*STAGES)


class ServerTime(msgspec.Struct, frozen=True, kw_only=True):
    """What a server did."""

    name: str
    handled_s: dict[str, float] = {}
    """Kind of request → seconds it took to answer them, the network left out."""


class PoolerTime(msgspec.Struct, frozen=True, kw_only=True):
    """What an embedding worker did, for all its workers."""

    name: str
    clients: int = 1
    """Workers that it serves."""
    stages: dict[str, float] = {}
    """Stage, or `server_wait` → seconds of the clock."""
    stages_cpu: dict[str, float] = {}
    """Stage → CPU seconds of the threads that work on it."""

    @property
    def work_s(self) -> float:
        """Seconds of the clock of its stages, added up."""
        return sum(self.stages.get(s, 0.0) for s in THREADS["engine"])

    def busy(self, training_s: float) -> float:
        """The share of the time in which the busier of the two threads that it has for each worker works.

        >>> PoolerTime(name="embedding worker 0", stages={"dedup": 3.0, "unpool": 2.0, "pool": 4.0}).busy(10.0)
        0.5
        """
        settling = self.stages.get("pool", 0.0)
        return max(settling, self.work_s - settling) / (self.clients * training_s) if training_s > 0 else 0.0


class Profile(msgspec.Struct, frozen=True, kw_only=True):
    """Where the time of a run went, and what it ran on."""

    workers: tuple[WorkerTime, ...]
    servers: tuple[ServerTime, ...] = ()
    embedding_workers: tuple[PoolerTime, ...] = ()
    cores: int
    """That worker 0 may keep busy."""
    threads: int
    """Of torch's compute, at worker 0."""
    device: str = "cpu"
    precision: str = "fp32"
    staleness: int = 0
    batch_size: int = 0
    samples: int = 0
    """Of all workers, in the time profiled."""

    @property
    def samples_per_s(self) -> float:
        """While training."""
        longest = max((w.training_s for w in self.workers), default=0.0)
        return self.samples / longest if longest else 0.0


CROWDED = 0.5
"""CPU seconds of a computing thread over those of the clock, below which others must be using its core."""


def bottleneck(profile: Profile) -> list[str]:
    """What holds the run up and what to change, in one to three sentences.

    The rules go from the main thread backwards. It either works (then the network, or the other workers, are what
    takes the time) or waits for rows; then the engine thread either works, or waits: for the reader, for servers, or
    for gradients, because the staleness allows no more.

    >>> time = WorkerTime(training_s=10.0, cpu_s=19.0, stages={"dense": 8.1, "lookup_wait": 0.1}, stages_cpu={})
    >>> bottleneck(Profile(workers=(time,), cores=2, threads=2))[0]
    'The dense network computes 81 % of the time on 2 threads, and rows are never waited for.'
    """
    if not profile.workers or (profile.samples == 0 and profile.workers[0].training_s == 0):
        return ["Nothing was trained, so there is nothing to say."]
    # The worker that the others wait for is the one that waits least for them.
    slowest = min(profile.workers, key=lambda w: w.share("worker_wait", "reduce"))
    rows = slowest.share("lookup_wait", "drain_wait")
    others = slowest.share("worker_wait", "reduce")
    if rows > max(0.25, others):
        said = _rows_waited_for(profile, slowest, rows)
    elif others > 0.25:
        said = _workers_waited_for(profile, others)
    else:
        said = _network_computes(profile, slowest, rows)
    return said + _beside(slowest)


def _network_computes(profile: Profile, w: WorkerTime, rows: float) -> list[str]:
    dense = w.share("dense")
    waits = "rows are never waited for" if rows < 0.02 else f"rows are waited for {_percent(rows)}"
    where = (
        f"on {profile.threads} thread{'s' if profile.threads != 1 else ''}" if profile.device == "cpu" else "on the GPU"
    )
    said = [f"The dense network computes {_percent(dense)} of the time {where}, and {waits}."]
    ran = w.stages_cpu.get("dense", 0.0) / w.wall("dense") if w.wall("dense") else 1.0
    if profile.device == "cpu" and w.stages_cpu and ran < CROWDED:
        said.append(
            f"Its own thread had a core for only {_percent(ran)} of that: other programs use the cores, and the "
            "figures are of both."
        )
    options = []
    if profile.precision == "fp32":
        options.append("train.precision=bf16 if the processor has bf16 instructions")
    if profile.device == "cpu" and profile.threads < profile.cores:
        options.append(f"train.threads={profile.cores}, as there are {profile.cores} cores")
    if profile.batch_size < 1024:
        options.append(f"a larger batch than {profile.batch_size}, so that less of a step is overhead")
    if w.overlap > 1.2 and profile.device == "cpu" and w.cpu_s > 0.85 * profile.cores * w.training_s:
        # The engine works beside it on the same cores: more cores help where a smaller network would.
        options.append("more cores, for all are busy")
    options.append("a smaller network" if profile.device == "cpu" else "a larger batch")
    options.append("more workers" + ("" if profile.device != "cpu" else ", or a GPU"))
    return [*said, f"To go faster: {_or(options)}."]


def _workers_waited_for(profile: Profile, others: float) -> list[str]:
    waits = [w.share("worker_wait", "reduce") for w in profile.workers]
    said = [
        f"Workers wait for each other {_percent(others)} of the time or more, most of it "
        + ("to agree on the next step." if _agreeing(profile) else "while their dense gradients are added up.")
    ]
    if max(waits) - min(waits) > 0.2:
        slow = min(range(len(waits)), key=waits.__getitem__)
        return [*said, f"Worker {slow} waits least, so it is the slow one: give it the cores the others have."]
    return [
        *said,
        f"All wait alike: a batch larger than {profile.batch_size} makes fewer sums of the same size, and a faster "
        "network, or fewer workers on one machine, makes each quicker.",
    ]


def _agreeing(profile: Profile) -> bool:
    return sum(w.wall("worker_wait") for w in profile.workers) > sum(w.wall("reduce") for w in profile.workers)


def _rows_waited_for(profile: Profile, w: WorkerTime, rows: float) -> list[str]:
    lead = f"The dense network waits for rows {_percent(rows)} of the time"
    work = w.wall(*THREADS["engine"])
    waits = {name: w.wall(name) for name in WAITS["engine"]}
    longest = max(waits, key=lambda k: waits[k])
    if waits["read_wait"] >= max(work, waits["server_wait"]):
        return [f"{lead}, because the reader is slower than all that follows.", _reader(w)]
    # With servers the thread that waits for gradients may do so while another waits for answers.
    if waits["server_wait"] > max(work, waits["read_wait"]):
        handled = sum(sum(s.handled_s.values()) for s in profile.servers)
        busy = handled / (len(profile.servers) * w.training_s) if profile.servers and w.training_s else 0.0
        if busy > 0.6:
            return [
                f"{lead}, because the servers are busy {_percent(busy)} of it.",
                f"More servers than {len(profile.servers)} divide the work.",
            ]
        pooling = _poolers_waited_for(profile, w)
        if pooling:
            return [f"{lead}, because {pooling[0]}", *pooling[1:]]
        staleness = _more_staleness(profile)
        return [
            f"{lead}, because answers of servers are under way so long.",
            f"{staleness}, or a narrower wire format (tables: wire: fp16), or a faster network.",
        ]
    if longest == "gradient_wait" and waits[longest] > work:
        return [
            f"{lead} while the engine waits for gradients: they take turns, because "
            f"train.staleness={profile.staleness} lets no more be under way.",
            f"{_more_staleness(profile)}.",
        ]
    stage = max(THREADS["engine"], key=w.wall)
    advice = {
        "dedup": "fewer or shorter lists of ids, or more workers",
        "pull": "rows of fewer numbers (dim) or of fp16, more store.threads, or more workers",
        "pool": "fewer features on long lists, smaller dims, or more workers",
        "unpool": "smaller dims, shorter lists, or more workers",
        "push": "an optimizer with less state (rowwise_adagrad), smaller dims, or more workers",
    }[stage]
    share = w.wall(stage) / work if work else 0.0
    return [
        f"{lead}, because the engine is slower than the network; {_percent(share)} of its work is the {stage}.",
        f"To go faster: {advice}.",
    ]


def _poolers_waited_for(profile: Profile, w: WorkerTime) -> list[str]:
    """What to say where the embedding workers are what takes the time; empty where they are not."""
    if not profile.embedding_workers:
        return []
    slowest = max(profile.embedding_workers, key=lambda e: e.busy(w.training_s))
    busy = slowest.busy(w.training_s)
    if busy <= 0.6:
        return []
    stage = max(THREADS["engine"], key=lambda s: slowest.stages.get(s, 0.0))
    share = slowest.stages.get(stage, 0.0) / slowest.work_s
    more = (
        f"More embedding workers than {len(profile.embedding_workers)} divide the work, up to one a worker"
        if len(profile.embedding_workers) < len(profile.workers)
        else "More workers, each with an embedding worker, divide the work"
    )
    return [
        f"{slowest.name} is busy {_percent(busy)} of it; {_percent(share)} of its work is the {stage}.",
        f"{more}, or more store.threads for it.",
    ]


def _reader(w: WorkerTime) -> str:
    if w.wall("read") > w.wall("decode"):
        return (
            "Most of its time goes into reading files: Parquet instead of text, row groups of 100,000 rows or more, a "
            "local disk, or more workers, which share the files."
        )
    return (
        "Most of its time goes into decoding: integers instead of text for ids, Parquet instead of CSV, or more "
        "workers, which share the rows."
    )


def _more_staleness(profile: Profile) -> str:
    more = 4 if profile.staleness == 0 else 2 * profile.staleness
    return f"train.staleness={more} lets more be under way (compare the AUC)"


def _beside(w: WorkerTime) -> list[str]:
    """What else takes long, though it is not training."""
    beside = {"evaluation": "eval_every_steps larger", "checkpoint": "checkpoint.every_steps larger"}
    total = w.training_s + w.wall(*beside)
    return [
        f"Beside training, {_percent(w.wall(k) / total)} of the run went into {k}s: train.{change}."
        for k, change in beside.items()
        if total and w.wall(k) / total > 0.3
    ]


def _percent(share: float) -> str:
    return f"{share:.0%}".replace("%", " %")


def _or(options: Sequence[str]) -> str:
    return options[0] if len(options) == 1 else f"{'; '.join(options[:-1])}; or {options[-1]}"


_WHAT = {
    "read": "rows from files",
    "decode": "hashing, scaling, shuffling",
    "room_wait": "for the engine to take batches",
    "dedup": "unique ids",
    "pull": "their rows",
    "pool": "rows to vectors",
    "unpool": "gradients per id",
    "push": "their application",
    "read_wait": "for the reader",
    "gradient_wait": "for gradients of the network",
    "server_wait": "for servers",
    "dense": "forward, backward, optimizer",
    "reduce": "sum over workers",
    "lookup_wait": "for rows",
    "worker_wait": "for the other workers",
    "drain_wait": "for the last pushes",
    "other": "figures, logging",
}


def rows_of(w: WorkerTime) -> list[tuple[str, str, str, float, float | None]]:
    """(thread, stage, what it is, seconds of the clock, CPU seconds) of every stage and wait that took any time."""
    rows: list[tuple[str, str, str, float, float | None]] = []
    for thread, stages in THREADS.items():
        rows += [(thread, s, _WHAT[s], w.wall(s), w.stages_cpu.get(s, 0.0)) for s in stages if w.wall(s)]
        if thread == "main":
            rows.append((thread, "other", _WHAT["other"], w.other_s, None))
        rows += [(thread, s.replace("_wait", " wait"), _WHAT[s], w.wall(s), None) for s in WAITS[thread] if w.wall(s)]
    return rows


def pooler_line(e: PoolerTime, training_s: float) -> str:
    """An embedding worker in a line."""
    parts = [f"{s} {e.stages[s]:.2f} s" for s in THREADS["engine"] if e.stages.get(s)]
    parts += [f"server wait {wait:.2f} s"] if (wait := e.stages.get("server_wait")) else []
    if not parts:
        return f"{e.name}: nothing pooled"
    cpu = sum(e.stages_cpu.values())
    return f"{e.name}: busy {_percent(e.busy(training_s))}; {', '.join(parts)}; {cpu:.2f} CPU s in these stages"


def profile_table(profile: Profile) -> RenderableType:
    """The profile as a person reads it, of worker 0 and in short of the others. Print it with a `rich` console."""
    from rich import box
    from rich.console import Group
    from rich.table import Table
    from rich.text import Text

    w = profile.workers[0]
    title = "Where the time went" + (", worker 0" if len(profile.workers) > 1 else "")
    table = Table(box=box.SIMPLE_HEAD, title=title, title_justify="left", title_style="bold", pad_edge=False)
    for name, right in (("thread", 0), ("stage", 0), ("", 0), ("wall s", 1), ("of training", 1), ("CPU s", 1)):
        table.add_column(name, justify="right" if right else "left")
    last = ""
    for thread, stage, what, wall, cpu in rows_of(w):
        style = "dim" if stage.endswith(" wait") else ""
        share = _percent(wall / w.training_s) if w.training_s else ""
        used = "" if cpu is None else f"{cpu:.2f}"
        table.add_row(thread if thread != last else "", stage, what, f"{wall:.2f}", share, used, style=style)
        last = thread
    busy = w.cpu_s / w.training_s if w.training_s else 0.0
    lines = [
        f"{w.training_s:.2f} s of training, {w.overlap:.2f} stages at once; {w.cpu_s:.2f} CPU s: {busy:.2f} of "
        f"{profile.cores} {'core' if profile.cores == 1 else 'cores'} busy",
        f"CPU beside that: {w.store_cpu_s:.2f} s in threads of the store, {w.helpers_cpu_s:.2f} s in those of torch "
        "and of Parquet reading",
    ]
    for other in profile.workers[1:]:
        lines.append(
            f"worker {other.rank}: dense {_percent(other.share('dense'))}, reduce {_percent(other.share('reduce'))}, "
            f"waiting for rows {_percent(other.share('lookup_wait', 'drain_wait'))}, for workers "
            f"{_percent(other.share('worker_wait'))}"
        )
    lines += [pooler_line(e, w.training_s) for e in profile.embedding_workers]
    for server in profile.servers:
        parts = ", ".join(f"{k} {v:.2f} s" for k, v in sorted(server.handled_s.items()) if v >= 0.005)
        lines.append(f"{server.name}: {parts or 'nothing handled'}")
    text = [Text(line, style="dim") for line in lines] + [Text(""), *(Text(s) for s in bottleneck(profile))]
    return Group(table, *text)


def write_profile(run_dir: str | Path, profile: Profile, trace: Trace | None = None) -> list[Path]:
    """Puts the table as text, and the first spans as a Chrome trace, into the run folder. Returns the files.

    Raises TrainingError where it cannot be written.
    """
    import io

    from rich.console import Console

    out = io.StringIO()
    Console(file=out, width=120).print(profile_table(profile))
    text = "\n".join(line.rstrip() for line in out.getvalue().splitlines()) + "\n"
    files: dict[str, bytes] = {PROFILE_FILE: text.encode()}
    if trace is not None:
        files[TRACE_FILE] = msgspec.json.encode(trace.events())
    written = []
    for name, content in files.items():
        path = Path(run_dir) / name
        try:
            path.write_bytes(content)
        except OSError as e:
            raise TrainingError(f"cannot write {path}: {e.strerror}; the run itself is not harmed") from e
        written.append(path)
    return written


def read_profile(record: Mapping[str, Any]) -> Profile | None:
    """The profile of a log's `end` record; None where it has none, or one of a version that this one does not know."""
    tree = record.get("profile")
    try:
        return None if tree is None else msgspec.convert(tree, Profile)
    except msgspec.ValidationError:
        return None


__all__ = [
    "NAMES",
    "PoolerTime",
    "Profile",
    "ServerTime",
    "WorkerTime",
    "bottleneck",
    "pooler_line",
    "profile_table",
    "read_profile",
    "rows_of",
    "write_profile",
]
