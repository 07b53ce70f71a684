"""What processes of a job are given, and what they tell the driver. Plain data: it goes through Ray, so no tensors."""

from __future__ import annotations

import socket
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from satrap.errors import SatrapError
from satrap.launch.guard import Identity

if TYPE_CHECKING:
    from satrap.ps import Placement
    from satrap.train.results import Result


@dataclass(frozen=True, slots=True, kw_only=True)
class Security:
    """Who may speak to servers, and whether other machines can reach them at all."""

    keys: Path | None = None
    """Folder of key files on every machine (`satrap keys new`)."""
    insecure: bool = False
    """Other machines may reach servers that have no keys."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Metrics:
    """Where a process serves its metrics."""

    host: str = "127.0.0.1"
    port: int = 0
    """Or the next that is free on its machine; 0: any."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ServerTask:
    """What a server is to serve."""

    job: Mapping[str, Any]
    """As `schema.job_to_dict` gives it."""
    index: int
    epoch: int
    """Of the placement."""
    host: str
    """Address that it binds."""
    cores: int
    security: Security
    metrics: Metrics
    history: Path | None = None
    """Folder of its journal and snapshots; None: it keeps none."""
    address: str = ""
    """Where it listens. Empty: wherever there is room."""
    recovers: bool = False
    """It takes the place of a server, with all that one had acknowledged. False: a new one, without rows."""


@dataclass(frozen=True, slots=True, kw_only=True)
class EmbeddingTask:
    """What an embedding worker is to pool."""

    job: Mapping[str, Any]
    index: int
    placement: Placement
    host: str
    """Address that it binds."""
    cores: int
    security: Security
    metrics: Metrics
    server_deadline_s: float
    """Until a server that does not answer is called unreachable."""


@dataclass(frozen=True, slots=True, kw_only=True)
class WorkerTask:
    """What a worker is to train."""

    job: Mapping[str, Any]
    rank: int
    world: int
    group: str
    """Address of worker 0."""
    placement: Placement
    pooler: tuple[int, str] | None
    """Number and address of its embedding worker; None: it pools itself."""
    run_dir: Path
    resume: bool
    cores: int
    plots: bool
    profile: bool
    security: Security
    server_deadline_s: float
    """Until a server that does not answer is called unreachable."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Begun:
    """A process that has begun."""

    host: str
    """Name of its machine."""
    identity: Identity
    metrics: str
    """host:port of its metrics."""
    address: str = ""
    """Of a server or an embedding worker."""

    @classmethod
    def here(cls, *, metrics: str, address: str = "") -> Begun:
        """This process."""
        return cls(host=socket.gethostname(), identity=Identity.of(), metrics=metrics, address=address)

    @property
    def pid(self) -> int:
        """Its number on its machine."""
        return self.identity.pid


@dataclass(frozen=True, slots=True, kw_only=True)
class Told:
    """A worker, just now."""

    text: str
    """Its metrics."""
    trained: int | None = None
    """Gradients applied in this life of the group; None before its first step."""
    restored: int = 0
    """Gradients in the checkpoint that it began with."""
    step: int = 0
    first_step_at: float | None = None
    """Seconds since 1970."""
    display: Mapping[str, Any] | None = None
    """How `observe.Progress` is to be made; of worker 0, once it knows."""
    figures: Mapping[str, Any] = field(default_factory=dict)
    """The last `Progress.update`."""
    says: tuple[str, ...] = ()
    """Lines since it was last asked."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Failed:
    """Why a worker ended."""

    error: BaseException | None
    """One that satrap or the system raises on purpose; None for any other."""
    kind: str
    """Name of its class."""
    message: str
    trace: str

    @classmethod
    def of(cls, error: BaseException, trace: str) -> Failed:
        """An error as it can be sent: classes that only the worker knows stay there."""
        known = isinstance(error, SatrapError | OSError | MemoryError)
        return cls(error=error if known else None, kind=type(error).__name__, message=str(error), trace=trace)

    def raised(self, who: str) -> BaseException:
        """The error, to be raised in the driver, with the worker's traceback as its cause."""
        error = self.error or type(self.kind, (Exception,), {})(f"{who}: {self.message}")
        error.__cause__ = Elsewhere(f"in {who}:\n{self.trace}")
        return error


class Elsewhere(Exception):  # noqa: N818
    """A traceback of another process, as text."""

    def __str__(self) -> str:
        return f"\n{self.args[0]}"


@dataclass(frozen=True, slots=True, kw_only=True)
class Ended:
    """How a worker's training ended: with a result or a failure."""

    result: Result | None = None
    failed: Failed | None = None
    trained: int = 0
    """Gradients applied in this life of the group."""
