"""Acknowledgements that wait for the disk, and what a server says when the disk refuses."""

from __future__ import annotations

import errno
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from deployments import exact, outcome, pull, push_of
from killed import SOON

from satrap.durable.files import LocalFiles, Writable
from satrap.errors import ServiceError
from satrap.ps import Keeping, Placement, RemoteService, Server

IDS = np.arange(100, dtype=np.uint64)


class WatchedFiles(LocalFiles):
    """Counts syncs of files, holds them back, has them or writes fail."""

    def __init__(self) -> None:
        self.syncs = 0
        self.go = threading.Event()
        self.go.set()
        self.under_way = threading.Event()
        self.fails: str | None = None

    def create(self, path: Path) -> Writable:
        return _Watched(self, super().create(path))


class _Watched:
    def __init__(self, files: WatchedFiles, file: Writable) -> None:
        self._files, self._file = files, file
        self.close = file.close

    def write(self, data: memoryview) -> int:
        if self._files.fails == "write":
            raise OSError(errno.ENOSPC, "No space left on device")
        return self._file.write(data)

    def sync(self) -> None:
        if self._files.fails == "sync":
            raise OSError(errno.EIO, "Input/output error")
        self._files.syncs += 1
        self._files.under_way.set()
        assert self._files.go.wait(30)
        self._file.sync()


@contextmanager
def serving(folder: Path, files: WatchedFiles, level: Any = "disk") -> Iterator[tuple[Server, RemoteService]]:
    keeping = Keeping(folder=folder, level=level, files=files)
    with Server([exact()], seed=0, partitions=8, threads=1, keeping=keeping) as server:
        placement = Placement.even([server.address], 8)
        with RemoteService([exact()], placement, seed=0, patience=SOON) as client:
            yield server, client


def test_pushes_share_a_sync_and_the_server_goes_on_while_it_is_under_way(tmp_path: Path) -> None:
    files = WatchedFiles()
    with serving(tmp_path, files) as (server, client):
        pull(client, "t", IDS, create=True)
        before = files.syncs
        files.under_way.clear()
        files.go.clear()
        pending = [client.submit_push(push_of(1, IDS, 1))]
        assert files.under_way.wait(30)
        pending += [client.submit_push(push_of(seq, IDS, 1)) for seq in range(2, 10)]
        # It applies what it cannot acknowledge yet, and answers what changes nothing.
        while server.service.clients().get(0) != (0, 9):
            assert client.stats()["t"].rows == 100
        assert server.epoch == 0
        files.go.set()
        assert [outcome(p.result()) for p in pending] == [(100, {}, False)] * 9
        assert files.syncs - before == 2


def test_nothing_is_acknowledged_before_it_is_on_disk(tmp_path: Path) -> None:
    files = WatchedFiles()
    with serving(tmp_path, files) as (_, client):
        pull(client, "t", IDS, create=True)
        files.go.clear()
        acks: list[Any] = []
        thread = threading.Thread(target=lambda: acks.append(client.push(push_of(1, IDS, 1))))
        thread.start()
        thread.join(0.5)  # long enough for it to be asked again, several times
        assert acks == []
        files.go.set()
        thread.join()
        assert outcome(acks[0]) == (100, {}, False)


def test_a_disk_that_cannot_sync_is_told_and_nothing_more_is_acknowledged(tmp_path: Path) -> None:
    files = WatchedFiles()
    with serving(tmp_path, files) as (_, client):
        pull(client, "t", IDS, create=True)
        files.fails = "sync"
        for seq in (1, 2):
            with pytest.raises(ServiceError, match=r"cannot be synced: Input/output error.*start the server again"):
                client.push(push_of(seq, IDS, 1))
        assert pull(client, "t", IDS).shape == (100, 2)
    files.fails = None
    with serving(tmp_path, files) as (_, client):
        assert client.stats()["t"].rows == 100


@pytest.mark.parametrize("level", ["process", "disk"])
def test_a_full_disk_is_told_and_leaves_the_rows_as_they_were(level: str, tmp_path: Path) -> None:
    files = WatchedFiles()
    with serving(tmp_path, files, level) as (_, client):
        pull(client, "t", IDS, create=True)
        client.push(push_of(1, IDS, 1))
        files.fails = "write"
        with pytest.raises(ServiceError, match=r"No space left on device\. What was asked was not done"):
            client.push(push_of(2, IDS, 5))
        assert (pull(client, "t", IDS) == -1).all()
        files.fails = None
        assert outcome(client.push(push_of(2, IDS, 5))) == (100, {}, False)
    with serving(tmp_path, files, level) as (_, client):
        assert (pull(client, "t", IDS) == -6).all()
        assert outcome(client.push(push_of(2, IDS, 5))) == (0, {}, True)


def test_a_server_that_was_stopped_goes_on_where_it_was(tmp_path: Path) -> None:
    with serving(tmp_path, WatchedFiles(), "process") as (server, client):
        pull(client, "t", IDS, create=True)
        client.push(push_of(1, IDS, 1))
        server.snapshot()
        client.push(push_of(2, IDS, 1))
        life = server.life
    with serving(tmp_path, WatchedFiles(), "process") as (server, client):
        assert server.life == life
        assert server.recovered is not None
        assert server.recovered.snapshot_bytes > 0
        assert server.recovered.records == 1
        assert (pull(client, "t", IDS) == -2).all()
        text = server.metrics()
        assert 'satrap_history_bytes{part="snapshot"}' in text


def test_a_placement_renewed_survives_and_its_rows_are_gone(tmp_path: Path) -> None:
    with serving(tmp_path, WatchedFiles(), "process") as (server, client):
        pull(client, "t", IDS, create=True)
        client.push(push_of(1, IDS, 1))
        server.renew(3)
        assert server.service.stats()["t"].rows == 0
    keeping = Keeping(folder=tmp_path)
    with Server([exact()], seed=0, partitions=8, threads=1, keeping=keeping, epoch=3) as server:
        assert server.epoch == 3
        assert server.service.stats()["t"].rows == 0
        assert server.service.clients() == {}
