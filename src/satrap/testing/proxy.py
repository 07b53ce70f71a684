"""A proxy between clients and a server that does to messages what a bad network does."""

from __future__ import annotations

import heapq
import itertools
import math
import random
import threading
import time
from collections import Counter
from dataclasses import dataclass
from typing import Any

import zmq

from satrap.ps.server import endpoint_of


@dataclass(frozen=True, slots=True, kw_only=True)
class Faults:
    """What happens to messages, each way alike. Probabilities are of one message. The default is a good wire."""

    drop: float = 0.0
    """It never arrives."""
    duplicate: float = 0.0
    """It arrives twice, the second time up to `spread_ms` later."""
    reorder: float = 0.0
    """It is held back up to `spread_ms`, so that later ones overtake it."""
    spread_ms: float = 20.0
    delay_ms: float = 0.0
    """Every message takes this long, beside what it waits for."""
    bytes_per_s: float | None = None
    """The rate of a link of this kind in each direction; messages queue for it. None: unlimited."""


@dataclass(slots=True)
class _Link:
    """One direction: its random numbers, and when it has sent what it has been given."""

    random: random.Random
    free_at: float = 0.0


class FaultProxy:
    """Passes messages between clients (DEALER) and one server (ROUTER), with faults by a seeded plan.

    Every client gets a connection of its own to the server. Attributes may be read, and `faults` set, from any thread
    at any time. Whole messages are dropped or delayed, never parts of them: TCP would do no less.

    >>> proxy = FaultProxy("tcp://127.0.0.1:7001", Faults(delay_ms=5.0), seed=1)
    >>> proxy.address.startswith("tcp://127.0.0.1:")
    True
    >>> proxy.stop()
    """

    def __init__(self, server: str, faults: Faults | None = None, *, seed: int = 0) -> None:
        self.faults = faults or Faults()
        self.counts: Counter[str] = Counter()
        """Messages by what became of them: passed, dropped, duplicated, reordered."""
        self._server = server
        self._context: zmq.Context[zmq.Socket[bytes]] = zmq.Context(io_threads=1)
        self._front = self._context.socket(zmq.ROUTER)
        self._front.linger = 0
        self._front.set_hwm(0)
        self._front.bind("tcp://127.0.0.1:*")
        self.address = endpoint_of(self._front)
        """What clients connect to."""
        self._backs: dict[bytes, zmq.Socket[bytes]] = {}
        self._clients: dict[zmq.Socket[bytes], bytes] = {}
        self._links = {"out": _Link(random.Random(f"{seed} out")), "back": _Link(random.Random(f"{seed} back"))}
        self._due: list[tuple[float, int, str, bytes, list[Any]]] = []
        self._number = itertools.count()
        self._stopping = threading.Event()
        self._moved = threading.Event()
        self._thread = threading.Thread(target=self._run, name="satrap-fault-proxy", daemon=True)
        self._thread.start()

    def move(self, server: str) -> None:
        """Sends what comes from now on to another address: the server was restarted there. Connections are new."""
        self._server = server
        self._moved.set()

    def stop(self) -> None:
        """Ends the proxy; messages it still holds are lost."""
        self._stopping.set()
        self._thread.join()

    def _run(self) -> None:
        poller = zmq.Poller()
        poller.register(self._front, zmq.POLLIN)
        while not self._stopping.is_set():
            if self._moved.is_set():
                self._moved.clear()
                for back in self._clients:
                    poller.unregister(back)
                    back.close()
                self._clients.clear()
                self._backs.clear()
            wait = 50.0
            if self._due:
                wait = min(wait, max(0.0, (self._due[0][0] - time.monotonic()) * 1000))
            for socket, _ in poller.poll(math.ceil(wait)):
                self._receive(socket, poller)
            self._deliver()
        self._context.destroy(linger=0)

    def _receive(self, socket: Any, poller: zmq.Poller) -> None:
        frames = socket.recv_multipart(copy=False)
        if socket is not self._front:
            self._plan("back", self._clients[socket], frames)
            return
        client = frames[0].bytes
        if client not in self._backs:
            back = self._context.socket(zmq.DEALER)
            back.linger = 0
            back.set_hwm(0)
            back.connect(self._server)
            self._backs[client] = back
            self._clients[back] = client
            poller.register(back, zmq.POLLIN)
        self._plan("out", client, frames[1:])

    def _plan(self, way: str, client: bytes, frames: list[Any]) -> None:
        """Decides when, and how often, a message arrives."""
        faults, link, now = self.faults, self._links[way], time.monotonic()
        drop, duplicate, reorder = (link.random.random() for _ in range(3))
        spreads = [link.random.random() * faults.spread_ms / 1000 for _ in range(2)]
        if drop < faults.drop:
            self.counts["dropped"] += 1
            return
        at = now
        if faults.bytes_per_s is not None:
            at = link.free_at = max(now, link.free_at) + sum(len(f) for f in frames) / faults.bytes_per_s
        at += faults.delay_ms / 1000
        self.counts["passed"] += 1
        if reorder < faults.reorder:
            self.counts["reordered"] += 1
            heapq.heappush(self._due, (at + spreads[0], next(self._number), way, client, frames))
        else:
            heapq.heappush(self._due, (at, next(self._number), way, client, frames))
        if duplicate < faults.duplicate:
            self.counts["duplicated"] += 1
            heapq.heappush(self._due, (at + spreads[1], next(self._number), way, client, frames))

    def _deliver(self) -> None:
        while self._due and self._due[0][0] <= time.monotonic():
            _, _, way, client, frames = heapq.heappop(self._due)
            if way == "back":
                self._front.send_multipart([client, *frames], copy=False)
            elif client in self._backs:
                self._backs[client].send_multipart(frames, copy=False)
