"""`python -m benchmarks durability`: what it costs that nothing acknowledged is lost, and how fast it comes back.

Groups (`--only`, comma-separated):
  train     the `train` benchmark's full model on one server process, with `store.durability` none, process and disk
            in turns. Neighbours are compared: 1 - samples per second with it / without it.
  snapshot  a snapshot of a server's rows while nobody trains, against writing the same bytes in one file and syncing
            it; recovery from it, against reading the same files: once as after a kill, with the files in the page
            cache, and once after they were dropped from it. `new_memory_gb_per_s`: what the system takes to hand out
            as much memory as the rows, which recovery cannot do without; on a machine that gets its own from a host,
            more than all the rest. `pause_ms_max`: the longest that requests had to wait.
  kill      a server process with as many rows, and pushes behind the snapshot: seconds from kill -9 to the first
            gradient that is applied after it, the start of the process included.
  cut       a checkpoint of as many rows, in one process and on a server process, while pulls and pushes go on: how long
            nobody may train, with the files written while all stand still (before) and behind (after), and the longest
            pull and push beside it. Of a table without a bound, and of one that is full.
"""

from __future__ import annotations

import argparse
import json
import mmap
import os
import shutil
import signal
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from msgspec import structs

from benchmarks import train_servers
from benchmarks.durability_server import OPTIONS, TABLE
from benchmarks.harness import REPOSITORY, THIS_PYTHON, Meter, describe, emit, run_json, wait_until_quiet
from benchmarks.synthetic import default_data_dir, ensure
from satrap import checkpoint
from satrap.data.batch import Position
from satrap.ps import Keeping, LocalService, Placement, PullRequest, PushRequest, RemoteService, RowBlock, Server
from satrap.schema import Capacity, Categorical, Data, Job, Label, RowWiseAdagrad, Table
from satrap.store import keep_freed_memory

GROUPS = ("train", "snapshot", "kill", "cut")
LEVELS = ("none", "process", "disk")
PIECE = 1 << 20
ROW_BYTES = 8 + 4 * 32 + 4
"""Id, values, state."""


@dataclass(frozen=True, slots=True)
class Sizes:
    """How large a run is."""

    shape: train_servers.Shape
    rows: int
    pushes: int
    """Behind the snapshot, before the kill."""
    batch: int
    rounds: int


FULL = Sizes(train_servers.FULL, rows=(1 << 30) // ROW_BYTES, pushes=100, batch=20_000, rounds=5)
SMOKE = Sizes(train_servers.SMOKE, rows=20_000, pushes=3, batch=1_000, rounds=1)


def main(argv: list[str]) -> int:
    """Runs the groups, prints JSON lines, the headline last."""
    parser = argparse.ArgumentParser(
        prog="benchmarks durability", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--smoke", action="store_true", help="tiny sizes, to see that it runs")
    parser.add_argument("--quick", action="store_true", help="runs of the group train of a quarter of the length")
    parser.add_argument("--only", type=lambda s: s.split(","), default=list(GROUPS))
    parser.add_argument("--rounds", type=int, default=None)
    parser.add_argument("--staleness", type=int, default=8)
    parser.add_argument("--cut", type=_sizes, default=None, help="ROWSxDIM,…: of the group cut; default: by size")
    parser.add_argument("--wait-quiet-s", type=float, default=0.0, help="wait so long for others to be quiet")
    parser.add_argument("--data-dir", type=Path, default=default_data_dir())
    parser.add_argument("--folder", type=Path, default=None, help="on the disk to measure; default: a temporary one")
    options = parser.parse_args(argv)
    unknown = set(options.only) - set(GROUPS)
    if unknown:
        parser.error(f"no group {', '.join(sorted(unknown))}; there are {', '.join(GROUPS)}")
    sizes = SMOKE if options.smoke else FULL
    if options.quick:
        sizes = replace(sizes, shape=train_servers.QUICK)
    options.rounds = options.rounds or sizes.rounds
    emit(
        benchmark="durability", machine=describe(), rounds=options.rounds, rows=sizes.rows, staleness=options.staleness
    )
    found: dict[str, Any] = {}
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(dir=options.folder)))
        if "train" in options.only:
            found |= train(options, sizes, folder)
        if "snapshot" in options.only or "kill" in options.only:
            found |= snapshot_and_recovery(options, sizes, folder / "history")
        if "kill" in options.only:
            found |= kill(options, sizes, folder / "history")
        if "cut" in options.only:
            found |= cut(options, folder)
    emit(headline="durability", **found, commit=describe()["commit"])
    return 0


# ---- training


def train(options: argparse.Namespace, sizes: Sizes, folder: Path) -> dict[str, Any]:
    """Samples a second by level, in turns."""
    data = ensure(options.data_dir, sizes.shape.sizes)
    entry = train_servers.Entry("deep", "fp32", staleness=options.staleness)
    speeds: dict[str, list[float]] = {level: [] for level in LEVELS}
    cpu: dict[str, list[float]] = {level: [] for level in LEVELS}
    digests = set()
    for r in range(options.rounds):
        for level in LEVELS[r % 3 :] + LEVELS[: r % 3]:
            wait_until_quiet(options.wait_quiet_s)
            shutil.rmtree(folder / "train", ignore_errors=True)
            with ExitStack() as stack:
                arguments = train_servers._job_arguments(entry, data, sizes.shape)
                job = train_servers._write_job(folder, arguments)
                keep = [f"--durability={level}", f"--history={folder / 'train'}"] if level != "none" else []
                address, pid = stack.enter_context(train_servers._process("serve", str(job), *keep))
                command = [THIS_PYTHON, "-m", "benchmarks.satrap_side", *arguments]
                answer = run_json([*command, f"--servers={address}", f"--count={pid}"])
            speeds[level].append(answer["samples_per_s"])
            cpu[level].append(answer["cpu_s_per_million"])
            digests.add(answer["digest"])
            written = sum(p.stat().st_size for p in (folder / "train").rglob("*") if p.is_file())
            emit(
                round=r, level=level, samples_per_s=answer["samples_per_s"], history_mib=written / 2**20,
                cpu_s_per_million=answer["cpu_s_per_million"], other_cores=answer["other_cores"],
                steal_cores=answer["steal_cores"],
            )  # fmt: skip
    shutil.rmtree(folder / "train", ignore_errors=True)

    def cost(of: dict[str, list[float]], level: str) -> float:
        return statistics.median(a / b for a, b in zip(of[level], of["none"], strict=True))

    return {
        "train_samples_per_s": {level: statistics.median(x) for level, x in speeds.items()},
        "process_costs": 1 - cost(speeds, "process"),
        "disk_costs": 1 - cost(speeds, "disk"),
        "process_costs_cpu": cost(cpu, "process") - 1,
        "disk_costs_cpu": cost(cpu, "disk") - 1,
        "same_model_at_every_level": len(digests) == 1,
    }


# ---- snapshot and recovery


def snapshot_and_recovery(options: argparse.Namespace, sizes: Sizes, folder: Path) -> dict[str, Any]:
    """Rates against plain writing and reading of the same bytes. Leaves a history with all rows in the folder."""
    rounds: list[dict[str, float]] = []
    keep_freed_memory()
    service = LocalService([TABLE], seed=OPTIONS["seed"], partitions=OPTIONS["partitions"])
    fill(service, sizes.rows)
    for r in range(min(options.rounds, 3)):
        wait_until_quiet(options.wait_quiet_s)
        shutil.rmtree(folder, ignore_errors=True)
        rounds.append(_round(service, folder))
        emit(round=r, **rounds[-1])
    names = rounds[0].keys()
    return {n: statistics.median(x[n] for x in rounds) for n in names}


def _round(service: LocalService, folder: Path) -> dict[str, float]:
    from satrap.ps.handling import Handler
    from satrap.ps.keeper import Keeper
    from satrap.ps.snapshots import Snapshots
    from satrap.wire import Limits

    handler = Handler(service, seed=OPTIONS["seed"], index=0, epoch=0)
    keeper = Keeper(Keeping(folder=folder), handler, 0, Limits())
    snapshots = Snapshots(keeper, handler, lambda work: work())
    meter = Meter()
    snapshot_s = timed(lambda: snapshots.take())
    size = snapshots.meters.bytes
    keeper.close()
    handler.recorder = None
    write_s = timed(lambda: plain_write(folder.parent / "plain", size))
    (folder.parent / "plain").unlink()
    figures: dict[str, float] = {
        "snapshot_gb_per_s": size / snapshot_s / 1e9,
        "plain_write_gb_per_s": size / write_s / 1e9,
        "snapshot_vs_write": write_s / snapshot_s,
        "pause_ms_max": snapshots.meters.pause_s_max * 1e3,
    }
    for how in ("cached", "dropped"):
        files = [p for p in folder.rglob("rows-*") if p.is_file()]
        if how == "dropped":
            for p in files:
                drop(p)
        else:
            for p in files:
                plain_read(p)
        read_s = timed(lambda files=files: [plain_read(p) for p in files])  # type: ignore[misc]
        if how == "dropped":
            for p in files:
                drop(p)

        def recover() -> None:
            empty = LocalService([TABLE], seed=OPTIONS["seed"], partitions=OPTIONS["partitions"])
            back = Handler(empty, seed=OPTIONS["seed"], index=0, epoch=0)
            Keeper(Keeping(folder=folder), back, 0, Limits()).close()
            assert empty.stats()["t"].rows == service.stats()["t"].rows

        cpu_s = time.process_time()
        recovery_s = timed(recover)
        figures[f"recovery_{how}_cpu_s_per_gb"] = (time.process_time() - cpu_s) / size * 1e9
        figures[f"recovery_{how}_gb_per_s"] = size / recovery_s / 1e9
        figures[f"plain_read_{how}_gb_per_s"] = size / read_s / 1e9
        figures[f"recovery_{how}_vs_read"] = read_s / recovery_s
    figures["new_memory_gb_per_s"] = size / timed(lambda: touch(size)) / 1e9
    reading = meter.read()
    return {**figures, "gb": size / 1e9, "other_cores": reading.other_cores, "steal_cores": reading.steal_cores}


def fill(service: LocalService, rows: int) -> None:
    """Random rows."""
    rng = np.random.default_rng(5)
    service.reserve_rows("t", rows)
    for at in range(0, rows, 1 << 17):
        ids = rng.integers(1, 2**63, min(1 << 17, rows - at), np.uint64)
        values = rng.random((ids.size, TABLE.dim), np.float32)
        service.import_rows("t", RowBlock(ids, values, np.zeros((ids.size, 1), np.float32)))


def timed(work: Callable[[], object]) -> float:
    """Seconds of wall time."""
    begun = time.perf_counter()
    work()
    return time.perf_counter() - begun


def plain_write(path: Path, size: int) -> None:
    """As many bytes in one file, synced."""
    piece = np.random.default_rng(1).bytes(PIECE)
    fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL)
    for at in range(0, size, PIECE):
        os.write(fd, piece[: size - at])
    os.fdatasync(fd)
    os.close(fd)


def plain_read(path: Path) -> None:
    """All bytes of a file, once."""
    buffer = bytearray(PIECE)
    with path.open("rb", buffering=0) as f:
        while f.readinto(buffer):
            pass


def touch(size: int) -> None:
    """As much memory as a process gets, on huge pages, from one thread."""
    with mmap.mmap(-1, size) as memory:
        if hasattr(mmap, "MADV_HUGEPAGE"):
            memory.madvise(mmap.MADV_HUGEPAGE)
        for at in range(0, size, mmap.PAGESIZE):
            memory[at] = 1


def drop(path: Path) -> None:
    """Drops a file, which is on disk, from the page cache."""
    fd = os.open(path, os.O_RDONLY)
    os.fsync(fd)
    os.posix_fadvise(fd, 0, 0, os.POSIX_FADV_DONTNEED)
    os.close(fd)


# ---- cut


def _sizes(text: str) -> list[tuple[int, int]]:
    return [(int(rows), int(dim)) for rows, dim in (x.split("x") for x in text.split(","))]


def cut(options: argparse.Namespace, folder: Path) -> dict[str, Any]:
    """How long training waits for a checkpoint. Seconds of the whole save beside it."""
    found = {}
    for rows, dim in options.cut or ([(5_000, 16)] if options.smoke else [(1_000_000, 16), (10_000_000, 16)]):
        plain = Table(name="t", dim=dim, optimizer=RowWiseAdagrad(lr=0.02))
        # As many as there are: what comes new has others go.
        full = structs.replace(plain, capacity=Capacity(rows=rows))
        for table, kind in ((plain, ""), (full, "_bounded")):
            wait_until_quiet(options.wait_quiet_s)
            figures = _cut_here(table, rows, folder / "cut", 2_000 if options.smoke else 50_000)
            emit(rows=rows, dim=dim, bounded=bool(kind), **figures)
            found[f"cut_{rows}x{dim}{kind}"] = figures
    return found


def _cut_here(table: Table, rows: int, folder: Path, batch: int) -> dict[str, Any]:
    service = LocalService([table], seed=OPTIONS["seed"], partitions=OPTIONS["partitions"])
    service.reserve_rows("t", rows)
    rng = np.random.default_rng(5)
    for at in range(1, rows + 1, 1 << 17):
        ids = np.arange(at, min(at + (1 << 17), rows + 1), dtype=np.uint64)
        values = rng.random((ids.size, table.dim), np.float32)
        service.import_rows("t", RowBlock(ids, values, np.zeros((ids.size, 1), np.float32)))
    figures: dict[str, Any] = {}
    for where in ("process", "server"):
        with ExitStack() as stack:
            client: Any = service
            if where == "server":
                # The rows go on in it; the server's thread is one of this process.
                server = stack.enter_context(Server([table], **OPTIONS, store=service))
                placement = Placement.even([server.address], OPTIONS["partitions"])
                client = stack.enter_context(RemoteService([table], placement, seed=OPTIONS["seed"]))
            step = _Steps(client, table, rows, batch)
            figures[where] = _cut_round(client, step, folder)
    return figures


class _Steps:
    """Pulls and pushes of ids drawn by Zipf's law, as a training would."""

    def __init__(self, client: Any, table: Table, rows: int, batch: int) -> None:
        self._client, self._table, self._rows, self._batch = client, table, rows, batch
        self._rng = np.random.default_rng(6)
        self._epoch = max((e for e, _ in client.clients().values()), default=0) + 1
        self._seq = 0

    def __call__(self) -> float:
        """Seconds of one."""
        # One in 300 beyond the rows there are: a new one.
        drawn = (1.01 * self._rows * self._rng.random(self._batch) ** 3).astype(np.uint64) + np.uint64(1)
        ids, self._seq = {"t": np.unique(drawn)}, self._seq + 1
        begun = time.perf_counter()
        rows = self._client.pull(PullRequest(ids=ids, create=True))
        gradients = {"t": np.full((ids["t"].size, self._table.dim), 0.01, np.float32)}
        self._client.push(PushRequest(0, self._epoch, self._seq, ids, gradients, hints=rows.hints))
        return time.perf_counter() - begun


def _cut_round(client: Any, step: _Steps, folder: Path) -> dict[str, float]:
    alone = [step() for _ in range(40)]
    shutil.rmtree(folder, ignore_errors=True)
    job = Job(
        data=Data(train=("none.parquet",), label=(Label(column="click"),)),
        features=(Categorical(name="t"),),
        tables=tuple(client.tables()),
    )
    contents: dict[str, Any] = {"job": job, "dense": {}, "optimizer": None, "step": 1, "position": Position()}
    stopped = timed(lambda: checkpoint.save(folder, service=client, **contents))
    shutil.rmtree(folder)
    begun = time.perf_counter()
    rows = client.cut()
    draft = checkpoint.Contents(service=rows, **contents)
    pause = time.perf_counter() - begun
    failed: list[BaseException] = []

    def write() -> None:
        try:
            checkpoint.write(folder, draft, threads=1, written=rows.done)
        except BaseException as e:
            failed.append(e)

    writer = threading.Thread(target=write)
    writer.start()
    beside = []
    while writer.is_alive():
        beside.append(step())
    behind = time.perf_counter() - begun
    rows.close()
    if failed:
        raise failed[0]
    size = sum(p.stat().st_size for p in folder.rglob("*") if p.is_file())
    shutil.rmtree(folder)
    return {
        "gb": size / 1e9,
        "stopped_s": stopped,
        "pause_s": pause,
        "written_after_s": behind,
        "step_ms": 1e3 * statistics.median(alone),
        "step_ms_max": 1e3 * max(alone),
        "step_beside_ms": 1e3 * statistics.median(beside),
        "step_beside_ms_max": 1e3 * max(beside),
    }


# ---- kill


def kill(options: argparse.Namespace, sizes: Sizes, folder: Path) -> dict[str, Any]:
    """Seconds from kill -9 until the next gradient is applied."""
    seconds = []
    rng = np.random.default_rng(9)
    for _ in range(min(options.rounds, 3)):
        wait_until_quiet(options.wait_quiet_s)
        server = _begin(folder, "tcp://127.0.0.1:*")
        with RemoteService([TABLE], Placement.even([server[1]], OPTIONS["partitions"]), seed=OPTIONS["seed"]) as client:
            seq, epoch = 0, max((e for e, _ in client.clients().values()), default=0) + 1

            def push(epoch: int = epoch) -> int:
                nonlocal seq
                seq += 1
                ids = {"t": np.unique(rng.integers(1, 2**63, sizes.batch, np.uint64))}
                rows = client.pull(PullRequest(ids=ids, create=True))
                gradients = {"t": np.full((ids["t"].size, TABLE.dim), 0.01, np.float32)}
                return client.push(PushRequest(0, epoch, seq, ids, gradients, hints=rows.hints)).applied

            for _ in range(sizes.pushes):
                push()
            begun = time.perf_counter()
            server[0].send_signal(signal.SIGKILL)
            server[0].wait()
            server = _begin(folder, server[1])
            there = time.perf_counter()
            applied = push()
            seconds.append(time.perf_counter() - begun)
            assert applied > 0
        recovered = server[2]
        recovery_s = recovered["seconds"]
        emit(
            kill_to_next_gradient_s=seconds[-1], process_s=there - begun - recovery_s, recovery_s=recovery_s,
            first_step_s=seconds[-1] - (there - begun), journal_mb=recovered["journal_bytes"] / 1e6,
            snapshot_mb=recovered["snapshot_bytes"] / 1e6,
        )  # fmt: skip
        server[0].kill()
        server[0].wait()
    return {"kill_to_next_gradient_s": statistics.median(seconds)}


def _begin(folder: Path, bind: str) -> tuple[subprocess.Popen[str], str, dict[str, float]]:
    """A server process, its address, and what it has brought back."""
    command = [THIS_PYTHON, "-m", "benchmarks.durability_server", str(folder), bind]
    process = subprocess.Popen(command, cwd=REPOSITORY, stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    line = process.stdout.readline()
    if not line:
        raise RuntimeError("the server did not begin; its error is above")
    told = json.loads(line)
    return process, told["address"], told["recovered"]


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
