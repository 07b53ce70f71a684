"""`python -m benchmarks wire`: pulls and pushes on one machine, against an echo of the same bytes and the store itself.

One client process, one server process. Batches of 20,000 random present ids, unsorted; a table of 100,000 rows, and
one of a million, which no cache holds, with row-wise Adagrad, in fp32; values and gradients travel as fp32, fp16 or
int8, over TCP on loopback and over the local socket that `satrap train` uses on one machine. Beside it, taking turns in
the same run:

* `echo`: the same client asks a process that answers with bytes it has ready, as many in every frame as satrap's: what
  ZeroMQ over this transport takes, with nobody looking at the bytes, which never leave the cache;
* `local`: `LocalService` in the client's process, the same ids and gradients, one thread.

Operations: `pull`; `push` of gradients whose rows have to be searched, on both sides; and `step`, a pull and the push
that follows it as in training, where the server remembers what the pull found.

Rates are with `--window` requests under way, for satrap and the echo alike; latencies with one at a time. On two cores
the echo alone keeps both busy, so what the store costs comes on top: `cpu_ms` are CPU milliseconds a batch, of all
processes, and `bound_vs_echo` is the most that satrap could reach if it cost no more than echo and local together.
"""

from __future__ import annotations

import argparse
import statistics
import subprocess
import sys
import time
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from functools import partial
from itertools import product
from typing import Any

import numpy as np
import zmq
from numpy.typing import NDArray

from benchmarks.harness import (
    REPOSITORY,
    THIS_PYTHON,
    Meter,
    Reading,
    cpu_seconds_of,
    describe,
    emit,
    interleave,
    ratio,
    result_hash,
    wait_until_quiet,
)
from benchmarks.wire_server import PARTITIONS, SEED, TRANSPORTS, fill, ids_of, table_of
from satrap.ps import LocalService, Placement, PullRequest, PushRequest, RemoteService, Rows
from satrap.schema import WireFormat
from satrap.store import keep_freed_memory


@dataclass(frozen=True, slots=True)
class Sizes:
    """How large a run is."""

    rows: tuple[int, ...]
    """Of the table: one that stays in the cache, and one that does not."""
    batch: int
    batches: int
    """Of one turn."""
    latencies: int
    rounds: int


FULL = Sizes(rows=(100_000, 1_000_000), batch=20_000, batches=150, latencies=300, rounds=5)
SMOKE = Sizes(rows=(5_000,), batch=1_000, batches=3, latencies=5, rounds=2)


BATCHES = 8
"""Different ones, in turns."""
OPERATIONS = {"pull": ("pull",), "push": ("push",), "step": ("pull", "push")}
"""Operation → what is asked of the server for it."""


@dataclass(frozen=True, slots=True)
class Case:
    """One table, and how its rows travel."""

    rows: int
    dim: int
    wire: str
    transport: str


@dataclass(frozen=True, slots=True)
class Frames:
    """Bytes of each frame of a request and its answer, as satrap sends them."""

    request: list[int]
    answer: list[int]

    @property
    def bytes(self) -> int:
        """Both ways."""
        return sum(self.request) + sum(self.answer)


def frames_of(operation: str, batch: int, dim: int, wire: str) -> Frames:
    """One frame of header and directory, then ids, values or gradients, versions."""
    values = WireFormat(wire).section_bytes(batch, dim)
    if operation == "pull":
        return Frames([72, 8 * batch], [56, values, batch])
    return Frames([128, 8 * batch, values, batch], [72])


class Process:
    """A server or an echo, in a process of its own."""

    def __init__(self, *arguments: str) -> None:
        self._process = subprocess.Popen(
            [THIS_PYTHON, "-m", "benchmarks.wire_server", *arguments],
            cwd=REPOSITORY,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        assert self._process.stdout is not None
        self.address = self._process.stdout.readline().strip()
        if not self.address:
            raise RuntimeError("the server process ended; its error is above")

    def cpu_seconds(self) -> float:
        """CPU seconds it has used so far."""
        return cpu_seconds_of(self._process.pid)

    def close(self) -> None:
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.close()
        self._process.wait(timeout=60)
        self._process.stdout.close()


@contextmanager
def process(*arguments: str) -> Iterator[Process]:
    made = Process(*arguments)
    try:
        yield made
    finally:
        made.close()


class Echo:
    """The client's side of the echo: the same frames over the same kind of socket."""

    def __init__(self, address: str) -> None:
        self._context: zmq.Context[zmq.Socket[bytes]] = zmq.Context(io_threads=1)
        self._socket = self._context.socket(zmq.DEALER)
        self._socket.linger = 0
        self._socket.set_hwm(0)
        self._socket.connect(address)

    def send(self, frames: list[Any]) -> None:
        self._socket.send_multipart(frames, copy=False)

    def receive(self) -> None:
        self._socket.recv_multipart(copy=False)

    def close(self) -> None:
        self._context.destroy(linger=0)


def main(argv: list[str]) -> int:
    """Runs the cases, prints JSON lines, the headline last."""
    options = _parse(argv)
    sizes = SMOKE if options.smoke else FULL
    sizes = replace(sizes, rounds=options.rounds or sizes.rounds)
    keep_freed_memory()  # as a trainer does
    emit(
        benchmark="wire",
        sizes={n: getattr(sizes, n) for n in sizes.__slots__},
        window=options.window,
        machine=describe(),
    )
    results: list[dict[str, Any]] = []
    hashes: list[str] = []
    for rows, dim, transport in product(options.rows or sizes.rows, options.dims, options.transports):
        arguments = (f"--dim={dim}", f"--rows={rows}", f"--threads={options.threads}", f"--transport={transport}")
        with process("serve", *arguments) as server:
            local = LocalService([table_of(dim, "fp32")], seed=SEED, partitions=PARTITIONS, threads=1)
            fill(local, ids_of(rows), dim)
            # Before the first push: the sides take different numbers of them.
            hashes.append(check_equal(rows, dim, sizes, server, local))
            for wire in options.formats:
                wait_until_quiet(options.wait_quiet_s)
                for line in run_case(Case(rows, dim, wire, transport), sizes, options, server, local):
                    emit(**line)
                    results.append(line)
    emit(**headline(results), result_hash=result_hash(h.encode() for h in hashes))
    return 0


def _parse(argv: list[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="benchmarks wire", description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--rounds", type=int, help="default 5, with --smoke 2")
    parser.add_argument("--smoke", action="store_true", help="tiny sizes, to see that it runs")
    parser.add_argument("--rows", type=lambda s: [int(x) for x in s.split(",")], help="of the table, one run each")
    parser.add_argument("--dims", type=lambda s: [int(x) for x in s.split(",")], default=[16, 64])
    parser.add_argument("--formats", type=lambda s: s.split(","), default=["fp32", "fp16", "int8"])
    parser.add_argument("--operations", type=lambda s: s.split(","), default=list(OPERATIONS))
    parser.add_argument("--transports", type=lambda s: s.split(","), default=list(TRANSPORTS))
    parser.add_argument("--window", type=int, default=4, help="requests under way where a rate is measured")
    parser.add_argument("--threads", type=int, default=1, help="of the server's store")
    parser.add_argument("--wait-quiet-s", type=float, default=0.0, help="wait so long for others to be quiet")
    return parser.parse_args(argv)


def run_case(
    case: Case, sizes: Sizes, options: argparse.Namespace, server: Process, local: LocalService
) -> Iterator[dict[str, Any]]:
    """One line an operation."""
    rng = np.random.default_rng(7)
    every = ids_of(case.rows)
    batches = [{"t": every[rng.choice(case.rows, sizes.batch, replace=False)]} for _ in range(BATCHES)]
    gradient = rng.standard_normal((sizes.batch, case.dim)).astype(np.float32) * np.float32(1e-3)
    with ExitStack() as stack:
        frames = {o: frames_of(o, sizes.batch, case.dim, case.wire) for o in ("pull", "push")}
        answers = [f"--{o}-bytes={','.join(map(str, f.answer))}" for o, f in frames.items()]
        echo_process = stack.enter_context(process("echo", f"--transport={case.transport}", *answers))
        echo = Echo(echo_process.address)
        stack.callback(echo.close)
        remote = stack.enter_context(client_of(server, case.dim, case.wire))
        for operation in options.operations:
            side = Sides(remote, local, echo, batches, gradient, frames, operation)
            meters = [server, echo_process]
            cpu_s: dict[str, list[float]] = {"satrap": [], "echo": [], "local": []}
            turns: dict[str, Callable[[], Reading]] = {
                name: _metered(meters, partial(run, sizes.batches, options.window), cpu_s[name])
                for name, run in (("satrap", side.satrap), ("echo", side.echo), ("local", side.local))
            }
            answer = interleave(turns, rounds=sizes.rounds)
            rows = sizes.batches * sizes.batch
            best = {n: rows / s.median_s / 1e6 for n, s in answer.items()}
            cpu = {n: statistics.median(s) / sizes.batches * 1e3 for n, s in cpu_s.items()}
            moved = sum(f.bytes for f in side.frames) * sizes.batches
            yield {
                "case": {"operation": operation, **{n: getattr(case, n) for n in case.__slots__}},
                **{f"{n}_mrows_per_s": v for n, v in best.items()},
                "satrap_gb_per_s": moved / answer["satrap"].median_s / 1e9,
                "echo_gb_per_s": moved / answer["echo"].median_s / 1e9,
                "satrap_vs_echo": ratio(answer["satrap"].seconds, answer["echo"].seconds),
                "satrap_vs_local": ratio(answer["satrap"].seconds, answer["local"].seconds),
                "cpu_ms": cpu,
                "bound_vs_echo": cpu["echo"] / max(1e-9, cpu["echo"] + cpu["local"]),
                **_latency("satrap", side.satrap, sizes.latencies),
                **_latency("echo", side.echo, sizes.latencies),
                "other_cores": max(s.other_cores for s in answer.values()),
                "steal_cores": max(s.steal_cores for s in answer.values()),
                "noisy_rounds": sum(s.noisy_rounds for s in answer.values()),
            }


class Sides:
    """The same operation on each side. A turn is so many batches with so many under way."""

    def __init__(
        self,
        remote: RemoteService,
        local: LocalService,
        echo: Echo,
        batches: list[dict[str, NDArray[np.uint64]]],
        gradient: NDArray[np.float32],
        frames: dict[str, Frames],
        operation: str,
    ) -> None:
        self._remote, self._local, self._echo, self._batches = remote, local, echo, batches
        self._gradient, self._operation = {"t": gradient}, operation
        self._numbers = {id(remote): 0, id(local): 0}
        parts = OPERATIONS[operation]
        self.frames = [frames[part] for part in parts]
        """Of what one turn of the operation sends."""
        self._requests = [_bytes_of(part, frames[part]) for part in parts]
        self._pulled = {
            id(service): [service.pull(PullRequest(ids=b, create=True, distinct=True)) for b in batches]
            for service in (remote, local)
        }

    def satrap(self, batches: int, window: int) -> None:
        pulls: deque[tuple[int, Any]] = deque()
        pushes: deque[Any] = deque()

        def push(i: int, rows: Rows, *, hinted: bool) -> None:
            if len(pushes) == window:
                pushes.popleft().result()
            pushes.append(self._remote.submit_push(self._push(self._remote, i, rows, hinted=hinted)))

        def end_pull() -> None:
            i, pending = pulls.popleft()
            rows = pending.result()
            if self._operation == "step":
                push(i, rows, hinted=True)

        for i in range(batches):
            if self._operation == "push":
                push(i, self._pulled[id(self._remote)][i % BATCHES], hinted=False)
                continue
            if len(pulls) == window:
                end_pull()
            pulls.append((i, self._remote.submit_pull(self._pull(i))))
        while pulls:
            end_pull()
        while pushes:
            pushes.popleft().result()

    def echo(self, batches: int, window: int) -> None:
        under_way, most = 0, window * len(self._requests)
        for _ in range(batches):
            for request in self._requests:
                if under_way == most:
                    self._echo.receive()
                    under_way -= 1
                self._echo.send(request)
                under_way += 1
        for _ in range(under_way):
            self._echo.receive()

    def local(self, batches: int, window: int) -> None:
        for i in range(batches):
            rows = self._pulled[id(self._local)][i % BATCHES]
            if self._operation != "push":
                rows = self._local.pull(self._pull(i))
            if self._operation != "pull":
                self._local.push(self._push(self._local, i, rows, hinted=self._operation == "step"))

    def _pull(self, i: int) -> PullRequest:
        return PullRequest(ids=self._batches[i % len(self._batches)], create=True, distinct=True)

    def _push(self, service: RemoteService | LocalService, i: int, rows: Rows, *, hinted: bool) -> PushRequest:
        k = i % len(self._batches)
        self._numbers[id(service)] += 1
        return PushRequest(
            client=0,
            epoch=time.monotonic_ns(),
            seq=self._numbers[id(service)],
            ids=self._batches[k],
            gradients=self._gradient,
            versions=rows.versions,
            hints=rows.hints if hinted else None,
            distinct=True,
        )


def _bytes_of(part: str, frames: Frames) -> list[Any]:
    """A request of this part for the echo, which tells parts apart by the first byte."""
    rest = [np.zeros(n, np.uint8).data for n in frames.request[1:]]
    return [(b"l" if part == "pull" else b"s") + bytes(frames.request[0] - 1), *rest]


def _metered(processes: list[Process], run: Callable[[], None], cpu_s: list[float]) -> Callable[[], Reading]:
    """A turn with a reading that counts the processes as ours; enters their CPU seconds in `cpu_s`."""

    def turn() -> Reading:
        before = sum(p.cpu_seconds() for p in processes)
        meter = Meter()
        run()
        reading = meter.read()
        others = sum(p.cpu_seconds() for p in processes) - before
        cpu_s.append(reading.cpu_s + others)
        return Reading(
            reading.wall_s,
            reading.cpu_s + others,
            max(0.0, reading.other_cores - others / reading.wall_s),
            reading.steal_cores,
        )

    return turn


def _latency(name: str, run: Callable[[int, int], None], count: int) -> dict[str, float]:
    """Milliseconds of one request at a time."""
    times = []
    for _ in range(count):
        begun = time.perf_counter()
        run(1, 1)
        times.append((time.perf_counter() - begun) * 1000)
    times.sort()
    return {f"{name}_ms_p50": statistics.median(times), f"{name}_ms_p99": times[int(0.99 * len(times))]}


def client_of(server: Process, dim: int, wire: str) -> RemoteService:
    """A client whose rows travel in this format."""
    return RemoteService([table_of(dim, wire)], Placement.even([server.address], PARTITIONS), seed=SEED)


def check_equal(rows: int, dim: int, sizes: Sizes, server: Process, local: LocalService) -> str:
    """Hash of one batch as read; asserts that server and store read alike, so that both do the same work."""
    request = PullRequest(ids={"t": ids_of(rows)[: sizes.batch]}, create=False)
    here = local.pull(request).values["t"]
    for wire, error in (("fp32", 0.0), ("fp16", 2.0**-11), ("int8", 1 / 250)):
        with client_of(server, dim, wire) as client:
            there = client.pull(request).values["t"]
        assert np.abs(there - here).max() <= error, f"{wire}: rows differ: the comparison would be void"
    return result_hash([here.tobytes()])


def headline(results: list[dict[str, Any]]) -> dict[str, Any]:
    """The figures the goals are about."""

    def worst(operation: str, key: str, **chosen: Any) -> float | None:
        found = [r[key] for r in results if {**r["case"], "operation": operation, **chosen} == r["case"]]
        return min(found) if found else None

    figures: dict[str, float | None] = {}
    for transport in dict.fromkeys(r["case"]["transport"] for r in results):
        for operation in OPERATIONS:
            name = f"{transport}_{operation}"
            figures[f"{name}_vs_echo"] = worst(operation, "satrap_vs_echo", transport=transport)
            figures[f"{name}_mrows_per_s_dim_16"] = worst(
                operation, "satrap_mrows_per_s", transport=transport, dim=16, wire="fp32"
            )
    return {
        "headline": "wire",
        **figures,
        "noisy_rounds": sum(r["noisy_rounds"] for r in results),
        "commit": describe()["commit"],
    }


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
