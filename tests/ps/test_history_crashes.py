"""The process dies, the power goes, or the disk refuses at any single operation of journal, snapshot and manifest: what
was acknowledged is there, once, and what comes after it gives what it would have given."""

from __future__ import annotations

import errno
import os
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

import histories
import pytest
from histories import Life, digest, requests, states

from satrap import wire
from satrap.errors import JournalError
from satrap.testing.faulty_files import FaultyFiles, Killed

REQUESTS = requests(30)
STATES: list[str] = []
"""Before each request and after the last, with the tables of the test."""
MEMORY, ROOM_BYTES = Path("/dev/shm"), 256 << 20
SNAPSHOTS_BEFORE = (8, 19)
"""Requests before which a snapshot begins; the three that follow come while it is taken."""


@pytest.fixture(autouse=True, params=["PLAIN", "BOUNDED", "COLD"])
def tables(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Bounded tables have snapshots of all rows, others of what has changed. The disk under cold rows has no part in
    what survives."""
    monkeypatch.setattr(histories, "TABLES", getattr(histories, request.param))
    STATES[:] = states(REQUESTS)


@pytest.fixture(autouse=True)
def without_waiting_for_the_disk(monkeypatch: pytest.MonkeyPatch) -> None:
    """What power loss takes is what `FaultyFiles` has not seen synced; the real disk has no part in it."""
    for sync in ("fsync", "fdatasync"):
        monkeypatch.setattr(os, sync, lambda fd: None, raising=False)


@pytest.fixture
def home(tmp_path: Path) -> Iterator[Path]:
    """In memory, where that has room for files: thousands of folders are made and removed."""
    if not MEMORY.is_dir() or not os.access(MEMORY, os.W_OK) or shutil.disk_usage(MEMORY).free < ROOM_BYTES:
        yield tmp_path
        return
    with tempfile.TemporaryDirectory(prefix="satrap-crashes-", dir=MEMORY) as folder:
        yield Path(folder)


def test_the_requests_use_everything() -> None:
    kinds = {type(m) for m in REQUESTS}
    assert kinds == {wire.Pull, wire.Push, wire.ImportRows, wire.Erase, wire.SetClients}
    assert any(isinstance(m, wire.Push) and m.merge > 1 for m in REQUESTS)
    assert len(set(STATES)) > 26


class Script:
    """The requests, with snapshots between them; knows how many were answered."""

    def __init__(self, first: int = 0) -> None:
        self.answered = first

    def run(self, life: Life) -> None:
        while self.answered < len(REQUESTS):
            if self.answered in SNAPSHOTS_BEFORE:
                upto = self.answered + 3
                life.snapshot(lambda upto=upto: self.next(life, upto))  # type: ignore[misc]
            self.next(life, len(REQUESTS))

    def next(self, life: Life, upto: int) -> None:
        if self.answered >= upto:
            return
        answers = life.ask(REQUESTS[self.answered])
        for a in answers:
            if isinstance(a, wire.Failure) and a.code is not wire.Code.DROPPED:
                raise JournalError(a.text)
        self.answered += 1


def operations(folder: Path, level: str) -> list[str]:
    files = FaultyFiles()
    life = Life(folder, level, files)
    Script().run(life)
    life.close()
    assert digest(life.handler) == STATES[-1]
    files.close()
    return files.log


def check(folder: Path, script: Script, where: str) -> None:
    life = Life(folder)
    found = digest(life.handler)
    assert found in STATES[script.answered : script.answered + 2], (where, script.answered)
    Script(script.answered).run(life)
    assert digest(life.handler) == STATES[-1], where
    life.close()
    if script.answered % 5 == 0:  # and once more, now from what the second life wrote
        life = Life(folder)
        assert digest(life.handler) == STATES[-1], where
        life.close()


@pytest.mark.parametrize(
    ("level", "survives"), [("process", 1.0), ("disk", 1.0), ("disk", 0.0), ("disk", 0.5)],
    ids=["process, killed", "disk, killed", "disk, power lost", "disk, power lost, half the names undone"],
)  # fmt: skip
def test_a_crash_at_any_operation_loses_nothing_acknowledged_and_applies_nothing_twice(
    level: str, survives: float, home: Path
) -> None:
    log = operations(home / "whole", level)
    assert sum("rename .snapshot" in x for x in log) == 2
    assert any("remove_file journal" in x for x in log)
    for k in range(1, len(log) + 1):
        folder, files, script = home / str(k), FaultyFiles(kill_at=k), Script()
        life = None
        try:
            life = Life(folder, level, files)
            script.run(life)
        except Killed:
            pass
        if life is not None:
            life.close()
        if survives < 1:
            files.lose_power(survives)
        check(folder, script, f"operation {k}: {log[k - 1]}")
        files.close()
        shutil.rmtree(folder)


@pytest.mark.parametrize("level", ["process", "disk"])
def test_a_disk_that_refuses_any_operation_changes_nothing_that_is_not_acknowledged(level: str, home: Path) -> None:
    log = operations(home / "whole", level)
    told = 0
    for k in range(1, len(log) + 1):

        def refuse(operation: str, path: Path, count: int, k: int = k) -> None:
            if count == k:
                raise OSError((errno.ENOSPC, errno.EIO)[k % 2], "refused", str(path))

        folder, files, script = home / str(k), FaultyFiles(fail=refuse), Script()
        life, failed = None, ""
        try:
            life = Life(folder, level, files)
            script.run(life)
        except (JournalError, OSError) as e:
            failed = str(e)
        assert not failed or "refused" in failed
        told += bool(failed)
        if life is not None:
            life.close()
        check(folder, script, f"operation {k}: {log[k - 1]}")
        files.close()
        shutil.rmtree(folder)
    assert told > len(log) // 2


def test_what_a_disk_refused_can_be_asked_again_when_it_has_room(home: Path) -> None:
    full = False

    def refuse(operation: str, path: Path, count: int) -> None:
        if full and operation in ("write", "create"):
            raise OSError(errno.ENOSPC, "No space left on device", str(path))

    files = FaultyFiles(fail=refuse)
    life = Life(home / "x", files=files)
    for i, m in enumerate(REQUESTS):
        full = True
        first = life.ask(m)
        full = False
        if any(isinstance(a, wire.Failure) for a in first):
            assert "No space left" in first[0].text  # type: ignore[union-attr]
            assert "was not done" in first[0].text  # type: ignore[union-attr]
            made = isinstance(m, wire.Pull)  # its rows are there, and owed to the journal
            assert made or digest(life.handler) == STATES[i]
            life.ask(m)
        assert digest(life.handler) == STATES[i + 1]
    life.close()
    again = Life(home / "x")
    assert digest(again.handler) == STATES[-1]
    again.close()
    files.close()
