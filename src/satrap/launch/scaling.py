"""More or fewer servers for a job that is training: what `satrap scale` asks for, and what the driver does about it.

satrap scale ──► RUN/scale.json ──► driver: new servers begin ─► Mover: partitions move ─► servers without any end
             ◄── RUN/scaling.json ◄──────┴─ how far it is ────────────┘
"""

from __future__ import annotations

import os
import secrets
import threading
import time
from abc import ABC, abstractmethod
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import msgspec

from satrap.errors import LaunchError, SatrapError
from satrap.observe.processes import plural

if TYPE_CHECKING:
    from satrap.launch.fleet import Fleet, Member
    from satrap.ps import Mover, Placement

ASKED_FILE, TOLD_FILE = "scale.json", "scaling.json"
"""In the run folder."""
LINGER_S = 5.0
"""How much longer than any request may wait a server without partitions answers those that it was asked before."""


State = Literal["begun", "moving", "done", "failed"]


class Asked(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What is wanted."""

    id: str
    servers: int


class Progress(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What has become of it."""

    id: str
    state: State
    moved: int = 0
    of: int = 0
    message: str = ""


def ask(run_dir: Path, servers: int) -> str:
    """Asks the driver of a run for so many servers; returns the name of this request. Raises LaunchError."""
    asked = Asked(id=secrets.token_hex(8), servers=servers)
    _write(run_dir / ASKED_FILE, asked)
    return asked.id


def asked(run_dir: Path) -> Asked | None:
    """What is asked for, once: the file is removed. Raises LaunchError for a file that `ask` did not write."""
    path = run_dir / ASKED_FILE
    try:
        data = path.read_bytes()
        path.unlink()
    except OSError:
        return None
    try:
        return msgspec.json.decode(data, type=Asked)
    except msgspec.MsgspecError as e:
        raise LaunchError(f"{path}: {e}; ask with `satrap scale`") from e


def tell(run_dir: Path, progress: Progress) -> None:
    """Says how far it is. Raises LaunchError."""
    _write(run_dir / TOLD_FILE, progress)


def told(run_dir: Path, name: str) -> Progress | None:
    """How far a request is; None: nobody has taken it up."""
    try:
        progress = msgspec.json.decode((run_dir / TOLD_FILE).read_bytes(), type=Progress)
    except (OSError, msgspec.MsgspecError):
        return None
    return progress if progress.id == name else None


def _write(path: Path, what: Asked | Progress) -> None:
    new = path.with_name(f".{path.name}.{os.getpid()}.{threading.get_ident()}")
    try:
        new.write_bytes(msgspec.json.encode(what) + b"\n")
        new.replace(path)
    except OSError as e:
        raise LaunchError(f"{path} cannot be written: {e.strerror}") from e


@dataclass(slots=True)
class Moving(ABC):
    """Partitions that move while a job trains. The driver's main thread calls everything but `_run`."""

    fleet: Fleet
    placement: Placement
    run_dir: Path
    came: deque[Member] = field(default_factory=deque)
    """New servers that have begun, for the driver to watch."""
    says: deque[str] = field(default_factory=deque)
    error: str | None = None
    _mover: Mover | None = None
    _thread: threading.Thread | None = None
    _given_up: bool = False

    @property
    @abstractmethod
    def servers(self) -> int:
        """How many there will be."""

    @abstractmethod
    def start(self) -> None:
        """Begins, in a thread of its own. Raises LaunchError for what cannot be."""

    @abstractmethod
    def _run(self) -> None:
        """Moves. Runs in a thread of its own."""

    @abstractmethod
    def _tell(self, state: State, moved: int = 0, of: int = 0, message: str = "") -> None:
        """Tells who has asked for it how far it is."""

    @property
    def running(self) -> bool:
        """Whether it has not ended."""
        return self._thread is not None and self._thread.is_alive()

    def give_up(self, state: Literal["done", "failed"], why: str) -> None:
        """Ends it now."""
        self._given_up = True
        if self._mover is not None:
            self._mover.close()
        if self._thread is not None:
            self._thread.join()
        self._tell(state, message=why)

    def _begin(self, name: str) -> None:
        self._tell("begun")
        self._thread = threading.Thread(target=self._guarded, name=name, daemon=True)
        self._thread.start()

    def _guarded(self) -> None:
        try:
            self._run()
        except (SatrapError, OSError) as e:
            self._fail(str(e))
        except Exception as e:  # Ray's, and those of processes that have ended
            self._fail(f"{type(e).__name__}: {e}")

    def _fail(self, why: str) -> None:
        if self._given_up:
            return
        self.error = why
        self.says.append(f"partitions cannot be moved any further: {why}")
        self._tell("failed", message=why)

    def _moved(self, move: Callable[[Mover], object]) -> int:
        """Has a coordinator move; returns how many rows it has copied. Raises what it raises, once what it had begun is
        ended."""
        from satrap.launch.worker_process import worker_keys
        from satrap.ps import Mover

        fleet = self.fleet
        ended = range(len(fleet.servers), self.placement.servers)
        with Mover(
            fleet.job.resolved_tables(),
            self.placement,
            seed=fleet.job.seed,
            keys=worker_keys(fleet.security, 0),
            deadline_s=fleet.server_deadline_s,
            gone=fleet.retired.union(ended),
        ) as mover:
            self._mover = mover
            try:
                move(mover)
            except SatrapError:
                if not self._given_up:
                    mover.settle()
                raise
            finally:
                self.placement = mover.placement
            return mover.rows


@dataclass(slots=True)
class Scaling(Moving):
    """A change of the number of servers under way."""

    asked: Asked = field(kw_only=True)
    _count: int = field(default=0, init=False)
    """Partitions that have moved."""

    @property
    def servers(self) -> int:
        return self.asked.servers

    def start(self) -> None:
        if self.asked.servers < 1:
            raise LaunchError(f"servers must be 1 or more, got {self.asked.servers}")
        have = len(self.fleet.servers)
        if self.fleet.retired or (self.placement.servers > have and self.asked.servers > have):
            # Clients know a server by its number, and these numbers are of servers that are gone.
            raise LaunchError(
                "servers have handed all their partitions over and ended, and their numbers are not given again before "
                "the group begins anew: stop the run with Ctrl-C, and resume it with another --servers"
            )
        self.placement.moves_to(self.asked.servers)
        self._begin("satrap-scaling")

    def _run(self) -> None:
        fleet, wanted = self.fleet, self.asked.servers
        begun, moves = time.monotonic(), self.placement.moves_to(wanted)
        self.says.append(f"{plural(wanted, 'server')} wanted: {plural(len(moves), 'partition')} will move")

        def move(mover: Mover) -> None:
            for member in fleet.more_servers(wanted, self.came):
                assert member.begun is not None
                mover.add(member.begun.address)
            self._tell("moving", of=len(moves))
            mover.scale(wanted, lambda moved, of: self._tell("moving", moved=moved, of=of))

        rows = self._moved(move)
        self.says.append(
            f"{plural(wanted, 'server')} now: {plural(len(moves), 'partition')} and {rows:,} rows moved in "
            f"{time.monotonic() - begun:.1f} s"
        )
        self._count = len(moves)

    def finish(self) -> None:
        """Tells who has asked that it is done: once servers that have nothing left are no longer shown."""
        self._tell("done", moved=self._count, of=self._count)

    def _tell(self, state: State, moved: int = 0, of: int = 0, message: str = "") -> None:
        tell(self.run_dir, Progress(id=self.asked.id, state=state, moved=moved, of=of, message=message))


@dataclass(slots=True)
class HandingOver(Moving):
    """Servers that will be taken away give what they own to others."""

    leaving: Sequence[Member] = field(kw_only=True)
    takers: Sequence[int] = field(kw_only=True)
    """Numbers of the others."""

    @property
    def servers(self) -> int:
        return len(self.fleet.servers)

    def start(self) -> None:
        self._begin("satrap-handing-over")

    def _run(self) -> None:
        numbers, begun = {m.index for m in self.leaving}, time.monotonic()
        rows = self._moved(lambda mover: mover.hand_over(numbers, self.takers))
        names = " and ".join(m.name for m in self.leaving)
        self.says.append(f"{names} handed {rows:,} rows over in {time.monotonic() - begun:.1f} s, and may go")

    def _tell(self, state: State, moved: int = 0, of: int = 0, message: str = "") -> None:
        """Nobody has asked."""
