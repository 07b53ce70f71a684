"""A server's history on disk: recorded as it happens, brought back when the server begins (docs/formats/journal.md).

request ──► checked ──► recorded ──► applied ──► answered
                           │                        ▲
                        journal ── disk: synced ────┘ answers wait for the sync that covers them
"""

from __future__ import annotations

import logging
import os
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

from satrap import wire
from satrap.durable.files import LOCAL, Files, make_directories, try_lock
from satrap.durable.journal import SEGMENT_BYTES, Journal, segments
from satrap.durable.record import Kind
from satrap.durable.segment import Identity
from satrap.durable.snapshot import remove_others, snapshots
from satrap.errors import JournalError
from satrap.ps.handling import Handler
from satrap.ps.recovery import Recovered, recover
from satrap.ps.state import EPOCH
from satrap.schema import Durability

_log = logging.getLogger("satrap.ps")

LOCK = ".lock"
SNAPSHOT_BYTES = 768 << 20
"""Some two seconds of replay on two cores: what a recovery may wait for, and no more often than it must."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Keeping:
    """Where a server keeps its history, and how safe that is."""

    folder: Path
    """Its own. What is in it is brought back; an empty or missing one is begun."""
    level: Durability = "process"
    """process: what is acknowledged survives the end of the process. disk: of the machine as well."""
    snapshot_bytes: int = SNAPSHOT_BYTES
    """A snapshot is taken when the journal behind the last one has as many bytes, and before the first one as many as
    the rows."""
    segment_bytes: int = SEGMENT_BYTES
    files: Files = field(default=LOCAL)


class Keeper:
    """Records what a handler does. A `Recorder`; its methods are called by the thread that serves, unless they say
    otherwise.

    Raises JournalError where the folder is another's, in use, damaged, or cannot be written.
    """

    def __init__(self, keeping: Keeping, handler: Handler, index: int, limits: wire.Limits) -> None:
        """Brings back what is in the folder, into a handler whose service is empty."""
        self.keeping, self._handler, self.limits = keeping, handler, limits
        self.folder, self.files = keeping.folder, keeping.files
        try:
            make_directories(self.folder, self.files)
            self._lock = _claim(self.folder)
        except OSError as e:
            raise JournalError(f"{self.folder}: a server's history cannot be kept there: {e.strerror}") from e
        self.generation = 0
        """Rises when all rows are removed: a snapshot under way is then of no use."""
        self.chained = False
        """Whether the next snapshot need hold only what has changed since the last one."""
        self._owed: wire.Pull | None = None
        self._rows: dict[int, int] = {}
        self.snapshot_due = threading.Event()
        try:
            self._begin(index, limits)
        except BaseException:
            os.close(self._lock)
            raise

    def _begin(self, index: int, limits: wire.Limits) -> None:
        handler = self._handler
        epoch, begun = handler.epoch, time.perf_counter()
        own = Identity(index, handler.fingerprint, handler.service.life)
        handler.service.store.keep_removals()
        self.recovered: Recovered = recover(self.folder, handler, own, limits, self.files)
        self.recovered.seconds = time.perf_counter() - begun
        for torn in self.recovered.torn:
            _log.warning("%s; nothing in them was acknowledged", torn)
        identity = self.recovered.identity
        handler.service.life = identity.life
        self.journal = Journal(
            self.folder, identity, self.recovered.next, segment_bytes=self.keeping.segment_bytes, files=self.files
        )
        self._since = self.recovered.journal_bytes
        if self.recovered.next == 1:
            # Clients remember the life they were told, and that of a placement: both are there before any client.
            self.placement(handler.epoch)
            self.journal.sync()
        handler.recorder = self
        if self.recovered.behind:
            handler.advance(epoch)

    @property
    def waits(self) -> bool:
        """Whether there are records that answers must wait for."""
        return self.keeping.level == "disk" and self.journal.position > self.journal.synced

    def record(self, request: wire.Message) -> None:
        """See `Recorder.record`."""
        self._append(Kind.MESSAGE, request)
        if not isinstance(request, wire.Push):
            self._rows.clear()
            if isinstance(request, wire.Clear):
                self.generation += 1

    def before_creation(self) -> None:
        """See `Recorder.before_creation`."""
        self.journal.check()
        self._pay()

    def after_creation(self, pull: wire.Pull, *, counted: bool) -> None:
        """See `Recorder.after_creation`. Rows that are made and not recorded are owed: nothing goes before them."""
        store = self._handler.service.store
        if counted:
            # What it has marked, sighted and removed is as much a change as a row that it made.
            self._rows.clear()
            self._owed = pull
            self._pay()
            return
        rows = {s.table: store.size(store.names[s.table])[0] for s in pull.sections}
        if all(self._rows.get(t) == n for t, n in rows.items()):
            return
        self._rows.update(rows)
        self._owed = pull
        self._pay()

    def settle(self) -> None:
        """Records what is owed: what is copied after that holds nothing that the journal lacks. Raises JournalError."""
        self._pay()

    def clock(self, seconds: int) -> None:
        """See `Recorder.clock`."""
        self._pay()
        self._grew(self.journal.append(Kind.CLOCK, [EPOCH.pack(seconds)]))

    def placement(self, epoch: int) -> None:
        """See `Recorder.placement`."""
        self._pay()
        self._grew(self.journal.append(Kind.PLACEMENT, [EPOCH.pack(epoch)]))

    def snapshot_began(self) -> None:
        """What is in the journal up to now is in the snapshot to come."""
        self.journal.rotate()
        self._since = 0
        self.snapshot_due.clear()

    def close(self) -> None:
        """Ends recording. Everything is where it is after a kill, too."""
        self.journal.close()
        os.close(self._lock)

    def _append(self, kind: Kind, message: wire.Message) -> None:
        self._pay()
        self._grew(self.journal.append(kind, wire.encode(message)))

    def _pay(self) -> None:
        if self._owed is not None:
            self._grew(self.journal.append(Kind.MESSAGE, wire.encode(self._owed)))
            self._owed = None

    def _grew(self, _: int) -> None:
        self._since += self.journal.last_bytes
        if (
            self._since >= self.keeping.snapshot_bytes
            and not self.snapshot_due.is_set()
            and (self.chained or self._since >= self._held())
        ):
            self.snapshot_due.set()

    def _held(self) -> int:
        return sum(s.value_bytes + s.state_bytes for s in self._handler.service.stats().values())


class Commits:
    """A thread that syncs the journal as soon as there is something to sync, and says when it has."""

    def __init__(self, journal: Journal, synced: Callable[[], None]) -> None:
        self._journal, self._synced = journal, synced
        self._wanted = threading.Event()
        self._stop = False
        self.error: JournalError | None = None
        self._thread = threading.Thread(target=self._run, name="satrap-commits", daemon=True)
        self._thread.start()

    def want(self) -> None:
        """Asks for a sync of what is there now. Does not wait. From any thread."""
        self._wanted.set()

    def stop(self) -> None:
        """Ends the thread, after a last sync where one was asked for."""
        self._stop = True
        self._wanted.set()
        self._thread.join()

    def _run(self) -> None:
        while True:
            self._wanted.wait()
            self._wanted.clear()
            try:
                if self._journal.position > self._journal.synced:
                    self._journal.sync()
            except JournalError as e:
                self.error = e
                _log.error("%s", e)
            self._synced()
            if self._stop:
                return


def forget_history(folder: Path, files: Files = LOCAL) -> None:
    """Removes what a server has kept in a folder, so that the next one begins with nothing. Raises JournalError."""
    if not files.is_directory(folder):
        return
    try:
        lock = _claim(folder)
        try:
            remove_others(folder, (), files)
            for place in segments(folder, files):
                files.remove_file(folder / place.name)
            files.sync_directory(folder)
        finally:
            os.close(lock)
    except OSError as e:
        raise JournalError(f"{folder}: what is there cannot be removed: {e.strerror}") from e


def has_history(folder: Path, files: Files = LOCAL) -> bool:
    """Whether a server has kept anything in a folder."""
    return bool(segments(folder, files) or snapshots(folder, files))


def _claim(folder: Path) -> int:
    """A lock that the system drops with this process. Raises JournalError where another holds it."""
    fd = os.open(folder / LOCK, os.O_RDWR | os.O_CREAT | getattr(os, "O_CLOEXEC", 0), 0o644)
    if not try_lock(fd):
        holder = os.pread(fd, 100, 0).decode(errors="replace") or "another process"
        os.close(fd)
        raise JournalError(
            f"{folder}: {holder} keeps its history there; end it first, or give this server its own folder"
        )
    os.ftruncate(fd, 0)
    os.write(fd, f"process {os.getpid()}".encode())
    return fd
