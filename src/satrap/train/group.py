"""The workers that train one model together, and what they say to each other.

Every step they agree on what it is (one small sum) and add up their dense gradients (one large one); at drains they
exchange what a checkpoint or an evaluation is made of. Rows do not pass here: each worker has its own way to the
parameter servers. W workers.
"""

from __future__ import annotations

import re
import socket
from collections.abc import Callable
from datetime import timedelta
from typing import Any, NamedTuple, Protocol, TypeVar
from urllib.parse import urlsplit

import torch
import torch.distributed
from torch import Tensor

from satrap.errors import TrainingError, WorkerGone

T = TypeVar("T")

c10d: Any = torch.distributed
"""Untyped: its stubs leave out process groups and stores, which are used without a global one, so that nothing is set
for the whole process and several workers fit in one."""


class Agreed(NamedTuple):
    """What all workers know before a step."""

    weight: float
    """Σ over workers of the weights of their samples: the divisor of the global mean loss."""
    with_data: int
    """Workers that have a batch. 0: the data is used up, or nobody objects."""
    stop: bool
    """Whether any worker asks to stop."""


class Group(Protocol):
    """W workers in lockstep: each method is called by all of them, in the same order, by one thread of each.

    A method returns when all have called it, however long that takes: one may be busy for hours. It raises
    TrainingError when another worker is gone.
    """

    rank: int
    """0 … W - 1. Worker 0 writes the run folder."""
    world: int
    """W"""

    def agree(self, weight: float, has_data: bool, stop: bool) -> Agreed:
        """The sum of the weights, how many have data, and whether any wants to stop; the same for all."""

    def sum_(self, flat: Tensor) -> None:
        """Replaces a tensor by its sum over the workers, to the same bits at each of them. On any device."""

    def gather(self, data: bytes) -> list[bytes]:
        """What every worker gave, by rank, at every worker."""

    def broadcast(self, data: bytes | None) -> bytes:
        """What worker 0 gave, at every worker; the others give None."""

    def barrier(self) -> None:
        """Returns when all have come."""

    def close(self) -> None:
        """Leaves the group: the others are told at their next call, or in the one they are waiting in."""


class Alone:
    """A group of one. Nothing is exchanged.

    >>> Alone().agree(8.0, True, False)
    Agreed(weight=8.0, with_data=1, stop=False)
    """

    rank = 0
    world = 1

    def agree(self, weight: float, has_data: bool, stop: bool) -> Agreed:
        return Agreed(weight, int(has_data), stop)

    def sum_(self, flat: Tensor) -> None:
        pass

    def gather(self, data: bytes) -> list[bytes]:
        return [data]

    def broadcast(self, data: bytes | None) -> bytes:
        assert data is not None
        return data

    def barrier(self) -> None:
        pass

    def close(self) -> None:
        pass


ALONE = Alone()

JOIN_TIMEOUT_S = 300.0
"""How long a worker waits for the others to start."""
_EVER = timedelta(days=3650)


def listen(host: str = "127.0.0.1", port: int = 0) -> tuple[socket.socket, str]:
    """A socket at which worker 0 will be found, and its address. Raises TrainingError where it cannot listen."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    try:
        listener = socket.create_server((host, port), family=family)
    except OSError as e:
        raise TrainingError(f"worker 0 cannot listen on {host}, port {port}: {e.strerror}") from e
    port = listener.getsockname()[1]
    return listener, f"tcp://[{host}]:{port}" if ":" in host else f"tcp://{host}:{port}"


class TorchGroup:
    """Workers joined by `torch.distributed`: Gloo, and NCCL for tensors on a CUDA device.

    Its connections are on the network that leads to worker 0, loopback if that is where it is. They carry tensors and
    bytes, never objects, and are neither authenticated nor encrypted: a network between machines must be trusted.

        listener, address = listen()                      # worker 0; the address goes to the others
        group = TorchGroup(0, 2, address, listener=listener)
        group = TorchGroup(1, 2, address)                 # worker 1
    """

    def __init__(
        self,
        rank: int,
        world: int,
        address: str,
        *,
        listener: socket.socket | None = None,
        device: torch.device | str = "cpu",
        join_timeout_s: float = JOIN_TIMEOUT_S,
    ) -> None:
        """Waits until all have come. `address`: as `listen` gave it; `listener`: its socket, worker 0's alone, whose
        owner this becomes. `device`: where gradients to be summed will be. Raises TrainingError naming who is missing.
        """
        if not 0 <= rank < world:
            raise TrainingError(f"there is no worker {rank} among {world}: they are numbered from 0")
        self.rank, self.world = rank, world
        self._gloo: Any = None
        self._nccl: Any = None
        where = urlsplit(address)
        if where.scheme != "tcp" or where.hostname is None or where.port is None:
            raise TrainingError(f"the address of worker 0 is tcp://HOST:PORT, got '{address}'")
        if (rank == 0) != (listener is not None):
            raise TrainingError("worker 0, and no other, is given the socket that it listens on")
        self._store = self._meet(where.hostname, where.port, listener, timedelta(seconds=join_timeout_s), address)
        self._gloo = self._trying("joining", lambda: _gloo(self._store, rank, world, where.hostname or "", where.port))
        if torch.device(device).type == "cuda" and c10d.is_nccl_available():
            options = c10d.ProcessGroupNCCL.Options()
            self._nccl = c10d.ProcessGroupNCCL(c10d.PrefixStore("nccl", self._store), rank, world, options)

    def _meet(self, host: str, port: int, listener: socket.socket | None, timeout: timedelta, address: str) -> Any:
        """The store at worker 0, when all have signed in there."""
        try:
            store = c10d.TCPStore(
                host,
                port,
                self.world,
                is_master=self.rank == 0,
                timeout=timeout,
                wait_for_workers=False,
                master_listen_fd=None if listener is None else listener.detach(),
            )
            store.set(f"worker {self.rank}", "here")
        except RuntimeError as e:
            raise TrainingError(
                f"worker {self.rank} of {self.world} did not reach worker 0 at {address}: {_first_line(e)}"
            ) from e
        for other in range(self.world):
            try:
                store.wait([f"worker {other}"], timeout)
            except RuntimeError as e:
                raise TrainingError(
                    f"worker {self.rank} of {self.world}: worker {other} has not come to {address} within "
                    f"{timeout.total_seconds():g} s ({_first_line(e)})"
                ) from e
        return store

    def agree(self, weight: float, has_data: bool, stop: bool) -> Agreed:
        figures = torch.tensor([weight, float(has_data), float(stop)], dtype=torch.float64)
        self._trying("agreeing on the next step", lambda: self._gloo.allreduce([figures]).wait())
        weight, with_data, stops = figures.tolist()
        return Agreed(weight, round(with_data), stops > 0)

    def sum_(self, flat: Tensor) -> None:
        if not flat.is_cuda:
            self._trying("summing gradients", lambda: self._gloo.allreduce([flat]).wait())
        elif self._nccl is not None:
            self._trying("summing gradients", lambda: self._nccl.allreduce([flat]).wait())
        else:
            host = flat.cpu()
            self.sum_(host)
            flat.copy_(host)

    def gather(self, data: bytes) -> list[bytes]:
        sizes = [torch.zeros(1, dtype=torch.int64) for _ in range(self.world)]
        mine = torch.tensor([len(data)])
        self._trying("exchanging data", lambda: self._gloo.allgather([sizes], [mine]).wait())
        longest = max(int(s) for s in sizes)
        if not longest:
            return [b""] * self.world
        parts = [torch.zeros(longest, dtype=torch.uint8) for _ in range(self.world)]
        padded = _bytes(data + bytes(longest - len(data)))
        self._trying("exchanging data", lambda: self._gloo.allgather([parts], [padded]).wait())
        return [p[: int(s)].numpy().tobytes() for p, s in zip(parts, sizes, strict=True)]

    def broadcast(self, data: bytes | None) -> bytes:
        size = torch.tensor([len(data or b"")])
        self._trying("waiting for worker 0", lambda: self._gloo.broadcast(size, 0).wait())
        if not int(size):
            return b""
        content = torch.zeros(int(size), dtype=torch.uint8) if data is None else _bytes(data)
        self._trying("waiting for worker 0", lambda: self._gloo.broadcast(content, 0).wait())
        return content.numpy().tobytes()

    def barrier(self) -> None:
        self._trying("waiting for each other", lambda: self._gloo.allreduce([torch.zeros(1)]).wait())

    def close(self) -> None:
        # Their connections end with the objects: that is how the others learn of it.
        self._nccl = None
        self._gloo = None

    def _trying(self, doing: str, call: Callable[[], T]) -> T:
        try:
            return call()
        except (RuntimeError, AttributeError) as e:
            why = _first_line(e) if isinstance(e, RuntimeError) else "this worker has left the group"
            raise WorkerGone(
                f"worker {self.rank} of {self.world}: another worker is gone; this one was {doing} ({why}). Its own "
                "message says why it ended. Checkpoints are intact: start all workers again and resume"
            ) from e


def _gloo(store: Any, rank: int, world: int, host: str, port: int | None) -> Any:
    """A Gloo group that never gives up by the clock. Its sockets are bound where worker 0 can be reached from."""
    options = c10d.ProcessGroupGloo._Options()
    options._timeout = _EVER
    options._devices = [c10d.ProcessGroupGloo.create_device(hostname=_own_address(host, port))]
    return c10d.ProcessGroupGloo(c10d.PrefixStore("gloo", store), rank, world, options)


def _own_address(host: str, port: int | None) -> str:
    """This machine's address on the way to a host."""
    family, kind, _, _, target = socket.getaddrinfo(host, port, type=socket.SOCK_DGRAM)[0]
    with socket.socket(family, kind) as probe:
        probe.connect(target)  # sends nothing: it only looks the way up
        return str(probe.getsockname()[0])


def _bytes(data: bytes) -> Tensor:
    return torch.frombuffer(bytearray(data), dtype=torch.uint8)


def _first_line(error: BaseException) -> str:
    """What a library says, without where in its source it says so and without its good wishes."""
    line = re.sub(r"^\[[^\]]*\]\s*", "", str(error).strip().splitlines()[0])
    return re.split(r"\. (?=[A-Z])", line)[0]
